"""Make the items of a plan in one thread beside the one that uses them, in order, a few ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar, cast

__all__ = ["Ahead"]

Plan = TypeVar("Plan")
Item = TypeVar("Item")


class _Made(NamedTuple):
    """An item, an error in its place, or, with neither, the end."""

    item: object = None
    error: BaseException | None = None
    last: bool = False


class Ahead(Generic[Item]):
    """`make(step)` for every step of `plan`, in that order, at most `depth` of them made and not yet taken.

        with Ahead(read, plan) as items:
            for item in items: ...

    What `make` or the plan raises is raised where its item would have come. Leaving the block, `close`, or dropping the
    last reference ends the thread, once the item in the making is made. `waited` is how many seconds the user of the
    items has waited for them. `depth` 0 makes each item when it is asked for, without a thread.
    """

    def __init__(self, make: Callable[[Plan], Item], plan: Iterable[Plan], depth: int = 2) -> None:
        self.waited = 0.0
        self._made: SimpleQueue[_Made] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._finished = False
        self._inline = (make(step) for step in plan) if depth == 0 else None
        # The thread knows the queue and no more of this object, which can thus be dropped while the thread runs.
        arguments = (make, plan, self._made, self._room, self._stop)
        self._thread = threading.Thread(target=_produce, args=arguments, name="prefetch", daemon=True)
        if depth:
            self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._finished:
            raise StopIteration
        began = time.perf_counter()
        try:
            if self._inline is not None:
                return next(self._inline)
            made = self._made.get()
        finally:
            self.waited += time.perf_counter() - began
        if made.error is not None or made.last:
            self.close()
            raise made.error if made.error is not None else StopIteration
        self._room.release()
        return cast(Item, made.item)

    def close(self) -> None:
        """Make no further item and wait for the one in the making; a second call does nothing."""
        self._finished = True
        self._stop.set()
        self._room.release()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._stop.set()
        self._room.release()


def _produce(
    make: Callable[[Plan], Item],
    plan: Iterable[Plan],
    made: SimpleQueue[_Made],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        for step in plan:
            room.acquire()
            if stop.is_set():
                return
            made.put(_Made(make(step)))
    except BaseException as error:  # it belongs to whoever asks for the item
        made.put(_Made(error=error))
    else:
        made.put(_Made(last=True))
