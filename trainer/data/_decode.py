"""From the bytes of an image file to pixels. Runs in worker processes as well, so it imports little.

The pixels depend on the bytes of the file and the version of Pillow alone.
"""

from __future__ import annotations

import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "GREY", "MAX_BYTES", "NOT_A_FILE", "Decoded", "Place", "Unreadable", "content", "decode", "decode_all",
    "follow_parent",
]  # fmt: skip

# (path, first byte, number of bytes); -1 bytes is the whole file.
Place = tuple[str, int, int]
GREY = 127
NOT_A_FILE = "not a regular file but a directory, a pipe or a device"
MAX_BYTES = 2**28
# Not whatever Pillow has a reader for: EPS, for one, would run Ghostscript on what the file says. MPO comes with JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pillow may shrink a JPEG by 2, 4 or 8 while decoding it, as long as this many times the wanted side are left.
_GAP = 2
_ORIENTATION = 0x0112
# Of damaged EXIF blocks, odd palettes and large pictures; what matters comes as the reason why there is no picture.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Unreadable(Exception):
    """Why a picture cannot be shown."""


def content(stored: bytes | Place | None) -> bytes:
    """The bytes themselves. Raises Unreadable when they cannot be had."""
    if stored is None:
        raise Unreadable("there is no image")
    if isinstance(stored, bytes):
        return stored
    path, start, size = stored
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait for somebody to write
            raise Unreadable(NOT_A_FILE)
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size if size < 0 else size
            if size > MAX_BYTES:
                raise Unreadable(f"{size} bytes, more than the {MAX_BYTES} that a picture may have")
            file.seek(start)
            parts = []
            while size and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if size:
        raise Unreadable(f"the file ends {size} bytes early")
    return b"".join(parts)


def decode(
    stored: bytes | Place | None, side: int, mode: str, max_pixels: int, kinds: set[str] | None = None
) -> npt.NDArray[np.uint8]:
    """(side, side, 3) RGB. Mode "crop" scales the shorter side to `side` and cuts the middle out; "fit" scales the
    longer one and pads with grey; "squeeze" scales each side by itself.

    The first frame of an animation, turned as its EXIF says, transparency on white, 16 bits reduced to 8; `kinds` gets
    what of this was done. Raises Unreadable for anything that Pillow does not read, or of more than `max_pixels`.
    """
    data = content(stored)
    if not data:
        raise Unreadable("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Unreadable(f"{width} x {height} pixels, more than max_pixels = {max_pixels}")
            ratio = side / (max if mode == "fit" else min)(width, height)
            image.draft(None, (math.ceil(width * ratio * _GAP), math.ceil(height * ratio * _GAP)))
            pixels = np.asarray(_resized(_rgb(_upright(image)), side, mode))
            if kinds is not None:  # after all that reads pixels: looking, too, makes Pillow read them, and forgive
                kinds |= _kinds(image)
            return pixels
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"not a picture of a kind that is read ({', '.join(_FORMATS)})") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise Unreadable(f"{type(error).__name__}: {error}".replace("\n", " ")[:200]) from error


class Decoded(NamedTuple):
    """`pixels` (n, side, side, 3), grey where a picture cannot be read; of each row the reason for that, and what else
    was done to see it (see `_kinds`), empty where nobody asked."""

    pixels: npt.NDArray[np.uint8]
    reasons: list[str | None]
    kinds: list[set[str]]


def decode_all(
    stored: Sequence[bytes | Place | None], side: int, mode: str, max_pixels: int, look: bool = False
) -> Decoded:
    """`decode` of each; with `look`, also what was done to see it."""
    found = np.full((len(stored), side, side, 3), GREY, dtype=np.uint8)
    reasons: list[str | None] = [None] * len(stored)
    kinds: list[set[str]] = [set() for _ in stored]
    for row, one in enumerate(stored):
        try:
            found[row] = decode(one, side, mode, max_pixels, kinds[row] if look else None)
        except Unreadable as why:
            reasons[row] = str(why)
    return Decoded(found, reasons, kinds)


def follow_parent() -> None:
    """End this worker process when the process that started it does, even if that was killed."""
    from multiprocessing import parent_process

    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _kinds(image: Image.Image) -> set[str]:
    """What of a picture asks for more than to be read."""
    found = {"CMYK"} if image.mode == "CMYK" else set()
    if image.mode.startswith("I"):
        found.add("of more than 8 bits")
    try:
        # A stereo photograph (MPO) has two frames as well, and does not move.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            found.add("animated")
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            found.add("turned by EXIF")
        if image.has_transparency_data:
            found.add("with an alpha channel")
    except Exception:  # a damaged EXIF block, or a damaged later frame: the picture itself was read
        pass
    return found


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values: npt.NDArray[Any] = np.asarray(image)
        # Pillow gives 16-bit grey as "I;16", and as 32-bit "I" from some files.
        wide = image.mode != "I" or int(values.max(initial=0)) > 255
        return Image.fromarray((np.clip(values, 0, 65535) >> 8 if wide else values.clip(0)).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "F":
        raise Unreadable("pixels are floating-point numbers of unknown range; save the picture with 8 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB")


def _resized(image: Image.Image, side: int, mode: str) -> Image.Image:
    width, height = image.size
    if mode == "squeeze":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    if mode == "crop":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        return image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    ratio = side / max(width, height)
    small = image.resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (side, side), (GREY, GREY, GREY))
    canvas.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return canvas
