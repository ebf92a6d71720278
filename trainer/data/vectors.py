"""Precomputed image vectors: a folder anybody can make with numpy and a text editor.

    images.npy        (rows, dim) or (rows, regions, dim), float16 or float32; memory-mapped, never read whole
    image_ids.txt     optional: one id per line, by row; without it the ids are "0", "1", ...
    pairs.csv         columns image_id, text_id, text, split (train | dev | test), in any order; one line per pair

An image may have several texts and a text several images; a text that occurs with several images has one id.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from miner.artifacts.errors import BadInput
from miner.artifacts.npy import map_npy, read_ids
from miner.artifacts.pairs import Pairs
from trainer.data import Dataset, Split

__all__ = ["Config", "Rows", "read"]

COLUMNS = ("image_id", "text_id", "text", "split")
SPLITS = ("train", "dev", "test")


class Config(BaseModel):
    """`folder` holds images.npy, pairs.csv and, if ids are not row numbers, image_ids.txt."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    folder: Path


@dataclass(frozen=True)
class Rows:
    """Some rows of an array, read when they are asked for and checked then."""

    array: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]
    name: str

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[Any]:
        values = np.asarray(self.array[self.rows[rows]])
        if not np.isfinite(values).all():
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
            row = int(self.rows[np.asarray(rows)[int(np.argmax(bad))]])
            raise BadInput(f"{self.name}: row {row} holds NaN or infinity; fix the vector or leave the image out.")
        zero = ~values.reshape(len(values), -1).any(1)
        if zero.any():
            row = int(self.rows[np.asarray(rows)[int(np.argmax(zero))]])
            raise BadInput(f"{self.name}: row {row} holds only zeros; fix the vector or leave the image out.")
        return values


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for a missing file, a wrong shape or dtype, unknown or duplicate ids, or an empty split."""
    folder = config.folder
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give one that holds images.npy and pairs.csv (or `emoji`).")
    array = _images(folder / "images.npy")
    ids = _image_ids(folder / "image_ids.txt", len(array))
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    texts: dict[str, str] = {}
    links: list[tuple[str, str]] = []
    found: dict[str, int] = dict.fromkeys(SPLITS, 0)
    path = folder / "pairs.csv"
    for line, cells in _lines(path):
        image_id, text_id, text, in_split = (cells[column] for column in COLUMNS)
        if in_split not in found:
            raise BadInput(f"{path}, line {line}: split {in_split!r}; it must be one of {', '.join(SPLITS)}.")
        if image_id not in row_of:
            raise BadInput(
                f"{path}, line {line}: unknown image id {image_id!r}; {len(ids)} ids are known, first "
                f"{ids[0]!r} ({'image_ids.txt' if (folder / 'image_ids.txt').exists() else 'row numbers'})."
            )
        found[in_split] += 1
        if in_split != split:
            continue
        if texts.setdefault(text_id, text) != text:
            raise BadInput(
                f"{path}, line {line}: text id {text_id!r} has two captions, {texts[text_id]!r} and {text!r}; "
                "give each caption its own id."
            )
        links.append((image_id, text_id))
    if not links:
        counts = ", ".join(f"{name} {count}" for name, count in found.items())
        raise BadInput(f"{path}: no pair in split {split!r} (pairs found: {counts}).")
    used = list(dict.fromkeys(image_id for image_id, _ in links))
    pairs = Pairs.from_ids(used, list(texts), links, texts=list(texts.values()), name=f"{folder.name} {split}")
    rows = np.array([row_of[image_id] for image_id in used], dtype=np.int64)
    return Dataset(pairs, Rows(array, rows, str(folder / "images.npy")), folder.name, split)


def _images(path: Path) -> npt.NDArray[Any]:
    array = map_npy(path, (2, 3))
    if array.dtype not in (np.float16, np.float32):
        raise BadInput(f"{path}: dtype {array.dtype}; image vectors must be float16 or float32: convert with astype.")
    return array


def _image_ids(path: Path, num_rows: int) -> list[str]:
    ids = list(read_ids(path, num_rows))
    if len(set(ids)) != len(ids):
        twice = next(image_id for image_id, times in Counter(ids).items() if times > 1)
        raise BadInput(f"{path}: image id {twice!r} occurs more than once; ids must be unique.")
    return ids


def _lines(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"{path}: no such file; it must list the pairs with the columns {', '.join(COLUMNS)}.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(
                    f"{path}: no column {', '.join(missing)} in the first line; expected {', '.join(COLUMNS)}."
                )
            for cells in reader:
                if any(cells[column] is None for column in COLUMNS):
                    raise BadInput(f"{path}, line {reader.line_num}: fewer columns than the first line has.")
                yield reader.line_num, cells
    except csv.Error as error:
        raise BadInput(f"{path}: not a readable CSV file ({error}).") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from error
