"""Both directions of an exact search from one pass over the score matrix.

The matrix is made tile by tile and never kept. Of every tile what may be among the best of its rows, and of its
columns, goes into running lists.
What comes out are proposals with a proof attached (`Best.settle`), which `miner.search` ranks by the true score.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from miner.best import Best
from miner.index import _torch
from miner.scores import norms
from miner.tiles import Columns, Tiles

__all__ = ["TILE", "Proposal", "search"]


Ranked = TypeVar("Ranked")

TILE = (512, 4096)
_RANKED = 512


@dataclass(frozen=True)
class Proposal:
    """For items from `start` on: `rows` of the other side (items, width) int32, -1 in empty slots, and `ceiling`
    (items,), which no similarity to another row exceeds."""

    start: int
    rows: npt.NDArray[np.int32]
    ceiling: npt.NDArray[np.float64]


def search(
    tiles: Tiles,
    num_rows: int,
    columns: Columns,
    row_depth: int,
    column_depth: int,
    rank_rows: Callable[[Proposal], Ranked],
    rank_columns: Callable[[Proposal], Ranked],
    *,
    threads: int = 1,
    tile: tuple[int, int] = TILE,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Ranked]:
    """What the two functions make of the proposals: for the columns in order, then for the rows in order.

    `columns` (items, dim) are read panel by panel; a depth of 0 leaves a side out. `threads` panels are worked on at
    once, and what `rank_columns` makes of each. `progress(columns done)` after each. A tile is (height, width) at most.
    """
    height, width = tile
    if not _torch.available():
        threads = 1  # numpy's products take all of them already
    width = min(width, max(256, -(-len(columns) // (4 * threads))))  # so that no thread waits for another's last panel
    best = Best(num_rows, row_depth, tiles.row_error, tiles.dtype, len(columns)) if row_depth else None
    locks = [threading.Lock() for _ in range(0, num_rows, height)]
    local, stopped = threading.local(), threading.Event()

    def panel(start: int) -> list[Ranked]:
        some = np.asarray(columns[start : start + width])
        if not hasattr(local, "room"):
            local.room = tiles.room(min(height, num_rows), min(width, len(columns)))
        ready = tiles.panel(some)
        own = None
        if column_depth:
            own = Best(len(some), column_depth, tiles.column_error(some, norms(some)), tiles.dtype, num_rows)
        for number, first in enumerate(range(0, num_rows, height)):
            if stopped.is_set():
                return []
            scores = tiles.tile(slice(first, first + height), ready, local.room)
            if best is not None:
                _take_rows(scores, best, first, start, locks[number])
            if own is not None:
                _take_columns(scores, own, first)
        return [] if own is None else ranked(own, 0, len(some), start, rank_columns)

    def rows(start: int) -> list[Ranked]:
        assert best is not None
        return ranked(best, start, min(start + height, num_rows), 0, rank_rows)

    def ranked(best: Best, first: int, last: int, shift: int, rank: Callable[[Proposal], Ranked]) -> list[Ranked]:
        """A few at a time: what ranking takes on the way is many times what comes out."""
        found = []
        for at in range(first, last, _RANKED):
            candidates, ceiling = best.settle(slice(at, min(at + _RANKED, last)))
            found.append(rank(Proposal(shift + at, candidates, ceiling * tiles.unit)))
        return found

    with _torch.one_thread_each() as alone, ThreadPoolExecutor(threads, initializer=alone) as pool:
        try:
            starts = range(0, len(columns), width)
            for number, done in enumerate(_in_order(pool, panel, starts, threads)):
                progress(min((number + 1) * width, len(columns)))
                yield from done
            if best is not None:
                yield from chain.from_iterable(_in_order(pool, rows, range(0, num_rows, height), threads))
        finally:  # nobody waits for what nobody will take
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Ranked], starts: Sequence[int], threads: int
) -> Iterator[Ranked]:
    """The results, worked out no further ahead than keeps all threads busy: one that waits to be taken is memory."""
    waiting = [pool.submit(work, start) for start in starts[: 2 * threads]]
    for number in range(len(starts)):
        done = waiting.pop(0).result()
        if number + 2 * threads < len(starts):
            waiting.append(pool.submit(work, starts[number + 2 * threads]))
        yield done


def _take_rows(tile: npt.NDArray[Any], best: Best, first: int, start: int, lock: threading.Lock) -> None:
    """What a tile holds for its rows `first`, ...; its columns are the items `start`, ..."""
    height, width = tile.shape
    at = slice(first, first + height)
    with lock:
        cut = best.cut[at].copy()
    if (cut == best.lowest).any():
        known = _reached(tile, best.depth)
        if known is not None:
            with lock:
                best.raise_cut(at, known)
                cut = best.cut[at].copy()
    found = np.flatnonzero(tile > cut[:, None])
    ends = np.searchsorted(found, np.arange(1, height + 1) * width)
    candidates = (found % width + start).astype(np.int32)
    with lock:
        best.add(first, np.diff(ends, prepend=0), candidates, tile.reshape(-1)[found])


def _take_columns(tile: npt.NDArray[Any], best: Best, first: int) -> None:
    """What a tile holds for its columns; its rows are the items `first`, ..."""
    width = tile.shape[1]
    if (best.cut == best.lowest).any():
        known = _reached(tile.T, best.depth)
        if known is not None:
            best.raise_cut(slice(0, width), known)
    found = np.flatnonzero(tile > best.cut)
    column = (found % width).astype(np.uint16 if width <= 2**16 else np.int64)  # sorted by radix, as numpy can those
    found = found[np.argsort(column, kind="stable")]
    candidates = (found // width + first).astype(np.int32)
    best.add(0, np.bincount(column, minlength=width), candidates, tile.reshape(-1)[found])


def _reached(tile: npt.NDArray[Any], depth: int) -> npt.NDArray[Any] | None:
    """A score per row that at least `depth` of its columns reach; None when there are fewer columns.

    The depth-th largest of the maxima of groups of columns: each is a column of its own.
    """
    width = tile.shape[1]
    if width < depth:
        return None
    group = 16
    while group > 1 and width // group < 2 * depth:
        group //= 2
    groups = width // group
    tops = tile[:, :groups]
    for number in range(1, group):
        tops = np.maximum(tops, tile[:, number * groups : (number + 1) * groups])
    return np.asarray(np.partition(tops, groups - depth, axis=1)[:, groups - depth])
