"""Drops what has nearly the same words as the anchor or one of its positives: Jaccard similarity of word pieces.

Texts are first freed of case, width, punctuation and spacing. Pairs are sifted by MinHash and verified exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from miner.filters import Context, Judge
from miner.filters._items import any_alike
from miner.filters._texts import Shingles

__all__ = ["CONTENTS", "Config", "prepare"]

CONTENTS = ("text",)


@dataclass(frozen=True)
class Config:
    """Dropped where (pieces in common) / (pieces in either) >= `jaccard`; a piece is `size` words (or characters, for
    scripts that do not part words) in a row."""

    jaccard: float = 0.8
    size: int = 2
    unit: Literal["word", "character"] = "word"

    def __post_init__(self) -> None:
        if not 0 < self.jaccard <= 1:
            raise ValueError(f"jaccard = {self.jaccard}; give a number above 0 and up to 1.")
        if self.size < 1:
            raise ValueError(f"size = {self.size}; give at least 1.")


def prepare(config: Config, context: Context) -> Judge:
    shingles = Shingles(context.contents("text"), config.size, config.unit)
    return any_alike(context, "text", lambda rows, others: shingles.alike(rows, others, config.jaccard))
