"""Shards on Ray actors: each keeps what it opened, writes its shards to the run's store and returns their records.

An actor does one shard at a time, so that its death is that shard's and nobody else's. Ray restarts none: a lost one is
replaced here, where it is known which shard it was at. The pool grows to what the nodes that are up have room for, and
is looked at again every second, so that a node that joins gets work.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.manifest import FileRecord
from pipelines.executors.quarantine import FINISH, Quarantine
from pipelines.jobs import Job, Sharded, Task, job_of
from pipelines.progress import Progress

__all__ = ["Pool", "Shape", "hide_gpus", "title"]

_TICK_SECONDS = 1.0
_MOST_UNBORN = 5  # actors that die one after the other before any of them begins
# What a process may raise for want of something that a fresh one may have, by name: torch is not imported here.
_OF_THE_MACHINE = {"MemoryError", "OutOfMemoryError", "AcceleratorError"}
_NODE_DIED = "node has died"  # as Ray says it
_STARTING = -2
_numbers = itertools.count()


@dataclass(frozen=True)
class Shape:
    """What one actor takes of a node: CPUs, which are its threads too, and GPUs or a share of one."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' * (self.cpus > 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def room(self, nodes: Iterable[dict[str, Any]]) -> int:
        """How many fit on the nodes, were they idle."""
        return sum(self._fit(node.get("Resources", {})) for node in nodes)

    def _fit(self, resources: dict[str, float]) -> int:
        by_gpu = int(resources.get("GPU", 0) / self.gpus + 1e-6) if self.gpus else None
        by_cpu = int(resources.get("CPU", 0)) // self.cpus
        return by_cpu if by_gpu is None else min(by_cpu, by_gpu)


def title(task: Task) -> str:
    """What Ray's dashboard calls the work: `nightly/r3/mine-i2t` in a run folder `nightly`."""
    return f"{_run(task)}/{task.stage.name}"


def hide_gpus() -> None:
    """In a worker process that was given none: Ray leaves all of a node's GPUs in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class _Shards:
    """The actor. It opens nothing before its first shard, so that an error of the user's making arrives with it."""

    def __init__(self, shape: Shape) -> None:
        self.threads = shape.cpus
        # Read by OpenMP when it is loaded; threads that spin while they wait starve their neighbours.
        os.environ |= {"OMP_NUM_THREADS": str(shape.cpus), "OMP_WAIT_POLICY": "PASSIVE"}
        if not shape.gpus:
            hide_gpus()
        self.task: Task | None = None
        self.job: Job | None = None

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def part(self, task: Task, index: int) -> FileRecord | str:
        """The record of one shard; for FINISH, the prefix of the committed artifact."""
        if self.job is None or self.task != task:
            self.task, self.job = task, job_of(task)
        if task.stage.work != "mine":  # encode's bits are those of one thread, which it sees to itself
            return self._part(self.job, index)
        from miner.index._faiss import threads

        with threads(self.threads):
            return self._part(self.job, index)

    @staticmethod
    def _part(job: Job, index: int) -> FileRecord | str:
        return job.finish().prefix if index == FINISH else job.part(index)


@dataclass
class _Actor:
    """One actor of the pool: `answer` is what is awaited of it (None: idle), for the shard `at`."""

    handle: Any
    answer: Any
    at: int = _STARTING
    node: str = ""


