"""Precomputed regions or vectors as VSE++, SCAN, VSRN, BFAN, AOQ, GOAL and VSE∞ publish them.

    {split}_ims.npy         (rows, regions, dim) or (rows, dim), float16 or float32; read row by row, never whole
    {split}_caps.txt        one caption per line
    {split}_ids.txt         optional, see below
    {split}_text_ids.txt    optional: one id per caption; lines with the same id are one caption, of several images

`split` is train, dev, test or testall. Without ids, captions come in blocks of equal size, in the order of the images:
five captions for every row; or as many rows as captions, where every image's row is repeated for each of its captions
and one of each is kept. The ids file says more, by what it holds:

- one line per image: the images' ids;
- one line per caption, some of them equal: captions with the same id belong to the same image, so that images may have
  unequal numbers of captions. Images come in the order of their first caption; there is one row per image, or one per
  caption;
- one line per caption, all different: the images' ids where there is a row for every caption, so that every image has
  one caption, equal rows or not; with fewer rows, or `captions_per_image`, the captions' ids.

Ids that are not given are numbers: of the image, of the caption's line. Where `trainer encode --backbone` wrote the
folder, its manifest lists what every file held: captions and ids are checked when they are read, the vectors when the
fingerprint is taken, before training, encoding and evaluating, since that is as much work as reading all of them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import MANIFEST, Artifact, find_artifact
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore
from trainer.data import Dataset, NoSplit, Split
from trainer.data._lines import read_lines
from trainer.data._npy import Npy, Rows

__all__ = ["FEATURES", "SIGNS", "Config", "read", "recognise", "verify"]

FEATURES = "features"  # the kind of artifact that `trainer encode --backbone` writes
SIGNS = "a folder with train_ims.npy and train_caps.txt"
_PROBED = 64  # rows from the start that tell how often an image is repeated
_SAMPLED = 16  # blocks that are looked into to see whether it is so


class Config(BaseModel):
    """`test` says which files are the test split, `dev_images` how many images of dev count (published: 1000).

    `captions_per_image` is only needed where the files do not say it, or to have them checked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    folder: Path
    test: Literal["test", "testall"] = "test"
    dev_images: int | None = Field(default=None, ge=1)
    captions_per_image: int | None = Field(default=None, ge=1)


class _Layout(NamedTuple):
    """Which row of the file each image is, and which image each caption belongs to."""

    rows: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    image_ids: list[str]
    text_ids: list[str]


def recognise(path: Path) -> dict[str, Any] | None:
    if any((path / f"train_{part}").is_file() for part in ("ims.npy", "caps.txt")):
        return {"folder": path}
    return None


def read(config: Config, split: Split) -> Dataset:
    """Raises NoSplit when neither vectors nor captions of the split are there; BadInput for a missing file, a wrong
    shape or dtype, or numbers of rows, captions and ids that differ; DamagedArtifact for captions or ids that are not
    those that `trainer encode` wrote.
    """
    stem = config.test if split == "test" else split
    where, words = config.folder / f"{stem}_ims.npy", config.folder / f"{stem}_caps.txt"
    if not where.is_file():
        others = sorted(path.name for path in config.folder.glob("*_ims.npy"))
        found = f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} there" if others else "none is there"
        raise (BadInput if words.exists() else NoSplit)(
            f"{where}: no such file for the split {split!r} ({found}); write the image vectors to it."
        )
    file, written = Npy.open(where), _written(config)
    captions = _lines(words, written, "it must hold one caption per line")
    if captions is None:
        raise BadInput(f"{words}: no such file; it must hold one caption per line.")
    ids, text_ids = (config.folder / f"{stem}_{end}.txt" for end in ("ids", "text_ids"))
    layout = _layout(file, captions, _lines(ids, written), _lines(text_ids, written), ids, config)
    num_images = len(layout.rows)
    if split == "dev" and config.dev_images is not None:
        num_images = min(num_images, config.dev_images)
    kept = np.flatnonzero(layout.owner < num_images)
    texts = _texts(layout.text_ids, captions, kept, text_ids)
    name = config.folder.resolve().name
    pairs = Pairs(
        Ids(layout.image_ids[:num_images]),
        Ids(texts),
        layout.owner[kept],
        np.array([texts[layout.text_ids[line]][0] for line in kept], dtype=np.int64),
        tuple(text for _, text in texts.values()),
        f"{name} {stem}",
    )
    listed = written is not None and where.name in written.manifest.files
    verify = functools.partial(written.path, where.name) if written is not None and listed else None
    return Dataset(pairs, Rows(file, layout.rows[:num_images], verify), name, split)


def verify(config: Config) -> None:
    """Hash every file of a folder that `trainer encode` wrote; nothing for another. Raises DamagedArtifact."""
    written = _written(config)
    if written is not None:
        written.verify()


def _written(config: Config) -> Artifact | None:
    manifest = config.folder / MANIFEST
    if not manifest.is_file() or b'"quintain/' not in manifest.read_bytes():
        return None  # somebody else's file of that name
    found = find_artifact(LocalStore(config.folder), ".")
    return found if found is not None and found.manifest.kind == FEATURES else None


