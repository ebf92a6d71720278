"""The best of many items' scores so far, while the score matrix passes by tile by tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Best"]

Scores = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Errors = npt.NDArray[np.float64]

_ROOM = 3  # times the depth: less means sorting out more often, more means memory
_SORTED = 2**17  # scores sorted out at once


class Best:
    """Per item the candidates whose score may be among its `depth` best, where scores are off by up to `error`.

    With approximate scores the depth-th best so far, T, is at most `error` above the depth-th best true score, and what
    scores below T - 2 `error` cannot be among the `depth` truly best. `cut[item]` is the largest score that is out. An
    item with so many left that there is hardly room for more is `full`: what it holds proves nothing.
    """

    def __init__(self, items: int, depth: int, error: Errors, dtype: npt.DTypeLike, others: int) -> None:
        """`others`: how many candidates there are in all."""
        self.depth, self.error = depth, error
        self.room = min(_ROOM * depth + 64, others)
        self.lowest, self.highest = -np.inf, np.inf
        if np.issubdtype(dtype, np.integer):
            self.lowest, self.highest = np.iinfo(dtype).min, np.iinfo(dtype).max
        self.scores = np.full((items, self.room), self.lowest, dtype=dtype)
        self.candidates = np.full((items, self.room), -1, dtype=np.int32)
        self.fill = np.zeros(items, dtype=np.int64)
        self.cut = np.full(items, self.lowest, dtype=dtype)
        self.full = np.zeros(items, dtype=bool)

    def raise_cut(self, at: slice, known: Scores) -> None:
        """`known` (items of `at`,): a score that at least `depth` candidates of the item reach, seen here or not."""
        self.cut[at] = np.maximum(self.cut[at], self._below(known, self.error[at]))

    def add(self, start: int, counts: Rows, candidates: npt.NDArray[np.int32], scores: Scores) -> None:
        """Candidates of items `start`, `start` + 1, ...: `counts` of each, one item's after the other's."""
        at = slice(start, start + len(counts))
        while len(candidates):
            space = self.room - self.fill[at]
            if (counts > space).any():
                self._sort_out(at)
                item = np.repeat(np.arange(len(counts)), counts)
                wanted = scores > self.cut[at][item]
                candidates, scores, item = candidates[wanted], scores[wanted], item[wanted]
                counts = np.bincount(item, minlength=len(counts))
                space = self.room - self.fill[at]
            now = np.minimum(counts, space)
            if (now == counts).all():
                self._put(at, counts, candidates, scores)
                return
            before = np.repeat(np.cumsum(counts) - counts, counts)
            fits = np.arange(len(candidates)) - before < np.repeat(now, counts)
            self._put(at, now, candidates[fits], scores[fits])
            counts, candidates, scores = counts - now, candidates[~fits], scores[~fits]

    def settle(self, at: slice) -> tuple[npt.NDArray[np.int32], Errors]:
        """(candidates (items, width), ceiling (items,)) of the items of `at`: -1 in empty slots, and what no other
        candidate's true score exceeds: inf for an item that is full, -inf where every candidate there was is here."""
        self._sort_out(at, last=True)
        # A cut is where candidates were dropped, if any were.
        ceiling = np.where(self.cut[at] == self.lowest, -np.inf, self.cut[at] + self.error[at])
        ceiling[self.full[at]] = np.inf
        return self.candidates[at, : max(1, int(self.fill[at].max(initial=0)))], ceiling

    def _put(self, at: slice, counts: Rows, candidates: npt.NDArray[np.int32], scores: Scores) -> None:
        """Append; there is room."""
        ends = np.cumsum(counts)
        offsets = np.arange(at.start, at.stop) * self.room + self.fill[at] - (ends - counts)
        cells = np.repeat(offsets, counts)
        cells += np.arange(len(candidates))
        self.scores.reshape(-1)[cells] = scores
        self.candidates.reshape(-1)[cells] = candidates
        self.fill[at] += counts

    def _sort_out(self, at: slice, *, last: bool = False) -> None:
        """Drop what is out, and raise the cuts; `last`: no more will come, so that nothing needs room."""
        filled = np.flatnonzero(self.fill[at] > self.depth) + at.start
        step = max(1, _SORTED // self.room)
        for start in range(0, len(filled), step):
            self._sort_out_items(filled[start : start + step], last)

    def _sort_out_items(self, items: Rows, last: bool) -> None:
        scores, candidates = self.scores[items], self.candidates[items]
        deepest = np.partition(scores, self.room - self.depth, axis=1)[:, self.room - self.depth]
        self.cut[items] = np.maximum(self.cut[items], self._below(deepest, self.error[items]))
        keep = scores > self.cut[items, None]
        counts = keep.sum(1)
        full = (counts > self.room - self.depth // 2 - 1) & (not last)
        self.full[items] |= full
        self.cut[items[full]] = self.highest
        keep[full] = False
        counts[full] = 0
        self.scores[items], self.candidates[items] = self.lowest, -1
        cells = np.repeat(items * self.room - (np.cumsum(counts) - counts), counts)
        cells += np.arange(len(cells))
        self.scores.reshape(-1)[cells] = scores[keep]
        self.candidates.reshape(-1)[cells] = candidates[keep]
        self.fill[items] = counts

    def _below(self, scores: Scores, error: Errors) -> Scores:
        """The largest score that is out when at least `depth` candidates reach `scores`."""
        edge = scores.astype(np.float64) - 2 * error
        if self.scores.dtype.kind == "i":
            return np.asarray(np.maximum(np.floor(edge), self.lowest + 1) - 1).astype(self.scores.dtype)
        rounded = edge.astype(self.scores.dtype)
        return np.asarray(np.nextafter(rounded, np.array(-np.inf, self.scores.dtype)))
