"""A tracker in a process of its own, for libraries with threads and exit hooks: one that hangs is ended.

The parent writes a line of JSON per event, and the child answers each with what went wrong, or nothing. When the pipe
closes, because the run is over or was killed, the child has `CLOSING` seconds left, whatever it is at.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any

from pipelines.trackers import About, Event, TrackerFailed
from trainer import registry

__all__ = ["Apart"]


class Apart:
    """The parent's end. Raises TrackerFailed with what the child says."""

    def __init__(self, name: str, config: Any, about: About) -> None:
        self._closing = float(registry.module("pipelines.trackers", name).CLOSING)
        told = {**asdict(about), "folder": None if about.folder is None else str(about.folder)}
        self.child: subprocess.Popen[str] | None = None
        self._first = {"name": name, "config": config.model_dump(mode="json"), "about": told}

    def connect(self) -> Apart:
        """Start the child, and wait until the tracker is connected there."""
        self.child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.trackers._apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt at the terminal is the run's, which tells it how it ended
        )
        try:
            self._ask(self._first)
        except TrackerFailed:
            self.abandon()
            raise
        return self

    def __call__(self, event: Event) -> None:
        self._ask(asdict(event))

    def close(self) -> None:
        child = self.child
        assert child is not None
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        try:
            child.wait(self._closing)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise TrackerFailed(f"not finished after {self._closing:.0f} s, and ended") from None

    def abandon(self) -> None:
        """End the child, whatever it is at. Called after a `connect` that may hang still."""
        if self.child is not None:
            self.child.kill()

    def _ask(self, line: Mapping[str, Any]) -> None:
        child = self.child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            print(json.dumps(line), file=child.stdin, flush=True)
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise TrackerFailed(f"its process ended with exit code {child.wait()}")
        if wrong := json.loads(answer)["wrong"]:
            raise TrackerFailed(wrong)


def _serve() -> None:
    """The child: what a library prints goes nowhere, and answers go where stdout was."""
    from pipelines.trackers._watch import sentence

    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    lines: Queue[str | None] = Queue()
    limit = [60.0]
    threading.Thread(target=_read, args=(lines, limit), daemon=True).start()
    observer: Any = None
    while (line := lines.get()) is not None:
        raw, wrong = json.loads(line), ""
        try:
            if observer is None:
                module = registry.module("pipelines.trackers", raw["name"])
                limit[0], folder = float(module.CLOSING), raw["about"]["folder"]
                about = About(**{**raw["about"], "folder": None if folder is None else Path(folder)})
                observer = module.connect(module.Config(**raw["config"]), about)
            else:
                observer(Event(**raw))
        except Exception as failed:  # told to the parent, which decides
            wrong = sentence(failed)
        print(json.dumps({"wrong": wrong}), file=answers, flush=True)
    if observer is not None:
        with contextlib.suppress(Exception):  # nobody is left to be told
            observer.close()


def _read(lines: Queue[str | None], limit: list[float]) -> None:
    """In a thread of its own, so that the end of the pipe is noticed in the middle of whatever hangs."""
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)
    time.sleep(limit[0])
    os._exit(1)


if __name__ == "__main__":
    _serve()
