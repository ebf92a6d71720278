"""A data set that Hugging Face `datasets` saved: `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.

Read with pyarrow, without the library: pictures from their place in the Arrow files, when they are asked for. See
`trainer/data/_tables.py` for the columns; a column of lists holds several captions per image. Splits are those of the
DatasetDict, or of a column.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput
from trainer.data import Dataset, Split
from trainer.data._columns import TableSettings
from trainer.data._lines import read_json
from trainer.data._links import inside
from trainer.data._tables import read_tables

__all__ = ["SIGNS", "Config", "read", "recognise"]

SIGNS = "a folder with dataset_dict.json or state.json"


class Config(TableSettings):
    """`folder` is what `save_to_disk` wrote."""

    folder: Path


def recognise(path: Path) -> dict[str, Any] | None:
    return {"folder": path} if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) else None


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for a folder that holds no such data set, and for whatever is wrong with it."""
    folder = config.folder
    if (folder / "dataset_dict.json").is_file():
        names = _object(folder / "dataset_dict.json").get("splits")
        if not isinstance(names, list):
            raise BadInput(f"{folder / 'dataset_dict.json'}: no list of splits; save the data set again.")
        files = [(path, name) for name in names for path in _files(inside(folder, str(name)))]
    else:
        files = [(path, "") for path in _files(folder)]
    if not files:
        raise BadInput(f"{folder}: the data set holds no file; save it again.")
    return read_tables(files, config, split, folder.resolve().name, str(folder))


def _files(folder: Path) -> list[Path]:
    state = _object(folder / "state.json")
    if state.get("_indices_data_files"):
        raise BadInput(
            f"{folder}: saved by an old version of datasets, with a selection of rows beside the rows; load it with "
            "`datasets.load_from_disk` and save it again."
        )
    files = [inside(folder, str(entry["filename"])) for entry in state.get("_data_files", [])]
    for path in files:
        if not path.is_file():
            raise BadInput(f"{path}: no such file, which state.json names; save the data set again.")
    return files


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path, "it must be a folder that Dataset.save_to_disk wrote", "save the data set again")
    return found if isinstance(found, dict) else {}
