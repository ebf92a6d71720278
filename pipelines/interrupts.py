"""Ctrl-C, and SIGTERM, by which schedulers stop what they started: what is finished is kept, and how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from miner.artifacts.errors import Retryable

__all__ = ["handlers_kept", "interrupted"]

_KEPT = "what is finished is kept, and the same command goes on from there."


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


@contextmanager
def interrupted() -> Iterator[None]:
    """Say after Ctrl-C how to go on. Raises Retryable after SIGTERM; the next ones are ignored, so that what is open is
    closed."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if here else None
    try:
        yield
    except _Terminated:
        raise Retryable(f"stopped by SIGTERM: {_KEPT}") from None
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted: {_KEPT}", err=True)
        raise
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """SIGTERM's handler stays what it is, whatever a library sets meanwhile."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _terminate(_: int, frame: FrameType | None) -> None:
    """Not in the middle of an import, whose callbacks would lose what is raised in them: a moment later then."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            later = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated
