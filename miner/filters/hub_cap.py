"""Lets an item be a negative of so many anchors at most, those to which it is most similar; must be the last rule.

Some items are near to everything and would be the negatives of half the anchors (hubs; Radovanovic, Nanopoulos and
Ivanovic, JMLR 11, 2010). Every anchor asks for the nearest k that are left to it; an item asked for by too many keeps
the anchors with the highest scores, ties by anchor id; whoever is refused asks for the next, searching deeper if need
be. That is deferred acceptance (Gale and Shapley, 1962), and since both ends rank by the same score, it ends as if all
pairs of all items were gone through from the highest score down. The candidates are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import sides
from miner.filters import Context, Judge
from miner.filters._items import listed

__all__ = ["LAST", "Config", "prepare"]

LAST = True
Rows = npt.NDArray[np.int64]
_CELLS = 1 << 20  # candidates that a deeper search adds at once


@dataclass(frozen=True)
class Config:
    """An item is a negative of at most `most` anchors."""

    most: int

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most = {self.most}; give at least 1.")


@dataclass
class _Asking:
    """Some anchors (rows) and whom they may ask: `items` (a, width) nearest first, -1 for none; `open`: not refused."""

    anchors: Rows
    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    open: npt.NDArray[np.bool_]

    def asked(self, k: int) -> npt.NDArray[np.bool_]:
        """Whom they ask now: the first k that have not refused."""
        return self.open & (np.cumsum(self.open, axis=1, dtype=np.int32) <= k)

    @classmethod
    def of(cls, blocks: Iterable[NegativeBlock]) -> _Asking:
        block = NegativeBlock.join(list(blocks))
        return cls(block.anchor_rows, block.negatives, block.scores, block.negatives >= 0)

    def leave(self, rows: npt.NDArray[np.bool_]) -> None:
        """Nobody but these."""
        self.anchors, self.items = self.anchors[rows], self.items[rows]
        self.scores, self.open = self.scores[rows], self.open[rows]


def prepare(config: Config, context: Context) -> Judge:
    anchor_side, gallery_side = sides(context.direction)
    order = context.pairs.order(anchor_side)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    size = len(context.pairs.ids(gallery_side))
    groups = [_Asking.of(context.survivors(None))]
    while True:
        _refuse(groups, context.k, config.most, place, size)
        deeper = list(_deeper(groups, context))
        if not deeper:
            break
        groups += deeper
    held = np.concatenate([_codes(group, group.asked(context.k), size) for group in groups])
    held.sort()

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        wanted = block.anchor_rows[:, None] * size + block.negatives
        return ~listed(held, wanted.ravel()).reshape(wanted.shape)

    return judge


def _deeper(groups: list[_Asking], context: Context) -> Iterator[_Asking]:
    """Takes out of the groups who has fewer than k left to ask, and gives them with more candidates; who has refused
    has refused."""
    deeper_than = dict(pairwise(context.depths))
    for group in groups:
        width = group.items.shape[1]
        wanting = group.open.sum(1) < context.k
        if width not in deeper_than or not wanting.any():
            continue
        depth = deeper_than[width]
        anchors, refused = group.anchors[wanting], ~group.open[wanting]
        group.leave(~wanting)
        step = max(1, _CELLS // depth)
        for start in range(0, len(anchors), step):
            found = _Asking.of([context.deeper(anchors[start : start + step], depth)])
            found.open[:, :width] &= ~refused[start : start + step]
            yield found


def _codes(group: _Asking, cells: npt.NDArray[np.bool_], size: int) -> Rows:
    anchor, where = np.nonzero(cells)
    return np.asarray(group.anchors[anchor] * size + group.items[anchor, where])


def _refuse(groups: list[_Asking], k: int, most: int, place: Rows, size: int) -> None:
    """Let every item refuse all but its best, and every anchor ask on, until nobody is refused."""
    before = [np.zeros(group.open.shape, dtype=bool) for group in groups]
    while True:
        asked = [group.asked(k) for group in groups]
        fresh = np.zeros(size, dtype=bool)
        for group, now, earlier in zip(groups, asked, before, strict=True):
            fresh[group.items[now & ~earlier]] = True
        before = asked
        cells = [np.nonzero(now & fresh[group.items]) for group, now in zip(groups, asked, strict=True)]
        sizes = [len(anchor) for anchor, _ in cells]
        together = list(zip(groups, cells, strict=True))
        items = np.concatenate([group.items[cell] for group, cell in together])
        scores = np.concatenate([group.scores[cell] for group, cell in together])
        anchors = np.concatenate([place[group.anchors[cell[0]]] for group, cell in together])
        best = np.lexsort((anchors, -scores, items))
        starts = np.flatnonzero(np.diff(items[best], prepend=-1))
        rank = np.arange(len(best)) - np.repeat(starts, np.diff(np.append(starts, len(best))))
        refused = np.zeros(len(best), dtype=bool)
        refused[best[rank >= most]] = True
        if not refused.any():
            return
        for (group, (anchor, where)), mine in zip(together, np.split(refused, np.cumsum(sizes)[:-1]), strict=True):
            group.open[anchor[mine], where[mine]] = False
