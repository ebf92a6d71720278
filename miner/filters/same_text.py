"""Drops what has the same text as the anchor or one of its positives, but for case, width, punctuation and spacing.

From images to texts: a text in the words of one of the image's own. From texts to images: an image one of whose texts
is in the words of the anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from miner.filters import Context, Judge
from miner.filters._items import sharing
from miner.filters._texts import normalised

__all__ = ["CONTENTS", "Config", "prepare"]

CONTENTS = ("text",)


@dataclass(frozen=True)
class Config:
    """`exact` compares the texts as they are, letter by letter."""

    match: Literal["normalised", "exact"] = "normalised"


def prepare(config: Config, context: Context) -> Judge:
    numbers: dict[str, int] = {}
    texts = context.contents("text")
    found = (normalised(text) if config.match == "normalised" else text for text in texts)
    return sharing(
        context, "text", np.array([numbers.setdefault(text, len(numbers)) for text in found], dtype=np.int64)
    )
