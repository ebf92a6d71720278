"""Two negative tables of one direction: how much the later repeats of the earlier, and whether that was worth a round.

overlap@k      share of an anchor's k hardest negatives in the new table that are among its k hardest in the old
rank-biased    the same at every depth d up to k, weighted by P^(d-1): the hardest count most. Webber, Moffat and Zobel,
               A similarity measure for indefinite rankings (TOIS 28, 2010), cut at depth k and scaled so that two equal
               lists give 1; with P = 0.9 the first ten ranks carry some 86% of the weight
score shift    score in the new table minus score in the old, of the negatives in both
hardness       score - lowest positive, each table with its own
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.rows import Lookup, RowBlock, Rows

__all__ = ["Difference", "Verdict", "compare", "verdict"]

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

P = 0.9
# Rules of thumb: from LITTLE on, another round will change little; below MUCH, most of what is trained on is new.
LITTLE, MUCH = 0.8, 0.5
_EXAMPLES = 3
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Hardness:
    """Of all negatives looked at in one table."""

    negatives: int = 0
    total: float = 0.0
    above: int = 0

    def see(self, block: RowBlock) -> None:
        hardness = np.subtract(block.scores, block.lowest_positive, dtype=np.float64)
        finite = hardness[np.isfinite(hardness)]
        self.negatives += len(finite)
        self.total += float(finite.sum())
        self.above += int((finite > 0).sum())

    @property
    def mean(self) -> float:
        return self.total / max(self.negatives, 1)

    @property
    def share_above(self) -> float:
        """Share of the negatives that score above the anchor's lowest positive."""
        return self.above / max(self.negatives, 1)


