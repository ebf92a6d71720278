"""Drops what scores above the lowest positive minus a margin; nothing where no positive is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.filters import Context, Judge

__all__ = ["Config", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped where score > lowest_positive - margin. A negative margin lets negatives score above a positive."""

    margin: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.margin):
            raise ValueError(f"margin = {self.margin}; give a number.")


def prepare(config: Config, context: Context) -> Judge:
    del context

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        bound = block.lowest_positive.astype(np.float64) - config.margin
        return np.asarray(block.scores > bound[:, None])

    return judge
