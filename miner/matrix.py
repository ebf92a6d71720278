"""Exact mining from the whole score matrix, each part of it made once, in shards that fit into memory.

The items of each side stand in id order, the side with fewer of them as rows. A shard is some rows by some columns: in
it the best of every row and of every column are found (`miner.exhaustive`, `miner.search`) and kept as lists. Lists of
one anchor from several shards are merged by score and id, which is exact, so the shards leave no trace in the result.
With a store, a finished shard is kept there, and a killed search goes on after the last one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from miner import exhaustive, fused
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.artifacts.store import LocalStore
from miner.kept import Kept, merge
from miner.memory import half
from miner.nearest import anchored, check_k, check_rows, own_positives
from miner.scores import Unit, norms
from miner.search import Excluded, Gallery, Hits
from miner.tiles import extent, fastest

__all__ = ["Grid", "deepest", "forget", "grid_for", "mine_exhaustively", "ordered", "reach"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
AnyDirection = Direction | Within

_SCORES = 2e10  # of a shard: one to three minutes' work on two cores
_MERGED = 4096  # anchors whose lists are merged at once


@dataclass(frozen=True)
class Grid:
    """How a matrix of `num_rows` by `num_columns` is cut: into shards of `rows` by `columns`, at most."""

    num_rows: int
    num_columns: int
    rows: int
    columns: int

    def shards(self) -> list[tuple[range, range]]:
        """(rows, columns) of every shard, row by row."""
        rows, columns = (
            [range(at, min(at + step, size)) for at in range(0, size, step)]
            for size, step in ((self.num_rows, self.rows), (self.num_columns, self.columns))
        )
        return list(itertools.product(rows, columns))


def grid_for(num_rows: int, num_columns: int, dim: int, itemsize: int, depth: int, memory: int) -> Grid:
    """The shards of a search in `memory` bytes: as many rows as half of that holds, and columns for a few minutes.

    `depth` is how many candidates of a row are looked for (0: rows are no anchors), `itemsize` the bytes of a number
    in the files.
    """
    per_row = dim * (itemsize + 4 + 4) + (8 * (3 * depth + 64) if depth else 0) + 64
    parts = -(-num_rows // max(1024, memory // 2 // per_row))
    rows = -(-num_rows // parts)
    width = exhaustive.TILE[1]
    columns = -(-max(int(_SCORES / rows), 16 * width) // width) * width
    return Grid(num_rows, num_columns, rows, min(columns, num_columns))


def mine_exhaustively(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    directions: Sequence[AnyDirection],
    k: int,
    *,
    threads: int = 1,
    tile: tuple[int, int] | None = None,
    memory: int | None = None,
    grid: Callable[..., Grid] = grid_for,
    drafts: Mapping[AnyDirection, Draft] | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[AnyDirection, Iterator[NegativeBlock]]]:
    """The directions asked for, each with what `mine` gives, and without an index.

    i2t and t2i come from one pass over the scores of images with texts; i2i and t2t compare a side with itself.
    `vectors` (items, dim) by side and row of `pairs`, float16 or float32; memory-mapped ones are read in shards.
    `memory` (bytes) is what the search may use on top of what grows with the number of items; by default half of what
    is free. `drafts` say where the shards of a direction are kept until somebody calls `forget`; without them nothing
    is kept. `device`: of torch, where the matrix is made (see `miner.fused`), or None for the CPU in the way that is
    fastest there. `progress(items compared, all)`. Raises as `mine_block`.
    """
    for direction in directions:
        check_k(pairs, direction, k)
    for side in dict.fromkeys(side for direction in directions for side in sides(direction)):
        check_rows(vectors[side], pairs, side)
    with ExitStack() as stack:
        memory = half() if memory is None else memory
        memory = memory if device is None else min(memory, fused.free(device))
        if drafts is None:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="quintain-search-")))
            drafts = {direction: Draft(LocalStore(root), direction, "search", {}) for direction in directions}
        across = [direction for direction in directions if direction in ("i2t", "t2i")]
        passes = [across] * bool(across) + [[direction] for direction in directions if direction not in across]
        matrices = [_Matrix(vectors, pairs, each, k, threads, tile, memory, grid, drafts, device) for each in passes]
        total, before = sum(matrix.work for matrix in matrices), 0
        for matrix in matrices:
            matrix.search(partial(_of_total, progress, before, total))
            before += matrix.work
            for direction in matrix.directions:
                yield direction, matrix.merged(direction)


def _of_total(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def forget(draft: Draft) -> None:
    """Delete the shards that were kept, and their folder with the last of them."""
    draft.store.remove(draft.prefix)
    above = draft.prefix.rpartition("/")[0]
    if above and not draft.store.names(above):
        draft.store.remove(above)


class _Matrix:
    """One score matrix: what is searched in one pass."""

    def __init__(
        self,
        vectors: Mapping[Side, Vectors],
        pairs: Pairs,
        directions: Sequence[AnyDirection],
        k: int,
        threads: int,
        tile: tuple[int, int] | None,
        memory: int,
        grid: Callable[..., Grid],
        drafts: Mapping[AnyDirection, Draft],
        device: str | None,
    ) -> None:
        self.device = device
        self.pairs, self.directions, self.k, self.threads, self.tile = pairs, directions, k, threads, tile
        ends = {side for direction in directions for side in sides(direction)}
        small, large = sorted(ends, key=lambda side: (len(pairs.ids(side)), side)) if len(ends) == 2 else [*ends] * 2
        self.small, self.large, self.vectors = small, large, vectors
        self.order = {side: pairs.order(side) for side in ends}
        anchors = {sides(direction)[0]: direction for direction in directions}
        self.of_columns = anchors.get(large)
        self.of_rows = anchors.get(small) if small != large else None
        dims = {side: vectors[side].shape[1] for side in (small, large)}
        if dims[small] != dims[large]:
            raise BadInput(
                f"{small}s have dim {dims[small]} and {large}s dim {dims[large]}; both sides must come from one model."
            )
        self.reach = {side: reach(vectors[side]) for side in ends}
        if self.reach[small][0] * self.reach[large][0] > 1e37:
            raise BadInput("the vectors are so long that a similarity overflows float32; scale them down.")
        num_rows, num_columns = len(pairs.ids(small)), len(pairs.ids(large))
        depth = self._depth(self.of_rows, range(num_columns)) if self.of_rows else 0
        dim, itemsize = vectors[small].shape[1], vectors[small].dtype.itemsize
        self.grid = grid(num_rows, num_columns, dim, itemsize, depth, memory)
        shards = self.grid.shards()
        self.work = sum(len(columns) for _, columns in shards)
        cut = {"rows": self.grid.rows, "columns": self.grid.columns, "k": k}
        self.kept = {
            direction: Kept(replace(draft, inputs={**draft.inputs, **cut}) if len(shards) > 1 else None)
            for direction, draft in drafts.items()
            if direction in directions
        }

    def search(self, progress: Callable[[int], None]) -> None:
        """Find the lists of every shard that is not there yet."""
        done, made_for, tiles = 0, None, None
        for rows, columns in self.grid.shards():
            if not all(kept.find(*self._ends(direction, rows, columns)) for direction, kept in self.kept.items()):
                if rows != made_for:
                    tiles = None  # before the next ones take as much
                    made_for, tiles = rows, self._tiles(rows)
                self._shard(tiles, rows, columns, partial(_shifted, progress, done))
            done += len(columns)
            progress(done)

    def merged(self, direction: AnyDirection) -> Iterator[NegativeBlock]:
        """The negatives of a direction, anchors in id order, from the lists of all shards."""
        anchors, gallery = sides(direction)
        lists = self.kept[direction].lists.values()
        for start in range(0, len(self.order[anchors]), _MERGED):
            at = range(start, min(start + _MERGED, len(self.order[anchors])))
            parts = [part for each in lists if (part := each.cut(at)) is not None]
            positions, scores = merge(parts, self.k, len(at))
            found = np.where(positions >= 0, self.order[gallery][positions], -1).astype(np.int32)
            rows = self.order[anchors][at.start : at.stop]
            queries = np.asarray(self.vectors[anchors][rows], dtype=np.float32)
            own = own_positives(self.pairs, direction, rows)
            yield anchored(queries, self.vectors[gallery], direction, rows, own, Hits(found, scores), self.threads)

    def _ends(self, direction: AnyDirection, rows: range, columns: range) -> tuple[range, range]:
        """(anchors, gallery) of a shard."""
        return (rows, columns) if direction == self.of_rows else (columns, rows)

    def _depth(self, direction: AnyDirection, gallery: range) -> int:
        """How many candidates of an anchor are looked for in a part of the gallery."""
        return min(deepest(self.pairs, direction, self.k, gallery), len(gallery))

    def _tiles(self, rows: range) -> Any:
        """Tiles over some rows of the matrix."""
        some = ordered(self.vectors[self.small], self.order[self.small][rows.start : rows.stop])
        columns = ordered(self.vectors[self.large], self.order[self.large])
        (_, row_extent), (longest, column_extent) = self.reach[self.small], self.reach[self.large]
        if self.device is not None:
            return fused.Fused(some, norms(some), longest, self.device)
        return fastest(some, norms(some), columns, longest, row_extent, column_extent)

    def _shard(self, tiles: Any, rows: range, columns: range, progress: Callable[[int], None]) -> None:
        """Search one shard and keep what was found."""
        some = ordered(self.vectors[self.large], self.order[self.large][columns.start : columns.stop])
        depth: dict[AnyDirection | None, int] = {None: 0}
        rank: dict[AnyDirection | None, Any] = {None: None}
        with ExitStack() as stack:
            lists = {}
            for direction, kept in self.kept.items():
                anchors, gallery = self._ends(direction, rows, columns)
                depth[direction] = self._depth(direction, gallery)
                rank[direction] = self._ranked(direction, anchors, gallery)
                lists[direction] = stack.enter_context(kept.room(anchors, gallery, min(self.k, len(gallery))))
            search: Any = exhaustive.search if self.device is None else fused.search
            found = search(
                tiles, len(rows), some, depth[self.of_rows], depth[self.of_columns],
                rank[self.of_rows], rank[self.of_columns], threads=self.threads, progress=progress,
                **({} if self.tile is None else {"tile": self.tile}),
            )  # fmt: skip
            for direction, start, hits in found:
                lists[direction].put(start, hits)

    def _ranked(
        self, direction: AnyDirection, anchors: range, gallery: range
    ) -> Callable[[exhaustive.Proposal], tuple[AnyDirection, int, Hits]]:
        """Ranks what is proposed to some anchors, out of a part of the gallery."""
        side, other = sides(direction)
        part = ordered(self.vectors[other], self.order[other][gallery.start : gallery.stop])
        searched = Gallery(part, np.arange(len(gallery)), self.reach[other][0])
        place = self.pairs.places(other)
        k = min(self.k, len(gallery))

        def rank(proposal: exhaustive.Proposal) -> tuple[AnyDirection, int, Hits]:
            start = anchors.start + proposal.start
            rows = self.order[side][start : start + len(proposal.rows)]
            queries = np.asarray(self.vectors[side][rows], dtype=np.float32)
            own = _inside(own_positives(self.pairs, direction, rows), place, gallery)
            return direction, proposal.start, searched.ranked(queries, k, proposal.rows, proposal.ceiling, own)

        return rank


def deepest(pairs: Pairs, direction: AnyDirection, k: int, gallery: range | None = None) -> int:
    """How many candidates of an anchor to look for, in a part of the gallery (positions in id order) or in all of it,
    so that 99 of 100 anchors have k besides their positives."""
    offsets, positives = pairs.positives_of(direction)
    counts = np.diff(offsets)
    if gallery is not None:
        place = pairs.places(sides(direction)[1])[positives]
        inside = (place >= gallery.start) & (place < gallery.stop)
        counts = np.diff(np.concatenate([[0], np.cumsum(inside)])[offsets])
    return k + int(np.quantile(counts, 0.99)) + 1


def _shifted(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _inside(own: Excluded, place: Rows, gallery: range) -> Excluded:
    """Positives as positions in a part of the gallery."""
    positions = place[own[1]] - gallery.start
    inside = (positions >= 0) & (positions < len(gallery))
    return np.concatenate([[0], np.cumsum(inside)])[own[0]], positions[inside]


def reach(vectors: Vectors) -> tuple[float, float]:
    """(the largest norm, the largest absolute number) of some vectors, read once."""
    step = max(1, 2**20 // vectors.shape[1])
    longest = furthest = 0.0
    for start in range(0, len(vectors), step):
        some = np.asarray(vectors[start : start + step])
        if not np.isfinite(some).all():
            raise BadInput(f"a vector of rows {start} to {start + len(some) - 1} holds NaN or infinity; leave it out.")
        longest, furthest = max(longest, float(norms(some).max())), max(furthest, extent(some))
    return longest, furthest


def ordered(vectors: Vectors | Unit, order: Rows) -> Any:
    """`vectors[order]`, read when it is asked for: all that a Gallery, or what reads columns, wants of vectors."""
    if len(order) and order[-1] - order[0] + 1 == len(order) and bool((np.diff(order) == 1).all()):
        at = slice(order[0], order[0] + len(order))
        return vectors.part(at) if isinstance(vectors, Unit) else vectors[at]
    return _Ordered(vectors, order)


class _Ordered:
    """Vectors in another order."""

    def __init__(self, vectors: Vectors | Unit, order: Rows) -> None:
        self.vectors, self.order = vectors, order
        self.shape, self.dtype = (len(order), vectors.shape[1]), vectors.dtype

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: Any) -> Vectors:
        return np.asarray(self.vectors[self.order[at]])
