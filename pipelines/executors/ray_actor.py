"""One worker of a kind of stage: what it takes of a node, what it does there, and what became of it when it is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Event
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.manifest import FileRecord
from pipelines.executors.quarantine import FINISH
from pipelines.jobs import Job, Task, job_of

__all__ = [
    "Room",
    "Shape",
    "Shards",
    "hide_gpus",
    "lost_with_node",
    "nodes_up",
    "of_the_machine",
    "run_name",
    "seen",
    "title",
    "unless_given_up",
]

# What a process may raise for want of something that a fresh one may have, by name: torch is not imported here.
_OF_THE_MACHINE = {"MemoryError", "OutOfMemoryError", "AcceleratorError"}
_NODE_DIED = "node has died"  # as Ray says it
_LOOK_SECONDS = 1.0


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

    def lost(self, nodes: Iterable[dict[str, Any]], other: Shape) -> int:
        """How many fewer, at most, where one of another shape is on one of the nodes."""
        lost = [0]
        for node in nodes:
            has = node.get("Resources", {})
            if other._fit(has):
                left = {**has, "CPU": has.get("CPU", 0) - other.cpus, "GPU": has.get("GPU", 0) - other.gpus}
                lost.append(self._fit(has) - self._fit(left))
        return max(lost)

    def _fit(self, resources: dict[str, float]) -> int:
        by_gpu = int(resources.get("GPU", 0) / self.gpus + 1e-6) if self.gpus else None
        by_cpu = int(resources.get("CPU", 0)) // self.cpus
        return by_cpu if by_gpu is None else min(by_cpu, by_gpu)


class Room:
    """Whether the nodes that are up could hold `count` workers of a shape, were they idle: what is asked of Ray beyond
    that waits for ever, without a word. `wanted` says who asks. A cluster that was joined may grow, or lose a node and
    get it back, for `patience` seconds; one that cannot (None) is looked at once, at the start.
    """

    def __init__(self, task: Task, shape: Shape, count: int, wanted: str, patience: float | None) -> None:
        self._task, self.shape, self._count, self._wanted, self._patience = task, shape, count, wanted, patience
        self._last = time.monotonic()  # that there was
        self._looked: float | None = None

    def look(self) -> None:
        """Costs nothing within a second of the last time. Raises Retryable once patience is at its end; BadInput where
        there is none."""
        now = time.monotonic()
        if self._looked is not None and (self._patience is None or now - self._looked < _LOOK_SECONDS):
            return
        self._looked = now
        room = self.shape.room(nodes_up())
        if room >= self._count:
            self._last = now
            return
        wrong = f"{self._task.stage.name}: {self._wanted} {self.shape}, but the nodes have room for {room}; "
        if self._patience is None:
            raise BadInput(f"{wrong}ask for less, or for more --workers.")
        if now - self._last > self._patience:
            raise Retryable(f"{wrong}none joined within {self._patience:g} s; add one or ask for less, and run again.")


def nodes_up() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # ray's own is untyped
    return [node for node in found if node["Alive"]]


def run_name(task: Task) -> str:
    """The last part of where the run lives."""
    return task.draft.store.url.rstrip("/").rpartition("/")[2]


def title(task: Task) -> str:
    """What Ray's dashboard calls the work: `nightly/r3/mine-i2t` in a run folder `nightly`."""
    return f"{run_name(task)}/{task.stage.name}"


def unless_given_up(given_up: Event, task: Task) -> None:
    """Raises Retryable once a run is given up, in each thread that waits for work of it."""
    if given_up.is_set():
        raise Retryable(f"{task.stage.name}: given up with the run; run the same command again.")


def hide_gpus() -> None:
    """In a worker process that was given none: Ray leaves all of a node's GPUs in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Shards:
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


def of_the_machine(error: BaseException) -> bool:
    """Whether a fresh process, maybe on another node, may not meet this error."""
    return bool({kind.__name__ for kind in type(error).__mro__} & _OF_THE_MACHINE)


def lost_with_node(failed: RayError) -> bool:
    return _NODE_DIED in str(failed)


def seen(failed: RayError) -> str:
    """What became of a process, as far as Ray can tell, in a few words. Raises what the work itself raised."""
    if isinstance(failed, RayTaskError):
        cause = failed.cause
        if of_the_machine(cause):
            return f"{type(cause).__name__}: {_line(str(cause))}"
        raise failed
    text = str(failed)
    pid = next((line.split()[1] for line in text.splitlines() if line.strip().startswith("pid:")), "")
    at = next((line.split()[1] for line in text.splitlines() if line.strip().startswith("ip:")), "")
    who = f"process {pid} on {at}" if pid and at else "its process"
    if lost_with_node(failed):
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
