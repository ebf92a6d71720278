"""What can be wrong with a negative table beside the vectors it was mined from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.audit import EXAMPLES, Finding, Subject, number_of
from miner.audit_against import known_rows
from miner.folder import Folder
from miner.pair_scores import PairScores
from miner.rows import RowBlock, Rows

__all__ = ["Recomputed", "stale"]

Ints = npt.NDArray[np.int64]


def stale(rows: Rows, folder: Folder) -> list[Finding] | None:
    """Vectors, or a model, that are not those the table was mined from; None where the table does not say which."""
    inputs = {} if rows.artifact is None else rows.artifact.manifest.inputs
    # As `miner mine` records them, as a run does, as a selection from candidates does.
    records = (inputs, inputs.get("parents"), rows.provenance.get("vectors"))
    findings, known = [], False
    for side, now in folder.fingerprints.items():
        then = next((each[side] for each in records if isinstance(each, dict) and each.get(side)), None)
        known |= then is not None
        if then is not None and then != now:
            findings.append(
                Finding(
                    "stale vectors",
                    True,
                    1,
                    f"the table was mined from {side} vectors with fingerprint {str(then)[:12]}; these have {now[:12]}",
                    "Mine again from these vectors, or give those that the table was mined from.",
                )
            )
    then = rows.provenance.get("checkpoint")
    if then and folder.checkpoint and then != folder.checkpoint:
        findings.append(
            Finding(
                "stale checkpoint",
                True,
                1,
                f"the table is of model {str(then)[:12]}; these vectors are of {folder.checkpoint[:12]}",
                "The negatives are hard for another model: mine again.",
            )
        )
    return findings if known or findings else None


class Recomputed:
    """Scores and lowest positives of some anchors, drawn by `seed`, against the vectors: for our tables bit for bit.

    A file from elsewhere may have been scored in other arithmetic: it may differ by ROUNDING of the score, or of the
    mean score where that is larger.
    """

    name = "scores against the vectors"
    ROUNDING = 1e-3

    def __init__(self, subject: Subject, folder: Folder, metric: str, sample: int, seed: int) -> None:
        self.subject, self.folder, self.metric = subject, folder, metric
        self.pair_scores = PairScores(folder, metric)
        self.anchor_side, self.gallery_side = subject.sides
        total = len(folder.pairs.ids(self.anchor_side))
        drawn = np.random.default_rng(seed).choice(total, min(sample, total), replace=False)
        self.drawn = np.zeros(total, dtype=np.bool_)
        self.drawn[drawn] = True
        self.scores = self.lowest = self.anchors = 0
        self.wrong: dict[str, int] = {"score": 0, "lowest_positive": 0}
        self.examples: dict[str, list[dict[str, Any]]] = {"score": [], "lowest_positive": []}

    def see(self, block: RowBlock) -> None:
        known = (block.anchors >= 0) & (block.anchors < len(self.drawn))
        at = np.flatnonzero(known & self.drawn[np.where(known, block.anchors, 0)])
        if not len(at):
            return
        self.anchors += len(at)
        of_drawn = np.zeros(len(block.anchors), dtype=np.bool_)
        of_drawn[at] = True
        rows = np.flatnonzero(of_drawn[block.of] & known_rows(self.subject, block))
        true = self.pair_scores(
            self.anchor_side, block.anchors[block.of[rows]], self.gallery_side, block.negatives[rows]
        )
        self.scores += len(rows)
        self._compare("score", block, rows, block.scores[rows], true)
        first = block.offsets[at]
        self.lowest += len(at)
        self._compare("lowest_positive", block, first, block.lowest_positive[first], self._lowest(block.anchors[at]))

    def _lowest(self, anchors: Ints) -> npt.NDArray[np.float32]:
        """nan where an item has no other of its own side for a positive."""
        offsets, positives = self.folder.pairs.positives_of(self.subject.way)
        counts = np.diff(offsets)[anchors]
        starts = np.cumsum(counts) - counts
        which = np.repeat(np.arange(len(anchors)), counts)
        rows = positives[np.repeat(offsets[anchors] - starts, counts) + np.arange(counts.sum())]
        others = ~(self.subject.one_side & (anchors[which] == rows))
        lowest = np.full(len(anchors), np.inf, dtype=np.float32)
        scores = self.pair_scores(self.anchor_side, anchors[which[others]], self.gallery_side, rows[others])
        np.minimum.at(lowest, which[others], scores)
        lowest[np.isinf(lowest)] = np.nan
        return lowest

    def _compare(
        self, what: str, block: RowBlock, rows: Ints, said: npt.NDArray[Any], true: npt.NDArray[np.float32]
    ) -> None:
        if self.subject.committed:
            differ = said.astype(np.float32).view(np.int32) != true.view(np.int32)
        else:
            scale = np.maximum(np.abs(true), np.nanmean(np.abs(true))) if np.isfinite(true).any() else 1.0
            differ = ~(np.abs(said.astype(np.float64) - true) <= self.ROUNDING * scale)
        differ &= ~(np.isnan(said) & np.isnan(true))
        self.wrong[what] += int(differ.sum())
        for at in np.flatnonzero(differ)[: EXAMPLES - len(self.examples[what])]:
            shown = self.subject.example(block, int(rows[at]))
            self.examples[what].append({**shown, f"{what}_of_the_vectors": number_of(true[at])})

    def findings(self) -> Iterable[Finding]:
        for what, of in (("score", self.scores), ("lowest_positive", self.lowest)):
            if self.wrong[what]:
                how = "bit for bit" if self.subject.committed else f"within {self.ROUNDING:.1%}"
                yield Finding(
                    f"{what} is not that of the vectors",
                    True,
                    self.wrong[what],
                    f"{self.wrong[what]} of {of} values of {what} looked at (of {self.anchors} anchors) are not the "
                    f"{'inner product' if self.metric == 'ip' else 'cosine'} of the vectors {how}",
                    "These are not the vectors or the metric that the table was mined with: mine again.",
                    tuple(self.examples[what]),
                )
