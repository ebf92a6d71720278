"""Text files of one item per line, and tables as text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from miner.artifacts.errors import BadInput

__all__ = ["read_json", "read_lines", "read_table", "read_text"]


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 file. Raises BadInput; `expected` says what a missing one should hold."""
    try:
        # Not read_text: it would take a lone carriage return for the end of a line.
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as gone:
        raise BadInput(f"{path}: no such file; {expected}.") from gone
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; {expected}.") from error


def read_json(
    path: Path, expected: str, remedy: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """What a JSON file holds. Raises BadInput; `remedy` says what to do when it is there and not JSON."""
    text = read_text(path, expected)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as broken:  # ValueError alone: a number of more digits than Python takes
        raise BadInput(f"{path}: not JSON ({broken}); {remedy}.") from broken


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a file, stripped; empty ones count, but for the end of the last. Raises BadInput."""
    # Not splitlines: a caption may hold a character that Unicode takes for the end of a line.
    lines = read_text(path, expected).split("\n")
    return [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_table(
    path: Path, columns: Sequence[str], expected: str, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a CSV file whose first line names at least `columns`. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; {expected}.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # Nobody quotes between bars, so that a quotation mark there is part of the caption.
            quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
            # Not strict, the csv module takes an unbalanced mark for the start of a cell that never ends.
            reader: csv.DictReader[str] = csv.DictReader(file, delimiter=delimiter, quoting=quoting, strict=True)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(f"{path}: no column {', '.join(missing)} in the first line; {expected}.")
            for cells in reader:
                if any(cells[column] is None for column in columns):
                    raise BadInput(f"{path}, line {reader.line_num}: fewer columns than the first line has.")
                _refuse_breaks(cells, f"{path}, line {reader.line_num}")
                yield reader.line_num, cells
    except csv.Error as error:
        raise BadInput(
            f"{path}: the row from line {reader.line_num + 1} on is not readable as CSV ({error}); is a quotation mark "
            'unbalanced? A cell that begins with one must be put in quotes, with every mark in it doubled ("").'
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from error


def _refuse_breaks(cells: dict[str, str], where: str) -> None:
    """Two unbalanced marks make one cell of all the lines between them."""
    for column, cell in cells.items():
        lines = len(re.findall(r"\r\n|\r|\n", cell)) + 1 if isinstance(cell, str) else 1
        if lines > 1:
            raise BadInput(
                f"{where}: the cell in the column {column!r} goes over {lines} lines; is a quotation mark unbalanced? "
                "Write every row on a line of its own."
            )