def _lines(path: Path, written: Artifact | None, expected: str = "") -> list[str] | None:
    """The lines of a file, or None where there is none; one that the manifest lists must be what it was."""
    if written is not None and path.name in written.manifest.files:
        written.path(path.name)
    return read_lines(path, expected) if path.exists() else None


def _texts(ids: list[str], captions: list[str], kept: npt.NDArray[np.int64], path: Path) -> dict[str, tuple[int, str]]:
    """Text id -> (row, caption) of the lines `kept`. Raises BadInput for an id that has two captions."""
    found: dict[str, tuple[int, str]] = {}
    for line in kept:
        _, text = found.setdefault(ids[line], (len(found), captions[line]))
        if text != captions[line]:
            raise BadInput(
                f"{path}: text id {ids[line]!r} has two captions, {text!r} and {captions[line]!r}; "
                "give each caption its own id."
            )
    return found


def _layout(
    file: Npy,
    captions: list[str],
    ids: list[str] | None,
    text_ids: list[str] | None,
    ids_path: Path,
    config: Config,
) -> _Layout:
    count, blank = len(captions), _blank_end(captions)
    if text_ids is not None and len(text_ids) != count:
        raise BadInput(
            f"{ids_path.with_name(ids_path.name.replace('_ids', '_text_ids'))}: {len(text_ids)} ids for {count} "
            f"captions{blank}; give one per caption."
        )
    numbers = text_ids if text_ids is not None else [str(text) for text in range(count)]
    if ids is not None and len(ids) == count and len(set(ids)) < count:
        return _grouped(file, ids, ids_path, numbers)
    asked = config.captions_per_image
    if asked is None and ids is not None and len(ids) == count == len(file):
        asked = 1  # an id of its own for every row: equal rows are two images that look the same
    each, repeat = _regular(file, count, asked, ids_path, blank)
    num_images = len(file) // repeat
    rows, owner = np.arange(num_images) * repeat, np.arange(count) // each
    image_ids = [str(row) for row in range(num_images)]
    if ids is None:
        return _Layout(rows, owner, image_ids, numbers)
    if len(ids) == num_images:
        return _Layout(rows, owner, ids, numbers)
    if len(ids) == count and text_ids is None:
        return _Layout(rows, owner, image_ids, ids)
    raise BadInput(
        f"{ids_path}: {len(ids)} ids for {num_images} images and {count} captions{blank}; give one per image, or one "
        "per caption that names its image."
    )


def _blank_end(captions: list[str]) -> str:
    """What to say about numbers that do not fit when the file of captions ends with empty lines."""
    blank = next((number for number, text in enumerate(reversed(captions)) if text), len(captions))
    if not blank:
        return ""
    return f" (the last {f'{blank} lines are' if blank > 1 else 'line is'} empty: delete what is no caption)"


def _grouped(file: Npy, ids: list[str], ids_path: Path, numbers: list[str]) -> _Layout:
    number: dict[str, int] = {}
    owner = np.array([number.setdefault(image_id, len(number)) for image_id in ids], dtype=np.int64)
    if len(file) not in (len(number), len(ids)):
        raise BadInput(
            f"{file.path}: {len(file)} rows, but {ids_path.name} names {len(number)} images in {len(ids)} captions; "
            "there must be one row per image or one per caption."
        )
    _, first = np.unique(owner, return_index=True)
    rows = np.arange(len(number)) if len(file) == len(number) else first.astype(np.int64)
    return _Layout(rows, owner, list(number), numbers)


def _regular(file: Npy, captions: int, asked: int | None, ids_path: Path, blank: str) -> tuple[int, int]:
    """(captions per image, rows per image) where both are the same for all images."""
    rows = len(file)
    wanted = f", captions_per_image = {asked}" if asked is not None else ""
    if asked is not None and rows * asked == captions:
        return asked, 1
    if rows == captions:
        repeat = asked if asked is not None else _leading_equal(file)
        if rows % repeat == 0 and _repeats(file, repeat):
            return repeat, repeat
    elif asked is None and rows and captions % rows == 0:
        return captions // rows, 1
    raise BadInput(
        f"{file.path}: {rows} rows for {captions} captions{blank}{wanted}: that is neither the same number of captions "
        f"for every row, nor every row repeated as often; if images have unequal numbers of captions, write "
        f"{ids_path.name} with one line per caption that names its image."
    )


def _leading_equal(file: Npy) -> int:
    """How many rows from the first on are equal to it."""
    head = file.read(np.arange(min(len(file), _PROBED)))
    same = (head == head[0]).reshape(len(head), -1).all(1)
    return len(head) if same.all() else int(np.argmin(same))


def _repeats(file: Npy, repeat: int) -> bool:
    """Whether the rows of an image are equal, in blocks from all over the file."""
    blocks = np.unique(np.linspace(0, len(file) // repeat - 1, _SAMPLED).astype(np.int64))
    first, last = file.read(blocks * repeat), file.read(blocks * repeat + repeat - 1)
    return bool(np.array_equal(first, last))
