"""What a person sees while a run goes on: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

from miner.artifacts.pace import Pace

__all__ = ["Lines", "Progress", "open_progress"]

_ROOM = 80  # columns of a terminal that has room for a bar


class Progress(Protocol):
    """Told by the loop what happens; shows it."""

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        """A stage of `total` shards, epochs or tasks begins."""
        ...

    def advance(self, done: int, note: str = "") -> None:
        """`done` parts of the current stage are finished."""
        ...

    def epoch(self, line: dict[str, Any]) -> None:
        """One epoch of a fit is finished; a warning (a collapse) gets a line that stays."""
        ...

    def finish(self, seconds: float, note: str = "") -> None:
        """The current stage is committed."""
        ...

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def close(self) -> None: ...


class _TellsEpochs:
    """What bars and lines say of an epoch."""

    def __init__(self) -> None:
        self._name, self._total, self._unit, self._pace = "", 0, "", Pace()

    def advance(self, done: int, note: str = "") -> None:
        raise NotImplementedError

    def say(self, line: str) -> None:
        raise NotImplementedError

    def epoch(self, line: dict[str, Any]) -> None:
        done = int(line["epoch_in_round"]) + 1
        if line["resumed"]:  # it took no time now
            self._pace = Pace()
            self._pace.said(done, self._total, self._unit)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in line["figures"].items())
        # The value of a loss that is given by its gradient means nothing; its figures do.
        told = figures or f"loss {line['loss']:.3f}"
        note = f"{told}, {line['pairs_per_second']:.0f} pairs/s on {line['device']}"
        self.advance(done, note)
        if line["warning"]:
            self.say(f"warning, epoch {line['epoch']}: {line['warning']}")


class Lines(_TellsEpochs):
    """Plain lines: a stage's start, its end, and in between what is worth a line, at most every few seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        super().__init__()
        self.stream = stream or sys.stderr
        self.every = every
        self._last = 0.0

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        self._name, self._total, self._unit, self._last = name, total, f"{unit}s", time.monotonic()
        self._pace = Pace()
        self._pace.said(0, total, self._unit)
        self.say(f"{name}: {why}")

    def advance(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            pace = self._pace.said(done, self._total, self._unit)
            self.say(f"{self._name}: {done} of {self._total} {self._unit}{pace}" + (f"; {note}" if note else ""))

    def finish(self, seconds: float, note: str = "") -> None:
        self.say(f"{self._name}: done in {seconds:.1f} s {note}".rstrip())

    def say(self, line: str) -> None:
        self.stream.write(f"{line}\n")  # one write: trackers may say something at the same moment
        self.stream.flush()

    def close(self) -> None:
        pass


class _Bars(_TellsEpochs):
    """A bar per stage, with rate and time left; finished stages stay as lines above it.

    One line of the terminal's width: what does not fit is cut at its end, the note first; the bar is for wider ones.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        super().__init__()
        console = Console(stderr=True, emoji=False)
        drawn: list[ProgressColumn] = []
        if console.width >= _ROOM:
            drawn = [BarColumn(bar_width=24 if console.width >= 1.5 * _ROOM else 10), TimeElapsedColumn()]
        said = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            *drawn,
            TextColumn("{task.fields[said]}", markup=False, table_column=said),
            console=console,
            transient=True,
            expand=True,
        )
        self._bars.start()
        self._task: TaskID | None = None

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        self._name, self._total, self._unit, self._pace = name, total, f"{unit}s", Pace()
        self._task = self._bars.add_task(name, total=total, said=self._said(0, why))

    def advance(self, done: int, note: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, said=self._said(done, note))

    def finish(self, seconds: float, note: str = "") -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self.say(f"{self._name}: done in {seconds:.1f} s {note}".rstrip())

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()

    def _said(self, done: int, note: str) -> str:
        pace = self._pace.said(done, self._total, self._unit)
        return f"{done}/{self._total} {self._unit}{pace}" + (f"; {note}" if note else "")


def open_progress() -> Progress:
    """Bars where stderr is a terminal that can move its cursor, lines otherwise."""
    moves = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return _Bars() if moves else Lines()
