"""Videos to a clip store.

    python -m data.ingest ucf101|hmdb51|kinetics --videos DIR --lists DIR --out STORE [--size 128x171] [--codec raw]
    python -m data.ingest folder --videos DIR --out STORE
    python -m data.ingest module:function --videos DIR [--lists DIR] --out STORE      a catalog of your own

    catalog (which files, classes, subsets)  ->  DecodePool (child processes)  ->  StoreWriter  ->  STORE

A video that cannot be used is listed with its reason and the rest is ingested. The store appears whole at the end, or
not at all; the same files make the same store, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.catalogs import Catalog
from data.catalogs.commands import LAYOUTS, Ingest, with_plugin_named
from data.decode import RESIZE, decode
from data.decode_pool import DecodePool, Failure
from data.errors import DataError, StoreError
from data.segments import Payload, encode
from data.store import Skipped, StoreWriter

Decoder = Callable[[Path, tuple[int, int]], NDArray[np.uint8]]
TUPLE_SPANS = (46, 64)  # frames of a tuple in the presets paper and pcl
_TUPLES = {46: "--clip-len 10 (the default)", 64: "--clip-len 16 (preset pcl)"}
_SIDES = (16, 4096)
_SHOWN = 20  # skipped videos that the summary names; the store keeps them all


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. num_short: for each of TUPLE_SPANS, the videos with fewer frames; warnings: the catalog's."""

    path: Path
    fingerprint: str
    num_videos: int
    num_frames: int
    num_bytes: int
    seconds: float
    num_short: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Videos that were looked at, of how many, and how many of those were skipped."""

    done: int
    total: int
    skipped: int


def ingest_catalog(
    catalog: Catalog,
    out: Path | str,
    *,
    frame_size: tuple[int, int],
    codec: str = "raw",
    workers: int | None = None,
    timeout_s: float = 60.0,
    decoder: Decoder = decode,
    on_progress: Callable[[Progress], None] | None = None,
) -> IngestReport:
    """Decode every video of the catalog to frame_size (height, width) and publish a store at `out`.

    workers: child processes, by default one per core; timeout_s: limit per video, seconds. A `decoder` other than the
    usual one must be importable. Raises StoreError when there is a store already or no video could be used.
    """
    started = time.monotonic()
    check_frame_size(frame_size)
    num_workers = workers if workers is not None else len(os.sched_getaffinity(0))
    tasks = [(entry.file, frame_size) for entry in catalog.entries]
    skipped: list[Skipped] = []
    num_frames: list[int] = []
    num_bytes = 0
    with (
        StoreWriter(out, frame_size, codec, catalog.classes, resize=RESIZE) as writer,
        DecodePool(partial(_decode_payload, decoder, codec), num_workers, timeout_s) as pool,
    ):
        for entry, result in zip(catalog.entries, pool.map(tasks), strict=True):
            if isinstance(result, Failure):
                skipped.append(Skipped(f"{entry.file.parent.name}/{entry.file.name}", result.reason))
            else:
                writer.add_payload(entry.key, entry.label, entry.group, result)
                num_frames.append(result.num_frames)
                num_bytes += result.data.nbytes
            if on_progress is not None:
                on_progress(Progress(len(num_frames) + len(skipped), len(tasks), len(skipped)))
        if not num_frames:
            raise StoreError(str(out), _none_usable(skipped))
        fingerprint = writer.commit(catalog.subsets, skipped)
    short = tuple(sum(n < span for n in num_frames) for span in TUPLE_SPANS)
    seconds = time.monotonic() - started
    counts = (len(num_frames), sum(num_frames), num_bytes)
    return IngestReport(writer.path, fingerprint, *counts, seconds, short, tuple(skipped), catalog.warnings)


def parse_size(text: str) -> tuple[int, int]:
    """'128x171' as (height, width). Raises DataError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    if match is None:
        raise DataError(f"--size must be HEIGHTxWIDTH in pixels, such as 128x171, got {text!r}")
    size = (int(match[1]), int(match[2]))
    check_frame_size(size)
    return size


def check_frame_size(frame_size: tuple[int, int]) -> None:
    """Raise DataError for frames that no crop fits into, or that nobody can want."""
    low, high = _SIDES
    if not all(low <= side <= high for side in frame_size):
        raise DataError(f"frame height and width must lie in {low} to {high}, got {frame_size[0]}x{frame_size[1]}")


def _decode_payload(decoder: Decoder, codec: str, file: Path, frame_size: tuple[int, int]) -> Payload:
    """Runs in the children: encoding costs as much as decoding."""
    return encode(decoder(file, frame_size), codec)


def _none_usable(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return "the catalog lists no video, nothing was written"
    file, reason = skipped[0]
    return f"none of the {len(skipped)} listed videos can be used, nothing was written; the first is {file}: {reason}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 with a store, 1 without, 130 after Ctrl-C."""
    import tyro

    command = tyro.extras.subcommand_cli_from_dict(
        LAYOUTS,
        prog="python -m data.ingest",
        description="Videos to a clip store.",
        args=with_plugin_named(sys.argv[1:] if arguments is None else arguments),
    )
    try:
        _run(command)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: nothing was written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def _run(command: Ingest) -> None:
    frame_size = parse_size(command.size)
    catalog = command.catalog()
    with _progress_display() as show:
        report = ingest_catalog(
            catalog,
            command.out,
            frame_size=frame_size,
            codec=command.codec,
            workers=command.workers,
            timeout_s=command.timeout_s,
            on_progress=show,
        )
    text = "\n".join(summary(report))
    print(text.encode("utf-8", "backslashreplace").decode())  # a skipped file's name need not be UTF-8


def summary(report: IngestReport) -> list[str]:
    """Lines for a person."""
    rate = report.num_videos / max(report.seconds, 1e-9)
    lines = [
        f"store {report.path}",
        f"  fingerprint {report.fingerprint}",
        f"  {report.num_videos} videos, {report.num_frames} frames, {report.num_bytes / 1e6:.1f} MB "
        f"in {report.seconds:.1f} s ({rate:.0f} videos/s)",
    ]
    for span, count in zip(TUPLE_SPANS, report.num_short, strict=True):
        if count:
            lines.append(
                f"  warning: {count} videos have fewer than {span} frames, which a tuple needs at {_TUPLES[span]}"
            )
    lines += [f"  warning: {warning}" for warning in report.warnings]
    if report.skipped:
        lines.append(f"  skipped {len(report.skipped)} videos:")
        lines += [f"    {entry.file}: {entry.reason}" for entry in report.skipped[:_SHOWN]]
    if len(report.skipped) > _SHOWN:
        lines.append(f"    and {len(report.skipped) - _SHOWN} more; the store's manifest lists them all")
    return lines


@contextlib.contextmanager
def _progress_display() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line for each tenth otherwise."""
    if not sys.stdout.isatty():
        yield _print_tenths
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("")
        yield lambda p: bar.update(task, completed=p.done, total=p.total, description=f"{p.skipped} skipped")


def _print_tenths(progress: Progress) -> None:
    done, total = progress.done, progress.total
    if done == total or done * 10 // total > (done - 1) * 10 // total:
        print(f"ingest: {done} of {total} videos, {progress.skipped} skipped", flush=True)


if __name__ == "__main__":
    sys.exit(main())
