"""A negative table as rows, whole anchors at a time: one of ours, or any Parquet file with the same columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import MANIFEST, Artifact, open_artifact
from miner.artifacts.negatives import FOOTER_KEY, NEGATIVES
from miner.artifacts.pairs import Direction, Within
from miner.artifacts.place import Place

__all__ = ["DIRECTIONS", "Lookup", "RowBlock", "Rows", "open_rows"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

DIRECTIONS: tuple[str, ...] = (*get_args(Direction), *get_args(Within))
_COLUMNS = ("anchor_id", "rank", "negative_id", "score", "lowest_positive")
_FILE = "negatives.parquet"
# Rows held at once: many small row groups are read together, a large one in several pieces.
_AT_ONCE = 1 << 20


class Lookup:
    """A number for every id: its row where the ids are known, the next free number where they are not."""

    def __init__(self, known: Ids | None = None) -> None:
        import pyarrow as pa

        self.ids: Any = pa.array([], pa.string()) if known is None else known.arrow
        self.num_known = len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self, ids: Any) -> Ints:
        """The number of every id of a pyarrow array of strings, -1 for a missing one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.index_in(ids, value_set=self.ids)
        new = pc.unique(ids.filter(pc.and_(pc.is_null(found), pc.is_valid(ids))))
        if len(new):
            self.ids = pa.concat_arrays([self.ids, new])
            found = pc.index_in(ids, value_set=self.ids)
        numbers = pc.if_else(pc.is_valid(ids), found, pa.scalar(-1, pa.int32()))
        return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.int64)

    def name(self, number: int) -> str | None:
        """The id of a number."""
        return None if number < 0 else str(self.ids[int(number)].as_py())


@dataclass(frozen=True)
class RowBlock:
    """Whole anchors as they stand in a file; a missing id is -1, a missing rank too, a missing score is nan.

    `anchors` (a,) are numbers of a `Lookup`; anchor i has the rows `offsets[i]` to `offsets[i + 1]`. `negatives`,
    `ranks`, `scores` and `lowest_positive` (n,) are by row, the first of which is row `first` of the file.
    """

    first: int
    anchors: Ints
    offsets: Ints
    negatives: Ints
    ranks: Ints
    scores: Floats
    lowest_positive: Floats

    @cached_property
    def counts(self) -> Ints:
        """(a,) how many rows an anchor has."""
        return np.diff(self.offsets)

    @cached_property
    def of(self) -> Ints:
        """(n,) which of `anchors` a row belongs to."""
        return np.repeat(np.arange(len(self.anchors)), self.counts)

    @cached_property
    def places(self) -> Ints:
        """(n,) how many rows of its anchor stand before a row."""
        return np.arange(len(self.negatives)) - self.offsets[:-1][self.of]

    def hardest(self, k: int) -> RowBlock:
        """The first k rows of every anchor."""
        return (
            self
            if self.counts.max(initial=0) <= k
            else self._of(self.anchors, np.minimum(self.counts, k), self.places < k)
        )

    def taken(self, anchors: Ints) -> RowBlock:
        """Some anchors (their places here), in this order."""
        counts = self.counts[anchors]
        starts = self.offsets[:-1][anchors] - (np.cumsum(counts) - counts)
        return self._of(self.anchors[anchors], counts, np.repeat(starts, counts) + np.arange(counts.sum()))

    def followed_by(self, other: RowBlock) -> RowBlock:
        """The anchors of both."""
        columns = ("anchors", "negatives", "ranks", "scores", "lowest_positive")
        joined: dict[str, Any] = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in columns}
        return replace(self, offsets=np.append(self.offsets, other.offsets[1:] + self.offsets[-1]), **joined)

    def _of(self, anchors: Ints, counts: Ints, rows: npt.NDArray[Any]) -> RowBlock:
        columns = ("negatives", "ranks", "scores", "lowest_positive")
        kept: dict[str, Any] = {name: getattr(self, name)[rows] for name in columns}
        return replace(self, anchors=anchors, offsets=np.concatenate([[0], np.cumsum(counts)]), **kept)


