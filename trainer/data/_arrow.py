"""Parquet and Arrow files group by group (row groups, record batches), and where in a file each cell's bytes lie.

An Arrow file that is not compressed holds a cell's bytes as they are: it is mapped to learn where, and read from there
later. A Parquet file, or a compressed Arrow file, has to be unpacked group by group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.artifacts.errors import BadInput
from trainer.data._decode import Place
from trainer.data._links import inside
from trainer.data._places import NOTHING, WHOLE

__all__ = ["Cells", "Spans", "Table", "open_table", "vector_type"]

_FLOATS = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}


class Spans(NamedTuple):
    """Where the cells of a group lie in the file: first byte and number of bytes, `NOTHING` for null."""

    start: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]


class Table(Protocol):
    """A file of rows in groups."""

    path: Path
    schema: pa.Schema
    num_groups: int

    def columns(self, group: int, names: Sequence[str]) -> dict[str, list[Any]]:
        """Cells of some columns of a group, as Python values."""
        ...

    def cells(self, group: int, name: str) -> pa.ChunkedArray:
        """A column of a group."""
        ...

    def spans(self, group: int, name: str) -> Spans | None:
        """Where the cells of a binary or vector column lie; None when that has to be unpacked."""
        ...


def open_table(path: Path) -> Table:
    """A Parquet file, an Arrow file or an Arrow stream. Raises BadInput for anything else."""
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic[:4] == b"PAR1":
            return _Parquet(path)
        if magic[:4] == b"FEA1":
            raise BadInput(f"{path}: Feather version 1; write it again with pyarrow.feather.write_feather.")
        return _Arrow(path, is_file=magic == b"ARROW1")
    except pa.ArrowException as broken:
        raise BadInput(f"{path}: not a readable Parquet or Arrow file ({broken}).") from broken


class _Parquet:
    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.schema, self.num_groups, self._metadata = file.schema_arrow, file.num_row_groups, file.metadata

    def _read(self, group: int, names: Sequence[str]) -> pa.Table:
        try:
            with pq.ParquetFile(self.path, metadata=self._metadata) as file:
                return file.read_row_group(group, columns=list(names))
        except (pa.ArrowException, OSError) as broken:
            raise BadInput(f"{self.path}: row group {group} cannot be read ({broken}); write it again.") from broken

    def columns(self, group: int, names: Sequence[str]) -> dict[str, list[Any]]:
        read = self._read(group, names)
        return {name: read[name].to_pylist() for name in names}

    def cells(self, group: int, name: str) -> pa.ChunkedArray:
        return self._read(group, [name])[name]

    def spans(self, group: int, name: str) -> Spans | None:
        return None


class _Arrow:
    def __init__(self, path: Path, *, is_file: bool) -> None:
        self.path = path
        with pa.memory_map(str(path)) as source:
            self._bytes = source.read_buffer(source.size())
        self._batches: list[pa.RecordBatch] = []
        if is_file:
            reader = pa.ipc.open_file(pa.BufferReader(self._bytes))
            self.num_groups = reader.num_record_batches
            self._packed = self.num_groups > 0 and not self._holds(reader.get_batch(0))
        else:
            reader = pa.ipc.open_stream(pa.BufferReader(self._bytes))
            for batch in reader:
                if not self._holds(batch):
                    raise BadInput(
                        f"{path}: a compressed Arrow stream, which can only be read from its start; write it without "
                        "compression, or as a file (pyarrow.ipc.new_file)."
                    )
                self._batches.append(batch)
            self.num_groups, self._packed = len(self._batches), False
        self.schema = reader.schema

    def _holds(self, batch: pa.RecordBatch) -> bool:
        """Whether what is in the batch is where it is in the file, rather than unpacked into memory of its own."""
        buffers = (buffer for column in batch.columns for buffer in column.buffers() if buffer is not None)
        return all(0 <= one.address - self._bytes.address < self._bytes.size for one in buffers if one.size)

    def _column(self, group: int, name: str) -> pa.Array:
        if self._batches:
            return self._batches[group].column(name)
        # Of a packed file only this column is unpacked; of another one, that would copy what can be used in its place.
        fields = [self.schema.get_field_index(name)] if self._packed else None
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        return pa.ipc.open_file(pa.BufferReader(self._bytes), options=options).get_batch(group).column(name)

    def columns(self, group: int, names: Sequence[str]) -> dict[str, list[Any]]:
        return {name: self._column(group, name).to_pylist() for name in names}

    def cells(self, group: int, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([self._column(group, name)])

    def spans(self, group: int, name: str) -> Spans | None:
        if self._packed:
            return None
        column = self._column(group, name)
        array = column.field("bytes") if pa.types.is_struct(column.type) else column
        found = _ranges(array)
        if found is None:
            return None
        data, start, size = found
        at = data.address - self._bytes.address if data is not None and data.size else 0
        if not 0 <= at < self._bytes.size:
            return None
        absent = pc.or_(column.is_null(), array.is_null()).to_numpy(zero_copy_only=False)
        return Spans(start + at, np.where(absent, NOTHING, size))


def _ranges(array: pa.Array) -> tuple[pa.Buffer | None, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """(data, first byte, bytes) of every cell of a binary or vector array; None for any other kind."""
    kind, buffers = array.type, array.buffers()
    if pa.types.is_fixed_size_list(kind):
        count, values = 1, array
        while pa.types.is_fixed_size_list(values.type):
            count, values = count * values.type.list_size, values.values
            if values.offset:
                return None
        if values.type not in _FLOATS:
            return None
        size = count * values.type.bit_width // 8
        rows = np.arange(len(array), dtype=np.int64) + array.offset
        return values.buffers()[-1], rows * size, np.full(len(array), size)
    long = pa.types.is_large_binary(kind) or pa.types.is_large_list(kind)
    if not (long or pa.types.is_binary(kind) or pa.types.is_list(kind)):
        return None
    all_edges: npt.NDArray[Any] = np.frombuffer(buffers[1], np.int64 if long else np.int32)
    edges = all_edges[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if array.values.type not in _FLOATS or array.values.offset:
            return None
        edges = edges * (array.values.type.bit_width // 8)
    return buffers[-1], edges[:-1], edges[1:] - edges[:-1]


def _vector_bytes(array: pa.Array) -> list[bytes | Place | None]:
    lengths = np.zeros(len(array), np.int64)
    present = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(array.type):
        values = array.flatten()
        while pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        lengths[present] = len(values) // max(int(present.sum()), 1)
    else:
        values = array.flatten()
        lengths[present] = array.value_lengths().drop_null().to_numpy()
    flat, edges = values.to_numpy(zero_copy_only=False), np.cumsum(lengths)
    return [
        flat[end - length : end].tobytes() if there else None
        for end, length, there in zip(edges.tolist(), lengths.tolist(), present.tolist(), strict=True)
    ]


def vector_type(kind: pa.DataType) -> tuple[np.dtype[Any], tuple[int, ...] | None] | None:
    """(dtype, shape) of the vectors in a column of that type, shape None where the type leaves it open; else None."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (np.dtype(_FLOATS[kind.value_type]), None) if kind.value_type in _FLOATS else None
    shape: list[int] = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return (np.dtype(_FLOATS[kind]), tuple(shape)) if shape and kind in _FLOATS else None


