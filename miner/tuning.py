"""The least effort with which an approximate index finds as much as is asked for.

Settings are chosen on one sample of anchors and their recall is reported on another. Nothing is timed: what a choice
costs is the bytes it reads, so that the same vectors, index and seed give the same settings everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.approximate import Miner
from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.index import SearchSettings
from miner.recall import Recall, measure, sample_anchors, truth

__all__ = ["Tuned", "prepare", "tune"]

Vectors = npt.NDArray[np.floating[Any]]

_AS_EXACT = 5  # a fifth of the lists, read one query at a time, takes as long as all vectors in matrix products


@dataclass(frozen=True)
class Tuned:
    """The settings chosen for a requested recall, what one sample says of them, and what `report`, another, says.

    `reached`: the first sample's recall is so far above what was requested that another's is too, nearly always. Where
    it is not, the settings are the best that were tried. `tried` lists all.
    """

    requested: float
    reached: bool
    settings: SearchSettings
    chosen_on: Recall
    report: Recall
    tried: tuple[tuple[SearchSettings, float], ...]

    def stored(self) -> dict[str, Any]:
        """What a table says beside `Recall.stored` of the report."""
        return {"requested": self.requested, "reached": self.reached, **self.report.stored()}


def tune(
    miner: Miner,
    vectors: Vectors,
    requested: float,
    *,
    size: int = 1000,
    seed: int = 0,
    tried: Callable[[SearchSettings, Recall], None] = lambda settings, recall: None,
) -> Tuned:
    """Choose the miner's settings for a recall, on one sample of `size` anchors, and report it on another; both are set
    to work afterwards. `vectors` (anchors, dim) by row of the pairs. `tried` is told every step.

    Raises BadInput unless 0 < requested < 1.
    """
    if not 0 < requested < 1:
        raise BadInput(
            f"recall = {requested}; ask for more than 0 and less than 1, or mine exactly, without this index."
        )
    first, second = sample_anchors(miner, size, seed)
    exact = truth(miner, vectors, first)
    steps = _Steps(miner, vectors, exact, requested, tried)
    best = steps.search()
    miner.settings = best
    report = measure(miner, vectors, truth(miner, vectors, second))
    seen = tuple((settings, recall.mean) for settings, recall in steps.seen.items())
    return Tuned(requested, steps.enough(best), best, steps.seen[best], report, seen)


def prepare(
    miner: Miner, vectors: Vectors, requested: float | None, *, size: int = 1000, seed: int = 0
) -> tuple[dict[str, Any], str]:
    """Make a miner ready: tuned for a recall, or with its settings as they are where none is `requested`; measured in
    either case. `size` and `seed` are those of the samples, as of `tune`. Returns what a table's provenance says of it,
    {"factory", "search", "recall"}, and a sentence. Raises as `tune`."""
    if requested is None:
        sample = sample_anchors(miner, size, seed)[1]
        report = measure(miner, vectors, truth(miner, vectors, sample))
        measured, asked = report.stored(), ""
    else:
        tuned = tune(miner, vectors, requested, size=size, seed=seed)
        report, measured = tuned.report, tuned.stored()
        asked = f"; {requested:g} was asked for"
        if not tuned.reached:
            asked += " and is not to be had from this index: take one with finer codes or more links, or none"
    search = miner.settings.chosen()
    if _AS_EXACT * search.get("nprobe", 0) > miner.index.knobs.get("nprobe", 0) > _AS_EXACT:
        asked += (
            f"; {search['nprobe']} of {miner.index.knobs['nprobe']} lists are as much work as an exact search: these "
            "vectors are too alike for an index, mine without one"
        )
    spoken = " ".join(f"{name}={value}" for name, value in search.items())
    sentence = f"{miner.direction}: {miner.index.factory} {spoken}: {report} against an exact search{asked}"
    return {"factory": miner.index.factory, "search": search, "recall": measured}, sentence


class _Steps:
    """The search for settings: what was tried, and what is next."""

    def __init__(
        self,
        miner: Miner,
        vectors: Vectors,
        exact: NegativeBlock,
        requested: float,
        tried: Callable[[SearchSettings, Recall], None],
    ) -> None:
        self.miner, self.vectors, self.exact, self.requested, self.tried = miner, vectors, exact, requested, tried
        self.knobs = miner.index.knobs
        self.effort = next((name for name in ("nprobe", "ef_search") if name in self.knobs), None)
        self.seen: dict[SearchSettings, Recall] = {}
        self.ceiling: int | None = None

    def recall(self, settings: SearchSettings) -> Recall:
        if settings not in self.seen:
            self.miner.settings = settings
            self.seen[settings] = measure(self.miner, self.vectors, self.exact)
            self.tried(settings, self.seen[settings])
        return self.seen[settings]

    def enough(self, settings: SearchSettings) -> bool:
        """Whether another sample of this size will show the recall as well, nearly always."""
        found = self.recall(settings)
        return found.mean - math.sqrt(2) * (found.mean - found.low) >= self.requested or not found.mean < 1

    def search(self) -> SearchSettings:
        """The cheapest settings that are enough; else the best that were tried."""
        best: SearchSettings | None = None
        for factor in self._factors():
            if best is not None and not self._saves(factor, best):
                break
            found = self._least(factor)
            if found is not None and best is not None and self._cost(found) >= self._cost(best):
                break
            best = found or best
        if best is None:
            best = max(self.seen, key=lambda settings: (self.seen[settings].mean, -self._cost(settings)))
        return best

    def _saves(self, factor: int | None, best: SearchSettings) -> bool:
        """Whether with this `k_factor` at most three quarters of the effort are enough."""
        if self.effort is None:
            return False
        less = self._with(factor, max(1, getattr(best, self.effort) * 3 // 4))
        return self._cost(less) < self._cost(best) and self.enough(less)

    def _factors(self) -> Sequence[int | None]:
        if "k_factor" not in self.knobs:
            return (None,)
        return [factor for factor in (1, 2, 4, 8, 16, 32, 64) if factor <= self.knobs["k_factor"]]

    def _least(self, factor: int | None) -> SearchSettings | None:
        """The least effort, to one part in 32, that is enough with this `k_factor`, or None."""
        if self.effort is None:
            return self._with(factor, None) if self.enough(self._with(factor, None)) else None
        below, above = 0, self._most(factor)
        if not self.enough(self._with(factor, above)):
            return None
        for effort in self._doubled(factor, above):
            if self.enough(self._with(factor, effort)):
                above = effort
                break
            below = effort
        while above - below > max(1, above // 32):
            middle = (below + above) // 2
            if self.enough(self._with(factor, middle)):
                above = middle
            else:
                below = middle
        return self._with(factor, above)

    def _most(self, factor: int | None) -> int:
        """The most effort worth a try: the first that is enough, or from where on eight times as much does not help.
        For another `k_factor`, four times that."""
        assert self.effort is not None
        if self.ceiling is not None:
            return min(max(4 * self.ceiling, self.miner.depth_at(factor)), self.knobs[self.effort])
        means: list[float] = []
        most = 0
        for most in self._doubled(factor, self.knobs[self.effort]):
            settings = self._with(factor, most)
            means.append(self.recall(settings).mean)
            if self.enough(settings) or (len(means) > 3 and means[-1] - means[-4] < 1e-3):
                break
        self.ceiling = most
        return most

    def _doubled(self, factor: int | None, most: int) -> Iterator[int]:
        """1, 2, 4, ..., `most`. A graph keeps at least as many candidates as it is asked for."""
        effort = min(self.miner.depth_at(factor), most) if self.effort == "ef_search" else 1
        while effort < most:
            yield effort
            effort *= 2
        yield most

    def _with(self, factor: int | None, effort: int | None) -> SearchSettings:
        chosen = SearchSettings(k_factor=factor)
        return replace(chosen, **{self.effort: effort}) if self.effort else chosen

    def _cost(self, settings: SearchSettings) -> float:
        return self.miner.index.compared(settings, self.miner.k)
