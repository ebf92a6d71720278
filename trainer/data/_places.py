"""Where stored images lie: byte ranges of files, so that any process can fetch any of them without holding the rest."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.data._decode import NOT_A_FILE, Place

__all__ = ["NOTHING", "WHOLE", "Places", "Stored"]

WHOLE = -1  # bytes: the whole file
NOTHING = -2  # bytes: there is no image


class Stored(Protocol):
    """Images as stored, by row."""

    def __len__(self) -> int: ...

    def fetch(self, rows: npt.NDArray[np.int64]) -> list[bytes | Place | None]:
        """The bytes of every row, or where they are; None where there is no image."""
        ...

    def missing(self) -> dict[int, str]:
        """Row -> reason, of the images that can be told to be absent without reading any."""
        ...

    def named(self, row: int) -> str:
        """Where an image is, for a person."""
        ...


@dataclass(frozen=True)
class Places:
    """Image `row` is `size[row]` bytes of `paths[file[row]]` from byte `start[row]` on."""

    paths: Sequence[str]
    file: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    @classmethod
    def of_files(cls, paths: Sequence[Path]) -> Places:
        """Every image a file of its own."""
        count = len(paths)
        return cls([str(path) for path in paths], np.arange(count), np.zeros(count, np.int64), np.full(count, WHOLE))

    @classmethod
    def of(cls, paths: Sequence[str], places: Sequence[tuple[int, int, int]]) -> Places:
        """`places` are (number of the file, first byte, bytes)."""
        columns = np.array(places, dtype=np.int64).reshape(-1, 3)
        return cls(paths, columns[:, 0], columns[:, 1], columns[:, 2])

    def __len__(self) -> int:
        return len(self.file)

    def fetch(self, rows: npt.NDArray[np.int64]) -> list[bytes | Place | None]:
        found = zip(self.file[rows].tolist(), self.start[rows].tolist(), self.size[rows].tolist(), strict=True)
        return [(self.paths[file], start, size) if size != NOTHING else None for file, start, size in found]

    def missing(self) -> dict[int, str]:
        absent = {int(row): "there is no image" for row in np.flatnonzero(self.size == NOTHING)}
        for row in np.flatnonzero(self.size == WHOLE).tolist():
            try:
                found = Path(self.named(row)).stat()
            except OSError as error:
                absent[row] = error.strerror or str(error)
                continue
            if not stat.S_ISREG(found.st_mode):
                absent[row] = NOT_A_FILE
            elif not found.st_size:
                absent[row] = "the file is empty"
        return absent

    def named(self, row: int) -> str:
        path = self.paths[int(self.file[row])]
        return path if self.size[row] in (WHOLE, NOTHING) else f"{path}, byte {int(self.start[row])}"
