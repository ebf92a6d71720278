"""What can be wrong with a negative table that the table alone shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.ids import Ids
from miner.audit import EXAMPLES, Check, Finding, RowCheck, Subject
from miner.rows import RowBlock

__all__ = ["Hubs", "of_the_table"]

Mask = npt.NDArray[np.bool_]

# A negative of so large a share of the anchors, and so many times the average one, is reported as a hub.
HUB_SHARE, HUB_TIMES = 0.1, 10


def of_the_table(subject: Subject) -> list[Check]:
    """What a table alone can show, but for `Hubs`."""
    checks: list[Check] = [
        RowCheck(subject, "missing ids", "lack an id", "Give every row both ids.", _nameless),
        _Anchors(subject),
        RowCheck(
            subject,
            "ranks",
            "are not where their rank says: the ranks of an anchor must be 0, 1, 2, ... in this order",
            "Sort by anchor and score, and number from 0.",
            lambda block: block.ranks != block.places,
        ),
        RowCheck(
            subject,
            "non-finite scores",
            "have a score that is no finite number",
            "Look for NaN in the vectors or an overflow in the scorer, then mine again.",
            lambda block: ~np.isfinite(block.scores),
        ),
        RowCheck(
            subject,
            "rising scores",
            "score higher than the row above: rank 0 must be the hardest",
            "Higher must be closer: turn distances into similarities; then sort.",
            _rising,
        ),
        RowCheck(
            subject,
            "non-finite lowest positives",
            "have a lowest_positive that is no finite number",
            "Write the lowest similarity of the anchor to one of its own positives (null where i2i or t2t has none).",
            lambda block: ~(np.isfinite(block.lowest_positive) | (subject.one_side & np.isnan(block.lowest_positive))),
        ),
        RowCheck(
            subject,
            "several lowest positives",
            "have another lowest_positive than the first row of their anchor",
            "It belongs to the anchor: write one number for all its rows.",
            _differing,
        ),
        RowCheck(
            subject,
            "duplicates",
            "repeat a negative that the anchor has already",
            "Keep each negative of an anchor once, and number the ranks again.",
            _repeated,
        ),
        _Short(subject),
    ]
    if subject.one_side:
        itself = RowCheck(
            subject,
            "anchors among their own negatives",
            "name the anchor itself",
            "An item is no negative of itself: leave it out and mine again.",
            lambda block: (block.negatives == block.anchors[block.of]) & (block.negatives >= 0),
        )
        checks.append(itself)
    return checks


def _nameless(block: RowBlock) -> Mask:
    return np.asarray((block.negatives < 0) | (block.anchors < 0)[block.of])


def _rising(block: RowBlock) -> Mask:
    wrong = np.zeros(len(block.scores), dtype=np.bool_)
    wrong[1:] = (block.scores[1:] > block.scores[:-1]) & (block.places[1:] > 0)
    return wrong


def _differing(block: RowBlock) -> Mask:
    first = block.lowest_positive[block.offsets[:-1]][block.of]
    return np.asarray((block.lowest_positive != first) & ~(np.isnan(block.lowest_positive) & np.isnan(first)))


def _repeated(block: RowBlock) -> Mask:
    keys = block.of * (int(block.negatives.max(initial=0)) + 2) + block.negatives + 1
    ordered = np.sort(keys)
    wrong = np.zeros(len(keys), dtype=np.bool_)
    if (ordered[1:] == ordered[:-1]).any():
        order = np.argsort(keys, kind="stable")
        wrong[order[1:]] = keys[order[1:]] == keys[order[:-1]]
        wrong &= block.negatives >= 0
    return wrong


class _Anchors:
    """Whether the rows of an anchor stand together, and the anchors in id order."""

    name = "order of anchors"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def see(self, block: RowBlock) -> None:
        pass

    def findings(self) -> Iterable[Finding]:
        named = self.subject.sequence[self.subject.sequence >= 0]
        times = np.bincount(named, minlength=1)
        scattered = np.flatnonzero(times > 1)
        examples = [{"anchor_id": self.subject.anchors.name(number)} for number in scattered[:EXAMPLES]]
        if len(scattered):
            yield Finding(
                "scattered anchors",
                True,
                len(scattered),
                f"{len(scattered)} anchor(s) have rows in several places of the file",
                "Sort the rows by anchor and rank: readers take an anchor's rows together.",
                tuple(examples),
            )
            return
        wrong = np.flatnonzero(Ids(self.subject.anchors.ids.take(named)).order != np.arange(len(named)))
        if len(wrong):
            yield Finding(
                self.name,
                self.subject.committed,
                len(wrong),
                f"{len(wrong)} anchor(s) do not stand in id order (as numbers if all ids are whole numbers, else as "
                "strings)",
                "Readers that join tables expect it: sort by anchor_id and rank.",
                ({"anchor_id": self.subject.anchors.name(named[wrong[0]])},),
            )


class _Short:
    """Whether every anchor has k negatives, or is on the list of those that have fewer."""

    name = "short rows"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def see(self, block: RowBlock) -> None:
        pass

    def findings(self) -> Iterable[Finding]:
        subject, k = self.subject, self.subject.k
        has = {n: int(c) for n, c in zip(subject.sequence.tolist(), subject.counts.tolist(), strict=True) if c != k}
        more = [number for number, count in has.items() if count > k]
        if more:
            yield Finding(
                "long rows",
                True,
                len(more),
                f"{len(more)} anchor(s) have more than the {k} negatives that the table was mined with",
                "Mine again, or keep the first so many of every anchor.",
                self._examples(more, has),
            )
        short = {number: count for number, count in has.items() if count < k}
        listed = self.subject.shortfalls
        if listed is not None:
            yield from self._against(listed, short, k)
        elif short:
            yield Finding(
                self.name,
                False,
                len(short),
                f"{len(short)} of {len(subject.counts)} anchor(s) have fewer negatives than the {k} that others have, "
                "and nothing says why",
                "Harmless if you know why; anchors without any row do not show here (give --pairs).",
                self._examples(list(short), short),
            )

    def _against(self, listed: dict[str, list[Any]], short: dict[int, int], k: int) -> Iterable[Finding]:
        import pyarrow as pa

        numbers = self.subject.anchors.numbers(pa.array(listed["anchor_id"], pa.string())).tolist()
        told = dict(zip(numbers, listed["found"], strict=True))
        actual = {
            number: short.get(number, 0 if number not in set(self.subject.sequence.tolist()) else k) for number in told
        }
        wrong = [n for n in short if n not in told] + [n for n in told if told[n] != actual[n]]
        if wrong:
            yield Finding(
                "unexplained short rows",
                True,
                len(wrong),
                f"{len(wrong)} anchor(s) have neither {k} negatives nor the number that shortfalls.parquet says",
                "The two files are not of one table: mine again.",
                self._examples(wrong, short | {n: actual[n] for n in told}),
            )
        elif short or told:
            reasons = Counter(map(str, listed["reason"])).most_common(3)
            why = "; ".join(f"{many} x {reason}" for reason, many in reasons)
            yield Finding(
                self.name,
                False,
                len(told),
                f"{len(told)} anchor(s) have fewer than {k} negatives ({why})",
                "shortfalls.parquet lists all; mine with a smaller k, or search more candidates.",
                self._examples(list(told), told),
            )

    def _examples(self, numbers: list[int], counts: dict[int, int]) -> tuple[dict[str, Any], ...]:
        return tuple({"anchor_id": self.subject.anchors.name(n), "negatives": counts[n]} for n in numbers[:EXAMPLES])


class Hubs:
    """Negatives that serve many anchors: near to everything, they say little about any.

    A finding when one serves more than `share` of the anchors and HUB_TIMES as many as the average item does.
    """

    name = "hubs"

    def __init__(self, subject: Subject, share: float = HUB_SHARE) -> None:
        self.subject, self.share = subject, share
        self.served = np.zeros(0, dtype=np.int64)

    def see(self, block: RowBlock) -> None:
        found = np.bincount(block.negatives[block.negatives >= 0], minlength=len(self.subject.gallery))
        found[: len(self.served)] += self.served
        self.served = found

    def top(self) -> list[dict[str, Any]]:
        """The five that serve most: negative_id, anchors, share of all anchors."""
        best = np.argsort(-self.served, kind="stable")[:5]
        total = max(len(self.subject.sequence), 1)
        return [
            {
                "negative_id": self.subject.gallery.name(number),
                "anchors": int(self.served[number]),
                "share": round(float(self.served[number]) / total, 6),
            }
            for number in best.tolist()
            if self.served[number]
        ]

    def findings(self) -> Iterable[Finding]:
        total = len(self.subject.sequence)
        average = self.served.sum() / max(len(self.served), 1)
        many = np.flatnonzero((self.served > self.share * total) & (self.served > HUB_TIMES * average))
        if len(many):
            yield Finding(
                self.name,
                False,
                len(many),
                f"{len(many)} item(s) are a negative of more than {self.share:.0%} of the anchors each, and of more "
                f"than {HUB_TIMES} times as many as the average item ({average:.1f})",
                "Look at them: an empty caption or a broken picture, or vectors that lack centring (--metric cosine).",
                tuple(self.top()[:EXAMPLES]),
            )
