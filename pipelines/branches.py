"""Steps at work at the same time, each in a thread of its own; where one is enough, in the caller's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import Executor as Pool
from types import TracebackType
from typing import Any

from miner.artifacts.manifest import Manifest
from pipelines.plan import Step

__all__ = ["Branches", "Here"]


class Branches:
    """At most `most` steps at once. `give_up` is called when there is an error, or an interrupt, while some are at
    work: with it they end soon, by errors that nobody reads. None of them outlives this."""

    def __init__(self, most: int, give_up: Callable[[], None]) -> None:
        self.most, self._give_up = most, give_up
        self._pool: Pool = ThreadPoolExecutor(most, "branch") if most > 1 else Here()
        self._running: dict[Future[Manifest], Step] = {}

    def __enter__(self) -> Branches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._running:
            self._give_up()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def at_work(self) -> list[Step]:
        return list(self._running.values())

    def begin(self, step: Step, work: Callable[[], Manifest]) -> None:
        self._running[self._pool.submit(work)] = step

    def ended(self) -> list[tuple[Step, Future[Manifest]]]:
        """Steps that ended, at least one; waits for it."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [(self._running.pop(future), future) for future in done]


class Here(Pool):
    """Does what is submitted at once, in the caller's own thread, where an interrupt arrives."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as failed:  # whatever it raises is the future's answer, as in any pool
            future.set_exception(failed)
        return future
