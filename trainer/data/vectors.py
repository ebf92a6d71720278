"""Precomputed image vectors: a folder anybody can make with numpy and a text editor.

    images.npy        (rows, dim) or (rows, regions, dim), float16 or float32; read row by row, never whole
    image_ids.txt     optional: one id per line, by row; without it the ids are "0", "1", ...
    pairs.csv         columns image_id, text_id, text, split (train | dev | test), in any order; one line per pair

An image may have several texts and a text several images; a text that occurs with several images has one id.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from miner.artifacts.errors import BadInput
from miner.artifacts.npy import read_ids
from trainer.data import Dataset, Split
from trainer.data._lines import read_table
from trainer.data._links import SPLITS, Links
from trainer.data._npy import Npy, Rows

__all__ = ["SIGNS", "Config", "Rows", "read", "recognise"]

SIGNS = "a folder with images.npy and pairs.csv"
COLUMNS = ("image_id", "text_id", "text", "split")


class Config(BaseModel):
    """`folder` holds images.npy, pairs.csv and, if ids are not row numbers, image_ids.txt."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    folder: Path


def recognise(path: Path) -> dict[str, Any] | None:
    return {"folder": path} if any((path / name).is_file() for name in ("images.npy", "pairs.csv")) else None


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for a missing file, a wrong shape or dtype, unknown or duplicate ids, or an empty split."""
    folder = config.folder
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give one that holds images.npy and pairs.csv (or `emoji`).")
    file = Npy.open(folder / "images.npy")
    ids = _image_ids(folder / "image_ids.txt", len(file))
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    path = folder / "pairs.csv"
    links = Links(split)
    expected = f"it must list the pairs with the columns {', '.join(COLUMNS)}"
    if (folder / "texts.npy").is_file():
        alone = f"miner mine {shlex.quote(str(folder))} --out DIR"
        expected += f"; vectors of both sides need no texts to be mined: {alone}"
    for line, cells in read_table(path, COLUMNS, expected):
        image_id, text_id, text, in_split = (cells[column] for column in COLUMNS)
        if in_split not in SPLITS:
            raise BadInput(f"{path}, line {line}: split {in_split!r}; it must be one of {', '.join(SPLITS)}.")
        if image_id not in row_of:
            raise BadInput(
                f"{path}, line {line}: unknown image id {image_id!r}; {len(ids)} ids are known, first "
                f"{ids[0]!r} ({'image_ids.txt' if (folder / 'image_ids.txt').exists() else 'row numbers'})."
            )
        links.add(in_split, image_id, [text], [text_id], f"{path}, line {line}")
    name = folder.resolve().name
    pairs = links.pairs(name, str(path))
    rows = np.array([row_of[image_id] for image_id in pairs.image_ids], dtype=np.int64)
    return Dataset(pairs, Rows(file, rows), name, split)


def _image_ids(path: Path, num_rows: int) -> list[str]:
    ids = list(read_ids(path, num_rows))
    if len(set(ids)) != len(ids):
        twice = next(image_id for image_id, times in Counter(ids).items() if times > 1)
        raise BadInput(f"{path}: image id {twice!r} occurs more than once; ids must be unique.")
    return ids
