"""Ledgers on disk: the answers of one teacher digest, recorded once and read by everyone.

    LEDGERS/<name>@<version>-<first 12 of the digest>/ledger.json      who answered, and on what; published once
                                                     /<uuid>.arrow     answers, see ledger_segments; immutable

    record(...) ──► pending rows ── flush() ──► a new segment ─┐
    find(...)   ◄── pending rows, else the digest tables ◄─────┴── refresh(): segments of all writers

Several processes may write at once, because every segment has a name of its own. A writer that is killed loses its
pending rows and nothing else. The temporary file that it may leave is removed by a later writer. Needs no torch.

Axis letters: I items, V views per item, K classes, D features.
"""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.atomic import TEMPORARY_SUFFIX, publish_new, sync_folder
from data.render import RENDERER
from data.views import SCHEMA
from teacher_server.errors import LedgerError
from teacher_server.ledger.digest_table import DIGEST_DTYPE, DigestTable
from teacher_server.ledger.segments import (
    SUFFIX,
    Origin,
    Rows,
    Segment,
    SegmentDamaged,
    parse_sealed,
    read_segment,
    seal,
    write_segment,
)
from teacher_server.protocol import NAME_PATTERN, TeacherId

FORMAT = 1
HEADER = "ledger.json"
REFRESH_PERIOD_S = 1.0
_STALE_S = 3600.0  # writing a segment takes a second; a temporary file of this age has no writer any more
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LedgerHeader:
    """Everything that all answers of a ledger have in common. renderer, view_schema: of the program that recorded."""

    teacher: str
    digest: str
    engine: str
    views_per_item: int
    num_classes: int
    renderer: str = RENDERER
    view_schema: int = SCHEMA
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """The file's text."""
        return seal(asdict(self)) + b"\n"

    @property
    def fingerprint(self) -> str:
        """32 hex digits; every segment names it."""
        return xxhash.xxh3_128_hexdigest(self.to_bytes())

    def differences(self, other: LedgerHeader) -> str:
        """What the other one has instead, as one phrase; empty when they are equal."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]
        return ", ".join(f"{name} {getattr(self, name)} (now {getattr(other, name)})" for name in names)


@dataclass(frozen=True)
class Answer:
    """Of one item: raw logits float32 [K], features float32 [D] or None."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None = None


def ledger_folder(root: Path, teacher: TeacherId, digest: str) -> Path:
    """Where the ledger of a teacher digest lies. Raises LedgerError for a name or digest that is none."""
    if not NAME_PATTERN.fullmatch(teacher.name) or not _DIGEST.fullmatch(digest):
        raise LedgerError(str(root), f"{teacher} with digest {digest!r} is no teacher: expected 64 hex digits")
    return root / f"{teacher}-{digest[:12]}"


def ledger_folders(root: Path) -> list[Path]:
    """All ledgers in a folder, sorted by name; none when it does not exist."""
    return sorted(path.parent for path in root.glob(f"*/{HEADER}"))


def no_ledger(root: Path, teacher: TeacherId, digest: str) -> LedgerError:
    """The error for a teacher digest without a ledger: what there is instead, and what to do."""
    others = [path.name for path in ledger_folders(root) if path.name.startswith(f"{teacher.name}@")]
    return LedgerError(
        str(root),
        f"there is none for {teacher} with digest {digest[:12]}; of that teacher there are: "
        f"{', '.join(others) or 'none'}. Record one first (--ledger auto), or ask for a version that was recorded",
    )


OnDamage = Callable[[LedgerError], None]


def refuse(error: LedgerError) -> None:
    """Raises it."""
    raise error


def leave_out(error: LedgerError) -> None:
    """Warns of it."""
    warnings.warn(str(error), stacklevel=2)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes a LedgerError."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            str(folder),
            f"the disk refuses ({error.strerror or error}): make room, or check who may write there; "
            "what was recorded before is whole",
        ) from error


