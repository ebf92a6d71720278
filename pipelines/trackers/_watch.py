"""Events to trackers, each in a thread of its own with a bounded queue: whatever one does, the run goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import Empty, Full, Queue
from threading import Thread
from typing import Any

from pipelines.trackers import About, Event, Observer, TrackerFailed, WatchConfig
from trainer import registry

__all__ = ["Watch", "open_watch", "sentence"]

_WAITING = 1000  # events
_FAILURES = 3  # one after the other, then a tracker is let go
_CLOSING = 5.0  # seconds


class Watch:
    """Told of everything; `say` is given one line when a tracker fails. Without trackers it does nothing."""

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._say, self._posts = say, list[_Post]()

    def add(
        self,
        name: str,
        connect: Callable[[], Observer],
        closing: float = _CLOSING,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        """Tell a tracker as well, from now on. `connect` makes it, in its own thread, when first there is something;
        `abandon` is called when it has not ended `closing` seconds after the run, from another thread."""
        self._posts.append(_Post(name, connect, closing, abandon, self._say))

    def tell(self, event: Event) -> None:
        """Never waits, never raises."""
        for post in self._posts:
            post.put(event)

    def close(self) -> None:
        """Wait until everything is told, of each tracker at most its `closing` seconds, all at the same time."""
        began = time.monotonic()
        for post in self._posts:
            post.end()
        for post in sorted(self._posts, key=lambda post: post.closing):
            post.join(began)
        self._posts.clear()


class _Post:
    """One tracker: its queue and its thread, which is a daemon, so that a tracker that hangs keeps no process alive."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Observer],
        closing: float,
        abandon: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.name, self.connect, self.closing, self.abandon, self._say = name, connect, closing, abandon, say
        self.queue: Queue[Event | None] = Queue(_WAITING)
        self.gone = self.left_out = self.over = False
        self.thread = Thread(target=self._work, name=f"watch-{name}", daemon=True)
        self.thread.start()

    def say(self, line: str) -> None:
        if not self.over:
            with contextlib.suppress(Exception):  # nobody may be there to read it
                self._say(f"{self.name}: {line}")

    def put(self, event: Event) -> None:
        if self.gone:
            return
        try:
            self.queue.put_nowait(event)
        except Full:
            if not self.left_out:
                self.left_out = True
                self.say("too slow for what happens; some of it is left out there, and the run goes on")

    def end(self) -> None:
        while not self.gone:
            try:
                return self.queue.put_nowait(None)
            except Full:
                # What is left out is the oldest: the end of a run is what people wait for.
                with contextlib.suppress(Empty):
                    self.queue.get_nowait()
        return None

    def join(self, began: float) -> None:
        self.thread.join(max(0.0, began + self.closing - time.monotonic()))
        if self.thread.is_alive():
            self.say(f"not finished {self.closing:.0f} s after the run; left behind")
            self.abandon()
        self.over = True

    def _work(self) -> None:
        first = self.queue.get()
        if first is None:  # nothing happened: nobody is asked for anything
            return
        try:
            observer = self.connect()
        except Exception as failed:  # whatever a tracker's library raises must not reach the run
            self.gone = True
            self.say(f"{sentence(failed)}; the run goes on without it")
            return
        failures, said = 0, False
        event: Event | None = first
        while event is not None and failures < _FAILURES:
            try:
                observer(event)
                failures = 0
            except Exception as failed:  # as above
                failures += 1
                if not said:
                    said = True
                    self.say(f"{sentence(failed)}; the run goes on")
            if failures < _FAILURES:
                event = self.queue.get()
        if failures == _FAILURES:
            self.gone = True
            self.say(f"failed {failures} times, one after the other; it is told nothing more")
        try:
            observer.close()
        except Exception as failed:  # as above
            if not self.gone:
                self.say(f"{sentence(failed)}; the run is not affected")


def sentence(failed: Exception) -> str:
    """What went wrong, without a library's own text, which may quote a token or a URL."""
    if isinstance(failed, TrackerFailed):
        return str(failed)
    if isinstance(failed, OSError) and failed.strerror:
        return failed.strerror + (f" ({failed.filename})" if isinstance(failed.filename, str) else "")
    return f"failed with {type(failed).__name__}"


@contextmanager
def open_watch(
    config: WatchConfig, about: About, say: Callable[[str], None], more: Sequence[tuple[str, Any]] = ()
) -> Iterator[Watch]:
    """The trackers that a run file chooses, and `more` as (name, its Config). An error is told to them on its way."""
    watch = Watch(say)
    for name, chosen in (*config.chosen(about), *more):
        module = registry.module("pipelines.trackers", name)
        closing = float(getattr(module, "CLOSING", _CLOSING))
        if getattr(module, "APART", False):
            from pipelines.trackers._apart import Apart

            apart = Apart(name, chosen, about)
            watch.add(name, apart.connect, closing, apart.abandon)
        else:
            watch.add(name, partial(module.connect, chosen, about), closing)
    try:
        yield watch
    except BaseException as failed:
        what = "interrupted" if isinstance(failed, KeyboardInterrupt) else _first_line(failed)
        watch.tell(Event("run_failed", about.run, time.time(), level="error", message=what))
        raise
    finally:
        watch.close()


def _first_line(failed: BaseException) -> str:
    return (str(failed).splitlines() or [type(failed).__name__])[0]
