"""Pictures as PNG data URIs, each encoded once, in a size that keeps the page light."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.data import ImageSource

__all__ = ["BUDGET", "are_pictures", "data_uris"]

# Bytes of base64 that all pictures of a page may take together before they are made smaller.
BUDGET = 4_000_000
_SIDES = (96, 64, 48, 32)
_BLOCK = 256


def are_pictures(images: ImageSource) -> bool:
    """Whether one image is (height, width, 3) uint8; anything else is a vector or a set of regions."""
    return len(images.shape) == 4 and images.shape[-1] == 3 and images.dtype == np.uint8


def data_uris(images: ImageSource, rows: Iterable[int]) -> dict[int, str]:
    """`data:image/png;base64,...` by row, of at most 96 pixels a side, fewer when all would exceed `BUDGET`.

    Empty when the images are not pictures.
    """
    wanted = np.array(sorted(set(rows)), dtype=np.int64)
    if not are_pictures(images) or len(wanted) == 0:
        return {}
    own = max(images.shape[1:3])
    # Pictures are never enlarged, so every size at or above their own would give the same bytes.
    sides = [min(own, _SIDES[0]), *(side for side in _SIDES[1:] if side < own)]
    found: dict[int, str] = {}
    for side in sides:
        found = _encode(images, wanted, side)
        if sum(map(len, found.values())) <= BUDGET:
            break
    return found


def _encode(images: ImageSource, rows: npt.NDArray[np.int64], side: int) -> dict[int, str]:
    from PIL import Image

    found = {}
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for row, pixels in zip(block.tolist(), images[block], strict=True):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            found[row] = "data:image/png;base64," + base64.b64encode(_png(picture)).decode("ascii")
    return found


def _png(picture: Image) -> bytes:
    """PNG bytes with a palette: without loss for up to 256 colours, else the 256 that fit best; a third of the size."""
    from PIL import Image

    pixels = np.asarray(picture, dtype=np.uint32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    colours, index = np.unique(codes, return_inverse=True)
    if len(colours) <= 256:
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.uint8)
        paletted = Image.fromarray(index.reshape(codes.shape).astype(np.uint8))
        paletted.putpalette(palette.tobytes())
    else:
        paletted = picture.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    paletted.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
