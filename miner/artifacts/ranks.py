"""Which rank of an anchor's list of negatives is drawn.

The pool is the n hardest negatives of an anchor after those passed over; its ranks r = 0 .. n - 1 count from the
hardest. s_r is the score in the table and s+ the anchor's `lowest_positive` there, both of the model that mined.

    tied         AOQ's: one draw for both directions, see `trainer.sampling.draw`
    untied       P(r) = 1 / n
    top          r = 0, whatever the seed and the epoch: the hardest that is not passed over
    log_uniform  P(r) = 1 / ((r + 1) H_n), H_n = 1 + 1/2 + ... + 1/n: Zipf's law
    Simans       P(r) = exp(-a (s_r - s+ - b)^2) / Z, a bell around the positive, 1 / sqrt(2 a) wide: SimANS (Zhou et
                 al., EMNLP 2022, arXiv 2210.11773)
    Softmax      P(r) = exp(s_r / temperature) / Z, the hardness weights of Robinson et al. (ICLR 2021, arXiv
                 2010.04592) within the pool; their beta is 1 / temperature

Where SimANS differs here: its s+ is the score of a positive drawn at random, but a table keeps only the lowest of an
anchor's positives. For an anchor with one positive, as captions have, that is the same. For an image with several
captions the bell is centred lower, on easier negatives, which are also less likely to be unlabelled positives; `b`
moves it. The sign of b is the paper's (b > 0: harder than the positive); the published code has (s_r - s+ + b)^2. Its
a = 0.5 is for inner products many units apart, and all but even among cosines.

A rank takes one uniform number u: it is the smallest r with P(0) + ... + P(r) > u. Several ranks of one anchor are
drawn one after the other, none twice, each by P among those that are left (`drawn_sets`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput

__all__ = ["Law", "Scored", "Simans", "Softmax", "drawn_ranks", "drawn_sets", "log_weights", "one_of", "scores_of"]

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Scores weighed at once, 8 MiB an array, whatever the number of pairs. What is drawn does not depend on it.
_CELLS = 2**20


@runtime_checkable
class Scored(Protocol):
    """What weighing by score reads of a negative table beside its rows (a `NegativeTable` has it)."""

    @property
    def scores(self) -> npt.NDArray[Any]:
        """(anchors, k) similarity of anchor and negative; not read where there is no negative."""

    @property
    def lowest_positive(self) -> npt.NDArray[Any]:
        """(anchors,) the lowest similarity of the anchor to one of its positives."""


@dataclass(frozen=True)
class Simans:
    """Negatives about as similar as the positive."""

    a: float
    b: float = 0.0

    def energy(self, scores: Floats, lowest_positive: Floats) -> Floats:
        """-log of the weights, up to a constant: (anchors, n) and (anchors,) -> (anchors, n)."""
        return np.asarray(self.a * (scores - lowest_positive[:, None] - self.b) ** 2, dtype=np.float64)


@dataclass(frozen=True)
class Softmax:
    """The more similar, the likelier."""

    temperature: float

    def energy(self, scores: Floats, lowest_positive: Floats) -> Floats:
        """As for `Simans`; the positive does not matter."""
        return -scores / self.temperature


Law: TypeAlias = Literal["tied", "untied", "top", "log_uniform"] | Simans | Softmax


def drawn_ranks(law: Law, table: object, anchors: Rows, pool: Rows, skip: int, random: Floats) -> Rows:
    """The rank within its pool that each of `random` in [0, 1) stands for, (n,); 0 where a pool is empty.

    `anchors` (n,) are rows of `table`, `pool` (n,) the sizes of their pools, which begin after `skip` negatives. Raises
    BadInput when the law weighs scores and the table has none, or one that cannot be weighed.
    """
    assert law != "tied", "both directions share that draw"
    ranks = np.zeros(len(random), dtype=np.int64)
    if law == "untied":
        ranks = (random * pool).astype(np.int64)
    elif law == "log_uniform":
        harmonic = np.cumsum(1.0 / np.arange(1, np.max(pool, initial=0) + 2))
        ranks = np.searchsorted(harmonic, random * harmonic[np.maximum(pool, 1) - 1], side="right")
    elif isinstance(law, (Simans, Softmax)):
        ranks = _weighed(law, table, anchors, pool, skip, random)
    return np.minimum(ranks, np.maximum(pool - 1, 0)).astype(np.int64)


def drawn_sets(
    law: Law, scores: npt.NDArray[Any], lowest_positive: npt.NDArray[Any], pool: Rows, count: int, random: Floats
) -> npt.NDArray[np.bool_]:
    """Which `count` of its pool's ranks each anchor gets, (anchors, n) True; the whole pool where that is no larger.

    `scores` (anchors, n) begin with the pool, whose sizes `pool` (anchors,) are; `random` (anchors, n) in [0, 1). Of
    the times -log(1 - u_r) / P(r) the smallest are taken, which is drawing one after the other (Efraimidis & Spirakis,
    Information Processing Letters 97, 2006). Raises BadInput as `drawn_ranks` does.
    """
    assert law != "tied", "both directions share that draw"
    there = np.arange(scores.shape[1]) < pool[:, None]
    if law == "top":
        return there & (np.arange(scores.shape[1]) < count)
    # 1 - u is never 0, but may be 1.
    waits = np.maximum(-np.log1p(-random), np.finfo(np.float64).tiny)
    times = np.where(there, np.log(waits) - log_weights(law, scores, lowest_positive, there), np.nan)
    chosen = np.zeros(there.shape, dtype=np.bool_)
    # What is not there is nan, and sorted last.
    np.put_along_axis(chosen, np.argsort(times, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen & there


def log_weights(
    law: Law, scores: npt.NDArray[Any], lowest_positive: npt.NDArray[Any], there: npt.NDArray[np.bool_]
) -> Floats:
    """log P(r), up to a constant per anchor, of the ranks r = 0, 1, ... in the columns: (anchors, n), -inf where it is
    not `there`. A law that does not weigh scores reads their shape alone. Raises BadInput as `drawn_ranks` does."""
    assert law != "tied", "both directions share that draw"
    ranks = np.arange(scores.shape[1])
    # What is not finite is found below; where there is no negative it does not matter.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(law, (Simans, Softmax)):
            found = -law.energy(scores.astype(np.float64), np.asarray(lowest_positive, dtype=np.float64))
        else:
            # exp(-1000) is 0: the first that is there leaves nothing to the others.
            by_rank = {"untied": 0.0 * ranks, "log_uniform": -np.log1p(ranks), "top": -1000.0 * ranks}
            found = np.broadcast_to(by_rank[law], scores.shape)
    if np.isnan(found[there]).any():
        raise _unweighable(law)
    return np.where(there, found, -np.inf)


def one_of(law: Law, logs: Floats, there: npt.NDArray[np.bool_], random: Floats) -> Rows:
    """The rank that each of `random` (anchors,) stands for, by the log weights (anchors, n); any where nothing is
    `there`. Raises BadInput where all that is there weighs nothing."""
    # The likeliest weighs 1, so that no sum overflows or is 0, however far apart the scores are.
    most = np.where(there.any(1), logs.max(axis=1), 0.0)
    with np.errstate(invalid="ignore"):
        sums = np.cumsum(np.exp(logs - most[:, None]), axis=1)
    if np.isnan(sums).any():
        raise _unweighable(law)
    ranks: Rows = np.minimum((sums <= (random * sums[:, -1])[:, None]).sum(axis=1), logs.shape[1] - 1)
    return ranks


def scores_of(law: Law, table: object) -> Scored | None:
    """The table as one with scores, if the law weighs these. Raises BadInput if it then has none."""
    if not isinstance(law, (Simans, Softmax)):
        return None
    if not isinstance(table, Scored):
        raise BadInput(
            "these ranks are drawn by score, but the negative table has no `scores` and `lowest_positive`; give a "
            "NegativeTable, or draw by rank."
        )
    return table


def _unweighable(law: Law) -> BadInput:
    return BadInput(
        f"negatives cannot be weighed by {law}: a score of the table is not a finite number, or a setting is "
        "beyond any score; mine again, or choose other settings."
    )


def _weighed(law: Simans | Softmax, table: object, anchors: Rows, pool: Rows, skip: int, random: Floats) -> Rows:
    scored = scores_of(law, table)
    assert scored is not None
    ranks = np.zeros(len(anchors), dtype=np.int64)
    width = int(np.max(pool, initial=0))
    if width == 0:
        return ranks
    step = max(1, _CELLS // width)
    for start in range(0, len(anchors), step):
        at = slice(start, start + step)
        rows, there = anchors[at], np.arange(width) < pool[at, None]
        logs = log_weights(law, scored.scores[rows, skip : skip + width], scored.lowest_positive[rows], there)
        ranks[at] = one_of(law, logs, there, random[at])
    return ranks
