"""What a search will take, before it begins: time, memory and disk of every stage; refused where it cannot fit.

Time is that of a sample, a few thousand of the rows and columns, searched here and now and scaled up by the number of
scores; memory and disk follow from the sizes. An approximate index is planned in `miner.plan_index`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from miner import exhaustive
from miner.artifacts.candidates import Candidates
from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.filters import Chosen
from miner.index import build
from miner.matrix import Grid, deepest, grid_for, ordered, reach
from miner.memory import readable
from miner.nearest import mine
from miner.scores import norms
from miner.search import Gallery, Hits
from miner.select import Selection
from miner.tiles import fastest

__all__ = [
    "Choosing", "Plan", "Stage", "always_held", "check_fits", "last_stages", "plan", "reading",
    "small",
]  # fmt: skip

Vectors = npt.NDArray[np.floating[Any]]

_LIBRARIES = 400 * 2**20  # numpy, pyarrow and torch, loaded
_PER_ITEM = 200  # bytes: ids, their order, who belongs to whom
_PER_ROW = 7.0  # bytes of a Parquet row: half a score, an id's number, packed
_PANEL = 56 * 2**20  # of a thread: a tile, its digits, what is picked from it
_ROWS, _COLUMNS = 8192, 16384  # of the sample
_PAIRS = 8192  # of the sample that rules and indexes are tried on
_BLOCK = 192 * 2**20  # a million candidates, judged


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
    there are in all. `notes` are what was assumed, `less` what takes less memory."""

    stages: tuple[Stage, ...]
    grids: tuple[Grid, ...]
    scores: int
    notes: tuple[str, ...] = ()
    less: str = "a smaller --k or one direction at a time"

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


@dataclass(frozen=True)
class Choosing:
    """`rules` that leave `k` negatives of the candidates, in these directions."""

    rules: Sequence[Chosen]
    k: int
    directions: Sequence[Direction | Within]


def plan(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    directions: Sequence[Direction | Within],
    k: int,
    memory: int,
    threads: int = 1,
    *,
    choosing: Choosing | None = None,
    timed: bool = True,
) -> Plan:
    """Of an exact search as `mine_exhaustively` does it in `memory` bytes; see there. With `choosing`, `k` are the
    candidates. `timed` = False: no sample."""
    passes: dict[tuple[Side, ...], list[Direction | Within]] = {}
    for direction in directions:
        passes.setdefault(
            tuple(sorted(set(sides(direction)), key=lambda side: (len(pairs.ids(side)), side))), []
        ).append(direction)
    always = always_held(pairs, directions)
    stages = [reading(vectors, always, timed)]
    grids, scores = [], 0
    for ends, asked in passes.items():
        small, large = ends[0], ends[-1]
        num_rows, num_columns = len(pairs.ids(small)), len(pairs.ids(large))
        dim, itemsize = vectors[small].shape[1], vectors[small].dtype.itemsize
        both = len(asked) > 1
        deep = {sides(direction)[0]: deepest(pairs, direction, k) for direction in asked}
        of_rows = deep.get(small, 0) if small != large else 0
        grid = grid_for(num_rows, num_columns, dim, itemsize, of_rows, memory)
        shards = grid.shards()
        grids.append(grid)
        scores += num_rows * num_columns
        held = grid.rows * (dim * (itemsize + 8) + (8 * (3 * of_rows + 64) if of_rows else 0) + 64)
        panels = threads * (_PANEL + exhaustive.TILE[1] * (8 * (3 * deep.get(large, 0) + 64) + 12 * dim))
        kept = 8 * k * sum(len(a) + len(b) if both else len(b) for a, b in shards) if len(shards) > 1 else 0
        lists = 0 if kept else 8 * k * (num_rows + num_columns if both else num_columns)
        seconds = None
        if timed:
            ranked = sum(len(columns) * (large in deep) + len(rows) * bool(of_rows) for rows, columns in shards)
            seconds = pace(vectors, pairs, small, large, k, threads).of(num_rows * num_columns, ranked)
        what = " and ".join(asked)
        stages.append(Stage(f"search {what}", seconds, always + held + panels + lists, kept))
    stages += last_stages(vectors, pairs, directions, k, choosing, threads, timed)
    return Plan(tuple(stages), tuple(grids), scores)


def always_held(pairs: Pairs, directions: Sequence[Direction | Within]) -> int:
    """Bytes that are taken all the time."""
    ends = {side for direction in directions for side in sides(direction)}
    return _LIBRARIES + _PER_ITEM * sum(len(pairs.ids(side)) for side in ends)


def last_stages(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    directions: Sequence[Direction | Within],
    k: int,
    choosing: Choosing | None,
    threads: int,
    timed: bool,
) -> Iterator[Stage]:
    """What is done with what was found: a table per direction, or candidates and then a table of what rules leave of
    them. Deeper searches, for anchors that rules leave with too few, are not counted."""
    always = always_held(pairs, directions)
    for direction in directions:
        anchors = len(pairs.ids(sides(direction)[0]))
        seconds = anchors * k * 2.5e-7 + anchors * 2e-6 if timed else None
        if choosing is None:
            group = 40 * k * min(anchors, 32768)
            yield Stage(f"write {direction}", seconds, always + group, int(anchors * k * _PER_ROW))
            continue
        yield Stage(f"keep candidates {direction}", seconds and seconds / 8, always, anchors * (8 * k + 4))
    for direction in choosing.directions if choosing else ():
        assert choosing is not None
        anchors = len(pairs.ids(sides(direction)[0]))
        seconds = None
        if timed and not any(map(_looks_outside, choosing.rules)):
            tried = _choosing(vectors, pairs, direction, k, choosing, threads)
            seconds = anchors * (tried + k * 2.5e-7)
        # A cap on hubs holds all candidates, others a number of every negative.
        each = 20 * k if any(rule.last for rule in choosing.rules) else 4 * choosing.k * len(choosing.rules)
        group = 40 * choosing.k * min(anchors, 32768)
        memory = always + _BLOCK + max(group, anchors * each)
        yield Stage(f"choose {direction} by rules", seconds, memory, int(anchors * k * _PER_ROW))


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
            f"give {planned.less}, or use a machine with more."
        )


