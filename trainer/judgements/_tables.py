"""Tables that people bring: CSV, or TSV where the first line holds a tab, with named columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from miner.artifacts.errors import BadInput
from trainer.data._lines import read_table, read_text

__all__ = ["number", "table"]


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells by column) of every line below the first. Raises BadInput for a column that is not there."""
    expected = f"it must be a table with the columns {', '.join(columns)}"
    head = read_text(path, expected).partition("\n")[0]
    return read_table(path, columns, expected, "\t" if "\t" in head else ",")


def number(path: Path, line: int, column: str, cell: str) -> float:
    """A cell as a finite number. Raises BadInput."""
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise BadInput(f"{path}, line {line}: {column} {cell!r} is not a number.")
    return value
