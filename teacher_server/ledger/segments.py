"""Segments of a ledger: immutable Arrow IPC files with a row for each recorded answer.

    digest    fixed_size_binary(16)         the item digest (data.views)
    views     fixed_size_binary(44 * V)     the item's packed views, so that the teacher can be asked again
    logits    fixed_size_list<float>[K]     raw, not softened
    features  fixed_size_list<float>[D]     only in segments that were recorded with them

Arrow checks structure, not content, so the schema carries a *seal*: canonical JSON that says which ledger and store
the rows belong to, with a checksum over itself and the bytes of all columns. It is compared when a file is opened. A
segment is serialised in memory, fsynced under a temporary name, published under a new one and never changed afterwards.

Axis letters: I items, V views per item, K classes, D features.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from data.atomic import publish_new
from data.views import VIEW_DTYPE
from teacher_server.ledger.digest_table import DIGEST_DTYPE

SUFFIX = ".arrow"
_SEAL_KEY = b"preceptor.ledger"


class SegmentDamaged(ValueError):
    """A file is not a segment of this ledger as it was written. The ledger turns it into LedgerError."""


@dataclass(frozen=True)
class Origin:
    """The store that views were drawn from. Equal item digests mean equal pixels only with equal frame sizes,
    because a video's content hash covers its bytes and not their shape. frame_size: (height, width)."""

    store_path: str
    store_fingerprint: str
    frame_size: tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """I recorded answers. digests: DIGEST_DTYPE [I]; views: VIEW_DTYPE [I, V]; logits: float32 [I, K], raw;
    features: float32 [I, D] or None."""

    digests: NDArray[np.bytes_]
    views: NDArray[np.void]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays by column name, in the file's order."""
        columns = {"digest": self.digests, "views": self.views, "logits": self.logits}
        return columns if self.features is None else {**columns, "features": self.features}


@dataclass(frozen=True)
class Segment:
    """An opened segment. Its arrays are read-only windows into the mapped file."""

    path: Path
    origin: Origin
    rows: Rows
    num_bytes: int

    def __len__(self) -> int:
        return len(self.rows.digests)


def write_segment(folder: Path, ledger: str, origin: Origin, rows: Rows) -> Path:
    """Publishes a new segment, durable when this returns. ledger: fingerprint of the ledger that it belongs to.

    Raises OSError, and then nothing lies there but what lay there before.
    """
    columns = {name: np.ascontiguousarray(column) for name, column in rows.columns().items()}
    shape = {"rows": len(rows.digests), "views_per_item": rows.views.shape[1], "num_classes": rows.logits.shape[1]}
    feature_size = 0 if rows.features is None else rows.features.shape[1]
    body = {"ledger": ledger, "origin": asdict(origin), **shape, "feature_size": feature_size}
    schema = _schema(body).with_metadata({_SEAL_KEY: seal(body, columns.values())})
    arrays = [_array(schema.field(name).type, column) for name, column in columns.items()]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    if not publish_new(path, sink.getvalue().to_pybytes()):
        raise FileExistsError(f"{path} exists already: a random name was drawn twice")
    return path


def read_segment(path: Path, ledger: str) -> Segment:
    """The segment at `path`, its checksum compared.

    Raises SegmentDamaged for anything but a whole segment of the ledger with that fingerprint.
    """
    try:
        num_bytes = path.stat().st_size
        with pa.memory_map(str(path), "r") as mapped:
            contents = mapped.read_buffer()  # outlives the file object: no descriptor stays open
        reader = pa.ipc.open_file(pa.BufferReader(contents))
        text = (reader.schema.metadata or {})[_SEAL_KEY]
        body = parse_sealed(text)
        if reader.num_record_batches != 1 or not reader.schema.equals(_schema(body)):
            raise SegmentDamaged("its columns are not those of a ledger")
        columns = _columns(reader.get_batch(0), body)
        if seal(body, columns.values()) != text:
            raise SegmentDamaged("it does not match its checksum")
        origin = Origin(**{**body["origin"], "frame_size": tuple(body["origin"]["frame_size"])})
    except SegmentDamaged:
        raise
    except _READ_ERRORS as error:
        brief = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SegmentDamaged(f"it is no sound segment ({brief})") from error
    if body["ledger"] != ledger:
        raise SegmentDamaged("it belongs to another ledger (other weights, engine or renderer)")
    rows = Rows(columns["digest"], columns["views"], columns["logits"], columns.get("features"))
    return Segment(path, origin, rows, num_bytes)


def seal(body: Mapping[str, Any], covered: Iterable[NDArray[Any]] = ()) -> bytes:
    """Canonical JSON of `body` with a checksum, xxh3_128 over that text and the bytes of the covered arrays."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    digest = xxhash.xxh3_128(text)
    for array in covered:
        digest.update(array.view(np.uint8).reshape(-1).data)
    return b'{"checksum":"%s",%s' % (digest.hexdigest().encode("ascii"), text[1:])


def parse_sealed(text: bytes) -> dict[str, Any]:
    """The body of a sealed text. The caller compares: the text must equal `seal` of body and covered arrays.

    Raises ValueError, KeyError, TypeError.
    """
    body: dict[str, Any] = json.loads(text)
    del body["checksum"]
    return body


def _schema(body: Mapping[str, Any]) -> pa.Schema:
    kinds = {
        "digest": pa.binary(DIGEST_DTYPE.itemsize),
        "views": pa.binary(VIEW_DTYPE.itemsize * body["views_per_item"]),
        "logits": pa.list_(pa.float32(), body["num_classes"]),
    }
    if body["feature_size"]:
        kinds["features"] = pa.list_(pa.float32(), body["feature_size"])
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _array(kind: pa.DataType, column: NDArray[Any]) -> pa.Array:
    buffer = pa.py_buffer(column)
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(column), [None, buffer])
    return pa.FixedSizeListArray.from_arrays(
        pa.Array.from_buffers(pa.float32(), column.size, [None, buffer]), type=kind
    )


def _columns(batch: pa.RecordBatch, body: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The data buffers as arrays; whatever else Arrow's metadata claims of them is not used."""
    count, views = body["rows"], body["views_per_item"]
    layouts: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "digest": (DIGEST_DTYPE, (count,)),
        "views": (VIEW_DTYPE, (count, views)),
        "logits": (np.dtype("<f4"), (count, body["num_classes"])),
        "features": (np.dtype("<f4"), (count, body["feature_size"])),
    }
    if batch.num_rows != count or count < 1:
        raise SegmentDamaged(f"it has {batch.num_rows} rows, {count} are recorded")
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        dtype, shape = layouts[name]
        flat = np.frombuffer(column.buffers()[-1], dtype, count=int(np.prod(shape)))
        columns[name] = flat.reshape(shape)
    return columns


# What damaged bytes raise: pyarrow's tree, and plain errors for I/O, sizes, JSON and columns that are not there.
_READ_ERRORS = (
    pa.ArrowException,
    OSError,
    MemoryError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
