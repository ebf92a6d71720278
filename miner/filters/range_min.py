"""Drops the nearest candidates of every anchor, by rank in the search, whatever other rules drop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.filters import Context, Judge

__all__ = ["Config", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped on the first `skip` ranks that the search gave, whatever other rules drop there."""

    skip: int = 10

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"skip = {self.skip}; give the number of ranks to pass over.")


def prepare(config: Config, context: Context) -> Judge:
    del context

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        nearest = rank + np.arange(block.negatives.shape[1]) < config.skip
        return np.broadcast_to(nearest, block.negatives.shape)

    return judge