@dataclass
class Cells:
    """Images in tables that have to be unpacked: image `row` is cell `row_of[row]` of group `group[row]` of a table.

    The groups used last are kept, up to `cache` bytes. Paths in a struct are meant from `images`, or from the table.
    """

    tables: Sequence[Path]
    column: str
    table: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    row_of: npt.NDArray[np.int64]
    images: Path | None
    cache: int
    _kept: OrderedDict[tuple[int, int], pa.ChunkedArray] = field(default_factory=OrderedDict)
    _opened: dict[int, Table] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __len__(self) -> int:
        return len(self.table)

    def fetch(self, rows: npt.NDArray[np.int64]) -> list[bytes | Place | None]:
        found: list[bytes | Place | None] = [None] * len(rows)
        keys = np.stack([self.table[rows], self.group[rows]], 1)
        for key in np.unique(keys, axis=0):
            places = np.flatnonzero((keys == key).all(1))
            with self._lock:
                cells = self._cells(int(key[0]), int(key[1]))
            values = self._values(cells, self.row_of[rows[places]], int(key[0]))
            for place, value in zip(places.tolist(), values, strict=True):
                found[place] = value
        return found

    def missing(self) -> dict[int, str]:
        return {}

    def named(self, row: int) -> str:
        return f"{self.tables[int(self.table[row])]}, group {int(self.group[row])}, row {int(self.row_of[row])}"

    def _cells(self, table: int, group: int) -> pa.ChunkedArray:
        found = self._kept.pop((table, group), None)
        if found is None:
            if table not in self._opened:
                self._opened[table] = open_table(self.tables[table])
            found = self._opened[table].cells(group, self.column)
        self._kept[table, group] = found
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.cache:
            self._kept.popitem(last=False)
        return found

    def _values(self, cells: pa.ChunkedArray, rows: npt.NDArray[np.int64], table: int) -> list[bytes | Place | None]:
        if vector_type(cells.type) is not None:
            return _vector_bytes(cells.take(pa.array(rows)).combine_chunks())
        values = [cells[row].as_py() for row in rows.tolist()]
        if not pa.types.is_struct(cells.type):
            return values
        folder = self.tables[table].parent if self.images is None else self.images
        return [_of_struct(one, folder) for one in values]


def _of_struct(cell: dict[str, Any] | None, folder: Path) -> bytes | Place | None:
    """Hugging Face's {bytes, path}: the bytes, or else a file."""
    if not cell:
        return None
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    return (str(inside(folder, cell["path"])), 0, WHOLE) if cell.get("path") else None
