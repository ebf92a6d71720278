"""Drops what has the same picture as the anchor or one of its positives, pixel by pixel.

From texts to images: an image equal to the text's own. From images to texts: a text whose own image equals the anchor.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from miner.filters import Context, Judge
from miner.filters._items import sharing
from miner.filters._pictures import digest, each_file, opened

__all__ = ["CONTENTS", "Config", "prepare"]

CONTENTS = ("image",)


@dataclass(frozen=True)
class Config:
    """`bytes` compares the files and needs no Pillow; `pixels` also finds the same picture in another file format."""

    match: Literal["pixels", "bytes"] = "pixels"


def prepare(config: Config, context: Context) -> Judge:
    look = _pixels if config.match == "pixels" else digest
    numbers: dict[str, int] = {}
    found = each_file(context.contents("image"), look, context.threads)
    return sharing(context, "image", np.array([numbers.setdefault(one, len(numbers)) for one in found], dtype=np.int64))


def _pixels(path: Path) -> str:
    picture = opened(path)
    return f"{picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}"
