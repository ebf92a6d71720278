"""What people hand over in memory: vectors, ids, and who belongs to whom, each made the one thing the rest works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids
from miner.artifacts.pairs import Pairs, Side

__all__ = ["array_of", "ids_of", "links_of"]

_COLUMNS = ("image_id", "text_id")
_WAYS = (
    "give None (row i belongs to row i), (n, 2) row numbers, (n, 2) ids, or a table with the columns image_id and "
    "text_id"
)


def array_of(values: Any, name: str, ndims: tuple[int, ...] = (2,)) -> npt.NDArray[Any]:
    """Rows of anything, from an array, a torch tensor on any device, or lists. Raises BadInput, also for no row.

    What lies in the array is looked at by who asked.
    """
    array = _numpy(values, name)
    if array.ndim not in ndims or 0 in array.shape:
        ways = {2: "(rows, dim)", 3: "(rows, regions, dim)", 4: "(rows, height, width, 3)"}
        raise BadInput(f"{name}: shape {array.shape}; give {' or '.join(ways[ndim] for ndim in ndims)}.")
    return array


def ids_of(given: Any, rows: int, side: Side) -> Ids:
    """Ids by row; "0", "1", ... where none are given. Raises BadInput."""
    if given is None:
        return Ids.numbers(rows)
    ids = _strings(given, f"{side}_ids")
    if len(ids) != rows:
        raise BadInput(f"{side}_ids: {len(ids)} ids for {rows} {side}s; give one per row.")
    return Ids(ids)


def links_of(pairs: Any, image_ids: Ids, text_ids: Ids) -> Pairs:
    """Who belongs to whom; see `miner.arrays.mine`. Raises BadInput."""
    if isinstance(pairs, Pairs):
        if (pairs.image_ids, pairs.text_ids) != (image_ids, text_ids):
            raise BadInput("pairs: their ids are not those of the vectors, row by row; give image_ids and text_ids.")
        return pairs
    if pairs is None:
        if len(image_ids) != len(text_ids):
            raise BadInput(
                f"pairs: none were given, but {len(image_ids)} images cannot belong to {len(text_ids)} texts row by "
                "row; give pairs, as (n, 2) row numbers or a table with the columns image_id and text_id."
            )
        rows = np.arange(len(image_ids))
        return Pairs(image_ids, text_ids, rows, rows)
    if isinstance(pairs, Mapping) or hasattr(pairs, "columns"):
        return Pairs.from_columns(image_ids, text_ids, *_columns(pairs))
    links = _numpy(pairs, "pairs")
    if links.ndim != 2 or links.shape[1] != 2:
        raise BadInput(f"pairs: shape {links.shape}; {_WAYS}.")
    if links.dtype.kind in "iu":
        return Pairs(image_ids, text_ids, links[:, 0].astype(np.int64), links[:, 1].astype(np.int64))
    if links.dtype.kind == "f" or links.dtype.kind == "b":
        raise BadInput(f"pairs: {links.dtype} are no row numbers; {_WAYS}.")
    ends = (_strings(links[:, at].tolist(), f"pairs, column {at}") for at in (0, 1))
    return Pairs.from_columns(image_ids, text_ids, *ends)


def _columns(table: Any) -> list[list[str]]:
    known = list(table) if isinstance(table, Mapping) else getattr(table, "column_names", None) or list(table.columns)
    missing = [name for name in _COLUMNS if name not in known]
    if missing:
        raise BadInput(f"pairs: no column {missing[0]!r} among {', '.join(map(str, known))}; {_WAYS}.")
    columns = [_strings(table[name], f"pairs, {name}") for name in _COLUMNS]
    if len(columns[0]) != len(columns[1]):
        raise BadInput(f"pairs: {len(columns[0])} image ids and {len(columns[1])} text ids; give one of each per pair.")
    return columns


def _strings(values: Any, name: str) -> list[str]:
    """Ids as text: strings as they are, whole numbers by their digits."""
    for way in ("tolist", "to_pylist"):  # numpy and pandas; pyarrow
        if hasattr(values, way):
            values = getattr(values, way)()
            break
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise BadInput(f"{name}: {values!r} is no list of ids.")
    found = []
    for at, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
            raise BadInput(f"{name}: entry {at} is {value!r}; an id is a string or a whole number.")
        found.append(str(value))
    return found


def _numpy(values: Any, name: str) -> npt.NDArray[Any]:
    """Also of a torch tensor, which is known by what it can do: torch is not imported."""
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        try:
            return np.asarray(values.detach().cpu().numpy())
        except TypeError as wrong:
            raise BadInput(f"{name}: a tensor of {values.dtype}, which numpy has not; give {name}.float().") from wrong
    try:
        return np.asarray(values)
    except ValueError as wrong:
        raise BadInput(f"{name}: no array can be made of it ({wrong}); its rows must be equally long.") from wrong
