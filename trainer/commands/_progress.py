"""How far the images of every split are, on stderr."""

from __future__ import annotations

import time

import click

from miner.artifacts.pace import Pace

__all__ = ["Progress"]

_EVERY = 3.0  # seconds between two lines


class Progress:
    """A line every few seconds and at the end of a split: how many, how fast, how long still.

    `began` has the splits of which anything was done. `only_long`: nothing of what is over before the first line.
    """

    def __init__(self, items: str = "images", *, only_long: bool = False) -> None:
        self.items, self.only_long = items, only_long
        self.began: dict[str, Pace] = {}
        self._said = time.monotonic()

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.monotonic()
        pace = self.began.setdefault(split, Pace()).said(done, total, self.items)
        if (done < total or self.only_long) and now - self._said < _EVERY:
            return
        self._said = now
        click.echo(f"{split}: {done:,} of {total:,} {self.items}{pace}", err=True)