def reading(vectors: Mapping[Side, Vectors], memory: int, timed: bool) -> Stage:
    """Going through the vectors a few times: hashed, checked and measured."""
    seconds = None
    if timed:
        largest = max(vectors.values(), key=lambda each: each.nbytes)
        some = largest[: max(1, 2**24 // (largest.shape[1] * largest.dtype.itemsize))]
        began = time.perf_counter()
        reach(some)
        once = (time.perf_counter() - began) / some.nbytes
        seconds = 4 * once * sum(each.nbytes for each in vectors.values())
    return Stage("read and check the vectors", seconds, memory, 0)


def _looks_outside(rule: Chosen) -> bool:
    """Whether it wants more than the vectors and pairs: what it then takes is not foretold."""
    return bool(rule.opposite or rule.contents or getattr(rule.rule, "FILES", ()))


def small(vectors: Mapping[Side, Vectors], pairs: Pairs) -> tuple[dict[Side, Vectors], Pairs]:
    """The items of the first few thousand pairs, with the pairs among them: to try on what all items are worked by."""
    (images, image_rows), (texts, text_rows) = (
        np.unique(rows[:_PAIRS], return_inverse=True) for rows in (pairs.image_rows, pairs.text_rows)
    )
    some = {"image": np.asarray(vectors["image"][images]), "text": np.asarray(vectors["text"][texts])}
    return cast("dict[Side, Vectors]", some), Pairs(
        pairs.image_ids.take(images), pairs.text_ids.take(texts), image_rows, text_rows
    )


def _choosing(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    direction: Direction | Within,
    width: int,
    choosing: Choosing,
    threads: int,
) -> float:
    """Seconds an anchor, of going through `width` candidates by the rules."""
    some, fewer = small(vectors, pairs)
    anchors, gallery = sides(direction)
    width = min(width, len(some[gallery]))
    index = build("flat", some[gallery])
    found = NegativeBlock.join(list(mine(some[anchors], index, some[gallery], fewer, direction, width)))
    positions = np.where(found.negatives >= 0, fewer.places(gallery)[found.negatives], -1).astype(np.int32)
    orders = (found.anchor_rows, fewer.order(gallery))
    made = Candidates(direction, width, positions, found.scores, found.lowest_positive, *orders, {}, "")
    began = time.perf_counter()
    for _ in Selection(made, fewer, choosing.rules, min(choosing.k, width), vectors=some, threads=threads).blocks():
        pass
    return (time.perf_counter() - began) / len(found)


@dataclass(frozen=True)
class Pace:
    """Seconds a score, of comparing, and seconds an anchor, of ranking what is found for it."""

    score: float
    anchor: float

    def of(self, scores: int, anchors: int) -> float:
        return self.score * scores + self.anchor * anchors


def pace(vectors: Mapping[Side, Vectors], pairs: Pairs, small: Side, large: Side, k: int, threads: int) -> Pace:
    """Of some columns with some rows, and with half of these: what did not halve is ranking."""
    order = {side: pairs.order(side) for side in (small, large)}
    rows = np.ascontiguousarray(vectors[small][order[small][:_ROWS]])
    columns = np.ascontiguousarray(vectors[large][order[large][:_COLUMNS]])
    whole, half = (_seconds(some, columns, k, threads) for some in (rows, rows[: max(1, len(rows) // 2)]))
    ranking = min(max(0.0, 2 * half - whole), 0.9 * whole)
    return Pace((whole - ranking) / (len(rows) * len(columns)), ranking / len(columns))


def _seconds(rows: Vectors, columns: Vectors, k: int, threads: int) -> float:
    """Of comparing them, and ranking what is found for the columns."""
    reached = {"rows": reach(rows), "columns": reach(columns)}
    tiles = fastest(rows, norms(rows), columns, reached["columns"][0], reached["rows"][1], reached["columns"][1])
    gallery = Gallery(ordered(rows, np.arange(len(rows))), np.arange(len(rows)), reached["rows"][0])
    depth, k = (min(k + 2, len(columns)), min(k + 2, len(rows))), min(k, len(rows))

    def rank(proposal: exhaustive.Proposal) -> Hits:
        queries = np.asarray(columns[proposal.start : proposal.start + len(proposal.rows)], dtype=np.float32)
        nothing = (np.zeros(len(queries) + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
        return gallery.ranked(queries, k, proposal.rows, proposal.ceiling, nothing)

    began = time.perf_counter()
    for _ in exhaustive.search(tiles, len(rows), columns, *depth, _nothing, rank, threads=threads):
        pass
    return time.perf_counter() - began


def _nothing(proposal: exhaustive.Proposal) -> Hits:
    """Rows are ranked once for a whole shard: next to nothing."""
    return Hits.empty(0, 1)