class Pool:
    """The actors of a kind of work in one round: `<run>/r3/mine`.

    At most `limit` at once (0: as many as there is room for). Where no node of the cluster could hold one, a cluster
    that was joined may still grow and is waited for, `patience` seconds.
    """

    def __init__(self, task: Task, shape: Shape, limit: int, patience: float, *, joined: bool) -> None:
        self.name = f"{_run(task)}/r{task.stage.round}/{task.stage.work}"
        self.shape, self.limit, self.patience, self.joined = shape, limit, patience, joined
        self._actors: list[_Actor] = []
        self._alive: set[str] = set()
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
        quarantine = Quarantine(task.stage.name, f"{task.stage.work}.cpus")
        finished = 0
        # One that died since its last shard shall not be given the next one.
        for actor in self._actors:
            actor.answer, actor.at = actor.handle.ready.remote(), _STARTING
        self._looked, self._placed = 0.0, time.monotonic()
        while waiting or any(actor.at != _STARTING and actor.answer is not None for actor in self._actors):
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
                    seen = _seen(failed)
                    again = quarantine.note(actor.at, actor.node, seen, self._alive)
                    progress.say(f"{task.stage.name}: lost a worker: {seen}" + ("; its work starts again" * again))
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
        self._alive = {node["NodeID"] for node in _nodes()}

    def _not_born(self, actor: _Actor, failed: RayError, task: Task) -> None:
        """An actor died before it could be given anything. Raises Retryable when none can be had."""
        if _NODE_DIED in str(failed):
            return
        self._unborn += 1
        if self._unborn >= _MOST_UNBORN:
            raise Retryable(
                f"{task.stage.name}: {self._unborn} workers died before they could begin: {_seen(failed)}. See that "
                "every node of the cluster has this version of quintain and memory to spare; then run the same "
                "command again."
            ) from failed

    def _grow(self, todo: int, task: Task, progress: Progress) -> None:
        """Start actors for which there is room and work. Raises when none can ever be placed."""
        now = time.monotonic()
        if now - self._looked < _TICK_SECONDS:
            return
        self._looked = now
        nodes = _nodes()
        self._alive = {node["NodeID"] for node in nodes}
        room = self.shape.room(nodes)
        # Where there is no room, one asks nonetheless: that is what makes a cluster grow.
        wanted = min(todo, self.limit or max(room, 1))
        while len(self._actors) < wanted:
            name = f"{self.name}/{next(_numbers)}"
            actor = _remote.options(
                name=name, num_cpus=self.shape.cpus, num_gpus=self.shape.gpus, max_restarts=0, max_task_retries=0,
                scheduling_strategy="SPREAD",
            ).remote(self.shape)  # fmt: skip
            self._actors.append(_Actor(actor, actor.ready.remote()))
        if any(actor.node in self._alive for actor in self._actors):
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
        has = ", ".join(sorted({_has(node.get("Resources", {})) for node in nodes})) or "nothing"
        wrong = (
            f"{task.stage.name}: a worker takes {self.shape} ([executor] {work}.cpus, {work}.gpus), but no node has "
            f"that (nodes here: {has})"
        )
        if not self.joined:
            raise BadInput(f"{wrong}; ask for less, or for more --workers.")
        if waited > self.patience:
            raise Retryable(
                f"{wrong}, and none joined within {self.patience:g} s; add one or ask for less, and run again."
            )


_remote: Any = ray.remote(_Shards)


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are up."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # ray's own is untyped
    return [node for node in found if node["Alive"]]


def _run(task: Task) -> str:
    return task.draft.store.url.rstrip("/").rpartition("/")[2]


def _has(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU" + (f" and {resources['GPU']:g} GPU" if resources.get("GPU") else "")


def _seen(failed: RayError) -> str:
    """What became of a process, as far as Ray can tell, in a few words. Raises what the work itself raised."""
    if isinstance(failed, RayTaskError):
        cause = failed.cause
        if {kind.__name__ for kind in type(cause).__mro__} & _OF_THE_MACHINE:
            return f"{type(cause).__name__}: {_line(str(cause))}"
        raise failed
    text = str(failed)
    pid = next((line.split()[1] for line in text.splitlines() if line.strip().startswith("pid:")), "")
    at = next((line.split()[1] for line in text.splitlines() if line.strip().startswith("ip:")), "")
    who = f"process {pid} on {at}" if pid and at else "its process"
    if _NODE_DIED in text:
        return f"{who} was lost with the node"
    if isinstance(failed, OutOfMemoryError) or "memory usage threshold" in text or "low on memory" in text:
        return f"Ray ended {who}: the node was out of memory"
    _, exited, code = text.partition("exit code ")
    if exited:
        return f"{who} ended with exit code {_line(code).rstrip('.')}"
    if "connection error" in text:
        return f"{who} ended without a word: killed, for instance for want of memory, or crashed"
    return f"{who} was lost ({_line(text.splitlines()[-1] if text else type(failed).__name__)})"


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
