"""The pairs of one split, gathered one by one; how the splits of a set are told apart; which images are left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids
from miner.artifacts.pairs import Pairs
from trainer.data import NoSplit, Split
from trainer.data._lines import read_lines

__all__ = ["BY_HASH", "SPLITS", "Links", "by_hash", "excluded", "inside", "split_named"]

SPLITS: tuple[Split, ...] = get_args(Split)
BY_HASH = "split by a hash of the image's id: 80% train, 10% dev, 10% test"
_SPOKEN: dict[str, Split] = {
    "train": "train", "training": "train", "restval": "train", "test": "test", "testing": "test",
    "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
}  # fmt: skip


def split_named(name: str) -> Split | None:
    """The split that people call `name`: `val`, `valid` and `validation` are dev, `restval` of COCO's Karpathy split is
    trained on; None for any other word."""
    return _SPOKEN.get(name.lower())


def by_hash(image_id: str) -> Split:
    """Where an image belongs by its id alone: 80% train, 10% dev, 10% test, the same on every machine and day."""
    place = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.8 else "dev" if place < 0.9 else "test"


def inside(folder: Path, name: str) -> Path:
    """The file `name` below `folder`, which may be a part of it. Raises BadInput for a name that leads out of it: data
    name no other files."""
    parts = name.replace("\\", "/").split("/")
    leaves = not name or "\0" in name or ".." in parts or parts[0].endswith(":")
    if leaves or (Path(name).is_absolute() and not Path(name).is_relative_to(folder.absolute())):
        raise BadInput(
            f"{folder}: the file name {name!r} does not stay inside that folder, and is refused; names must be "
            "relative to the folder of the images, or below it."
        )
    return folder / name


def excluded(path: Path | None) -> frozenset[str]:
    """The image ids that an exclude file lists: one a line, up to the first tab; none without a file."""
    if path is None:
        return frozenset()
    lines = read_lines(path, "it must list an image id per line, as `trainer data check --write-exclude` does")
    return frozenset(image_id for image_id in (line.partition("\t")[0].strip() for line in lines) if image_id)


class Links:
    """Pairs go in, those of one split come out. Images and texts keep the order in which they came.

    `exclude` is a file of image ids to leave out. `whole` says that the pairs of all splits go in, so that what is not
    found is not in the set.
    """

    def __init__(self, split: Split, exclude: Path | None = None, *, whole: bool = True) -> None:
        self.split, self.exclude, self.whole = split, excluded(exclude), whole
        self.left_out: set[str] = set()
        self._exclude_file = exclude
        self._found: set[str] = set()  # of `exclude`, in any split
        self._missing: list[str] = []  # where captions of the split are missing
        self._seen: set[str] = set()  # images of the split, also those without a caption
        self._counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._images: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._numbered: Counter[str] = Counter()
        self._captions: list[str] = []
        self._image_rows: list[int] = []
        self._text_rows: list[int] = []

    def add(
        self,
        split: Split,
        image_id: str,
        texts: Sequence[Any],
        ids: Sequence[str] | None,
        where: str,
        at_most: int | None = None,
    ) -> bool:
        """Take an image of `split` and captions of it, the first `at_most`; whether it is wanted: in the split, and not
        excluded. A wanted image gets a row once it has a caption.

        A caption that is None or blank is missing, and left out. Those without `ids` get the image's and their number
        there. Raises BadInput, at the place `where`, for a caption that is no string and an id that has another caption
        already.
        """
        if image_id in self.exclude:
            self._found.add(image_id)
            if split == self.split:
                self.left_out.add(image_id)
            return False
        wrong = [text for text in texts if text is not None and not isinstance(text, str)]
        if wrong:
            raise BadInput(f"{where}: the caption {wrong[0]!r} is no string; write captions as text.")
        there = [number for number, text in enumerate(texts) if text is not None and text.strip()]
        missing, there = max(len(texts), 1) - len(there), there[:at_most]
        texts, ids = [texts[number] for number in there], ids and [ids[number] for number in there]
        self._counts[split] += len(texts)
        if split != self.split:
            return False
        self._missing += [where] * missing
        self._seen.add(image_id)
        if not texts:
            return True
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
        """The pairs of the split. Raises NoSplit when none of its images is there, BadInput when no pair of those there
        is left; `advice` says what could be set."""
        if not self._image_rows:
            counts = ", ".join(f"{split} {count}" for split, count in self._counts.items())
            found = f" (pairs found: {counts})" if self.whole else ""
            said = "".join(f" {sentence}" for sentence in (*self.notes(), advice) if sentence)
            absent = BadInput if self._seen or self.left_out else NoSplit
            raise absent(f"{where}: no pair in split {self.split!r}{found}.{said}")
        return Pairs(
            Ids(self._images),
            Ids(self._texts),
            np.array(self._image_rows, dtype=np.int64),
            np.array(self._text_rows, dtype=np.int64),
            tuple(self._captions),
            f"{name} {self.split}",
        )

    def notes(self) -> list[str]:
        """What was left out, and what of the exclude file is not there, as sentences."""
        notes = []
        if self.left_out:
            notes.append(f"{self.split}: {len(self.left_out)} image(s) left out by the exclude file.")
        unknown = len(self.exclude - self._found)
        if unknown and self.whole:
            notes.append(f"{unknown} of {len(self.exclude)} ids in {self._exclude_file} are not in the set.")
        if self._missing:
            bare = len(self._seen) - len(self._images)
            with_them = f", and with them {bare} image(s) that have no other" if bare else ""
            notes.append(
                f"{self.split}: {len(self._missing)} missing or empty caption(s) left out{with_them}; first "
                f"{self._missing[0]}."
            )
        return notes
