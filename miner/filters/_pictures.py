"""Pictures by path: read once each, turned as EXIF says, on white; a broken one is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import digest_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["digest", "each_file", "opened"]

Found = TypeVar("Found")


def opened(path: Path) -> Image.Image:
    """The picture in RGB. Raises BadInput for one that is missing, broken or far too large, and without Pillow."""
    try:
        from PIL import Image, ImageOps
    except ImportError as missing:
        raise BadInput("this rule looks at pictures, and Pillow is not installed: pip install pillow") from missing
    try:
        with Image.open(path) as picture:
            turned = ImageOps.exif_transpose(picture)
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                layer = turned.convert("RGBA")
                white = Image.new("RGBA", layer.size, "white")
                return Image.alpha_composite(white, layer).convert("RGB")
            return turned.convert("RGB")
    except FileNotFoundError as missing:
        raise BadInput(f"{path}: no such picture; the paths in --images are relative to that file.") from missing
    except Exception as broken:  # decoders raise whatever a damaged file leads them to
        what = str(broken).partition("\n")[0]
        raise BadInput(f"{path}: cannot be read as a picture ({what}); replace it or leave its image out.") from broken


def each_file(paths: Sequence[str], look: Callable[[Path], Found], threads: int) -> list[Found]:
    """`look` of every path, done once for each distinct one."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(distinct, pool.map(lambda path: look(Path(path)), distinct), strict=True))
    return [found[path] for path in paths]


def digest(path: Path) -> str:
    """SHA-256 of the file. Raises BadInput when it cannot be read."""
    try:
        return digest_file(path)
    except OSError as missing:
        raise BadInput(f"{path}: no such picture; the paths in --images are relative to that file.") from missing
