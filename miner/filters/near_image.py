"""Drops what looks nearly like the picture of the anchor or of one of its positives: a perceptual hash of 64 bits.

Survives another size, format and compression; not cropping, mirroring or turning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from miner.filters import Context, Judge
from miner.filters._items import any_alike
from miner.filters._pictures import each_file, opened

__all__ = ["CONTENTS", "Config", "prepare"]

CONTENTS = ("image",)
_SIDE = 32  # pixels a side, of which the frequencies are


@dataclass(frozen=True)
class Config:
    """Dropped where at most `bits` of the 64 differ.

    hash     gradient: whether each of 9 x 8 grey pixels is brighter than its right neighbour; frequency: whether each
             of the 8 x 8 lowest frequencies (discrete cosine transform) of 32 x 32 is above their median
    """

    bits: int = 4
    hash: Literal["gradient", "frequency"] = "gradient"

    def __post_init__(self) -> None:
        if not 0 <= self.bits < 64:
            raise ValueError(f"bits = {self.bits}; give a number from 0 to 63.")


def prepare(config: Config, context: Context) -> Judge:
    look = _gradient if config.hash == "gradient" else _frequency
    hashes = np.array(each_file(context.contents("image"), look, context.threads), dtype=np.uint64)
    return any_alike(
        context, "image", lambda rows, others: np.bitwise_count(hashes[rows] ^ hashes[others]) <= config.bits
    )


def _grey(path: Path, width: int, height: int) -> npt.NDArray[np.float64]:
    picture = opened(path)
    from PIL import Image

    small = picture.convert("L").resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64)


def _gradient(path: Path) -> int:
    grey = _grey(path, 9, 8)
    return _packed(grey[:, :-1] > grey[:, 1:])


def _frequency(path: Path) -> int:
    place = np.arange(_SIDE)
    waves = np.cos(np.pi * (place + 0.5) * np.arange(8)[:, None] / _SIDE)
    # Rounded, so that the last bit of a sum, which differs between machines, decides nothing.
    low = np.round(waves @ _grey(path, _SIDE, _SIDE) @ waves.T, 6)
    return _packed(low > np.median(low.ravel()[1:]))


def _packed(bits: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")