class Ledger:
    """The ledger in one folder. Used by one thread at a time.

    on_damage: gets a LedgerError for each segment that is damaged or foreign. It raises that; or it returns, and then
    the segment is left out, and its items count as not recorded.
    """

    def __init__(
        self, folder: Path, header: LedgerHeader, on_damage: OnDamage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use `Ledger.open` or `Ledger.create`."""
        self.folder = folder
        self.header = header
        self.segments: list[Segment] = []
        self._fingerprint = header.fingerprint
        self._on_damage = on_damage
        self._clock = clock
        self._scanned = -np.inf
        self._seen: set[str] = set()
        self._tables: dict[tuple[tuple[int, int], bool], DigestTable] = {}  # frame size, with features
        self._pending: dict[tuple[Origin, bool], dict[bytes, tuple[NDArray[np.void], Answer]]] = {}
        self.refresh(force=True)

    @classmethod
    def open(cls, folder: Path, on_damage: OnDamage) -> Ledger:
        """Raises LedgerError when there is none, it is damaged, or another program version rendered its views."""
        return cls(folder, read_header(folder), on_damage)

    @classmethod
    def create(cls, folder: Path, header: LedgerHeader, on_damage: OnDamage) -> Ledger:
        """Opens the ledger for writing; makes it when there is none. Raises OSError.

        Raises LedgerError, with the differences, when one lies there that was recorded from something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / HEADER).exists():
            publish_new(folder / HEADER, header.to_bytes())  # False: another writer was first, and is compared below
            sync_folder(folder.parent)
        _remove_stale(folder)
        ledger = cls.open(folder, on_damage)
        ledger.check_header(header)
        return ledger

    def check_header(self, header: LedgerHeader) -> None:
        """Raises LedgerError unless answers under this header belong into this ledger."""
        if differences := self.header.differences(header):
            raise LedgerError(
                str(self.folder), f"it was recorded with {differences}: move it away, or ask as it was recorded"
            )

    def __len__(self) -> int:
        """Answers in segments."""
        return sum(len(segment) for segment in self.segments)

    @property
    def num_pending(self) -> int:
        """Answers that only this object holds."""
        return sum(len(rows) for rows in self._pending.values())

    def find(self, digests: Sequence[bytes], frame_size: tuple[int, int], *, features: bool) -> list[Answer | None]:
        """The answer to each item, None where there is none. features: only answers that have them count."""
        table = self._tables.get((frame_size, features))
        keys = np.frombuffer(b"".join(digests), dtype=DIGEST_DTYPE)
        places = table.find(keys).tolist() if table is not None else [-1] * len(digests)
        return [
            self._at(place) if place >= 0 else self._find_pending(digest, frame_size, features)
            for digest, place in zip(digests, places, strict=True)
        ]

    def record(self, origin: Origin, digest: bytes, views: NDArray[np.void], answer: Answer) -> bool:
        """Notes an answer for the next flush. False when it is there already.

        views: VIEW_DTYPE [V]. Raises ValueError for an answer that is not finite or has another shape.
        """
        shapes_fit = answer.logits.shape == (self.header.num_classes,) and views.shape == (self.header.views_per_item,)
        numbers = [answer.logits] if answer.features is None else [answer.logits, answer.features]
        if not shapes_fit or not all(np.isfinite(array).all() for array in numbers):
            raise ValueError(f"only whole, finite answers to items of {self.header.views_per_item} views are recorded")
        has_features = answer.features is not None
        if self.find([digest], origin.frame_size, features=has_features)[0] is not None:
            return False
        self._pending.setdefault((origin, has_features), {})[digest] = (views, answer)
        return True

    def flush(self) -> None:
        """Publishes the pending rows; they are durable when this returns. Raises OSError: then they are pending still,
        and what was published before is whole."""
        for key, rows in list(self._pending.items()):
            write_segment(self.folder, self._fingerprint, key[0], _as_rows(rows))
            del self._pending[key]
            self.refresh(force=True)

    def refresh(self, *, force: bool = False) -> None:
        """Takes in segments that appeared since; unless forced, at most every REFRESH_PERIOD_S seconds."""
        if not force and self._clock() - self._scanned < REFRESH_PERIOD_S:
            return
        self._scanned = self._clock()
        names = {path.name for path in self.folder.iterdir() if path.suffix == SUFFIX and path.name[0] != "."}
        for name in sorted(names - self._seen):
            self._take_in(self.folder / name)
            self._seen.add(name)

    def _take_in(self, path: Path) -> None:
        try:
            segment = read_segment(path, self._fingerprint)
            if segment.rows.logits.shape[1] != self.header.num_classes:
                raise SegmentDamaged(f"it has {segment.rows.logits.shape[1]} classes")
        except SegmentDamaged as error:
            reason = f"{path.name} cannot be used: {error}; restore it from a copy, or remove it and record again"
            self._on_damage(LedgerError(str(self.folder), reason))
            return
        places = np.arange(len(segment), dtype=np.int64) + (len(self.segments) << 32)
        self.segments.append(segment)
        for features in (False, True) if segment.rows.features is not None else (False,):
            table = self._tables.setdefault((segment.origin.frame_size, features), DigestTable())
            table.add(segment.rows.digests, places)

    def _at(self, place: int) -> Answer:
        rows, row = self.segments[place >> 32].rows, place & 0xFFFFFFFF
        return Answer(rows.logits[row], rows.features[row] if rows.features is not None else None)

    def _find_pending(self, digest: bytes, frame_size: tuple[int, int], features: bool) -> Answer | None:
        for (origin, has_features), rows in self._pending.items():
            if digest in rows and origin.frame_size == frame_size and has_features >= features:
                return rows[digest][1]
        return None


def read_header(folder: Path) -> LedgerHeader:
    """Who answered in this ledger. Raises LedgerError when that cannot be read or this program cannot use it."""
    path = folder / HEADER
    try:
        text = path.read_bytes()
        header = LedgerHeader(**parse_sealed(text))
        if header.to_bytes() != text:
            raise ValueError("its checksum does not match")
    except OSError as error:
        raise LedgerError(str(folder), f"{HEADER} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(
            str(folder), f"{HEADER} is damaged ({error}); restore it from a copy, or move the ledger away"
        ) from None
    for name, ours in (("format", FORMAT), ("renderer", RENDERER), ("view_schema", SCHEMA)):
        if getattr(header, name) != ours:
            raise LedgerError(
                str(folder),
                f"it was recorded with {name} {getattr(header, name)}, this program has {ours}: "
                "move it away and record again",
            )
    return header


def _as_rows(pending: dict[bytes, tuple[NDArray[np.void], Answer]]) -> Rows:
    answers = [answer for _, answer in pending.values()]
    features = [answer.features for answer in answers if answer.features is not None]
    return Rows(
        digests=np.frombuffer(b"".join(pending), dtype=DIGEST_DTYPE),
        views=np.stack([views for views, _ in pending.values()]),
        logits=np.stack([answer.logits for answer in answers]).astype(np.float32, copy=False),
        features=np.stack(features).astype(np.float32, copy=False) if features else None,
    )


def _remove_stale(folder: Path) -> None:
    """What writers that were killed have left; those of living writers are younger."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # its writer, or another cleaner, was faster
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
