"""Drops what people called a false negative or too easy: a file of verdicts, see `miner.verdicts`.

Each of the two is a reason of its own: `verdicts:false_negative`, `verdicts:too_easy`. A file without a verdict on the
direction that is filtered drops nothing. Lines about other items are passed over, and a warning counts them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import sides
from miner.filters import Context, Judge
from miner.filters._items import listed
from miner.verdicts import left_out, read_verdicts

__all__ = ["FILES", "REASONS", "Config", "prepare"]

FILES = ("file",)
REASONS = ("only", ("false_negative", "too_easy"))


@dataclass(frozen=True)
class Config:
    """The file; drop what it calls this alone."""

    file: str
    only: Literal["both", "false_negative", "too_easy"] = "both"


def prepare(config: Config, context: Context) -> Judge:
    verdicts = read_verdicts(Path(config.file), context.pairs, context.direction)
    if verdicts.unknown:
        warnings.warn(f"{config.file}: {left_out(verdicts.unknown)}", stacklevel=2)
    size = len(context.pairs.ids(sides(context.direction)[1]))
    wanted = ("false_negative", "too_easy") if config.only == "both" else (config.only,)
    codes = np.unique(np.concatenate([a * size + n for a, n in map(verdicts.said, wanted)]))

    def said(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        pairs = block.anchor_rows[:, None] * size + block.negatives
        return np.asarray(listed(codes, pairs.ravel()).reshape(pairs.shape) & (block.negatives >= 0))

    return said
