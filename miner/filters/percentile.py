"""Drops the highest (or lowest) scores, by their percentile among all candidates that the rules before it leave.

The percentile p of n values is the ceil(p / 100 * n)-th of them from below. It is taken from the candidates that were
searched first and holds for those that a deeper search adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.filters import Context, Judge
from miner.filters._quantile import quantile

__all__ = ["Config", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped where the value > percentile `above` or < percentile `below`; 100 and 0 drop nothing.

    of       the score, or the hardness: score - lowest positive, unknown (and kept) where there is no positive
    among    the values that the percentiles are of: of all candidates, or of those that would be negatives without this
             rule, the first k of every anchor: these do not depend on how many candidates were searched
    """

    above: float = 95.0
    below: float = 0.0
    of: Literal["score", "hardness"] = "score"
    among: Literal["candidates", "negatives"] = "candidates"

    def __post_init__(self) -> None:
        if not 0 <= self.below < self.above <= 100:
            raise ValueError(
                f"below = {self.below}, above = {self.above}; give percentiles, 0 <= below < above <= 100."
            )


def prepare(config: Config, context: Context) -> Judge:
    def values(block: NegativeBlock) -> npt.NDArray[np.float32]:
        if config.of == "score":
            return block.scores
        return np.subtract(block.scores, block.lowest_positive[:, None], dtype=np.float64).astype(np.float32)

    def pieces() -> Iterator[npt.NDArray[np.float32]]:
        for block in context.survivors(None if config.among == "candidates" else context.k):
            yield values(block)[block.negatives >= 0]

    lowest, highest = (quantile(pieces, Fraction(str(percent)) / 100) for percent in (config.below, config.above))

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        found = values(block)
        return np.asarray((found > highest) | (found < lowest))

    return judge
