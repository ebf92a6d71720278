"""The second stage of a two-stage search: candidates that an index found, ranked by a score no index can search.

What the index misses, no second stage brings back: `recall` says how much that is, against everything scored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, sides

__all__ = ["Score", "ScoreTable", "recall", "rescore"]

Rows = npt.NDArray[np.int64]
# The row of an anchor and the rows of some items of the gallery, (n,) -> their scores (n,) float32
Score = Callable[[int, Rows], npt.NDArray[np.float32]]
# The rows of some anchors (a,) and of items of the gallery (n,) -> the scores of all with all, (a, n) float32
ScoreTable = Callable[[Rows, Rows], npt.NDArray[np.float32]]
_ANCHORS = 64


def rescore(block: NegativeBlock, score: Score, pairs: Pairs, direction: Direction, k: int) -> NegativeBlock:
    """The k best of each anchor's candidates by `score`, ties by id; `lowest_positive` is by `score` as well.

    `block` holds candidates as the first stage ranked them, (a, num_candidates). Raises BadInput for more to keep than
    there are candidates, and for a score that is not a finite number.
    """
    num_candidates = block.negatives.shape[1]
    if k > num_candidates:
        raise BadInput(f"k = {k} negatives cannot be kept of {num_candidates} candidates; search for more.")
    anchors, gallery = sides(direction)
    offsets, positives = pairs.positives(anchors)
    place = pairs.places(sides(direction)[1])
    negatives = np.full((len(block), k), -1, dtype=np.int32)
    scores = np.full((len(block), k), np.nan, dtype=np.float32)
    lowest = np.empty(len(block), dtype=np.float32)
    for at, anchor in enumerate(block.anchor_rows.tolist()):
        own = positives[offsets[anchor] : offsets[anchor + 1]]
        candidates = block.negatives[at][block.negatives[at] >= 0].astype(np.int64)
        # Scored in id order, so that the numbers do not depend on how the first stage ranked them.
        together = np.concatenate([own[np.argsort(place[own])], candidates[np.argsort(place[candidates])]])
        found = score(anchor, together)
        if not np.isfinite(found).all():
            raise BadInput(f"{anchors} {pairs.ids(anchors)[anchor]!r}: a score is not a finite number; train again.")
        best = _best(together[len(own) :], found[len(own) :], place, k)
        negatives[at, : len(best)] = together[len(own) :][best]
        scores[at, : len(best)] = found[len(own) :][best]
        lowest[at] = found[: len(own)].min()
    size = len(pairs.ids(gallery))
    counts = np.diff(offsets)[block.anchor_rows]
    reasons = {
        int(block.anchor_rows[at]): f"{counts[at]} of the {size} {gallery}s are its positives"
        for at in np.flatnonzero(size - counts < k)
    }
    return NegativeBlock(block.anchor_rows, negatives, scores, lowest, reasons)


def recall(
    block: NegativeBlock, score: ScoreTable, pairs: Pairs, direction: Direction, k: int, depths: tuple[int, ...] = ()
) -> dict[str, float]:
    """{"10": 0.98, ...}: share of an anchor's truly hardest n negatives that are among its candidates, by n.

    The truth is `score` over the whole gallery, for the anchors of `block`; the mean over anchors of share found, for
    every n of `depths` below k and for k. An anchor with fewer than n negatives counts those it has.
    """
    anchors, gallery = sides(direction)
    offsets, positives = pairs.positives(anchors)
    place = pairs.places(sides(direction)[1])
    order = pairs.order(gallery)
    wanted = sorted({*(n for n in depths if n < k), k})
    shares: list[list[float]] = []
    for at, anchor in enumerate(block.anchor_rows.tolist()):
        if at % _ANCHORS == 0:
            scores = score(block.anchor_rows[at : at + _ANCHORS], order)
        free = ~np.isin(order, positives[offsets[anchor] : offsets[anchor + 1]])
        if not free.any():
            continue
        truth = order[free][_best(order[free], scores[at % _ANCHORS][free], place, k)]
        there = np.isin(truth, block.negatives[at])
        shares.append([float(there[:n].mean()) for n in wanted])
    means = np.mean(shares, axis=0) if shares else np.full(len(wanted), np.nan)
    return {str(n): round(float(mean), 6) for n, mean in zip(wanted, means, strict=True)}


def _best(rows: Rows, scores: npt.NDArray[np.float32], place: Rows, k: int) -> Rows:
    return np.asarray(np.lexsort((place[rows], -scores))[:k], dtype=np.int64)
