"""Drops what scores above 95% of the lowest positive, or another share; nothing where no positive is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.filters import Context, Judge

__all__ = ["Config", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped where score > lowest_positive - margin * |lowest_positive|: also below 0 the bound lies under the
    positive, where positive * (1 - margin) would lie above it."""

    margin: float = 0.05

    def __post_init__(self) -> None:
        if not np.isfinite(self.margin):
            raise ValueError(f"margin = {self.margin}; give a number.")


def prepare(config: Config, context: Context) -> Judge:
    del context

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        lowest = block.lowest_positive.astype(np.float64)
        return np.asarray(block.scores > (lowest - config.margin * np.abs(lowest))[:, None])

    return judge
