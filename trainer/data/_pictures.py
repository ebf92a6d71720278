"""Pictures of one size, decoded when they are asked for, in worker processes.

What a picture looks like depends on its file alone, never on who decodes it or when. A picture that cannot be read is
not taken out, which would change the pairs in the middle of a training: a grey one stands for it, its pairs stay. It is
counted, and when more than the share `max_broken` of a split's pictures are such, reading ends with an error. `trainer
data check` finds them all beforehand and writes the list that `exclude` takes: these images, with their captions, are
left out when the data are read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput, Retryable
from trainer.data._decode import Decoded, Place, Unreadable, content, decode_all, follow_parent
from trainer.data._places import Stored

__all__ = ["PictureSettings", "Pictures"]

_WORTH_SENDING = 8  # pictures; fewer are decoded here
_READERS = 8  # threads that read files to hash them


class PictureSettings(BaseModel):
    """How the pictures of a set are read; formats with pictures add their own settings.

    `image_size` is the side in pixels. `image_mode` "crop" scales the shorter side to it and cuts the middle out, "fit"
    scales the longer one and pads with grey, "squeeze" scales each by itself, as ViT and SigLIP were trained. `exclude`
    is a file with the ids of images to leave out, one a line. `max_broken` is the share of unreadable pictures to put
    up with, `max_pixels` the size from which a picture counts as a decompression bomb. `decode_workers` processes
    decode, 0 does it in this one [default: one per further core, at most 8]; it changes no bit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int = Field(default=224, ge=1, le=2048)
    image_mode: Literal["crop", "fit", "squeeze"] = "crop"
    exclude: Path | None = None
    max_broken: float = Field(default=0.01, ge=0, le=1)
    # Pillow's own limit, and twice that, where it refuses by itself.
    max_pixels: int = Field(default=89_478_485, ge=1, le=178_956_970)
    decode_workers: int | None = Field(default=None, ge=0, le=256)


class Pictures:
    """An ImageSource of uint8 (side, side, 3). Raises BadInput when too many are missing, or prove to be broken."""

    dtype = np.dtype(np.uint8)

    def __init__(self, stored_images: Stored, settings: PictureSettings, name: str) -> None:
        self.images, self.settings, self.name = stored_images, settings, name
        self.shape = (len(stored_images), settings.image_size, settings.image_size, 3)
        self.broken: dict[int, str] = {}
        self._note(stored_images.missing())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[np.uint8]:
        found, reasons, _ = self.decode(rows)
        self._note(reasons)
        return found

    def decode(
        self, rows: npt.NDArray[np.int64], look: bool = False
    ) -> tuple[npt.NDArray[np.uint8], dict[int, str], dict[int, set[str]]]:
        """Pictures (rows, side, side, 3); row -> reason of the grey ones among them, however many; with `look`, row ->
        what was done to see it, such as "CMYK"."""
        wanted, place = np.unique(np.asarray(rows), return_inverse=True)
        found, reasons, kinds = self._decoded(self.images.fetch(wanted), look)
        told = {int(row): reason for row, reason in zip(wanted, reasons, strict=True) if reason is not None}
        seen = {int(row): kind for row, kind in zip(wanted, kinds, strict=True) if kind}
        return found if np.array_equal(place, np.arange(len(wanted))) else found[place], told, seen

    def stored(self) -> Iterator[bytes]:
        """What the pictures are made from: how, and the SHA-256 of every file as stored."""
        yield f"{self.settings.image_size} {self.settings.image_mode} {self.settings.max_pixels}".encode()
        with ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(self), 256):
                rows = np.arange(start, min(start + 256, len(self)))
                yield from readers.map(_digest, self.images.fetch(rows))

    def _decoded(self, wanted: list[bytes | Place | None], look: bool) -> Decoded:
        how = (self.settings.image_size, self.settings.image_mode, self.settings.max_pixels, look)
        workers = self.settings.decode_workers
        workers = min((os.cpu_count() or 1) - 1, 8) if workers is None else workers
        if workers == 0 or len(wanted) < _WORTH_SENDING:
            return decode_all(wanted, *how)
        # Several pieces for each worker, since pictures differ in size.
        size = max(-(-len(wanted) // (4 * workers)), 1)
        pieces = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        try:
            found = list(_pool(workers).map(decode_all, pieces, *([one] * len(pieces) for one in how)))
        except BrokenProcessPool as died:
            _pool.cache_clear()
            raise Retryable(
                f"{self.name}: a process that decodes pictures died, as when memory runs out; run the same command "
                "again, with fewer decode_workers or a lower max_pixels."
            ) from died
        return Decoded(
            np.concatenate([part.pixels for part in found]),
            [reason for part in found for reason in part.reasons],
            [kinds for part in found for kinds in part.kinds],
        )

    def _note(self, broken: dict[int, str]) -> None:
        first = not self.broken
        self.broken |= broken
        if len(self.broken) > self.settings.max_broken * len(self):
            shown = "; ".join(f"{self.images.named(row)}: {reason}" for row, reason in list(self.broken.items())[:3])
            raise BadInput(
                f"{self.name}: {len(self.broken)} of {len(self)} pictures cannot be read, more than the share "
                f"max_broken = {self.settings.max_broken:g}; first {shown}. Mend them, or leave them out "
                "with the setting exclude: `trainer data check --write-exclude FILE` writes the list."
            )
        if first and broken:
            row, reason = next(iter(broken.items()))
            warnings.warn(
                f"{self.name}: {self.images.named(row)}: {reason}; a grey picture stands for it, and for any other "
                "that cannot be read. `trainer data check` lists them.",
                stacklevel=3,
            )


@functools.cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """One pool for all pictures of this process. Spawned: a fork would copy torch's threads in an unknown state."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=follow_parent)


def _digest(stored: bytes | Place | None) -> bytes:
    try:
        return hashlib.sha256(content(stored)).digest()
    except Unreadable as why:
        return hashlib.sha256(f"unreadable {why}".encode()).digest()
