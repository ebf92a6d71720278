"""Drops what scores above a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.filters import Context, Judge

__all__ = ["Config", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped where the score > `score`."""

    score: float

    def __post_init__(self) -> None:
        if np.isnan(self.score):
            raise ValueError(f"score = {self.score}; give a number.")


def prepare(config: Config, context: Context) -> Judge:
    del context

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        return np.asarray(block.scores.astype(np.float64) > config.score)

    return judge
