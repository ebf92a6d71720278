"""One round's fit through Ray Train: a worker may be lost, and all start again from the last finished epoch."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from miner.artifacts.errors import BadInput, DamagedArtifact, QuintainError, Retryable
from miner.artifacts.store import LocalStore, Store
from pipelines.executors.ray_actor import Shape, hide_gpus, nodes_up, title, unless_given_up
from pipelines.jobs import Task, job_of
from pipelines.jobs.fit import FitJob
from pipelines.progress import Progress

__all__ = ["fit"]

_FAILURES = 2
_POLL_SECONDS = 0.2


def fit(task: Task, progress: Progress, shape: Shape, patience: float | None, given_up: Event) -> str:
    """Train in [fit] `processes` workers that take `shape` of a node each. The prefix of the checkpoint, which the
    first of them commits.

    Raises what was wrong with the user's input as it was raised, Retryable when a worker was lost too often, or once
    the run is `given_up`. Where the nodes have no room for all workers, they may grow for `patience` seconds (Retryable
    after that), or not at all (None: BadInput).
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    name = f"{title(task).replace('/', '-')}-{secrets.token_hex(4)}"
    notes = _notes(task.draft.store, name)
    processes = task.settings.processes
    if patience is None:
        _need_room(task, shape, BadInput, "ask for less, or for more --workers.")
    # Where the driver is: on another node it would be lost with that.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    said = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here, "name": f"{title(task)}/said"})
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"task": task, "said": said, "gpu": bool(shape.gpus)},
        scaling_config=ScalingConfig(
            num_workers=processes, use_gpu=bool(shape.gpus), resources_per_worker={"CPU": shape.cpus}
        ),
        run_config=RunConfig(
            name=name, storage_path=str(notes), failure_config=FailureConfig(max_failures=_FAILURES)
        ),
    )  # fmt: skip
    prefix, running = "", _Running(trainer.fit)
    began, heard = time.monotonic(), False
    while True:
        unless_given_up(given_up, task)
        ended = not running.is_alive()
        if patience is not None and not heard and time.monotonic() - began > patience:
            _need_room(
                task, shape, Retryable, f"none joined within {patience:g} s; add one or ask for less, and run again."
            )
        for what, value in _drain(said):
            heard = True
            if what == "error":
                _, error, sentence = value
                raise error(sentence)
            if what == "done":
                prefix = value
            else:
                progress.epoch(value)
        if ended:
            break
    said.shutdown()
    shutil.rmtree(notes, ignore_errors=True)  # the weights are an artifact of ours
    try:
        running.result()
    except TrainingFailedError as failed:
        raise Retryable(
            f"{task.stage.name}: training failed {_FAILURES + 1} times ({str(failed).splitlines()[0]}); "
            "run again to go on from its last epoch."
        ) from failed
    return prefix


class _Running(Thread):
    """What takes long and cannot be broken off, in a thread that keeps no process alive when nobody waits any more."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(name="fit", daemon=True)
        self._work = work
        self._failed: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except Exception as failed:  # whatever it is, it is for who waits
            self._failed = failed

    def result(self) -> None:
        if self._failed is not None:
            raise self._failed


def _loop(config: dict[str, Any]) -> None:
    """Runs in the Train worker. An error of the user's making is told, not raised: trying again would not mend it."""
    if not config["gpu"]:
        hide_gpus()
    said: Queue = config["said"]
    job = job_of(config["task"])
    assert isinstance(job, FitJob)
    try:
        artifact = job.train(lambda line: said.put(("epoch", line)))
    except (BadInput, DamagedArtifact) as wrong:
        said.put(("error", (wrong.exit_code, type(wrong), str(wrong))))
        return
    if artifact is not None:
        said.put(("done", artifact.prefix))


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


def _drain(said: Queue) -> Iterator[tuple[str, Any]]:
    """What the worker has said by now; waits a moment for the first of it."""
    try:
        yield said.get(timeout=_POLL_SECONDS)
        while True:
            yield said.get(block=False)
    except Empty:
        return