@dataclass
class Difference:
    """Figures over the anchors in both tables, and how many anchors and which are in one alone.

    `overlap`, `biased` and `shift` are by anchor; `shift` has those alone that have a negative in common.
    """

    k: int
    overlap: Reals
    biased: Reals
    shift: Reals
    mean_shift: float
    same_hardest: float
    old: Hardness
    new: Hardness
    only: dict[str, int]
    examples: dict[str, list[str | None]]

    @property
    def anchors(self) -> int:
        return len(self.overlap)

    def numbers(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        tenths = np.minimum((self.overlap * 10 + 1e-9).astype(np.int64), 9)
        return {
            "k": self.k,
            "anchors": self.anchors,
            "overlap": round(float(self.overlap.mean()), 6),
            "overlap_quantiles": _quantiles(self.overlap),
            "overlap_tenths": np.bincount(tenths, minlength=10).tolist(),
            "rank_biased_overlap": round(float(self.biased.mean()), 6),
            "same_hardest": round(self.same_hardest, 6),
            "score_shift": round(self.mean_shift, 6),
            "score_shift_quantiles": _quantiles(self.shift),
            "hardness_old": round(self.old.mean, 6),
            "hardness_new": round(self.new.mean, 6),
            "share_above_lowest_positive_old": round(self.old.share_above, 6),
            "share_above_lowest_positive_new": round(self.new.share_above, 6),
            "only_in_old": self.only["old"],
            "only_in_new": self.only["new"],
            "examples_only_in_old": self.examples["old"],
            "examples_only_in_new": self.examples["new"],
        }


@dataclass(frozen=True)
class Verdict:
    """`changes` is "little", "some" or "much"; `reason` says why in a sentence."""

    changes: str
    reason: str


def verdict(difference: Difference) -> Verdict:
    """Whether another round is worth it, by overlap@k; of tables with equal scores it says nothing of rounds."""
    share = float(difference.overlap.mean())
    changes = "little" if share >= LITTLE else "much" if share < MUCH else "some"
    same = f"{share:.0%} of the negatives are the same as before"
    if len(difference.shift) and not difference.shift.any():
        return Verdict(changes, f"{same}, with equal scores: tables of one model do not show what a round changes")
    if share >= LITTLE:
        said = Verdict(changes, f"{same}: another round will change little")
    elif share < MUCH:
        said = Verdict(changes, f"only {same}: most are new to training, so another round is worth it")
    else:
        said = Verdict(changes, f"{same}: another round changes a part; worth it while the development score rises")
    if difference.new.share_above < 0.01:
        few = f"{difference.new.share_above:.1%} of the new ones score above a positive"
        said = Verdict(said.changes, f"{said.reason}. {few}: most are easy for this model already")
    return said


def compare(old: Rows, new: Rows, k: int | None) -> Difference:
    """Compare the k hardest negatives (as many as both hold, if None) of the anchors in both tables.

    Memory is bounded by the distance at which the same anchor stands in the two files: a block of rows where both are
    in the same order. Raises BadInput for a k that a table does not hold, and for tables without a common anchor.
    """
    held = {"old": old.k(), "new": new.k()}
    for rows, name in ((old, "old"), (new, "new")):
        if k is not None and k > held[name]:
            raise BadInput(
                f"{rows.where}: this table holds {held[name]} negatives per anchor, but --k {k} was asked for; ask for "
                f"at most {min(held.values())}, or leave it out."
            )
    k = k or min(held.values())
    seen = _Seen(k)
    for left, right in seen.together(old, new):
        seen.add(left, right)
    return seen.result(old, new)


@dataclass
class _Seen:
    k: int
    anchors: Lookup = field(default_factory=Lookup)
    gallery: Lookup = field(default_factory=Lookup)
    old: Hardness = field(default_factory=Hardness)
    new: Hardness = field(default_factory=Hardness)
    overlap: list[Reals] = field(default_factory=list)
    biased: list[Reals] = field(default_factory=list)
    shift: list[Reals] = field(default_factory=list)
    common: int = 0
    shifted: float = 0.0
    same_hardest: int = 0
    left: dict[str, Ints] = field(default_factory=dict)

    def together(self, old: Rows, new: Rows) -> Iterator[tuple[RowBlock, RowBlock]]:
        """The anchors in both tables, block by block and in the same order, each with its first k rows."""
        streams = {"old": old.blocks(self.anchors, self.gallery), "new": new.blocks(self.anchors, self.gallery)}
        waiting: dict[str, RowBlock] = {}
        read = dict.fromkeys(streams, 0)
        while streams:
            name = min(streams, key=lambda each: read[each])
            block = next(streams[name], None)
            if block is None:
                del streams[name]
                continue
            read[name] += len(block.anchors)
            block = block.hardest(self.k)
            waiting[name] = waiting[name].followed_by(block) if name in waiting else block
            if len(waiting) == 2:
                _, left, right = np.intersect1d(waiting["old"].anchors, waiting["new"].anchors, return_indices=True)
                if len(left):
                    yield waiting["old"].taken(left), waiting["new"].taken(right)
                    for side, at in (("old", left), ("new", right)):
                        rest = np.delete(np.arange(len(waiting[side].anchors)), at)
                        waiting[side] = waiting[side].taken(rest)
        self.left = {name: block.anchors for name, block in waiting.items()}

    def add(self, old: RowBlock, new: RowBlock) -> None:
        size = len(self.gallery) + 1
        before, after = (block.of * size + block.negatives + 1 for block in (old, new))
        both, at_old, at_new = np.intersect1d(before, after, return_indices=True)
        anchor = both // size
        count = len(old.anchors)
        shared = np.bincount(anchor, minlength=count)
        filled = new.counts > 0
        self.overlap.append(shared[filled] / new.counts[filled])
        self.biased.append(_biased(anchor, old, new, at_old, at_new)[filled])
        shift = np.subtract(new.scores[at_new], old.scores[at_old], dtype=np.float64)
        finite = np.isfinite(shift)
        several = np.bincount(anchor[finite], minlength=count)
        sums = np.bincount(anchor[finite], weights=shift[finite], minlength=count)
        self.shift.append(sums[several > 0] / several[several > 0])
        self.common += int(finite.sum())
        self.shifted += float(shift[finite].sum())
        self.same_hardest += int(((old.places[at_old] == 0) & (new.places[at_new] == 0)).sum())
        self.old.see(old)
        self.new.see(new)

    def result(self, old: Rows, new: Rows) -> Difference:
        if not self.overlap:
            raise BadInput(
                f"{old.where} and {new.where}: no anchor is in both, so there is nothing to compare; give two tables "
                "of the same data."
            )
        overlap = np.concatenate(self.overlap)
        only = {name: self.left.get(name, np.empty(0, np.int64)) for name in ("old", "new")}
        return Difference(
            self.k,
            overlap,
            np.concatenate(self.biased),
            np.concatenate(self.shift),
            self.shifted / max(self.common, 1),
            self.same_hardest / len(overlap),
            self.old,
            self.new,
            {name: len(numbers) for name, numbers in only.items()},
            {name: [self.anchors.name(n) for n in numbers[:_EXAMPLES]] for name, numbers in only.items()},
        )


def _biased(anchor: Ints, old: RowBlock, new: RowBlock, at_old: Ints, at_new: Ints) -> Reals:
    """(anchors,) rank-biased overlap, to the depth of the shorter of the two lists; 0 where one is empty."""
    depth = np.minimum(old.counts, new.counts)
    weights = P ** np.arange(depth.max(initial=0))
    total = np.concatenate([[0.0], np.cumsum(weights)])
    agreed = np.concatenate([[0.0], np.cumsum(weights / np.arange(1, len(weights) + 1))])
    # An item is in both lists from the depth on at which the later of them has it.
    from_depth = np.maximum(old.places[at_old], new.places[at_new])
    within = from_depth < depth[anchor]
    gain = agreed[depth[anchor[within]]] - agreed[from_depth[within]]
    gained = np.bincount(anchor[within], weights=gain, minlength=len(depth))
    return np.asarray(gained / np.maximum(total[depth], 1e-300))


def _quantiles(values: Reals) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"{q:g}": round(float(v), 6) for q, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}