@dataclass(frozen=True)
class Rows:
    """A table that was found and opened. `artifact` is None, and `notes` say so, where nothing vouches for the bytes.

    `provenance` is what the footer says, empty where it says nothing; `direction` is None where that is not known.
    """

    where: str
    path: Path
    artifact: Artifact | None
    provenance: dict[str, Any]
    num_rows: int
    notes: list[str] = field(default_factory=list)

    @property
    def direction(self) -> str | None:
        said = self.provenance.get("direction")
        return str(said) if said in DIRECTIONS else None

    def k(self) -> int:
        """Negatives per anchor: as the provenance says, else the highest rank and one. Raises BadInput."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        said = self.provenance.get("k")
        if isinstance(said, int):
            return said
        try:
            with pq.ParquetFile(self.path) as file:
                highest = [pc.max(batch["rank"]).as_py() for batch in file.iter_batches(_AT_ONCE, columns=["rank"])]
        except _broken() as broken:
            raise _unreadable(self.path, broken) from broken
        return max((int(rank) for rank in highest if rank is not None), default=-1) + 1

    def blocks(self, anchors: Lookup, gallery: Lookup) -> Iterator[RowBlock]:
        """All rows, in the order of the file; memory is bounded by a million rows and one anchor.

        Raises BadInput for what cannot be read.
        """
        held: list[npt.NDArray[Any]] = []
        first = done = 0
        try:
            for piece in self._pieces():
                done += len(piece)
                columns = [
                    _numbers(piece["anchor_id"], anchors),
                    _numbers(piece["negative_id"], gallery),
                    _filled(piece["rank"], -1),
                    *(_filled(piece[name], np.nan) for name in ("score", "lowest_positive")),
                ]
                held = [np.concatenate(pair) for pair in zip(held, columns, strict=True)] if held else columns
                # The last anchor of a piece may go on in the next.
                last = len(held[0]) if done == self.num_rows else int(_starts(held[0])[-1])
                if last:
                    yield _block(first, [column[:last] for column in held])
                    first, held = first + last, [column[last:] for column in held]
        except _broken() as broken:
            raise _unreadable(self.path, broken) from broken

    def _pieces(self) -> Iterator[Any]:
        """Some row groups, or parts of one, as a table in one chunk."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path, read_dictionary=["anchor_id", "negative_id"], pre_buffer=False) as file:
            batches: list[Any] = []
            for batch in file.iter_batches(_AT_ONCE, columns=list(_COLUMNS)):
                if self.artifact is None:
                    batch.validate(full=True)  # neither UTF-8 nor the codes of ids are promised
                if len(batch):
                    batches.append(batch)
                if sum(len(each) for each in batches) >= _AT_ONCE:
                    yield pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
                    batches = []
            if batches:
                yield pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()


def _numbers(column: Any, lookup: Lookup) -> Ints:
    """Ids of one chunk as numbers, each distinct one looked up once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = column.chunk(0)
    if not pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_encode()
    numbers = np.append(lookup.numbers(pc.cast(ids.dictionary, pa.string())), -1)
    return np.asarray(numbers[_filled(ids.indices, -1)], dtype=np.int64)


def _filled(column: Any, missing: float) -> npt.NDArray[Any]:
    """Numbers with `missing` in place of nulls: whole ones as int64, others as float32 if they are, else float64."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole, single = pa.types.is_integer(column.type), pa.types.is_float32(column.type)
    column = pc.cast(column, pa.int64() if whole else pa.float32() if single else pa.float64())
    return np.asarray(pc.fill_null(column, missing).to_numpy(zero_copy_only=False))


def _block(first: int, columns: list[npt.NDArray[Any]]) -> RowBlock:
    anchors, negatives, ranks, scores, lowest = columns
    starts = _starts(anchors)
    return RowBlock(first, anchors[starts], np.append(starts, len(anchors)), negatives, ranks, scores, lowest)


def _starts(anchors: Ints) -> Ints:
    """Where an anchor begins."""
    return np.asarray(np.flatnonzero(np.diff(anchors, prepend=anchors[0] + 1)))


