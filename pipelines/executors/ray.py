"""Stages on a Ray cluster: what lies between trainings by a pool of actors, fit through Ray Train, the rest as tasks.

Ray moves names, not data: a worker gets a few strings, writes its part to the run's store and returns the part's
record. A run folder must therefore be visible under the same path on every node. An object store is read and written by
the workers themselves, with the credentials of the cluster's own environment: none is sent to it. A local cluster that
is started here inherits this process's.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from functools import cached_property
from threading import Event
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from miner.artifacts.errors import QuintainError, Retryable
from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.object_errors import StoreUnreachable
from pipelines.executors.ray_actor import Room, Shape, hide_gpus, nodes_up, run_name, title, unless_given_up
from pipelines.executors.ray_fit import Fits
from pipelines.executors.ray_pool import Pool
from pipelines.interrupts import handlers_kept
from pipelines.jobs import Task, artifact_at, job_of
from pipelines.jobs.fit import FitJob
from pipelines.progress import Progress
from pipelines.resources import ActorConfig, ExecutorConfig, head_of
from pipelines.stages import Stage

__all__ = ["RayExecutor"]

_POLL_SECONDS = 1.0
# Each time a store that does not answer is asked for a minute; what is stored by then is not made again.
_OUTAGES = 5
_HEAD_SECONDS = 30.0  # a head may be starting again
_RETRIES = 3  # of a task whose process died; an error of the task itself is raised at once


class RayExecutor:
    """Joins the cluster at `config.address` or starts a local one. Raises Retryable when neither comes up.

    With `many` small trainings at once everything is a plain task, whose process serves the next one: Ray Train starts
    a controller and a process for each fit and a pool its actors for each stage, which takes longer than they do.
    """

    branches = 2

    def __init__(self, config: ExecutorConfig, progress: Progress, *, many: bool = False) -> None:
        self.config, self.many = config, many
        self.workers = config.workers or len(os.sched_getaffinity(0))
        local = f"starting a local cluster with {self.workers} workers"
        progress.say("ray: " + (f"joining {config.address}" if config.address else local))
        logging.getLogger("ray").setLevel(logging.ERROR)
        if config.address:
            _find_head(config.address)
        try:
            with handlers_kept():
                if config.address:
                    ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR)
                    self.workers = max(int(_resource("CPU")), 1)
                else:
                    ray.init(
                        address="local",
                        num_cpus=self.workers,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
        except (RayError, ConnectionError, RuntimeError, ValueError) as failed:
            where = config.address or "this machine"
            raise Retryable(f"no Ray cluster at {where}: {_first_line(failed)}") from failed
        gpus = _resource("GPU")
        self._had_gpus = gpus > 0
        self.parallel = max(int(gpus), 1) if gpus else self.workers
        self._pool: Pool | None = None
        self._fits = Fits()
        self._given_up = Event()

    def gpus_of(self, task: Task) -> int:
        if task.stage.work == "fit":
            return task.settings.processes if self._of_fit(task).gpus else 1
        if task.stage.unit != "shard":
            return 1
        actor = self._of_actor(task.stage)
        at_once = min(task.stage.parts, self._limit or task.stage.parts, actor.room(nodes_up()))
        return max(1, math.ceil(actor.gpus * at_once))

    def execute(self, task: Task, progress: Progress) -> Artifact:
        for again in reversed(range(_OUTAGES)):
            try:
                return artifact_at(task.draft.store, self._execute(task, progress))
            except BaseException as failed:  # an interrupt too: the actors would hold what comes next
                if self._pooled(task):
                    self.rest()
                wrong = _wrong(failed, task)
                if wrong is failed:
                    raise
                if not (again and isinstance(wrong, StoreUnreachable)):
                    raise wrong from failed
                progress.say(f"{task.stage.name}: a worker lost the store, maybe with its network; it is tried again")
        raise AssertionError("the last try returns or raises")

    def rest(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def give_up(self) -> None:
        self._given_up.set()

    def close(self) -> None:
        ray.shutdown()

    def _execute(self, task: Task, progress: Progress) -> str:
        """Do the work. The prefix of what was committed."""
        stage = task.stage
        if self._pooled(task):
            pool = self._pool_for(task)
            if stage.unit == "shard":
                for done, _ in enumerate(pool.parts(task, progress), start=1):
                    progress.advance(done)
            return pool.finish(task, progress)
        if stage.work == "fit":
            shape = self._of_fit(task)
            if self._had_gpus and not shape.gpus:
                progress.say(f"{stage.name}: no node with a GPU is up any more; it trains on CPUs")
            if not self.many or task.settings.processes > 1:
                return self._fits.fit(task, progress, shape, self._patience, self._given_up)
            return self._fit_as_task(task, progress, shape)
        gpu = self._gpu(stage)
        options = {"name": title(task), "max_retries": _RETRIES, "num_cpus": 1, "num_gpus": int(gpu)}
        if stage.unit == "shard":
            for done, _ in enumerate(self._parts(task, options), start=1):
                progress.advance(done)
        (committed,), _ = self._awaited([_finish.options(**options).remote(task, gpu)], task, Shape(1, float(gpu)))
        return str(ray.get(committed))

    def _awaited(self, tasks: list[Any], task: Task, shape: Shape) -> tuple[list[Any], list[Any]]:
        """One of these tasks of Ray that has ended, and the others. Raises as `Room` does while they have none."""
        room = Room(task, shape, 1, "it takes", self._patience)
        while True:
            ended, others = ray.wait(tasks, timeout=_POLL_SECONDS)
            if ended:
                return ended, others
            unless_given_up(self._given_up, task)
            room.look()

    @property
    def _patience(self) -> float | None:
        """How long work waits for a node that could hold it; None where no node can join."""
        return self.config.patience if self.config.address else None

    def _pooled(self, task: Task) -> bool:
        """Whether actors do it, which stay for what comes next. They hold what a training needs, so that only what is
        done between two trainings, or beside one, is for them."""
        between = task.stage.work == "evaluate" and task.settings.run.refresh == "sync"
        return not self.many and (task.stage.branch == "refresh" or between)

    def _pool_for(self, task: Task) -> Pool:
        """The actors there are, if they take what this work asks for; else new ones."""
        shape, beside = self._of_actor(task.stage), self._beside(task)
        if self._pool is None or (self._pool.shape, self._pool.beside) != (shape, beside):
            self.rest()
            joined = bool(self.config.address)
            self._pool = Pool(
                run_name(task), shape, self._limit, self.config.patience, self._given_up, joined=joined, beside=beside
            )
        return self._pool

    @property
    def _limit(self) -> int:
        """How many actors are at work at once; 0 for as many as there is room for."""
        return self.config.workers if self.config.address else self.workers

    def _of_actor(self, stage: Stage) -> Shape:
        """What an actor takes of a node for this work."""
        asked: ActorConfig = getattr(self.config, stage.work, ActorConfig())
        return Shape(asked.cpus, float(self._gpu(stage)) if asked.gpus is None else asked.gpus)

    def _beside(self, task: Task) -> Shape | None:
        """What the training that goes on beside this work takes of a node."""
        if task.settings.run.refresh == "sync" or task.stage.round == 1:
            return None
        return self._of_fit(task)

    def _of_fit(self, task: Task) -> Shape:
        """What one process of a training takes of a node. One that must have a GPU waits for a node with one, where
        such may join."""
        cpus = min(task.settings.threads, max(self.workers, int(_resource("CPU"))))
        must = bool(self.config.address) and task.settings.fit_config(0).device == "cuda"
        return Shape(cpus, float(must or _resource("GPU") > 0))

    def _gpu(self, stage: Stage) -> bool:
        """Whether a GPU is for this work, where the cluster has one: for a model always; for a search, which finds the
        same on a CPU, only if faiss there sees it. Then encoders are on GPUs, and miners wherever there are CPUs."""
        if not _resource("GPU") or stage.work == "report":
            return False
        runs_model = stage.work not in ("index", "tune", "mine") or "checkpoint" in dict(stage.parents)
        return runs_model or self._faiss_gpu

    @cached_property
    def _faiss_gpu(self) -> bool:
        """Whether faiss sees a GPU on a node that has one."""
        try:
            return bool(ray.get(_faiss_gpus.remote(), timeout=self.config.patience))
        except (RayError, GetTimeoutError):
            return False

    def _parts(self, task: Task, options: dict[str, Any]) -> Iterator[FileRecord]:
        """Records of all parts, as they finish; a few more are submitted than there are workers."""
        part = _part.options(**options)
        waiting = list(range(task.stage.parts))[::-1]
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < 2 * self.workers:
                running.append(part.remote(task, waiting.pop(), options["num_gpus"] > 0))
            finished, running = self._awaited(running, task, Shape(1, float(options["num_gpus"])))
            yield from ray.get(finished)

    def _fit_as_task(self, task: Task, progress: Progress, shape: Shape) -> str:
        """A retry after a lost process goes on from the last epoch; epochs are told when the task is over."""
        of = _fit_task.options(
            name=title(task), max_retries=_RETRIES, num_cpus=shape.cpus, num_gpus=int(shape.gpus)
        )  # fmt: skip
        (ended,), _ = self._awaited([of.remote(task, bool(shape.gpus))], task, shape)
        prefix, lines = ray.get(ended)
        for line in lines:
            progress.epoch(line)
        return str(prefix)


@ray.remote
def _part(task: Task, index: int, gpu: bool) -> FileRecord:
    if not gpu:
        hide_gpus()
    return job_of(task).part(index)


@ray.remote
def _finish(task: Task, gpu: bool) -> str:
    if not gpu:
        hide_gpus()
    return job_of(task).finish().prefix


@ray.remote
def _fit_task(task: Task, gpu: bool) -> tuple[str, list[dict[str, Any]]]:
    if not gpu:
        hide_gpus()
    job = job_of(task)
    assert isinstance(job, FitJob)
    lines: list[dict[str, Any]] = []
    return job.finish(lines.append).prefix, lines


@ray.remote(num_cpus=1, num_gpus=1, max_retries=1)
def _faiss_gpus() -> int:
    from miner.index._faiss import num_gpus

    return num_gpus()


def _find_head(address: str) -> None:
    """Raises BadInput for what is no address of a cluster, Retryable where nobody listens: Ray itself would ask there
    for a quarter of an hour."""
    head = head_of(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    if head is None:
        return
    host, port = head
    end = time.monotonic() + _HEAD_SECONDS
    # Ray takes a loopback address for this node's own.
    own: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray's own is untyped
    hosts = [host, own] if host in ("localhost", "127.0.0.1", "::1") else [host]
    while True:
        for each in hosts:
            try:
                socket.create_connection((each, port), timeout=5).close()
                return
            except OSError as failed:
                why = failed.strerror or str(failed)
        if time.monotonic() >= end:
            raise Retryable(
                f"no Ray cluster at {address}: nobody listens there ({why}); is its head up, and this its port (6379)?"
            )
        time.sleep(1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _wrong(failed: BaseException, task: Task) -> BaseException:
    """What went wrong, as people or the loop take it."""
    if isinstance(failed, RayTaskError):
        cause = failed.cause
        if isinstance(cause, QuintainError | OSError):
            return cause
        if not isinstance(cause, RayError):
            return RuntimeError(f"{task.stage.name} failed in a worker:\n{failed}")
        failed = cause  # a worker's own worker was lost
    if isinstance(failed, RayError):
        lost = _first_line(failed)
        return Retryable(f"{task.stage.name}: Ray lost the work ({lost}); run the same command again.")
    return failed


def _resource(name: str) -> float:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray's own is untyped
    return found.get(name, 0)
