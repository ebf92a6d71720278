"""One round's fit through Ray Train: a worker may be lost, and all start again from the last finished epoch."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
import traceback
from collections import deque
from pathlib import Path
from threading import Event, Lock
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from miner.artifacts.errors import QuintainError, Retryable, says_enough
from miner.artifacts.store import LocalStore, Store
from pipelines.executors.ray_actor import Room, Shape, hide_gpus, of_the_machine, run_name, title, unless_given_up
from pipelines.jobs import Task, job_of
from pipelines.jobs.fit import FitJob
from pipelines.progress import Progress

__all__ = ["Fits"]

_FAILURES = 2
_NOTES = ".ray-train"
_numbers = itertools.count()
_POLL_SECONDS = 0.2


class Fits:
    """Trains for a driver, whose own process then has no thread that waits for Ray: one that still does when the driver
    lets go of Ray ends it without a word."""

    def __init__(self) -> None:
        # Where the driver is: on another node it would be lost with that.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}
        self._idle: list[Any] = []
        self._lock = Lock()
        self._begun = False

    def fit(self, task: Task, progress: Progress, shape: Shape, patience: float | None, given_up: Event) -> str:
        """Train in [fit] `processes` workers that take `shape` of a node each. The prefix of the checkpoint, which the
        first of them commits. Several threads may ask at once.

        Raises what was wrong as it was raised, or RuntimeError with the traceback of what nobody foresaw, where one
        process trains; Retryable when workers failed too often, or once the run is `given_up`. Where the nodes have no
        room for all workers, at the start or later on, they may grow for `patience` seconds (Retryable after that), or
        not at all (None: BadInput). Whatever is raised, nothing of it trains any more.
        """
        room = Room(
            task, shape, task.settings.processes,
            f"[fit] processes = {task.settings.processes}, of which each takes", patience,
        )  # fmt: skip
        if patience is None:
            room.look()
        actor = self._actor(task)
        try:
            prefix = _followed(actor, task, progress, room, given_up)
        except BaseException:
            ray.kill(actor)
            raise
        with self._lock:
            self._idle.append(actor)
        return prefix

    def _actor(self, task: Task) -> Any:
        """One that trains nothing now."""
        with self._lock:
            if not self._begun:  # what an earlier run of this folder left that was killed
                _clear(task.draft.store)
                self._begun = True
            if self._idle:
                return self._idle.pop()
        ours = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
        return ray.remote(_Fits).options(name=f"{run_name(task)}/fit/{next(_numbers)}", **self._options).remote(ours)


def _followed(actor: Any, task: Task, progress: Progress, room: Room, given_up: Event) -> str:
    """Have `actor` train, and tell what the workers say meanwhile."""
    prefix = ""
    training = actor.fit.remote(actor, task, room.shape)
    while True:
        unless_given_up(given_up, task)
        ended = bool(ray.wait([training], timeout=_POLL_SECONDS)[0])
        room.look()
        for what, value in ray.get(actor.told.remote()):
            if what == "error":
                raise value
            if what == "done":
                prefix = value
            else:
                progress.epoch(value)
        if ended:
            ray.get(training)
            return prefix


class _Fits:
    """The actor. It keeps what Ray Train is made of in memory from one round to the next."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ |= environment  # the driver's, read when Ray Train is imported
        self._said: deque[tuple[str, Any]] = deque()
        self._failed: str = ""

    def fit(self, me: Any, task: Task, shape: Shape) -> None:
        """Raises Retryable when a worker was lost too often."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.exceptions import TrainingFailedError

        self._said.clear()
        self._failed = ""
        name = f"{title(task).replace('/', '-')}-{secrets.token_hex(4)}"
        notes = _notes(task.draft.store, name)
        trainer = _trainer_for(task.settings.processes)(
            _loop,
            train_loop_config={"task": task, "said": me, "gpu": bool(shape.gpus)},
            scaling_config=ScalingConfig(
                num_workers=task.settings.processes,
                use_gpu=bool(shape.gpus),
                resources_per_worker={"CPU": shape.cpus},
            ),
            run_config=RunConfig(
                name=name, storage_path=str(notes), failure_config=FailureConfig(max_failures=_FAILURES)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as failed:
            last = (str(failed).strip().splitlines() or [type(failed).__name__])[-1].strip()
            worker = f"; a worker had said: {self._failed}" if self._failed else ""
            raise Retryable(
                f"{task.stage.name}: training was given up after failures of its workers, or of what starts them "
                f"({last}{worker}); run again to go on from its last epoch."
            ) from failed
        finally:
            shutil.rmtree(notes, ignore_errors=True)  # the weights are an artifact of ours

    def hear(self, what: str, value: Any) -> None:
        if what == "failed":
            self._failed = value
        else:
            self._said.append((what, value))

    def told(self) -> list[tuple[str, Any]]:
        """What the workers said since it was asked last."""
        return [self._said.popleft() for _ in range(len(self._said))]


def _trainer_for(processes: int) -> Any:
    """Several are joined by a process group. One alone needs none, and torch's import in Ray Train's controller, some
    seconds each round, is for nothing else."""
    if processes > 1:
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def _loop(config: dict[str, Any]) -> None:
    """Runs in the Train worker. What trying again would not mend is told, not raised."""
    if not config["gpu"]:
        hide_gpus()
    said, task = config["said"], config["task"]
    try:
        job = job_of(task)
        assert isinstance(job, FitJob)
        artifact = job.train(lambda line: ray.get(said.hear.remote("epoch", line)))
    except RayError:  # who started this is gone
        raise
    except Exception as wrong:
        # Of other libraries' errors nobody knows whether they arrive as they were.
        system = isinstance(wrong, OSError) and type(wrong).__module__ == "builtins" and says_enough(wrong)
        known = isinstance(wrong, QuintainError) or system
        # Where several train, one that is lost is an error of whatever kind to the others.
        if isinstance(wrong, Retryable) or of_the_machine(wrong) or (task.settings.processes > 1 and not known):
            ray.get(said.hear.remote("failed", f"{type(wrong).__name__}: {wrong}".strip().splitlines()[0]))
            raise
        told = wrong if known else RuntimeError(f"{task.stage.name} failed in a worker:\n{traceback.format_exc()}")
        ray.get(said.hear.remote("error", told))
        return
    if artifact is not None:
        ray.get(said.hear.remote("done", artifact.prefix))


def _clear(store: Store) -> None:
    if isinstance(store, LocalStore):
        shutil.rmtree(store.root / _NOTES, ignore_errors=True)


def _notes(store: Store, name: str) -> Path:
    """Where Ray Train keeps what it notes, hidden in a run folder. None of it is read again, so for a run in an object
    store it is the temporary folder of whichever node does the noting: Ray's client would leave objects behind."""
    if isinstance(store, LocalStore):
        return store.root / _NOTES / name
    return Path(tempfile.gettempdir()) / f"quintain-{name}"
