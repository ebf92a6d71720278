"""One file per data format; every format gives the same `Dataset`.

A format is a module of this package with a frozen `Config` and `read(config, split) -> Dataset`; its module name is
its name on the command line and in a run file. Two more names make it recognised by what lies at a path:

SIGNS: str                                what it looks for, in words
recognise(path) -> settings | None        the settings to read that path with, None when it is not of this format
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer import registry
from trainer.data._spec import spoken

__all__ = [
    "Dataset", "ImageSource", "NoSplit", "Split", "blocks", "configure", "formats", "load", "name_of", "resolved",
    "spoken",
]  # fmt: skip

Split = Literal["train", "dev", "test"]


# Bytes of images that are read at once where all are gone through.
_BLOCK = 2**25


class NoSplit(BadInput):
    """The data are fine as far as one can see, but have nothing in the split that was asked for."""


class ImageSource(Protocol):
    """Images by row; an ndarray or a memory map satisfies it.

    A source whose images are made from something stored may also have `stored() -> Iterator[bytes]`, which stands for
    what the images are in a fingerprint; `verify()`, which raises DamagedArtifact when a manifest tells that they are
    not what was written; and `broken`, a mapping row -> reason of those that could not be read so far.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, ...): what one image looks like is shape[1:]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 for pictures, float16 or float32 for vectors."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Dataset:
    """One split: `images[row]` is the image `pairs.image_ids[row]`; captions are `pairs.texts`.

    `notes` are sentences about what was decided in reading, for a person.
    """

    pairs: Pairs
    images: ImageSource
    name: str
    split: str
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs, the captions and every image, in row order; each is read once, in blocks.

        Raises DamagedArtifact for features that are not those that `trainer encode` wrote."""
        verify = getattr(self.images, "verify", None)
        if verify is not None:
            verify()
        digest = hashlib.sha256(f"{self.pairs.fingerprint} {self.images.dtype} {self.image_shape}".encode())
        stored = getattr(self.images, "stored", None)
        if stored is not None:
            for content in stored():
                digest.update(content)
        else:
            for rows in blocks(self.images):
                digest.update(np.ascontiguousarray(self.images[rows]).data)
        return digest.hexdigest()

    @property
    def broken(self) -> dict[str, str]:
        """Image id -> reason, of the pictures that could not be read so far; a grey one stands for each."""
        found = getattr(self.images, "broken", {})
        return {self.pairs.image_ids[row]: reason for row, reason in sorted(found.items())}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (height, width, 3) for pictures, (dim,) for vectors."""
        return tuple(self.images.shape[1:])


def blocks(images: ImageSource) -> Iterator[npt.NDArray[np.int64]]:
    """All rows of `images` in order, as many at a time as are 32 MiB, at most 1024."""
    each = prod(images.shape[1:]) * images.dtype.itemsize
    size = min(max(_BLOCK // max(each, 1), 1), 1024)
    for start in range(0, len(images), size):
        yield np.arange(start, min(start + size, len(images)))


def formats() -> list[str]:
    """Names of the data formats."""
    return registry.names(__name__)


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a format. Raises BadInput for an unknown format or setting."""
    return registry.configure(__name__, name, settings or {})


def name_of(config: Any) -> str:
    """Name of the format whose `Config` this is."""
    return type(config).__module__.rpartition(".")[2]


def resolved(config: Any, base: Path) -> Any:
    """The same settings with every path made absolute; a relative one is meant from `base`."""
    paths = {key: value for key, value in config if isinstance(value, Path)}
    return config.model_copy(update={key: (base / value).resolve() for key, value in paths.items()})


def load(config: Any, split: Split) -> Dataset:
    """Read one split of the set that `config`, some format's `Config`, describes.

    Raises BadInput for wrong data, NoSplit when the split is all that is missing.
    """
    return cast(Dataset, sys.modules[type(config).__module__].read(config, split))
