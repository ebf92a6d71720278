"""One JSON object per event: time, level, event, run, round, stage, shard, step, seconds, message, figures.

`path`: a file to append to, `-` for stderr; relative to `watch/` in the run folder.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TextIO

from pydantic import BaseModel, ConfigDict

from pipelines.trackers import About, Event

__all__ = ["Config", "connect"]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = "events.jsonl"


def connect(config: Config, about: About) -> _JsonLines:
    """Raises OSError for a file that cannot be written."""
    if config.path == "-":
        return _JsonLines(sys.stderr)
    path = about.place(config.path, "json_lines:path=")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _JsonLines(open(path, "a", encoding="utf-8"))


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: Event) -> None:
        if event.again:
            return
        line = asdict(event)
        del line["again"], line["kind"]
        line["time"] = datetime.fromtimestamp(event.time, UTC).isoformat()
        line = {"time": line["time"], "level": event.level, "event": event.kind, **line}
        kept = {name: value for name, value in line.items() if value not in (None, "", {})}
        # One write per line, so that two writers of one file do not mix within one. No NaN: not every reader takes it.
        self._file.write(json.dumps(_finite(kept), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not sys.stderr:
            self._file.close()


def _finite(line: dict[str, object]) -> dict[str, object]:
    figures = line.get("figures")
    if isinstance(figures, dict):
        line["figures"] = {name: value if abs(value) < float("inf") else None for name, value in figures.items()}
    return line
