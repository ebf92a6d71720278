"""The pairs of one split, gathered one by one; how the splits of a set are told apart; which images are left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.data import Split
from trainer.data._lines import read_lines

__all__ = ["BY_HASH", "SPLITS", "Links", "by_hash", "excluded", "inside", "split_named"]

SPLITS: tuple[Split, ...] = get_args(Split)
BY_HASH = "split by a hash of the image's id: 80% train, 10% dev, 10% test"
_SPOKEN: dict[str, Split] = {
    "train": "train", "training": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_named(name: str) -> Split | None:
    """The split that people call `name`: `val`, `valid` and `validation` are dev; None for any other word."""
    return _SPOKEN.get(name.lower())


def by_hash(image_id: str) -> Split:
    """Where an image belongs by its id alone: 80% train, 10% dev, 10% test, the same on every machine and day."""
    place = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.8 else "dev" if place < 0.9 else "test"


def inside(folder: Path, name: str) -> Path:
    """The file `name` below `folder`. Raises BadInput for a name that leads out of it: data name no other files."""
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ".." in parts or Path(name).is_absolute() or parts[0].endswith(":"):
        raise BadInput(
            f"{folder}: the file name {name!r} does not stay inside that folder, and is refused; names must be "
            "relative to the folder of the images."
        )
    return folder / name


def excluded(path: Path | None) -> frozenset[str]:
    """The image ids that an exclude file lists: one a line, up to the first tab; none without a file."""
    if path is None:
        return frozenset()
    lines = read_lines(path, "it must list an image id per line, as `trainer data check --write-exclude` does")
    return frozenset(image_id for image_id in (line.partition("\t")[0].strip() for line in lines) if image_id)


class Links:
    """Pairs of all splits go in, those of one come out. Images and texts keep the order in which they came."""

    def __init__(self, split: Split, exclude: frozenset[str] = frozenset()) -> None:
        self.split, self.exclude = split, exclude
        self.left_out: set[str] = set()
        self._counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._images: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._numbered: Counter[str] = Counter()
        self._captions: list[str] = []
        self._image_rows: list[int] = []
        self._text_rows: list[int] = []

    def add(self, split: Split, image_id: str, texts: Sequence[str], ids: Sequence[str] | None, where: str) -> bool:
        """Take an image of `split` and captions of it; whether it is in the split wanted and not left out.

        Captions without `ids` get the image's and their number there. Raises BadInput, at the place `where`, for an id
        that has another caption already.
        """
        if image_id in self.exclude:
            if split == self.split:
                self.left_out.add(image_id)
            return False
        self._counts[split] += len(texts)
        if split != self.split or not texts:
            return False
        if ids is None:
            first = self._numbered[image_id]
            self._numbered[image_id] += len(texts)
            ids = [f"{image_id}#{number}" for number in range(first, first + len(texts))]
        image_row = self._images.setdefault(image_id, len(self._images))
        for text_id, text in zip(ids, texts, strict=True):
            text_row = self._texts.setdefault(text_id, len(self._texts))
            if text_row == len(self._captions):
                self._captions.append(text)
            elif self._captions[text_row] != text:
                raise BadInput(
                    f"{where}: text id {text_id!r} has two captions, {self._captions[text_row]!r} and {text!r}; "
                    "give each caption its own id."
                )
            self._image_rows.append(image_row)
            self._text_rows.append(text_row)
        return True

    def pairs(self, name: str, where: str, advice: str = "") -> Pairs:
        """The pairs of the split. Raises BadInput when there are none; `advice` says what could be set."""
        if not self._image_rows:
            counts = ", ".join(f"{split} {count}" for split, count in self._counts.items())
            raise BadInput(
                f"{where}: no pair in split {self.split!r} (pairs found: {counts}).{advice and ' ' + advice}"
            )
        return Pairs(
            tuple(self._images),
            tuple(self._texts),
            np.array(self._image_rows, dtype=np.int64),
            np.array(self._text_rows, dtype=np.int64),
            tuple(self._captions),
            f"{name} {self.split}",
        )

    def notes(self) -> list[str]:
        """What `exclude` left out, as a sentence."""
        count = len(self.left_out)
        return [f"{self.split}: {count} image(s) left out by the exclude file."] if count else []
