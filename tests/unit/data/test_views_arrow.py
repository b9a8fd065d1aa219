"""Views as an Arrow stream: exact both ways; everything else is a ViewError, and takes no memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ViewError
from data.views import VIEW_DTYPE, ViewBatch
from data.views_arrow import MAX_BYTES, MAX_VIEWS, from_arrow, to_arrow

FINGERPRINT = "0123456789abcdef" * 2


def random_views(num_views: int, views_per_item: int = 1, seed: int = 0) -> ViewBatch:
    """Any bits at all, NaN among them: the stream keeps them."""
    noise = np.random.default_rng(seed).bytes(num_views * VIEW_DTYPE.itemsize)
    return ViewBatch(np.frombuffer(noise, VIEW_DTYPE), views_per_item, FINGERPRINT)


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table_of(batch: ViewBatch) -> pa.Table:
    return pa.ipc.open_stream(to_arrow(batch)).read_all()


def assert_same(found: ViewBatch, expected: ViewBatch) -> None:
    assert found.to_bytes() == expected.to_bytes()


@pytest.mark.parametrize(("num_views", "views_per_item"), [(0, 3), (1, 1), (6, 3), (6, 6), (MAX_VIEWS, 1)])
def test_views_come_back_bit_for_bit(num_views: int, views_per_item: int) -> None:
    batch = random_views(num_views, views_per_item)
    assert_same(from_arrow(to_arrow(batch)), batch)


def test_any_arrow_reader_finds_a_column_per_field() -> None:
    batch = random_views(6, 3)
    table = table_of(batch)
    assert tuple(table.column_names) == VIEW_DTYPE.names
    for name in table.column_names:
        assert table[name].to_numpy().tobytes() == np.ascontiguousarray(batch.records[name]).tobytes()


def test_a_stream_that_another_writer_made_is_read() -> None:
    batch = random_views(6, 3)
    table = table_of(batch)
    without_end = written(table)[:-8]  # Arrow lets a stream end without its marker
    for blob in (written(table, use_legacy_format=False), without_end):
        assert_same(from_arrow(blob), batch)


def test_a_memoryview_is_read_as_bytes_are() -> None:
    blob = b"xxxx" + to_arrow(random_views(3))
    assert_same(from_arrow(memoryview(blob)[4:]), random_views(3))


def test_too_many_views_are_not_written() -> None:
    with pytest.raises(ViewError, match=f"at most {MAX_VIEWS} views"):
        to_arrow(random_views(MAX_VIEWS + 1))


Change = Callable[[pa.Table], pa.Table]


def with_metadata(**changes: str | None) -> Change:
    def change(table: pa.Table) -> pa.Table:
        found = {
            key.decode().removeprefix("preceptor."): value.decode() for key, value in table.schema.metadata.items()
        }
        kept = {f"preceptor.{key}": value for key, value in (found | changes).items() if value is not None}
        return table.replace_schema_metadata(kept)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.drop_columns(["hue"]), "columns are not those of a view"),
        (lambda table: table.rename_columns([*table.column_names[:-1], "other"]), "columns are not"),
        (lambda table: table.append_column("more", table["hue"]), "columns are not"),
        (lambda table: table.cast(table.schema.set(0, pa.field("video", pa.int64(), nullable=False))), "columns are"),
        (lambda table: pa.concat_tables([table, table]), "something follows"),
        (lambda table: table.replace_schema_metadata(None), "expected the schema's metadata"),
        (with_metadata(view_schema="2"), "expected the schema's metadata"),
        (with_metadata(more="1"), "expected the schema's metadata"),
        (with_metadata(views_per_item=None), "expected the schema's metadata"),
        (with_metadata(views_per_item="0"), "must be a number"),
        (with_metadata(views_per_item="99999"), "must be a number"),
        (with_metadata(views_per_item="4"), "6 views do not make whole items of 4"),
        (with_metadata(store="../" * 8), "32 hex digits"),
    ],
)
def test_a_stream_of_something_else_is_refused(change: Change, match: str) -> None:
    with pytest.raises(ViewError, match=match):
        from_arrow(written(change(table_of(random_views(6, 3)))))


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_stream_is_refused_before_it_is_unpacked(codec: str) -> None:
    """16 MiB of one value fit into a stream far below MAX_BYTES."""
    columns = [pa.array(np.zeros(1 << 19, VIEW_DTYPE[name].base)) for name in VIEW_DTYPE.names or ()]
    table = pa.Table.from_arrays(columns, schema=table_of(random_views(0)).schema)
    blob = written(table, compression=codec)
    assert len(blob) < MAX_BYTES
    before = pa.total_allocated_bytes()
    with pytest.raises(ViewError, match="compressed"):
        from_arrow(blob)
    assert pa.total_allocated_bytes() == before


def test_a_stream_with_nulls_is_refused() -> None:
    table = table_of(random_views(6))
    values = pa.array([None] * 6, pa.uint8())
    schema = table.schema
    batch = pa.RecordBatch.from_arrays(
        [values if name == "gray" else table[name].combine_chunks() for name in table.column_names], schema=schema
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(ViewError, match="null"):
        from_arrow(sink.getvalue().to_pybytes())


def test_an_oversized_stream_is_refused_unread() -> None:
    with pytest.raises(ViewError, match=f"at most {MAX_BYTES} bytes"):
        from_arrow(bytes(MAX_BYTES + 1))


def test_every_truncation_but_that_of_the_end_marker_is_refused() -> None:
    blob = to_arrow(random_views(6, 3))
    read = []
    for length in range(len(blob)):
        try:
            from_arrow(blob[:length])
        except ViewError:
            continue
        read.append(length)
    assert read == [len(blob) - 8]


@functools.cache
def sample() -> bytes:
    return to_arrow(random_views(6, 3))


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_damaged_streams_are_refused_or_are_whole_batches(data: st.DataObject) -> None:
    blob = bytearray(sample())
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    try:
        batch = from_arrow(bytes(blob))
    except ViewError:
        return
    assert len(batch) <= MAX_VIEWS
    assert_same(ViewBatch.from_bytes(batch.to_bytes()), batch)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_stream_are_refused(blob: bytes) -> None:
    with pytest.raises(ViewError):
        from_arrow(blob)
