"""What stands for an item in an export: its id, or the text or the path of a picture that a file gives for it.

    id (or image_id, text_id)   every item that the pairs name has a row; others are passed over
    text or path                what the item is replaced by; of both, images take `path` and texts take `text`

as .csv, .tsv, .parquet, or .jsonl with one object per line. The same id may stand in several rows if they agree, as in
a table of pairs that repeats its texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Side

__all__ = ["Contents"]

Kind = Literal["id", "text", "path"]
_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")


@dataclass(frozen=True)
class Contents:
    """What stands for every item of one side, by row of the Pairs; `kind` says what it is."""

    kind: Kind
    values: Sequence[str]

    def of(self, rows: Iterable[int]) -> list[str]:
        """What stands for these rows."""
        return [self.values[row] for row in rows]

    @classmethod
    def read(cls, path: Path | None, side: Side, ids: Sequence[str]) -> Contents:
        """The contents that a file gives for `ids`, or the ids where there is no file. Raises BadInput."""
        if path is None:
            return cls("id", ids)
        if path.suffix not in _SUFFIXES:
            raise BadInput(f"{path}: give the contents of the {side}s as {', '.join(_SUFFIXES)}.")
        if not path.is_file():
            raise BadInput(f"{path}: no such file; give one with the columns id and text, or id and path.")
        kind, rows = _rows(path, side)
        found: dict[str, str] = {}
        for key, value in rows:
            if key is not None and value and found.setdefault(key, value) != value:
                raise BadInput(f"{path}: {side} {key!r} has several rows that differ in their {kind}; give it one.")
        missing = [i for i in ids if i not in found]
        if missing:
            raise BadInput(
                f"{path}: {len(missing)} of {len(ids)} {side}s have no {kind} there, first {missing[0]!r}; every "
                f"{side} of the pairs needs a row with its id and its {kind}."
            )
        return cls(kind, [found[i] for i in ids])


def _rows(path: Path, side: Side) -> tuple[Kind, Iterable[tuple[str | None, str | None]]]:
    """(kind, (id, content) pairs) of a file. Raises BadInput."""
    try:
        return _jsonl(path, side) if path.suffix == ".jsonl" else _table(path, side)
    except BadInput:
        raise
    except (ValueError, OSError, NotImplementedError) as broken:  # what Arrow, JSON and UTF-8 raise is one of these
        what = str(broken).partition("\n")[0]
        raise BadInput(f"{path}: cannot be read ({what}); give the columns id and text, or id and path.") from broken


def _columns(path: Path, side: Side, there: Sequence[str]) -> tuple[str, Kind]:
    """The names of the columns of ids and of contents. Raises BadInput when one is not there."""
    preferred: tuple[Kind, Kind] = ("path", "text") if side == "image" else ("text", "path")
    ids = [name for name in (f"{side}_id", "id") if name in there]
    contents = [name for name in preferred if name in there]
    if not ids or not contents:
        raise BadInput(
            f"{path}: found the columns {', '.join(there) or 'none'}; give id (or {side}_id) and text or path."
        )
    return ids[0], contents[0]


def _table(path: Path, side: Side) -> tuple[Kind, Iterable[tuple[str | None, str | None]]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        names = _columns(path, side, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(names))
    else:
        # Captions may span lines; ids such as 0012 are not numbers.
        strings = dict.fromkeys((f"{side}_id", "id", "text", "path"), pa.string())
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types=strings),
        )
        names = _columns(path, side, table.column_names)
    ids, contents = (pc.cast(table[name], pa.string()).to_pylist() for name in names)
    return names[1], zip(ids, contents, strict=True)


def _jsonl(path: Path, side: Side) -> tuple[Kind, Iterable[tuple[str | None, str | None]]]:
    records: list[dict[str, Any]] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} is not an object")
                records.append(record)
    key, kind = _columns(path, side, list(records[0]) if records else [])
    return kind, [(_string(record.get(key)), _string(record.get(kind))) for record in records]


def _string(value: Any) -> str | None:
    """A string, or a whole number as one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value)
    text.encode()  # half of a surrogate pair could be read here and not be written again
    return text
