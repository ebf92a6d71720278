"""What stands for an item on a side: itself on its own, its positives on the other. So any two items can be compared
as images and as texts, whatever they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Pairs, Side, sides
from miner.filters import Context, Judge

__all__ = ["any_alike", "expand", "listed", "sharing", "stand_ins"]

Rows = npt.NDArray[np.int64]
Lists = tuple[Rows, Rows]
_CELLS = 1 << 18  # candidates looked at together, times the positives of both ends


def stand_ins(pairs: Pairs, side_of_items: Side, side: Side) -> Lists:
    """(offsets, rows of `side`): what stands there for every item of `side_of_items`."""
    if side_of_items != side:
        return pairs.positives(side_of_items)
    number = len(pairs.ids(side))
    return np.arange(number + 1), np.arange(number)


def expand(lists: Lists, rows: Rows) -> tuple[Rows, Rows]:
    """(at, items): all items listed for `rows`, one after the other; items[i] is listed for rows[at[i]]."""
    offsets, items = lists
    counts = offsets[rows + 1] - offsets[rows]
    at = np.repeat(np.arange(len(rows)), counts)
    before = np.cumsum(counts) - counts
    return at, items[offsets[rows][at] + np.arange(len(at)) - before[at]]


def listed(codes: Rows, wanted: Rows) -> npt.NDArray[np.bool_]:
    """Whether each of `wanted` is among the sorted `codes`."""
    if not len(codes):
        return np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.asarray(codes[place] == wanted)


def any_alike(context: Context, side: Side, alike: Callable[[Rows, Rows], npt.NDArray[np.bool_]]) -> Judge:
    """Drops where any of the items that stand for the anchor on `side` is `alike` any that stand for the candidate.

    `alike(rows, others)` compares (n,) with (n,).
    """
    anchor_side, gallery_side = sides(context.direction)
    of_anchor = stand_ins(context.pairs, anchor_side, side)
    of_candidate = stand_ins(context.pairs, gallery_side, side)

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        drop = np.zeros(block.negatives.shape, dtype=bool)
        anchor, place = np.nonzero(block.negatives >= 0)
        for start in range(0, len(anchor), _CELLS):
            at, where = anchor[start : start + _CELLS], place[start : start + _CELLS]
            first, others = expand(of_candidate, block.negatives[at, where].astype(np.int64))
            second, items = expand(of_anchor, block.anchor_rows[at[first]])
            found = first[second[alike(items, others[second])]]
            drop[at[found], where[found]] = True
        return drop

    return judge


def sharing(context: Context, side: Side, classes: Rows) -> Judge:
    """Drops where something that stands for the anchor on `side` is in the class of something that stands for the
    candidate. `classes` (items,) are numbers from 0 on; -1 is no class."""
    anchor_side, gallery_side = sides(context.direction)
    size = int(classes.max(initial=-1)) + 1
    number = len(context.pairs.ids(anchor_side))
    at, items = expand(stand_ins(context.pairs, anchor_side, side), np.arange(number))
    known = classes[items] >= 0
    codes = np.unique(at[known] * size + classes[items[known]])
    of_candidate = stand_ins(context.pairs, gallery_side, side)

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        drop = np.zeros(block.negatives.shape, dtype=bool)
        anchor, place = np.nonzero(block.negatives >= 0)
        which, items = expand(of_candidate, block.negatives[anchor, place].astype(np.int64))
        known = classes[items] >= 0
        which, items = which[known], items[known]
        found = which[listed(codes, block.anchor_rows[anchor[which]] * size + classes[items])]
        drop[anchor[found], place[found]] = True
        return drop

    return judge
