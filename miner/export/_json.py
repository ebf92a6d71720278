"""JSON as the layouts write it: UTF-8, a value's text depending on the value alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["text", "write_lines"]


def text(value: Any) -> str:
    """One line. A float32 is written as the float64 it equals, so that reading it back gives the same number."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_lines(path: Path, records: Iterable[Any]) -> int:
    """One record per line; gives how many."""
    rows = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(text(record) + "\n")
            rows += 1
    return rows
