"""Text files of one item per line, and tables as text."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from miner.artifacts.errors import BadInput

__all__ = ["read_lines", "read_table", "read_text"]


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 file. Raises BadInput; `expected` says what a missing one should hold."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as gone:
        raise BadInput(f"{path}: no such file; {expected}.") from gone
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; {expected}.") from error


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
            reader: csv.DictReader[str] = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(
                    f"{path}: no column {', '.join(missing)} in the first line; expected {', '.join(columns)}."
                )
            for cells in reader:
                if any(cells[column] is None for column in columns):
                    raise BadInput(f"{path}, line {reader.line_num}: fewer columns than the first line has.")
                yield reader.line_num, cells
    except csv.Error as error:
        raise BadInput(f"{path}: not a readable CSV file ({error}).") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from error
