"""Pairs as Parquet or Arrow (Feather) files: columns image_id, text_id, image, text, split; a row per pair or image.

One file, or a folder of them at any depth; see `trainer/data/_tables.py` for the columns. Images are read when they are
asked for: from their place in an Arrow file that is not compressed, or a row group at a time. Without a column split,
files and folders named after splits say it (train-00000-of-00002.parquet, validation/0.arrow).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput
from trainer.data import Dataset, Split
from trainer.data._columns import TableSettings
from trainer.data._links import split_named
from trainer.data._spec import glance
from trainer.data._tables import read_tables

__all__ = ["SIGNS", "Config", "read", "recognise"]

EXTENSIONS = (".parquet", ".arrow", ".feather", ".ipc")
SIGNS = "a file *.parquet, *.arrow or *.feather, or a folder of them"


class Config(TableSettings):
    """`path` is a file, or a folder of files."""

    path: Path


def recognise(path: Path) -> dict[str, Any] | None:
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None  # a data set that Hugging Face saved
    some = glance(path) if path.is_dir() else [path]
    return {"path": path} if any(one.suffix in EXTENSIONS and one.is_file() for one in some) else None


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for a path without such files, and for whatever is wrong with them."""
    files = _files(config.path)
    if not files:
        what = "no such file or folder" if not config.path.exists() else f"no file {', '.join(EXTENSIONS)} here"
        raise BadInput(f"{config.path}: {what}; give a Parquet or Arrow file, or a folder of them.")
    name = config.path.resolve().stem
    return read_tables([(path, _called(path, config)) for path in files], config, split, name, str(config.path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in EXTENSIONS else []
    return sorted(found for found in path.rglob("*") if found.suffix in EXTENSIONS and found.is_file())


def _called(path: Path, config: Config) -> str:
    """The first word in the name of the file, or of a folder between it and `config.path`, that is a split's."""
    inner = path.relative_to(config.path) if config.path.is_dir() else Path(path.name)
    words = [word for part in reversed(inner.with_suffix("").parts) for word in re.split(r"[-_.]", part)]
    return next((word for word in words if config.split_called(word) or split_named(word)), words[0])
