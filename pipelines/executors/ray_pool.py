"""Shards on Ray actors: each keeps what it opened, writes its shards to the run's store and returns their records.

An actor does one shard at a time, so that its death is that shard's and nobody else's. Ray restarts none: a lost one is
replaced here, where it is known which shard it was at. The pool grows to what the nodes that are up have room for, and
is looked at again every second, so that a node that joins gets work.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any, cast

import ray
from ray.exceptions import RayError

from miner.artifacts.errors import BadInput, Retryable
from pipelines.executors.quarantine import FINISH, Quarantine
from pipelines.executors.ray_actor import (
    Shape,
    Shards,
    lost_with_node,
    nodes_up,
    seen,
    title,
    unless_given_up,
)
from pipelines.jobs import Sharded, Task, job_of
from pipelines.progress import Progress

__all__ = ["Pool"]

_TICK_SECONDS = 1.0
_MOST_UNBORN = 5  # actors that die one after the other before any of them begins
_STARTING = -2
_numbers = itertools.count()


@dataclass
class _Actor:
    """One actor of the pool: `answer` is what is awaited of it (None: idle), for the shard `at`."""

    handle: Any
    answer: Any
    at: int = _STARTING
    node: str = ""


class Pool:
    """Actors of one shape, `<run>/1 CPU/7`; what one is at is called `<run>/r3/mine-i2t`.

    At most `limit` at once (0: as many as there is room for), and no more than leave room for what is `beside` them,
    the training of the same round, on whichever node would lose most by it. Where no node of the cluster could hold
    one, a cluster that was joined may still grow and is waited for, `patience` seconds.
    """

    def __init__(
        self,
        run: str,
        shape: Shape,
        limit: int,
        patience: float,
        given_up: Event,
        *,
        joined: bool,
        beside: Shape | None,
    ) -> None:
        self.name = f"{run}/{shape}"
        self.shape, self.limit, self.patience, self.joined = shape, limit, patience, joined
        self.beside, self._given_up = beside, given_up
        self._actors: list[_Actor] = []
        self._alive: set[str] = set()
        self._barren: set[str] = set()  # the nodes when actors began no more
        self._unborn = 0
        self._looked, self._placed = 0.0, 0.0

    def parts(self, task: Task, progress: Progress) -> Iterator[None]:
        """Do all parts of a task; yields after each.

        Raises what a part raised, at once. Raises BadInput when all the others are done, if parts were left out;
        Retryable when the cluster cannot do the work.
        """
        yield from (None for _ in self._each(task, range(task.stage.parts), progress))

    def finish(self, task: Task, progress: Progress) -> str:
        """Put the parts together, in one of the actors. The prefix of the artifact; raises as `parts`."""
        (prefix,) = self._each(task, [FINISH], progress)
        return str(prefix)

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()

    def _each(self, task: Task, parts: Iterable[int], progress: Progress) -> Iterator[Any]:
        waiting = deque(parts)
        quarantine = Quarantine(task.stage.name, f"{task.stage.work}.cpus" if task.stage.unit == "shard" else "")
        finished = 0
        # One that died since its last shard shall not be given the next one.
        for actor in self._actors:
            actor.answer, actor.at = actor.handle.ready.remote(), _STARTING
        self._looked, self._placed = 0.0, time.monotonic()
        while waiting or any(actor.at != _STARTING and actor.answer is not None for actor in self._actors):
            unless_given_up(self._given_up, task)
            self._grow(len(waiting) + self._at_work, task, progress)
            for actor in self._actors:
                if actor.answer is None and waiting:
                    actor.at = waiting.popleft()
                    actor.answer = actor.handle.part.options(name=title(task)).remote(task, actor.at)
            for actor in self._answered():
                try:
                    found = ray.get(actor.answer)
                except RayError as failed:
                    self._drop(actor)
                    if actor.at == _STARTING:
                        self._not_born(actor, failed, task)
                        continue
                    what = seen(failed)
                    again = quarantine.note(actor.at, actor.node, what, self._alive)
                    progress.say(f"{task.stage.name}: lost a worker: {what}" + ("; its work starts again" * again))
                    if again:
                        waiting.append(actor.at)  # at the end: others first, in case it is poison
                    elif quarantine.hopeless:
                        raise quarantine.error(finished, cast(Sharded, job_of(task)).where) from failed
                    continue
                actor.answer = None
                if actor.at == _STARTING:
                    actor.node, self._unborn = found, 0
                else:
                    finished += 1
                    yield found
        if quarantine.left_out:
            raise quarantine.error(finished, cast(Sharded, job_of(task)).where)

    @property
    def _at_work(self) -> int:
        return sum(actor.answer is not None and actor.at != _STARTING for actor in self._actors)

    @property
    def _some_placed(self) -> bool:
        return any(actor.node in self._alive for actor in self._actors)

    def _answered(self) -> list[_Actor]:
        """Actors whose answer is there, waiting a moment for the first."""
        asked = {actor.answer: actor for actor in self._actors if actor.answer is not None}
        if not asked:
            return []
        found, _ = ray.wait(list(asked), timeout=_TICK_SECONDS)
        return [asked[answer] for answer in found]

    def _drop(self, actor: _Actor) -> None:
        """Forget an actor that is lost, or is no longer to be trusted, and look which nodes are up."""
        self._actors.remove(actor)
        ray.kill(actor.handle)
        self._looked = 0.0
        self._alive = {node["NodeID"] for node in nodes_up()}

    def _not_born(self, actor: _Actor, failed: RayError, task: Task) -> None:
        """An actor died before it could be given anything. Raises Retryable when none can be had.

        Where others work, a node on which none can begin is none of their business: no more are started until nodes
        come or go.
        """
        if lost_with_node(failed):
            return
        self._unborn += 1
        if self._unborn < _MOST_UNBORN:
            return
        self._barren, self._unborn = set(self._alive), 0
        if not self._some_placed:
            raise Retryable(
                f"{task.stage.name}: {_MOST_UNBORN} workers died before they could begin: {seen(failed)}. See that "
                "every node of the cluster has this version of quintain and memory to spare; then run the same "
                "command again."
            ) from failed

    def _grow(self, todo: int, task: Task, progress: Progress) -> None:
        """Start actors for which there is room and work. Raises when none can ever be placed."""
        now = time.monotonic()
        if now - self._looked < _TICK_SECONDS:
            return
        self._looked = now
        nodes = nodes_up()
        self._alive = {node["NodeID"] for node in nodes}
        if self._alive == self._barren and self._some_placed:
            return
        room = self.shape.room(nodes)
        # Where there is no room, one asks nonetheless: that is what makes a cluster grow.
        most = self.limit or max(room, 1)
        if self.beside is not None:
            most = max(1, min(most, room - self.shape.lost(nodes, self.beside)))
        wanted = min(todo, most)
        while len(self._actors) < wanted:
            name = f"{self.name}/{next(_numbers)}"
            actor = _remote.options(
                name=name, num_cpus=self.shape.cpus, num_gpus=self.shape.gpus, max_restarts=0, max_task_retries=0,
                scheduling_strategy="SPREAD",
            ).remote(self.shape)  # fmt: skip
            self._actors.append(_Actor(actor, actor.ready.remote()))
        if self._some_placed:
            self._placed = now
        elif not room:
            self._no_room(task, nodes, now - self._placed)
        elif now - self._placed > self.patience:
            progress.say(
                f"{task.stage.name}: no worker could begin yet; each takes {self.shape}, and others may use them"
            )
            self._placed = now

    def _no_room(self, task: Task, nodes: list[dict[str, Any]], waited: float) -> None:
        work = task.stage.work
        keys = f" ([executor] {work}.cpus, {work}.gpus)" if task.stage.unit == "shard" else ""
        has = ", ".join(sorted({_has(node.get("Resources", {})) for node in nodes})) or "nothing"
        wrong = f"{task.stage.name}: a worker takes {self.shape}{keys}, but no node has that (nodes here: {has})"
        if not self.joined:
            raise BadInput(f"{wrong}; ask for less, or for more --workers.")
        if waited > self.patience:
            raise Retryable(
                f"{wrong}, and none joined within {self.patience:g} s; add one or ask for less, and run again."
            )


_remote: Any = ray.remote(Shards)


def _has(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU" + (f" and {resources['GPU']:g} GPU" if resources.get("GPU") else "")
