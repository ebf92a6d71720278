"""Rows of tables, many-to-many: each names an image, its captions and perhaps its split; any column by any usual name.

image       a path, the bytes of a picture, {bytes, path} as Hugging Face stores them, or a vector as a list of floats;
            of the rows of one image, the first has to hold it
text        a caption or a list of captions
image_id    optional; rows with the same id are about the same image. Without it, the path
            below the folder of all the files (or `images`); without that, the row number over all files, or after the
            file's name where files are splits, since only those of one split are read
text_id     optional; one per caption. Rows with the same id are about the same text, so that a text may have several
            images. Without it, the image's id and a number
split       optional: train, dev or val, test
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from miner.artifacts.errors import BadInput
from trainer.data import Dataset, ImageSource, Split
from trainer.data._arrow import Cells, Table, open_table
from trainer.data._columns import Columns, TableSettings
from trainer.data._links import BY_HASH, Links, by_hash, inside
from trainer.data._pictures import Pictures
from trainer.data._places import NOTHING, WHOLE, Places, Stored
from trainer.data._vectors import Vectors

__all__ = ["read_tables"]

_NOTHING = (0, 0, NOTHING)
Triple = tuple[int, int, int]


class _Row(NamedTuple):
    """`place` is (file, first byte, bytes), None for an image that has to be unpacked; `cell` is (file, group, row)."""

    where: str
    image_id: str
    split: str
    captions: list[str | None]
    text_ids: list[str] | None
    place: Triple | None
    cell: Triple


def read_tables(
    files: Sequence[tuple[Path, str]], config: TableSettings, split: Split, name: str, where: str
) -> Dataset:
    """One split of some files, each given with what its name calls its split ("" for nothing).

    Raises BadInput for what cannot be read, columns that are not there or not what they should be, ids that do not fit,
    and a split without pairs.
    """
    columns = Columns.of(config, open_table(files[0][0]))
    by = _split_by(config, columns, files, where)
    wanted = [path for path, called in files if by != "files" or config.split_called(called) == split]
    ignored = Counter(called for _, called in files if by == "files" and config.split_called(called) is None)
    links = Links(split, config.exclude, whole=by != "files")
    root = Path(os.path.commonpath([path.parent for path, _ in files]))
    stores = _Stores([str(path) for path in wanted])
    for row in _rows(wanted, columns, config.images, stores, root, numbered_by_file=by == "files"):
        of = split if by == "files" else by_hash(row.image_id) if by == "hash" else config.split_called(row.split)
        if of is None:
            ignored[row.split] += 1
            continue
        if links.add(of, row.image_id, row.captions, row.text_ids, row.where):
            stores.add(row)
    advice = "Set train, dev or test to what the data call it, or split_by = 'hash'."
    pairs = links.pairs(name, where, f"Left out: {_counted(ignored)}. {advice}" if ignored else advice)
    notes = [*links.notes(), *([f"{where}: split {_counted(ignored)} left out."] if ignored else [])]
    notes += [f"{where}: {BY_HASH}."] if by == "hash" else []
    stored, note = stores.stored(pairs.image_ids, columns.image, config)
    images: ImageSource
    if columns.vector is None:
        images = Pictures(stored, config, f"{name} {split}")
    else:
        dtype, shape = columns.vector
        images = Vectors(stored, shape, dtype)
    return Dataset(pairs, images, name, split, (*notes, *note))


def _split_by(config: TableSettings, columns: Columns, files: Sequence[tuple[Path, str]], where: str) -> str:
    if config.split_by == "column" and columns.split is None:
        raise BadInput(f"{where}: split_by = 'column', but there is no column split; set split to its name.")
    if config.split_by != "auto":
        return config.split_by
    if columns.split is not None:
        return "column"
    if any(config.split_called(called) is not None for _, called in files):
        return "files"
    raise BadInput(
        f"{where}: nothing says which rows are train, dev and test: no column split, and the files are not named after "
        "splits; set split_by = 'hash' to have 80% train, 10% dev and 10% test by the image's id."
    )


def _rows(
    files: Sequence[Path],
    columns: Columns,
    base: Path | None,
    stores: _Stores,
    root: Path,
    *,
    numbered_by_file: bool,
) -> Iterator[_Row]:
    """The rows of all files in order; `root` is the folder that they have in common, also with those of other splits.

    Raises BadInput for a file whose columns do not fit.
    """
    given = [columns.image_id, columns.text_id, columns.split, columns.image if columns.is_path else None]
    names = [columns.text, *(name for name in given if name is not None)]
    number = 0
    for file, path in enumerate(files):
        table = open_table(path)
        missing = [name for name in {*names, columns.image} if name not in table.schema.names]
        if missing:
            raise BadInput(f"{path}: no column {', '.join(missing)}, which the first file has.")
        folder = path.parent if base is None else base
        # What a path in the table is meant from is part of an id: a/0.jpg and b/0.jpg are not the same picture.
        below = path.parent.relative_to(root).as_posix() if base is None else "."
        before = number
        for group in range(table.num_groups):
            values = table.columns(group, names)
            places = _places(table, group, file, columns, values, folder, stores)
            for row, (text, place) in enumerate(zip(values[columns.text], places, strict=True)):
                where = f"{path}, row {number}"
                captions = text if isinstance(text, list) else [text]
                own = values[columns.image_id][row] if columns.image_id else None
                if own is None and columns.is_path:
                    own = values[columns.image][row]
                    own = own if own is None or below == "." else f"{below}/{own}"
                if own is None:
                    number_there = f"{path.relative_to(root).as_posix()}/{number - before}"
                    own = number_there if numbered_by_file else number
                ids = values[columns.text_id][row] if columns.text_id and text is not None else None
                yield _Row(
                    where,
                    str(own),
                    str(values[columns.split][row]) if columns.split else "",
                    captions,
                    None if ids is None else _text_ids(ids, captions, where),
                    place,
                    (file, group, row),
                )
                number += 1


def _text_ids(ids: Any, captions: list[str | None], where: str) -> list[str] | None:
    listed = ids if isinstance(ids, list) else [ids]
    if len(listed) != len(captions):
        raise BadInput(f"{where}: {len(listed)} text ids for {len(captions)} captions; give each its own.")
    return None if None in listed else [str(one) for one in listed]


def _places(
    table: Table, group: int, file: int, columns: Columns, values: dict[str, list[Any]], folder: Path, stores: _Stores
) -> Sequence[Triple | None]:
    if columns.is_path:
        return [_NOTHING if name is None else stores.file(inside(folder, name)) for name in values[columns.image]]
    spans = table.spans(group, columns.image)
    if spans is None:
        return [None] * len(values[columns.text])
    found = [(file, start, size) for start, size in zip(spans.start.tolist(), spans.size.tolist(), strict=True)]
    if pa.types.is_struct(table.schema.field(columns.image).type) and NOTHING in spans.size:
        # Hugging Face leaves out the bytes of a picture that lies on disk.
        for row, cell in enumerate(table.cells(group, columns.image).to_pylist()):
            if spans.size[row] == NOTHING and cell and cell.get("path"):
                found[row] = stores.file(inside(folder, cell["path"]))
    return found


class _Stores:
    """Where the image of every image id lies."""

    def __init__(self, tables: list[str]) -> None:
        self.tables, self.paths = tables, list(tables)
        self._place: dict[str, Triple | None] = {}
        self._cell: dict[str, Triple] = {}

    def file(self, path: Path) -> Triple:
        """The place of an image that is a file of its own."""
        self.paths.append(str(path))
        return len(self.paths) - 1, 0, WHOLE

    def add(self, row: _Row) -> None:
        """The first row that has an image says where it is."""
        if self._place.get(row.image_id, _NOTHING) == _NOTHING:
            self._place[row.image_id], self._cell[row.image_id] = row.place, row.cell

    def stored(self, image_ids: Sequence[str], column: str, config: TableSettings) -> tuple[Stored, list[str]]:
        """The images in that order, and a note when reading them is slow."""
        found_places = [self._place[image_id] for image_id in image_ids]
        places = [place for place in found_places if place is not None]
        if len(places) == len(found_places):
            return Places.of(self.paths, places), []
        cells = np.array([self._cell[image_id] for image_id in image_ids], dtype=np.int64)
        tables, cache = [Path(table) for table in self.tables], config.cache_mib * 2**20
        size = sum(table.stat().st_size for table in tables)
        note = (
            f"{size / 2**20:.0f} MiB of packed images, of which {config.cache_mib} are kept: every step unpacks the "
            "groups that it needs. To train fast, write Arrow files without compression, or paths, or raise cache_mib."
        )
        found = Cells(tables, column, cells[:, 0], cells[:, 1], cells[:, 2], config.images, cache)
        return found, [note] * (size > cache)


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name or '(empty)'} ({count})" for name, count in sorted(names.items()))
