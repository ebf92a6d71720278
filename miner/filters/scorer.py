"""Drops by a score that somebody else gave, such as a cross-encoder's: above or below a bound.

The file has the columns score, and anchor_id and negative_id (of the direction that is filtered) or image_id and
text_id (of either), as .csv, .tsv, .parquet or .jsonl. Pairs of other items are passed over, but not a file of nothing
else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import sides
from miner.filters import Context, Judge
from miner.filters._items import listed
from miner.filters._outside import columns, pair_rows

__all__ = ["FILES", "Config", "prepare"]

FILES = ("file",)
_LAYOUTS = [("anchor_id", "negative_id", "score"), ("image_id", "text_id", "score")]


@dataclass(frozen=True)
class Config:
    """Dropped where its score > max_score or < min_score. `unscored` says what becomes of a candidate without a score;
    with refuse, that is an error."""

    file: str
    max_score: float = inf
    min_score: float = -inf
    unscored: Literal["keep", "drop", "refuse"] = "keep"

    def __post_init__(self) -> None:
        if isnan(self.max_score) or isnan(self.min_score) or self.min_score > self.max_score:
            raise ValueError(f"max_score = {self.max_score}, min_score = {self.min_score}; give numbers in this order.")
        if self.max_score == inf and self.min_score == -inf and self.unscored == "keep":
            raise ValueError("nothing can be dropped; give max_score=NUMBER or min_score=NUMBER.")


def prepare(config: Config, context: Context) -> Judge:
    path = Path(config.file)
    anchors, negatives, given = pair_rows(path, columns(path, _LAYOUTS, what="the scores"), context)
    anchor_ids, gallery_ids = (context.pairs.ids(side) for side in sides(context.direction))
    size = len(gallery_ids)
    codes = anchors * size + negatives
    order = np.argsort(codes, kind="stable")
    codes, given = codes[order], given[order]
    again = np.flatnonzero((codes[1:] == codes[:-1]) & (given[1:] != given[:-1]))
    if len(again):
        anchor, item = divmod(int(codes[again[0]]), size)
        raise BadInput(
            f"{path}: {anchor_ids[anchor]!r} and {gallery_ids[item]!r} have several scores that differ; give them one."
        )

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        there = block.negatives >= 0
        wanted = np.where(there, block.anchor_rows[:, None] * size + block.negatives, -1).ravel()
        scored = listed(codes, wanted).reshape(there.shape)
        missing = there & ~scored
        if config.unscored == "refuse" and missing.any():
            at, where = (int(axis[0]) for axis in np.nonzero(missing))
            raise BadInput(
                f"{path}: no score for anchor {anchor_ids[block.anchor_rows[at]]!r} and candidate "
                f"{gallery_ids[block.negatives[at, where]]!r}; score every candidate, or set unscored=keep or drop."
            )
        found = np.full(there.shape, np.nan)
        found[scored] = given[np.searchsorted(codes, wanted[scored.ravel()])]
        drop = (found > config.max_score) | (found < config.min_score)
        return drop | missing if config.unscored == "drop" else drop

    return judge
