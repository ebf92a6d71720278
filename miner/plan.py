"""What a search will take, before it begins: time, memory and disk of every stage; refused where it cannot fit.

Time is that of a sample, a few thousand of the rows and columns, searched here and now and scaled up by the number of
scores; memory and disk follow from the sizes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner import exhaustive
from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.matrix import Grid, grid_for, ordered, reach
from miner.memory import readable
from miner.scores import norms
from miner.search import Gallery, Hits
from miner.tiles import fastest

__all__ = ["Plan", "Stage", "check_fits", "plan"]

Vectors = npt.NDArray[np.floating[Any]]

_LIBRARIES = 400 * 2**20  # numpy, pyarrow and torch, loaded
_PER_ITEM = 200  # bytes: ids, their order, who belongs to whom
_PER_ROW = 7.0  # bytes of a Parquet row: half a score, an id's number, packed
_ROWS, _COLUMNS = 8192, 16384  # of the sample


@dataclass(frozen=True)
class Stage:
    """`seconds` are None where nothing was timed; `memory` and `disk` in bytes."""

    name: str
    seconds: float | None
    memory: int
    disk: int


@dataclass(frozen=True)
class Plan:
    """`stages` one after the other; `grids` say in how many shards each pair of sides is compared, `scores` how many
    there are in all."""

    stages: tuple[Stage, ...]
    grids: tuple[Grid, ...]
    scores: int

    @property
    def seconds(self) -> float | None:
        known = [stage.seconds for stage in self.stages]
        return None if None in known else sum(second for second in known if second is not None)

    @property
    def memory(self) -> int:
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        return sum(stage.disk for stage in self.stages)


def plan(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    directions: Sequence[Direction | Within],
    k: int,
    memory: int,
    threads: int = 1,
    *,
    timed: bool = True,
) -> Plan:
    """Of an exact search as `mine_exhaustively` does it in `memory` bytes; see there. `timed` = False: no sample."""
    passes: dict[tuple[Side, ...], list[Direction | Within]] = {}
    for direction in directions:
        passes.setdefault(
            tuple(sorted(set(sides(direction)), key=lambda side: (len(pairs.ids(side)), side))), []
        ).append(direction)
    items = sum(len(pairs.ids(side)) for side in {side for ends in passes for side in ends})
    held = _LIBRARIES + _PER_ITEM * items
    stages = [Stage("read and check the vectors", None if not timed else _reading(vectors), held, 0)]
    grids, scores = [], 0
    for ends, asked in passes.items():
        small, large = ends[0], ends[-1]
        num_rows, num_columns = len(pairs.ids(small)), len(pairs.ids(large))
        dim, itemsize = vectors[small].shape[1], vectors[small].dtype.itemsize
        both = len(asked) > 1
        grid = grid_for(
            num_rows, num_columns, dim, itemsize, k + 2 if both or sides(asked[0])[0] == small else 0, memory
        )
        shards = grid.shards()
        grids.append(grid)
        scores += num_rows * num_columns
        rows = grid.rows * (dim * (itemsize + 8) + (8 * (3 * k + 70) if both else 0) + 64)
        panels = threads * (72 * 2**20 + exhaustive.TILE[1] * (8 * (3 * k + 70) + 12 * dim))
        kept = 8 * k * sum(len(a) + len(b) if both else len(b) for a, b in shards) if len(shards) > 1 else 0
        lists = 0 if kept else 8 * k * (num_rows + num_columns if both else num_columns)
        seconds = None
        if timed:
            seconds = _sample(vectors, pairs, small, large, k, threads) * num_rows * num_columns
        what = " and ".join(asked)
        stages.append(Stage(f"search {what}", seconds, held + rows + panels + lists, kept))
    for direction in directions:
        anchors = len(pairs.ids(sides(direction)[0]))
        seconds = anchors * k * 2.5e-7 + anchors * 2e-6 if timed else None
        group = 40 * k * min(anchors, 32768)
        stages.append(Stage(f"write {direction}", seconds, held + group, int(anchors * k * _PER_ROW)))
    return Plan(tuple(stages), tuple(grids), scores)


def check_fits(planned: Plan, out: Path, memory: int) -> None:
    """Raise Retryable where there is less disk than a search needs, BadInput where there is less memory (bytes)."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize
    if planned.disk > free:
        raise Retryable(
            f"{out}: the search would write about {readable(planned.disk)}, but {readable(free)} are free there; "
            "make room, or choose another --out, a smaller --k, or one direction at a time."
        )
    if planned.memory > memory:
        raise BadInput(
            f"the search would take about {readable(planned.memory)} of memory, and there are {readable(memory)}; "
            "give a smaller --k or one direction at a time, or use a machine with more."
        )


def _reading(vectors: Mapping[Side, Vectors]) -> float:
    """Seconds to go through the vectors a few times: hashed, checked and measured."""
    largest = max(vectors.values(), key=lambda each: each.nbytes)
    some = largest[: max(1, 2**24 // (largest.shape[1] * largest.itemsize))]
    began = time.perf_counter()
    reach(some)
    return 4 * (time.perf_counter() - began) * sum(each.nbytes for each in vectors.values()) / some.nbytes


def _sample(vectors: Mapping[Side, Vectors], pairs: Pairs, small: Side, large: Side, k: int, threads: int) -> float:
    """Seconds a score, of comparing some columns with some rows and ranking what is found for the columns."""
    order = {side: pairs.order(side) for side in (small, large)}
    rows = np.ascontiguousarray(vectors[small][order[small][:_ROWS]])
    columns = np.ascontiguousarray(vectors[large][order[large][:_COLUMNS]])
    reached = {"rows": reach(rows), "columns": reach(columns)}
    tiles = fastest(rows, norms(rows), columns, reached["columns"][0], reached["rows"][1], reached["columns"][1])
    gallery = Gallery(ordered(rows, np.arange(len(rows))), np.arange(len(rows)), reached["rows"][0])
    k = min(k, len(rows))

    def rank(proposal: exhaustive.Proposal) -> Hits:
        queries = np.asarray(columns[proposal.start : proposal.start + len(proposal.rows)], dtype=np.float32)
        nothing = (np.zeros(len(queries) + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
        return gallery.ranked(queries, k, proposal.rows, proposal.ceiling, nothing)

    began = time.perf_counter()
    depth = min(k + 2, len(columns))
    for _ in exhaustive.search(
        tiles, len(rows), columns, depth, min(k + 2, len(rows)), _nothing, rank, threads=threads
    ):
        pass
    return (time.perf_counter() - began) / (len(rows) * len(columns))


def _nothing(proposal: exhaustive.Proposal) -> Hits:
    """Rows are ranked once for a whole shard: next to nothing."""
    return Hits.empty(0, 1)
