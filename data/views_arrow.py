"""A ViewBatch as an Arrow IPC stream and back: for HTTP, where callers write other languages too.

    schema (a column per field of VIEW_DTYPE; metadata: view schema, views per item, store) | one record batch | end

Nothing else is read: no other columns, types, metadata, nulls, dictionaries, compression or second batch. So a stream
of at most MAX_BYTES never takes much more memory than its own size, and what passes is exactly a ViewBatch. Whether its
numbers make sense for a store, the store and the renderer check.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pyarrow as pa

from data.errors import ViewError
from data.views import SCHEMA, VIEW_DTYPE, ViewBatch

MAX_VIEWS = 1 << 14
MAX_BYTES = 1 << 20  # MAX_VIEWS views take 0.7 MiB; the schema and its metadata about 3 kB
_VIEW_SCHEMA, _VIEWS_PER_ITEM, _STORE = b"preceptor.view_schema", b"preceptor.views_per_item", b"preceptor.store"
_OPERATION = b"preceptor.operation"  # only there when the batch names one
_FIELDS = VIEW_DTYPE.names or ()
_COLUMNS = pa.schema([pa.field(name, pa.from_numpy_dtype(VIEW_DTYPE[name]), nullable=False) for name in _FIELDS])
_COUNT = re.compile(rb"[1-9][0-9]{0,4}")
_FINGERPRINT = re.compile(rb"[0-9a-f]{32}")
_MOST_PER_ITEM = 0xFFFF


def to_arrow(batch: ViewBatch) -> bytes:
    """The stream. Raises ViewError for more than MAX_VIEWS views."""
    if len(batch) > MAX_VIEWS:
        raise ViewError(f"at most {MAX_VIEWS} views go into one stream, got {len(batch)}: send fewer at a time")
    metadata = {
        _VIEW_SCHEMA: str(SCHEMA).encode(),
        _VIEWS_PER_ITEM: str(batch.views_per_item).encode(),
        _STORE: batch.store_fingerprint.encode(),
    }
    if batch.operation:
        metadata[_OPERATION] = batch.operation.encode("ascii")
    schema = _COLUMNS.with_metadata(metadata)
    columns = [pa.array(np.ascontiguousarray(batch.records[name])) for name in _FIELDS]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def from_arrow(blob: bytes | memoryview) -> ViewBatch:
    """The inverse of `to_arrow`; takes every encoding of these columns that Arrow allows without compression.

    Raises ViewError for anything else.
    """
    if len(blob) > MAX_BYTES:
        raise ViewError(f"a stream of views takes at most {MAX_BYTES} bytes, got {len(blob)}: send fewer at a time")
    try:
        schema, columns = _read(pa.BufferReader(pa.py_buffer(blob)))
    except StopIteration:
        raise ViewError("this is no Arrow IPC stream of views: it ends before the record batch") from None
    except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ViewError(f"this is no Arrow IPC stream of views: {reason}") from None
    views_per_item, fingerprint, operation = _parse_metadata(schema.metadata)
    records = np.empty(columns.num_rows, VIEW_DTYPE)
    for name, column in zip(_FIELDS, columns.columns, strict=True):
        records[name] = column.to_numpy(zero_copy_only=True)
    return ViewBatch(records, views_per_item, fingerprint, operation)


def _read(stream: Any) -> tuple[Any, Any]:
    """Schema and record batch, checked. Raises ValueError and what Arrow raises."""
    messages = pa.ipc.MessageReader.open_stream(stream)
    head = messages.read_next_message()
    if head.type != "schema":
        raise ValueError(f"it begins with a message of type {head.type}")
    schema = pa.ipc.read_schema(head)
    if not schema.equals(_COLUMNS):
        raise ValueError(f"its columns are not those of a view: expected {', '.join(_FIELDS)}, of the right types")
    body = messages.read_next_message()
    if body.type != "record batch":
        raise ValueError(f"its second message is of type {body.type}")
    if _is_compressed(body.metadata):
        raise ValueError("it is compressed")
    batch = pa.ipc.read_record_batch(body, schema)
    if batch.num_rows > MAX_VIEWS:
        raise ValueError(f"at most {MAX_VIEWS} views, got {batch.num_rows}")
    batch.validate(full=True)
    if any(column.null_count for column in batch.columns):
        raise ValueError("it holds nulls")
    _check_end(messages, stream)
    return schema, batch


def _check_end(messages: Any, stream: Any) -> None:
    """The end-of-stream marker may be left out, as Arrow allows; anything else may not follow."""
    try:
        messages.read_next_message()
    except StopIteration:
        if stream.tell() == stream.size():
            return
    raise ValueError("something follows the record batch")


def _parse_metadata(metadata: dict[bytes, bytes] | None) -> tuple[int, str, str]:
    """Views per item, the store's fingerprint, the name of an operation or nothing."""
    found = dict(metadata or {})
    operation = found.pop(_OPERATION, b"").decode("latin-1")
    count, fingerprint = found.get(_VIEWS_PER_ITEM, b""), found.get(_STORE, b"")
    if found.keys() != {_VIEW_SCHEMA, _VIEWS_PER_ITEM, _STORE} or found[_VIEW_SCHEMA] != str(SCHEMA).encode():
        raise ViewError(f"expected the schema's metadata of views of schema {SCHEMA}, got {str(found)[:200]}")
    if not _COUNT.fullmatch(count) or int(count) > _MOST_PER_ITEM or not _FINGERPRINT.fullmatch(fingerprint):
        raise ViewError(f"views per item and store must be a number and 32 hex digits, got {str(found)[:200]}")
    return int(count), fingerprint.decode(), operation


_HEADER_FIELD = 2  # of the flatbuffer table Message
_COMPRESSION_FIELD = 3  # of the flatbuffer table RecordBatch


def _is_compressed(metadata: Any) -> bool:
    """Whether a record batch message says that its buffers are compressed; unpacking could take any amount of memory.

    pyarrow does not tell, so the flatbuffer is read here; pyarrow has verified its offsets before.
    """
    table = _u32(metadata, 0)
    header = table + _field(metadata, table, _HEADER_FIELD)
    batch = header + _u32(metadata, header)
    return _field(metadata, batch, _COMPRESSION_FIELD) != 0


def _field(metadata: Any, table: int, index: int) -> int:
    """Offset of a field from its table; 0 when it is left out."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    slot = 4 + 2 * index
    size, *_ = struct.unpack_from("<H", metadata, vtable)
    return struct.unpack_from("<H", metadata, vtable + slot)[0] if slot < size else 0


def _u32(metadata: Any, offset: int) -> int:
    return int(struct.unpack_from("<I", metadata, offset)[0])
