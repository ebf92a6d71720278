"""How close anchor and candidate are on one side, in the model's own space: vectors alone are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Side, sides
from miner.filters import Context
from miner.filters._items import Lists, stand_ins
from miner.scores import norms, similarities_by_query

__all__ = ["Closeness", "closeness"]

Rows = npt.NDArray[np.int64]
Closeness = Callable[[NegativeBlock], npt.NDArray[np.float32]]


def closeness(context: Context, side: Side) -> Closeness:
    """Given a block, (anchors, width): the highest cosine of anything that stands for the anchor on `side` with any
    thing that stands for the candidate there (see `_items`), nan where there is no candidate; the same on any machine.

    From images to texts, and `side` text: of the candidate with the anchor's nearest positive; `side` image: of the
    anchor with the candidate's nearest positive. Raises BadInput without vectors.
    """
    if side not in context.vectors:
        raise BadInput(f"this rule compares {side}s by their vectors, and there are none; give them.")
    vectors = context.vectors[side]
    length = norms(vectors)
    longest = float(length.max())
    anchor_side, gallery_side = sides(context.direction)
    of_anchor = stand_ins(context.pairs, anchor_side, side)
    of_candidate = stand_ins(context.pairs, gallery_side, side)

    def measure(block: NegativeBlock) -> npt.NDArray[np.float32]:
        best = np.full(block.negatives.shape, np.nan, dtype=np.float32)
        for at, queries in _layers(of_anchor, block.anchor_rows):
            for rows in _each(of_candidate, block.negatives[at]):
                # Candidates to the left, so that no time is spent on empty slots.
                places = np.argsort(rows < 0, axis=1, kind="stable")[:, : int((rows >= 0).sum(1).max(initial=0))]
                packed = np.take_along_axis(rows, places, 1)
                filled = packed >= 0
                there = filled.any(1)
                packed, places, filled, asked = packed[there], places[there], filled[there], queries[there]
                known = np.maximum(packed, 0)
                found = similarities_by_query(
                    vectors[asked], vectors, known, length[asked], longest, context.threads
                ) / (length[asked, None] * length[known])
                cells = (at[there][:, None].repeat(places.shape[1], 1)[filled], places[filled])
                best[cells] = np.fmax(best[cells], found[filled].astype(np.float32))
        return best

    return measure


def _layers(lists: Lists, rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """(at, items): of all `rows` that list so many, the first item, then the second, and so on."""
    offsets, items = lists
    counts = offsets[rows + 1] - offsets[rows]
    for number in range(int(counts.max(initial=0))):
        at = np.flatnonzero(counts > number)
        yield at, items[offsets[rows[at]] + number]


def _each(lists: Lists, rows: npt.NDArray[np.int32]) -> Iterator[Rows]:
    """The same of a table of rows (n, width), -1 where there is none."""
    offsets, items = lists
    known = np.maximum(rows, 0).astype(np.int64)
    counts = np.where(rows >= 0, offsets[known + 1] - offsets[known], 0)
    for number in range(int(counts.max(initial=0))):
        has = counts > number
        yield np.where(has, items[np.where(has, offsets[known] + number, 0)], -1)
