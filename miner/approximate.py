"""Mining through an approximate index: it proposes, and what it proposes is scored and ranked as everywhere else.

An index may return fewer than it was asked for (empty slots), and the anchor's own positives are among what it returns.
Who has fewer than k left is searched again, deeper and with more effort; who then still has fewer is a shortfall. An
anchor's negatives depend on its own proposals alone: neither on the block it is searched in nor on the threads, as far
as the index returns the same. Equal scores are ranked by id; which of them an index proposes where its proposals end is
its own affair, and counted in the recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.candidates import Candidates
from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Within, sides
from miner.index import Approximate, SearchSettings
from miner.nearest import anchored, block_size, check_k, check_rows, own_positives
from miner.scores import similarities_by_query
from miner.search import SLACK, Excluded, Gallery, Hits
from miner.select import DEEPER

__all__ = ["Deeper", "Miner", "mine_approximately"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

_LEVELS = 6


class Miner:
    """One direction, searched through `index`, which was built from `gallery` (rows, dim).

    `settings` say how hard the index looks, what they leave out is as the index has it; they may be changed between
    searches. `deeper` counts anchors that were
    searched again, `short` those that then still had fewer than k.
    """

    def __init__(
        self,
        index: Approximate,
        gallery: Vectors,
        pairs: Pairs,
        direction: Direction | Within,
        k: int,
        settings: SearchSettings | None = None,
        *,
        threads: int = 1,
    ) -> None:
        """Raises BadInput for shapes that do not fit, a k larger than the gallery or than the index can return, and
        settings the index does not have."""
        check_rows(gallery, pairs, sides(direction)[1])
        check_k(pairs, direction, k)
        if (index.size, index.dim) != gallery.shape:
            raise BadInput(
                f"the index holds {index.size} vectors of dim {index.dim}, but the gallery has shape {gallery.shape}; "
                "build the index from these vectors."
            )
        self.index, self.pairs, self.direction, self.k, self.threads = index, pairs, direction, k, threads
        _, other = sides(direction)
        self.gallery = Gallery(gallery, pairs.places(other), index.max_norm, threads)
        counts = np.diff(pairs.positives_of(direction)[0])
        # Over all anchors, so that the depth does not depend on the block.
        self._typical, self._most = k + int(np.quantile(counts, 0.9)), k + int(counts.max(initial=0))
        if self._typical > index.max_depth and index.max_depth < index.size:
            raise BadInput(
                f"k = {k} and the anchors' positives are {self._typical} results, and a search on the {index.device} "
                f"returns {index.max_depth:,} at most; ask for fewer, or hide the GPU (CUDA_VISIBLE_DEVICES=)."
            )
        index.set(settings or index.settings)
        self.settings = index.settings
        self.deeper = self.short = 0

    @property
    def depth(self) -> int:
        """How many rows the first search of an anchor returns."""
        return self.depth_at(self.settings.k_factor)

    def depth_at(self, k_factor: int | None) -> int:
        """The same for another `k_factor`."""
        factor = 1 if self.index.refines else k_factor or 1
        return min(factor * self._typical + SLACK, self.index.max_depth)

    def block(self, queries: Vectors, anchor_rows: Rows) -> NegativeBlock:
        """The negatives of some anchors: `queries` (a, dim) are the vectors of `anchor_rows` (a,), in that order."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        length = self.gallery.lengths(queries)
        own = own_positives(self.pairs, self.direction, anchor_rows)
        wanted = np.minimum(self.gallery.size - np.diff(own[0]), self.k)
        hits = Hits.empty(len(queries), self.k)
        pending = np.flatnonzero(wanted > 0)
        for level, (settings, depth) in enumerate(self._levels()):
            if len(pending) == 0:
                break
            self.deeper += len(pending) if level == 1 else 0
            self.index.set(settings)
            rows = self.index.search(queries[pending], depth)[1]
            found = self._rank(queries, length, pending, rows, own, hits)
            pending = pending[found < wanted[pending]]
        self.index.set(self.settings)
        self.short += len(pending)
        made = anchored(queries, self.gallery.vectors, self.direction, anchor_rows, own, hits, self.threads)
        missed = {int(anchor_rows[at]): self._why(int((hits.rows[at] >= 0).sum()), int(wanted[at])) for at in pending}
        return replace(made, reasons={**made.reasons, **missed})

    def blocks(
        self, vectors: Vectors, *, block: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[NegativeBlock]:
        """Every anchor in id order: what `write_negatives` takes. `vectors` (anchors, dim) by row of the pairs."""
        anchors, _ = sides(self.direction)
        order = self.pairs.order(anchors)
        if len(vectors) != len(order):
            raise BadInput(f"{len(vectors)} vectors for {len(order)} {anchors}s; give one each.")
        step = block or block_size(self.depth)
        return self._blocks(vectors, order, step, progress)

    def _blocks(
        self, vectors: Vectors, order: Rows, step: int, progress: Callable[[int, int], None] | None
    ) -> Iterator[NegativeBlock]:
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            yield self.block(vectors[rows], rows)
            if progress is not None:
                progress(start + len(rows), len(order))

    def _levels(self) -> Iterator[tuple[SearchSettings, int]]:
        """How to search first, and how again, until there is room for the most positives that any anchor has."""
        depth, settings = self.depth, self.settings
        enough = min(self._most + SLACK, self.index.max_depth)
        for level in range(_LEVELS):
            yield settings, depth
            if level > 0 and depth >= enough:
                return
            depth = min(DEEPER * depth, self.index.max_depth)
            settings = self.harder(settings)

    def harder(self, settings: SearchSettings) -> SearchSettings:
        """The same with four times the effort, as far as there is so much."""
        raised = {
            name: min(DEEPER * value, self.index.knobs[name])
            for name, value in settings.chosen().items()
            if name != "k_factor"
        }
        return replace(settings, **raised)

    def _rank(
        self, queries: Vectors, length: npt.NDArray[np.float64], some: Rows, rows: Rows, own: Excluded, hits: Hits
    ) -> npt.NDArray[np.int64]:
        """Write the k best of the rows (len(some), depth) proposed for `some` queries; returns how many there were."""
        known = np.maximum(rows, 0)
        scores = similarities_by_query(
            queries[some], self.gallery.vectors, known, length[some], self.gallery.max_norm, self.threads
        )
        keep = (rows >= 0) & ~self._own(some, known, own)
        ranked = np.where(keep, scores, -np.inf)
        order = np.lexsort((self.gallery.place[known], -ranked), axis=-1)[:, : self.k]
        kept = np.take_along_axis(keep, order, 1)
        width = order.shape[1]
        hits.rows[some, :width] = np.where(kept, np.take_along_axis(known, order, 1), -1)
        hits.scores[some, :width] = np.where(kept, np.take_along_axis(scores, order, 1), np.nan)
        return np.asarray(kept.sum(1))

    def _own(self, some: Rows, rows: Rows, own: Excluded) -> npt.NDArray[np.bool_]:
        """Which rows are positives of their query."""
        offsets, positives = own
        query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        codes = np.append(query * self.gallery.size + positives, np.iinfo(np.int64).max)  # sorted, as positives are
        asked = some[:, None] * self.gallery.size + rows
        return np.asarray(codes[np.searchsorted(codes, asked)] == asked)

    def _why(self, found: int, wanted: int) -> str:
        spoken = ", ".join(f"{name} {value}" for name, value in self.settings.chosen().items()) or "its settings"
        return (
            f"the approximate index {self.index.factory} found {found} of {wanted} at {spoken} and {DEEPER} times that"
        )


class Deeper:
    """Searches some anchors deeper than their candidates, as `Selection` asks: `deeper(anchor_rows, depth)`.

    `miner` found the candidates in `vectors` (anchors, dim), by row of the pairs. A list stays as it is, and what a
    deeper search finds behind its last place is put after it; what should have stood further in front was missed and
    remains so. Four times as deep is searched with four times the effort.
    """

    def __init__(self, miner: Miner, vectors: Vectors, candidates: Candidates) -> None:
        self.miner, self.vectors, self.candidates = miner, vectors, candidates
        index, counts = miner.index, np.diff(miner.pairs.positives_of(miner.direction)[0])
        self.place = miner.pairs.places(sides(miner.direction)[0])
        # A GPU returns no more than so many, with the positives of most anchors among them.
        limited = index.max_depth < index.size
        self.most = max(1, index.max_depth - int(np.quantile(counts, 0.9))) if limited else index.size

    def __call__(self, anchor_rows: Rows, depth: int) -> NegativeBlock:
        """(anchors, depth), -1 where no more was found."""
        found, settings = self.candidates.at(self.place[anchor_rows]), self.miner.settings
        while found.negatives.shape[1] < depth:
            settings = self.miner.harder(settings)
            found = self._grown(found, min(DEEPER * found.negatives.shape[1], depth), settings)
        return found

    def _grown(self, found: NegativeBlock, width: int, settings: SearchSettings) -> NegativeBlock:
        known = found.negatives.shape[1]
        more = ((0, 0), (0, width - known))
        negatives = np.pad(found.negatives, more, constant_values=-1)
        scores = np.pad(found.scores, more, constant_values=np.nan)
        going, k = np.flatnonzero(found.negatives[:, -1] >= 0), min(width, self.most)
        while len(going):
            rows = found.anchor_rows[going]
            deeper = self._miner(k, settings).block(self.vectors[rows], rows)
            behind = self._behind(deeper, found.negatives[going, -1], found.scores[going, -1])
            slot = np.where(behind, known - 1 + np.cumsum(behind, axis=1), width)
            at, rank = np.nonzero(slot < width)
            negatives[going, known:], scores[going, known:] = -1, np.nan
            negatives[going[at], slot[at, rank]] = deeper.negatives[at, rank]
            scores[going[at], slot[at, rank]] = deeper.scores[at, rank]
            ended = (negatives[going, -1] >= 0) | (deeper.negatives[:, -1] < 0) | (k == self.most)
            going, k = going[~ended], min(2 * k, self.most)
        return replace(found, negatives=negatives, scores=scores)

    def _miner(self, k: int, settings: SearchSettings) -> Miner:
        of = self.miner
        return Miner(of.index, of.gallery.vectors, of.pairs, of.direction, k, settings, threads=of.threads)

    def _behind(
        self, found: NegativeBlock, last: npt.NDArray[np.int32], score: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """(anchors, k): what ranks after the `last` candidate of its anchor, which has this `score`."""
        place = self.miner.gallery.place
        tied = (found.scores == score[:, None]) & (place[found.negatives] > place[last][:, None])
        return np.asarray((found.negatives >= 0) & ((found.scores < score[:, None]) | tied))


def mine_approximately(
    vectors: Vectors,
    index: Approximate,
    gallery: Vectors,
    pairs: Pairs,
    direction: Direction | Within,
    k: int,
    settings: SearchSettings | None = None,
    *,
    block: int | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[NegativeBlock]:
    """Every anchor of a direction, in id order, block by block, as `miner.nearest.mine` gives them. Raises as `Miner`,
    before the first block."""
    miner = Miner(index, gallery, pairs, direction, k, settings, threads=threads)
    return miner.blocks(vectors, block=block, progress=progress)
