"""The scores of one model's positives and candidates, and what every rung of the ladder would keep of these.

The rungs and their figures are explained in `miner.ladder`, judged pairs in `miner.judged`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Within, sides
from miner.judged import Judged, estimate, weights
from miner.ladder import Rung, ladder, propose

__all__ = ["Calibration", "Positives", "Source", "calibrate"]

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LEAST_HIDDEN = 100


@dataclass(frozen=True)
class Source:
    """Candidates of one direction: `blocks()` cover every anchor at most once, rows of the folder's pairs."""

    where: str
    direction: Direction | Within
    num_candidates: int
    metric: str
    blocks: Callable[[], Iterator[NegativeBlock]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Positives:
    """Scores of all positives of every anchor row r: `scores[offsets[r]:offsets[r + 1]]`, float32; it may have none."""

    offsets: Ints
    scores: npt.NDArray[np.float32]

    def lowest(self) -> npt.NDArray[np.float32]:
        """(anchors,) the lowest of each, nan for none."""
        found = np.full(len(self.offsets) - 1, np.nan, dtype=np.float32)
        some = np.diff(self.offsets) > 0
        if some.any():
            found[some] = np.minimum.reduceat(self.scores, self.offsets[:-1][some])
        return found

    def hidden(self) -> tuple[Ints, Reals, Reals]:
        """(anchor row, score, lowest of the anchor's other positives) of every positive that has others."""
        counts = np.diff(self.offsets)
        anchor = np.repeat(np.arange(len(counts)), counts)
        scores = self.scores[np.lexsort((self.scores, anchor))].astype(np.float64)
        first = np.zeros(len(anchor), dtype=np.bool_)
        first[self.offsets[:-1][counts > 0]] = True
        others = scores[
            np.where(first, np.minimum(self.offsets[:-1][anchor] + 1, len(scores) - 1), self.offsets[:-1][anchor])
        ]
        several = (counts > 1)[anchor]
        return anchor[several], scores[several], others[several]


@dataclass(frozen=True)
class Calibration:
    """What is known of one direction. `curves` are quantiles of scores by name, `samples` the scores themselves."""

    source: Source
    k: int
    anchors: int
    candidates: int
    curves: dict[str, dict[str, float]]
    samples: dict[str, Reals]
    rungs: list[Rung]
    like_positives: str
    judged: dict[str, Any] | None
    proposal: Rung | None
    why: str

    def numbers(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "candidates_from": self.source.where,
            "metric": self.source.metric,
            "notes": list(self.source.notes),
            "k": self.k,
            "anchors": self.anchors,
            "candidates": self.candidates,
            "num_candidates": self.source.num_candidates,
            "scores": self.curves,
            "ladder": [rung.numbers() for rung in self.rungs],
            "positives_dropped_are": self.like_positives,
            "judged": self.judged,
            "proposal": None if self.proposal is None else self.proposal.rule,
            "why": self.why,
        }


def calibrate(
    source: Source,
    lowest: npt.NDArray[np.float32],
    positives: Positives | None,
    k: int,
    judged: Judged | None,
    target: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Pass over the candidates once; memory is bounded by a block and some numbers per anchor and per judged pair.

    `lowest` (anchor rows,) are the lowest positives, `positives` all of them where they are known. Raises BadInput
    when the candidates bring other lowest positives, when there is no candidate, and when no anchor has a positive.
    """
    source = _with_positives(source, lowest)
    rungs = ladder(lowest)
    seen = _Seen(source, k, rungs, len(lowest), judged)
    for block in source.blocks():
        _same(source, block, lowest)
        seen.add(block)
        progress(seen.anchors, len(lowest))
    if not seen.at_rank.sum():
        raise BadInput(f"{source.where}: no candidate at all, so there is nothing to calibrate; search first.")
    hidden = _hidden(positives, seen.least) if positives is not None else None
    for rung in rungs:
        rung.shares = {
            "candidates_kept": rung.kept / int(seen.at_rank.sum()),
            "hardest_kept": rung.hardest / int(seen.at_rank[:k].sum()),
            "anchors_with_k": rung.anchors / seen.anchors,
            "positives_dropped": _dropped(rung, hidden, lowest, seen.least),
        }
    said = seen.judge(rungs) if judged is not None else None
    proposal, why = propose(rungs, k, said["matches"] if said else 0, target)
    return Calibration(
        source, k, seen.anchors, int(seen.at_rank.sum()), *seen.curves(lowest, positives), rungs,
        "hidden positives of anchors that have several" if hidden is not None else "positives of other anchors",
        said, proposal, why,
    )  # fmt: skip


def _with_positives(source: Source, lowest: npt.NDArray[np.float32]) -> Source:
    """The source, with a note where anchors have no positive."""
    none = int(np.isnan(lowest).sum())
    anchors, gallery = sides(source.direction)
    partner = "text" if anchors == "image" else "image"
    if none == len(lowest):
        raise BadInput(
            f"{source.where}: no {anchors} shares a {partner} with another, so no anchor of {source.direction} has a "
            "positive to compare its candidates with; calibrate i2t or t2i."
        )
    if not none or anchors != gallery:
        return source
    note = (
        f"{none} of {len(lowest)} {anchors}s share no {partner} with another: a margin drops none of their candidates"
    )
    return replace(source, notes=(*source.notes, note))


def _same(source: Source, block: NegativeBlock, lowest: npt.NDArray[np.float32]) -> None:
    here = lowest[block.anchor_rows]
    differ = (here != block.lowest_positive) & ~(np.isnan(here) & np.isnan(block.lowest_positive))
    if differ.any():
        at = int(np.argmax(differ))
        raise BadInput(
            f"{source.where}: its lowest positives are not those of the vectors ({differ.sum()} of the first "
            f"{len(differ)} anchors differ: {block.lowest_positive[at]} there, {here[at]} by the vectors with metric "
            f"{source.metric}); give the folder that these candidates were searched in, or search again."
        )


class _Seen:
    """What is gathered block by block."""

    def __init__(self, source: Source, k: int, rungs: Sequence[Rung], num_anchors: int, judged: Judged | None) -> None:
        self.source, self.k, self.rungs = source, k, rungs
        width = source.num_candidates
        self.anchors = 0
        self.at_rank = np.zeros(width, dtype=np.int64)
        # The least score with which an item is among the k hardest: -inf where there are fewer, nan for other anchors.
        self.least = np.full(num_anchors, np.nan)
        self.ranks = [rank for rank in (1, 5, 10, 50, 100, 500, 1000) if rank < width] + [width]
        self.by_rank: list[npt.NDArray[np.float32]] = []
        self.judged = judged
        if judged is not None:
            self.order = np.argsort(judged.anchors, kind="stable")
            self.rank = np.full(len(judged), -1, dtype=np.int64)
            self.dropped = np.zeros((len(rungs), len(judged)), dtype=np.int32)

    def add(self, block: NegativeBlock) -> None:
        there = block.negatives >= 0
        found = there.sum(1)
        self.anchors += len(block)
        self.at_rank += there.sum(0)
        self.least[block.anchor_rows] = np.where(found >= self.k, block.scores[:, self.k - 1], -np.inf)
        self.by_rank.append(block.scores[:, [rank - 1 for rank in self.ranks]])
        dropped = np.empty((len(self.rungs), len(block)), dtype=np.int32)
        for number, rung in enumerate(self.rungs):
            # Scores fall with the rank, so what is dropped stands first.
            dropped[number] = ((block.scores > rung.highest(block.lowest_positive)[:, None]) & there).sum(1)
            left = found - dropped[number]
            rung.kept += int(left.sum())
            rung.hardest += int((np.minimum(found, self.k) - np.minimum(dropped[number], self.k)).sum())
            rung.anchors += int((left >= self.k).sum())
        if self.judged is not None:
            self._find(block, dropped, self.judged)

    def _find(self, block: NegativeBlock, dropped: npt.NDArray[np.int32], judged: Judged) -> None:
        """The ranks of the judged pairs of these anchors, and how many candidates of the anchor each rung drops."""
        place = np.full(len(self.least), -1, dtype=np.int64)
        place[block.anchor_rows] = np.arange(len(block))
        about = np.flatnonzero(place[judged.anchors] >= 0)
        for start in range(0, len(about), 4096):
            these = about[start : start + 4096]
            here = place[judged.anchors[these]]
            equal = block.negatives[here] == judged.negatives[these, None]
            hit = equal.any(1)
            self.rank[these[hit]] = equal[hit].argmax(1)
        self.dropped[:, about] = dropped[:, place[judged.anchors[about]]]

    def judge(self, rungs: Sequence[Rung]) -> dict[str, Any]:
        """Fill in what the judged pairs say of every rung; what is said of the judgements as a whole."""
        judged = self.judged
        assert judged is not None
        at = np.flatnonzero(self.rank >= 0)
        rank, match = self.rank[at], judged.match[at]
        weight = weights(rank, self.at_rank)
        hard = rank < self.k
        for number, rung in enumerate(rungs):
            dropped = self.dropped[number, at]
            left = (rank >= dropped) & (rank < dropped + self.k)
            rung.false_negatives = estimate(
                match[left], weight[left], judged.anchors[at][left], judged.negatives[at][left]
            )
            gone = rank < dropped
            for name, of in (("false_negatives_dropped", hard & match), ("true_negatives_dropped", hard & ~match)):
                total = weight[of].sum()
                rung.shares[name] = float(weight[of & gone].sum() / total) if total else None
        whole = int(self.at_rank.sum())
        return {
            "pairs": len(judged),
            "among_candidates": len(at),
            "among_hardest": int(hard.sum()),
            "matches": int((match & hard).sum()),
            "anchors": len(np.unique(judged.anchors[at][hard])),
            "median_rank": float(np.median(rank)) if len(rank) else None,
            "deepest_rank": int(rank.max()) if len(rank) else None,
            "share_of_candidates": round(len(at) / whole, 6),
            "unweighted": round(float(match[hard].mean()), 6) if hard.any() else None,
            "notes": list(judged.notes),
        }

    def curves(
        self, lowest: npt.NDArray[np.float32], positives: Positives | None
    ) -> tuple[dict[str, dict[str, float]], dict[str, Reals]]:
        """(quantiles of scores, the scores) of the positives and of the candidates by rank; 1 is the hardest."""
        by_rank = np.concatenate(self.by_rank)
        samples: dict[str, Any] = {} if positives is None else {"all positives": positives.scores}
        samples["lowest positive"] = lowest
        samples |= {f"candidate {rank}": by_rank[:, at] for at, rank in enumerate(self.ranks)}
        samples = {name: values[np.isfinite(values)].astype(np.float64) for name, values in samples.items()}
        return {name: _quantiles(values) for name, values in samples.items() if len(values)}, samples


def _hidden(positives: Positives, least: Reals) -> tuple[Reals, Reals] | None:
    """(score, lowest of the others) of hidden positives that would be among the k hardest; None for too few."""
    anchor, scores, others = positives.hidden()
    found = scores >= least[anchor]
    return (scores[found], others[found]) if found.sum() >= _LEAST_HIDDEN else None


def _dropped(
    rung: Rung, hidden: tuple[Reals, Reals] | None, lowest: npt.NDArray[np.float32], least: Reals
) -> float | None:
    """Share of what scores like a positive and would be among the k hardest that a rule drops; None for none."""
    if hidden is not None:
        return float((hidden[0] > rung.highest(hidden[1])).mean())
    known = np.isfinite(lowest) & ~np.isnan(least)
    ordered = np.sort(lowest[known].astype(np.float64))
    highest = np.maximum(rung.highest(lowest[known]), least[known])
    total = (len(ordered) - np.searchsorted(ordered, least[known], side="left")).sum()
    gone = (len(ordered) - np.searchsorted(ordered, highest, side="right")).sum()
    return float(gone / total) if total else None


def _quantiles(values: Reals) -> dict[str, float]:
    return {f"{q:g}": round(float(v), 6) for q, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}
