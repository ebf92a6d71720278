"""Tables that a rule is given by somebody else: ids and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import sides
from miner.filters import Context

__all__ = ["columns", "pair_rows"]

Rows = npt.NDArray[np.int64]
_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
_NUMBERS = ("score",)


def columns(path: Path, layouts: Sequence[tuple[str, ...]], what: str) -> dict[str, Any]:
    """The columns of the first of `layouts` whose columns are all there: pyarrow arrays of strings, `score` of float64.

    Raises BadInput for a file that is not there or not a table, for other columns, and for an empty cell.
    """
    if path.suffix not in _SUFFIXES:
        raise BadInput(f"{path}: give {what} as {', '.join(_SUFFIXES)}.")
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a table of {what}.")
    wanted = " or ".join(" and ".join(layout) for layout in layouts)
    try:
        return _read(path, layouts, wanted)
    except BadInput:
        raise
    except (ValueError, OSError, NotImplementedError) as broken:  # what Arrow, JSON and UTF-8 raise is one of these
        said = str(broken).partition("\n")[0]
        raise BadInput(f"{path}: cannot be read ({said}); give the columns {wanted}.") from broken


def _read(path: Path, layouts: Sequence[tuple[str, ...]], wanted: str) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = {name: pa.float64() if name in _NUMBERS else pa.string() for layout in layouts for name in layout}
    table = _table(path, kinds)
    there = [layout for layout in layouts if set(layout) <= set(table.column_names)]
    if not there:
        raise BadInput(f"{path}: found the columns {', '.join(table.column_names) or 'none'}; give {wanted}.")
    found = {name: pc.cast(table[name], kinds[name]).combine_chunks() for name in there[0]}
    for name, column in found.items():
        empty = pc.or_kleene(pc.is_null(column), pc.equal(column, "") if name not in _NUMBERS else pc.is_nan(column))
        if pc.any(empty).as_py():
            row = pc.index(empty, True).as_py() + 1
            raise BadInput(f"{path}: row {row} has no {name}; give every row its {', '.join(there[0])}.")
    return found


def _table(path: Path, kinds: dict[str, Any]) -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.read_table(path, columns=[name for name in pq.read_schema(path).names if name in kinds])
    if path.suffix == ".jsonl":
        schema = pa.schema(list(kinds.items()))
        try:
            table = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(explicit_schema=schema))
        except pa.ArrowInvalid:
            table = _with_numbers(path, schema)
        return table.select([name for name in kinds if table[name].null_count < len(table)])
    return pyarrow.csv.read_csv(  # ids such as 0012 are not numbers
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ","),
        convert_options=pyarrow.csv.ConvertOptions(column_types=kinds),
    )


def _with_numbers(path: Path, schema: Any) -> Any:
    """JSON lines whose ids may be whole numbers, which Arrow does not read as strings; slower. Raises ValueError."""
    import pyarrow as pa

    found: dict[str, list[Any]] = {name: [] for name in schema.names}
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as broken:
                raise ValueError(f"line {number} is no JSON; mend or remove it") from broken
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is not an object")
            for name, values in found.items():
                value, kinds = record.get(name), (int, float) if name in _NUMBERS else (int, str)
                if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                    raise ValueError(f"line {number}: {name} is {json.dumps(value)[:40]}")
                values.append(str(value) if str in kinds and isinstance(value, int) else value)
    if not any(found.values()):
        raise ValueError("no line in it")
    return pa.table(found, schema=schema)


def pair_rows(path: Path, table: dict[str, Any], context: Context) -> tuple[Rows, Rows, npt.NDArray[np.float64]]:
    """(anchor rows, candidate rows, scores) of the pairs in a table that are pairs of the direction's items.

    The scores are nan where the table has none. Raises BadInput when there is not one such pair.
    """
    anchor_side, gallery_side = sides(context.direction)
    names = ("anchor_id", "negative_id") if "anchor_id" in table else (f"{anchor_side}_id", f"{gallery_side}_id")
    if anchor_side == gallery_side and "anchor_id" not in table:
        raise BadInput(
            f"{path}: pairs of images and texts say nothing of {context.direction}; give the columns anchor_id and "
            "negative_id."
        )
    ids = [context.pairs.ids(side) for side in (anchor_side, gallery_side)]
    anchors, negatives = (each.rows(table[name]) for each, name in zip(ids, names, strict=True))
    known = (anchors >= 0) & (negatives >= 0)
    if not known.any():
        hint = (
            "" if names[0] != "anchor_id" else ", or name the columns image_id and text_id: these hold for i2t and t2i"
        )
        raise BadInput(
            f"{path}: not one of its {len(known)} rows is about two of the items; {names[0]} must be a {anchor_side} "
            f"such as {ids[0][0]!r} and {names[1]} a {gallery_side} such as {ids[1][0]!r}{hint}."
        )
    scores = table["score"].to_numpy(zero_copy_only=False)[known] if "score" in table else np.full(known.sum(), np.nan)
    return anchors[known], negatives[known], scores
