"""Drops what lies near a positive in the model's own space, by a cosine: near-duplicates, from the vectors alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Side
from miner.filters import Context, Judge
from miner.filters._closeness import closeness

__all__ = ["Config", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped where the cosine >= `cosine`, of text with text or of image with image.

    side     text: of a candidate text with the anchor's texts, of an anchor text with the candidate's texts;
             image: the same of images; either: any of both
    """

    cosine: float = 0.95
    side: Literal["either", "image", "text"] = "either"

    def __post_init__(self) -> None:
        if not -1 <= self.cosine <= 1:
            raise ValueError(f"cosine = {self.cosine}; give a number from -1 to 1.")


def prepare(config: Config, context: Context) -> Judge:
    compared: tuple[Side, ...] = get_args(Side) if config.side == "either" else (config.side,)
    measures = [closeness(context, side) for side in compared]

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        near = np.zeros(block.negatives.shape, dtype=bool)
        for measure in measures:
            near |= measure(block) >= np.float32(config.cosine)
        return near

    return judge
