"""The figures of a run as metrics of the Ray cluster it runs on, beside Ray's own: `ray_quintain_...` in Prometheus."""

from __future__ import annotations

from ray.util.metrics import Gauge

from pipelines.trackers import Event
from pipelines.trackers._gauges import GAUGES, gauges

__all__ = ["RayMetrics"]


class RayMetrics:
    """Only while this process is connected to a cluster; what it told is gone some time after it leaves."""

    def __init__(self) -> None:
        self._gauges = {name: Gauge(name, what, tags) for name, (what, tags) in GAUGES.items()}

    def __call__(self, event: Event) -> None:
        for name, labels, value in gauges(event):
            self._gauges[name].set(value, labels)

    def close(self) -> None:
        pass
