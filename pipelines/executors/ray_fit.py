"""One round's fit through Ray Train: a worker may be lost, and all start again from the last finished epoch."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from pathlib import Path
from threading import Event
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from miner.artifacts.errors import BadInput, DamagedArtifact, QuintainError, Retryable
from miner.artifacts.store import LocalStore, Store
from pipelines.executors.ray_actor import Shape, hide_gpus, nodes_up, run_name, title, unless_given_up
from pipelines.jobs import Task, job_of
from pipelines.jobs.fit import FitJob
from pipelines.progress import Progress

__all__ = ["Fits"]

_FAILURES = 2
_POLL_SECONDS = 0.2


class Fits:
    """Trains one round after the other for a driver, whose own process then has no thread that waits for Ray: one that
    still does when the driver lets go of Ray ends it without a word."""

    def __init__(self) -> None:
        # Where the driver is: on another node it would be lost with that.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}
        self._actor: Any = None

    def fit(self, task: Task, progress: Progress, shape: Shape, patience: float | None, given_up: Event) -> str:
        """Train in [fit] `processes` workers that take `shape` of a node each. The prefix of the checkpoint, which the
        first of them commits.

        Raises what was wrong with the user's input as it was raised, Retryable when a worker was lost too often, or
        once the run is `given_up`. Where the nodes have no room for all workers, they may grow for `patience` seconds
        (Retryable after that), or not at all (None: BadInput). Whatever is raised, nothing of it trains any more.
        """
        if patience is None:
            _need_room(task, shape, BadInput, "ask for less, or for more --workers.")
        if self._actor is None:
            ours = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
            self._actor = ray.remote(_Fits).options(name=f"{run_name(task)}/fit", **self._options).remote(ours)
        try:
            return _followed(self._actor, task, progress, shape, patience, given_up)
        except BaseException:
            ray.kill(self._actor)
            self._actor = None
            raise


def _followed(
    actor: Any, task: Task, progress: Progress, shape: Shape, patience: float | None, given_up: Event
) -> str:  # fmt: skip
    """Have `actor` train, and tell what the workers say meanwhile."""
    prefix, heard, began = "", False, time.monotonic()
    training = actor.fit.remote(actor, task, shape)
    while True:
        unless_given_up(given_up, task)
        ended = bool(ray.wait([training], timeout=_POLL_SECONDS)[0])
        if patience is not None and not heard and time.monotonic() - began > patience:
            _need_room(
                task, shape, Retryable, f"none joined within {patience:g} s; add one or ask for less, and run again."
            )
        for what, value in ray.get(actor.told.remote()):
            heard = True
            if what == "error":
                _, error, sentence = value
                raise error(sentence)
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

    def fit(self, me: Any, task: Task, shape: Shape) -> None:
        """Raises Retryable when a worker was lost too often."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.exceptions import TrainingFailedError

        self._said.clear()
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
            raise Retryable(
                f"{task.stage.name}: training failed {_FAILURES + 1} times ({str(failed).splitlines()[0]}); "
                "run again to go on from its last epoch."
            ) from failed
        finally:
            shutil.rmtree(notes, ignore_errors=True)  # the weights are an artifact of ours

    def hear(self, what: str, value: Any) -> None:
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
    """Runs in the Train worker. An error of the user's making is told, not raised: trying again would not mend it."""
    if not config["gpu"]:
        hide_gpus()
    said = config["said"]
    job = job_of(config["task"])
    assert isinstance(job, FitJob)
    try:
        artifact = job.train(lambda line: ray.get(said.hear.remote("epoch", line)))
    except (BadInput, DamagedArtifact) as wrong:
        ray.get(said.hear.remote("error", (wrong.exit_code, type(wrong), str(wrong))))
        return
    if artifact is not None:
        ray.get(said.hear.remote("done", artifact.prefix))


def _need_room(task: Task, shape: Shape, error: type[QuintainError], hint: str) -> None:
    """Raises where the nodes, were they idle, could not hold all of a training's workers."""
    room, processes = shape.room(nodes_up()), task.settings.processes
    if room < processes:
        raise error(
            f"{task.stage.name}: [fit] processes = {processes}, of which each takes {shape}, but the nodes have room "
            f"for {room}; {hint}"
        )


def _notes(store: Store, name: str) -> Path:
    """Where Ray Train keeps what it notes, hidden in a run folder. None of it is read again, so for a run in an object
    store it is the temporary folder of whichever node does the noting: Ray's client would leave objects behind."""
    if isinstance(store, LocalStore):
        return store.root / ".ray-train" / name
    return Path(tempfile.gettempdir()) / f"quintain-{name}"
