"""Reading what people bring: `.npy` arrays and lists of ids, checked before anything uses them."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids

__all__ = ["map_npy", "read_ids"]

Vectors = npt.NDArray[np.floating[Any]]


def map_npy(path: Path, ndims: tuple[int, ...] = (2,)) -> Vectors:
    """Memory-map a `.npy` file of `ndims` dimensions, the first being rows; never unpickles. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; write the vectors there with numpy.save.")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            stored = path.stat().st_size - file.tell()
    except (ValueError, EOFError, SyntaxError, TypeError, KeyError, tokenize.TokenError) as broken:
        raise BadInput(f"{path}: not a .npy file ({broken}); write it with numpy.save.") from broken
    if dtype.hasobject:
        raise BadInput(f"{path}: holds Python objects, which are never unpickled; save a (rows, dim) float array.")
    if len(shape) not in ndims:
        expected = " or ".join("(rows, dim)" if ndim == 2 else "(rows, regions, dim)" for ndim in ndims)
        raise BadInput(f"{path}: shape {shape}; vectors must be {expected}.")
    if 0 in shape:
        raise BadInput(f"{path}: shape {shape} holds no vector at all; an empty set cannot be searched.")
    if stored != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise BadInput(
            f"{path}: {stored} bytes of data do not fit shape {shape} of {dtype}; the file is cut or "
            "damaged: write it again."
        )
    vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def read_ids(path: Path, rows: int) -> Ids:
    """One id per line, one line per row; "0", "1", ... where there is no such file. Raises BadInput."""
    if not path.exists():
        return Ids.numbers(rows)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as broken:
        raise BadInput(f"{path}: not UTF-8 text ({broken}); write one id per line in UTF-8.") from broken
    ids = tuple(line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines))
    if len(ids) != rows:
        raise BadInput(f"{path}: {len(ids)} ids for {rows} vectors; give one id per line, in the order of the rows.")
    if "" in ids:
        raise BadInput(f"{path}: line {ids.index('') + 1} is empty; every row needs an id.")
    return Ids(ids)
