"""How much of the truth an approximate search finds, measured.

The truth, for a sample of anchors, is an exact search of the same gallery. Compared are the final negatives, after the
anchor's own positives are out and everything is scored as it will be in the table. recall@k of an anchor is the share
of its k hardest negatives that were found; one that scores exactly as the last of the k is as good as that one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner import exhaustive
from miner.approximate import Miner
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import sides
from miner.nearest import anchored, own_positives
from miner.tiles import Float32

__all__ = ["Recall", "mean_of_shares", "measure", "sample_anchors", "shares_found", "truth"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

_Z = 1.959964  # of a 95% interval
_BLOCK = 512  # anchors searched at once


@dataclass(frozen=True)
class Recall:
    """The mean recall@k over `anchors` of a sample, its 95% interval, and the mean at smaller depths, "1" and "10"."""

    k: int
    anchors: int
    mean: float
    low: float
    high: float
    at: dict[str, float]

    def stored(self) -> dict[str, Any]:
        """As a table's provenance has it: {"k", "anchors", "recall": {"1", "10", k}, "interval": [low, high]}."""
        figures = {**self.at, str(self.k): self.mean} if self.anchors else {}
        return {
            "k": self.k,
            "anchors": self.anchors,
            "recall": figures,
            "interval": [self.low, self.high] if self.anchors else [],
        }

    def __str__(self) -> str:
        if not self.anchors:
            return "no anchor that was looked at has a negative to be found"
        return (
            f"recall@{self.k} {self.mean:.4f} (95% interval {self.low:.4f} to {self.high:.4f}, {self.anchors} anchors)"
        )


def sample_anchors(miner: Miner, size: int, seed: int) -> tuple[Rows, Rows]:
    """Two disjoint samples of anchors, rows of the pairs, of `size` each or half of all: one to choose on, the other to
    report. Drawn by places in id order, whatever the order of the rows. A single anchor is in both."""
    order = miner.pairs.order(sides(miner.direction)[0])
    each = min(size, max(1, len(order) // 2))
    drawn = np.random.default_rng([seed, len(order)]).permutation(len(order))
    first, second = np.sort(drawn[:each]), np.sort(drawn[each : 2 * each] if len(order) > 1 else drawn)
    return order[first], order[second]


def truth(miner: Miner, vectors: Vectors, anchor_rows: Rows) -> NegativeBlock:
    """The exact negatives of some anchors, the gallery read panel by panel; `vectors` (anchors, dim) are of all."""
    gallery, k = miner.gallery, miner.k
    queries = np.asarray(vectors[anchor_rows], dtype=np.float32)
    length = gallery.lengths(queries)
    most = int(np.quantile(np.diff(own_positives(miner.pairs, miner.direction, anchor_rows)[0]), 0.99))

    def rank(proposal: exhaustive.Proposal) -> NegativeBlock:
        at = slice(proposal.start, proposal.start + len(proposal.rows))
        own = own_positives(miner.pairs, miner.direction, anchor_rows[at])
        hits = gallery.ranked(queries[at], k, proposal.rows, proposal.ceiling, own)
        return anchored(queries[at], gallery.vectors, miner.direction, anchor_rows[at], own, hits, miner.threads)

    tiles = Float32(queries, length, gallery.max_norm)
    depth = min(k + most + 1, gallery.size)
    blocks = exhaustive.search(tiles, len(queries), gallery.vectors, depth, 0, rank, rank, threads=miner.threads)
    return NegativeBlock.join(list(blocks))


def shares_found(found: NegativeBlock, exact: NegativeBlock, depth: int) -> Shares:
    """recall@depth of every anchor (a,); nan for one that has no negatives at all."""
    assert np.array_equal(found.anchor_rows, exact.anchor_rows)
    there = (exact.negatives[:, :depth] >= 0).sum(1)
    last = np.take_along_axis(exact.scores, np.maximum(there - 1, 0)[:, None], 1)
    as_good = (found.negatives[:, :depth] >= 0) & (found.scores[:, :depth] >= last)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there > 0, as_good.sum(1) / there, np.nan))


def mean_of_shares(shares: Shares, k: int) -> tuple[float, float, float]:
    """Mean and 95% interval of per-anchor recalls at k, nan among them left out.

    Wilson's interval for as many independent draws as would vary like these shares: an anchor counts as one draw to k
    draws, and as one where all are equal.
    """
    shares = shares[~np.isnan(shares)]
    count = len(shares)
    if count == 0:
        return math.nan, math.nan, math.nan
    mean = float(shares.mean())
    varied = float(shares.var(ddof=1)) if count > 1 else 0.0
    draws = float(np.clip(count * mean * (1 - mean) / varied, count, count * k)) if varied > 0 else float(count)
    centre, width = mean + _Z**2 / (2 * draws), _Z * math.sqrt(mean * (1 - mean) / draws + _Z**2 / (4 * draws**2))
    scale = 1 + _Z**2 / draws
    return mean, max(0.0, (centre - width) / scale), min(1.0, (centre + width) / scale)


def measure(miner: Miner, vectors: Vectors, exact: NegativeBlock) -> Recall:
    """Recall of the miner, as its settings are, for the anchors of the truth. `vectors` (anchors, dim) are of all."""
    rows = exact.anchor_rows
    parts = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    counted = miner.deeper, miner.short
    found = NegativeBlock.join([miner.block(vectors[part], part) for part in parts])
    miner.deeper, miner.short = counted  # what is mined is counted, not what is measured
    at = {}
    for depth in (1, 10):
        if depth < miner.k:
            at[str(depth)] = round(mean_of_shares(shares_found(found, exact, depth), depth)[0], 6)
    shares = shares_found(found, exact, miner.k)
    mean, low, high = (round(figure, 6) for figure in mean_of_shares(shares, miner.k))
    return Recall(miner.k, int((~np.isnan(shares)).sum()), mean, low, high, at)