def open_rows(where: Place | Path) -> Rows:
    """A committed table, every file of which is hashed here, or a bare Parquet file.

    Raises BadInput when there is no table or a column is not what it must be, DamagedArtifact.
    """
    place = Place.of(where)
    path = place.local
    if path is None or path.is_dir():
        return _committed(place)
    if not path.is_file():
        raise BadInput(f"{path}: no such file or folder; give a table: the folder of one direction, or a Parquet file.")
    if path.name == _FILE and (path.parent / MANIFEST).exists():
        return _committed(Place.of(path.parent))
    footer, num_rows, notes = _read_schema(path)
    try:
        provenance = json.loads(footer) if footer else {}
    except ValueError:
        provenance = {}
    notes.insert(0, "not a committed table: no hash says whether the file is whole")
    return Rows(str(path), path, None, provenance if isinstance(provenance, dict) else {}, num_rows, notes)


def _committed(place: Place) -> Rows:
    inside = [name for name in DIRECTIONS if (place / name / MANIFEST).exists()]
    if not (place / MANIFEST).exists():
        if inside:
            raise BadInput(f"{place}: a table is of one direction; give {' or '.join(str(place / n) for n in inside)}.")
        if (place / _FILE).exists():
            raise BadInput(
                f"{place}: {MANIFEST} is missing, so this table was never finished or came without it; run the command "
                f"that wrote it again, or give {place / _FILE} to look at the bare file."
            )
    artifact = open_artifact(place, NEGATIVES)
    files = {name: artifact.path(name) for name in artifact.manifest.files}
    file = files.get(_FILE) or artifact.path(_FILE)
    footer, num_rows, notes = _read_schema(file)
    provenance = artifact.manifest.meta.get("provenance", {})
    if footer is None or json.loads(footer) != provenance:
        raise DamagedArtifact(f"{artifact.where}: the table's footer and its manifest tell different provenance.")
    return Rows(artifact.where, file, artifact, provenance, num_rows, notes)


def _read_schema(path: Path) -> tuple[bytes | None, int, list[str]]:
    """(footer under our key, rows, notes about types). Raises BadInput when a column lacks or is of no use."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            footer, num_rows = (metadata.metadata or {}).get(FOOTER_KEY), metadata.num_rows
    except _broken() as broken:
        raise _unreadable(path, broken) from broken
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        raise BadInput(
            f"{path}: no column {', '.join(missing)}; found {', '.join(schema.names) or 'none'}. A negative table has "
            f"the columns {', '.join(_COLUMNS)}."
        )
    notes = []
    for name in _COLUMNS:
        if schema.names.count(name) > 1:
            raise BadInput(f"{path}: {schema.names.count(name)} columns are called {name}; keep one.")
        kind = schema.field(name).type
        coded = name.endswith("_id") and pa.types.is_dictionary(kind)
        wanted, fits, usual = _fit(name, kind.value_type if coded else kind)
        if not fits:
            raise BadInput(f"{path}: the column {name} is {kind}; write it as {wanted}.")
        if not usual:
            notes.append(f"the column {name} is {kind}; tables of `miner mine` hold {wanted}")
    return footer, num_rows, notes


def _fit(name: str, kind: Any) -> tuple[str, bool, bool]:
    """(what a column should be, whether this type can be read as that, whether it is that)."""
    from pyarrow import types

    if name.endswith("_id"):
        string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        return "string", string or types.is_integer(kind), string
    if name == "rank":
        return "int16 or int32", types.is_integer(kind), types.is_int16(kind) or types.is_int32(kind)
    return "float32", types.is_floating(kind), types.is_float32(kind)


def _broken() -> tuple[type[Exception], ...]:
    """What a damaged file can raise."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, UnicodeDecodeError)


def _unreadable(path: Path, broken: Exception) -> BadInput:
    what = str(broken).partition("\n")[0]
    return BadInput(f"{path}: cannot be read as Parquet ({what}); give a table of `miner mine`, or write it again.")
