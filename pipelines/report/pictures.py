"""Thumbnails: WebP, each once, as many as fit."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trainer.data import ImageSource

__all__ = ["BUDGET", "are_pictures", "thumbnails"]

# Bytes of base64 that all pictures of a page may take together.
BUDGET = 6_000_000
_SIDES = (120, 96, 64, 48)
_BLOCK = 256
_TRIED = 64


def are_pictures(images: ImageSource) -> bool:
    """Whether one image is (height, width, 3) uint8; anything else is a vector or a set of regions."""
    return len(images.shape) == 4 and images.shape[-1] == 3 and images.dtype == np.uint8


def thumbnails(images: ImageSource, rows: npt.NDArray[np.int64], budget: int = BUDGET) -> dict[int, str]:
    """Base64 of WebP by row, in the order of `rows` until the budget is used up.

    As large as all fit, 120 pixels a side at most, 48 at least where the pictures are larger; in its own size a picture
    is kept without loss. Empty when the images are not pictures.
    """
    if not are_pictures(images) or not len(rows):
        return {}
    own = max(images.shape[1:3])
    sides = [min(own, _SIDES[0]), *(side for side in _SIDES[1:] if side < own)]
    # A few of them all over tell how much they take.
    tried = rows[np.unique(np.linspace(0, len(rows) - 1, _TRIED).astype(np.int64))]
    for side in sides:
        sizes = [len(each) for each in _encode(images, tried, side)]
        if float(np.mean(sizes)) * len(rows) <= budget:
            break
    found: dict[int, str] = {}
    used = 0
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for row, encoded in zip(block.tolist(), _encode(images, block, side), strict=True):
            used += len(encoded)
            if used > budget:
                return found
            found[row] = encoded
    return found


def _encode(images: ImageSource, rows: npt.NDArray[np.int64], side: int) -> list[str]:
    from PIL import Image

    found = []
    ascending, place = np.unique(rows, return_inverse=True)
    read = images[ascending]
    for at in place.tolist():
        picture = Image.fromarray(np.ascontiguousarray(read[at]))
        whole = max(picture.size) <= side
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", lossless=whole, quality=75, method=4)
        found.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return found
