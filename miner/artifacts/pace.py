"""How fast something goes, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pace", "span"]


class Pace:
    """Asked whenever something is done. What was there at the first time took no time, and says nothing of the rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: tuple[float, float] | None = None

    def said(self, done: float, total: float, items: str) -> str:
        """`, 31.5 images/s, 2 min 4 s left`, or slower, `, 1.2 epochs/min, 3 min 0 s left`; nothing before there is a
        rate, and at the end the rate alone."""
        now = self._clock()
        if self._began is None:
            self._began = now, done
        since, before = self._began
        if now <= since or done <= before:
            return ""
        rate = (done - before) / (now - since)
        left = f", {span((total - done) / rate)} left" if done < total else ""
        return f", {_rate(rate, items)}{left}"


def _rate(rate: float, items: str) -> str:
    """In the unit that leaves a figure to read: a rate of 0.0 a second says nothing."""
    units = ((1.0, "s"), (60.0, "min"), (3600.0, "h"))
    seconds, unit = next((found for found in units if rate * found[0] >= 0.1), units[-1])
    return f"{rate * seconds:,.1f} {items}/{unit}"


def span(seconds: float) -> str:
    """`2 min 4 s`, `3 h 12 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
