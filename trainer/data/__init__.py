"""One file per data format; every format gives the same `Dataset`.

A format is a module of this package with a frozen `Config` and `read(config, split) -> Dataset`; its module name is
its name on the command line and in a run file.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Pairs
from trainer import registry

__all__ = ["Dataset", "ImageSource", "Split", "configure", "formats", "load", "name_of"]

Split = Literal["train", "dev", "test"]


class ImageSource(Protocol):
    """Images by row; an ndarray or a memory map satisfies it."""

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
    """One split: `images[row]` is the image `pairs.image_ids[row]`; captions are `pairs.texts`."""

    pairs: Pairs
    images: ImageSource
    name: str
    split: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs, the captions and every image, in row order; reads each image once."""
        digest = hashlib.sha256(f"{self.pairs.fingerprint} {self.images.dtype} {self.image_shape}".encode())
        for start in range(0, len(self.images), 1024):
            rows = np.arange(start, min(start + 1024, len(self.images)))
            digest.update(np.ascontiguousarray(self.images[rows]).tobytes())
        return digest.hexdigest()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (height, width, 3) for pictures, (dim,) for vectors."""
        return tuple(self.images.shape[1:])


def formats() -> list[str]:
    """Names of the data formats."""
    return registry.names(__name__)


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a format. Raises BadInput for an unknown format or setting."""
    return registry.configure(__name__, name, settings or {})


def name_of(config: Any) -> str:
    """Name of the format whose `Config` this is."""
    return type(config).__module__.rpartition(".")[2]


def load(config: Any, split: Split) -> Dataset:
    """Read one split of the set that `config`, some format's `Config`, describes. Raises BadInput for wrong data."""
    return cast(Dataset, sys.modules[type(config).__module__].read(config, split))
