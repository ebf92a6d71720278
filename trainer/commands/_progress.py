"""How far the images of every split are, on stderr."""

from __future__ import annotations

import time

import click

__all__ = ["Progress"]

_EVERY = 3.0  # seconds between two lines


class Progress:
    """A line every few seconds and at the end of a split: how many images, how fast, how long still.

    `began` has the splits of which anything was done.
    """

    def __init__(self) -> None:
        self.began: dict[str, tuple[float, int]] = {}
        self._said = time.monotonic()

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.monotonic()
        # The first batch of a split counts as its start: what was there before took no time.
        since, before = self.began.setdefault(split, (now, done))
        if done < total and now - self._said < _EVERY:
            return
        self._said = now
        rate = (done - before) / (now - since) if now > since else 0.0
        left = f", {rate:,.1f} images/s, {_span((total - done) / rate)} left" if rate and done < total else ""
        click.echo(f"{split}: {done:,} of {total:,} images{left}", err=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
