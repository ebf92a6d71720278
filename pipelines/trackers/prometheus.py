"""A text file in Prometheus' format, for node_exporter's textfile collector; replaced whole, at most once a second
while nothing but shards happens.

`path`: must end with .prom, as the collector wants it; relative to `watch/` in the run folder.
"""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from pydantic import BaseModel, ConfigDict, Field

from pipelines.trackers import About, Event
from pipelines.trackers._gauges import GAUGES, gauges

__all__ = ["Config", "connect"]

_EVERY = 1.0  # seconds


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(default="quintain.prom", pattern=r"\.prom$")


def connect(config: Config, about: About) -> _TextFile:
    """Raises OSError for a folder that cannot be made."""
    path = about.place(config.path, "prometheus:path=")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _TextFile(path)


class _TextFile:
    def __init__(self, path: Path) -> None:
        self._path, self._written = path, float("-inf")
        self._registry = CollectorRegistry()
        self._gauges = {name: Gauge(name, what, tags, registry=self._registry) for name, (what, tags) in GAUGES.items()}

    def __call__(self, event: Event) -> None:
        for name, labels, value in gauges(event):
            self._gauges[name].labels(**labels).set(value)
        if event.kind != "shard_done" or time.monotonic() - self._written >= _EVERY:
            self._written = time.monotonic()
            write_to_textfile(str(self._path), self._registry)

    def close(self) -> None:
        pass
