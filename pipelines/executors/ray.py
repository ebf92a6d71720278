"""Stages on a Ray cluster: parts as tasks, fit through Ray Train. The one module that imports ray.

Ray moves names, not data: a task gets a few strings, writes its part to the run's store and returns the part's record.
A run folder must therefore be visible under the same path on every node. An object store is read and written by the
workers themselves, with the credentials of the cluster's own environment: none is sent to it. A local cluster that is
started here inherits this process's.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Empty, Queue

from miner.artifacts.errors import BadInput, DamagedArtifact, QuintainError, Retryable
from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.store import LocalStore, Store
from pipelines.jobs import Task, artifact_at, job_of
from pipelines.jobs.fit import FitJob
from pipelines.progress import Progress
from pipelines.settings import ExecutorConfig
from pipelines.stages import Stage

__all__ = ["RayExecutor"]

_RETRIES = 3  # of a task whose process died; an error of the task itself is raised at once
_FIT_FAILURES = 2
_POLL_SECONDS = 0.2


class RayExecutor:
    """Joins the cluster at `config.address` or starts a local one. Raises Retryable when neither comes up.

    With `many` small trainings at once a fit is a plain task: Ray Train starts a controller and a process for each of
    them, which takes longer than they do.
    """

    def __init__(self, config: ExecutorConfig, progress: Progress, *, many: bool = False) -> None:
        self.many = many
        self.workers = config.workers or len(os.sched_getaffinity(0))
        local = f"starting a local cluster with {self.workers} workers"
        progress.say("ray: " + (f"joining {config.address}" if config.address else local))
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
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
        self.gpus = _resource("GPU") > 0
        self.parallel = max(int(_resource("GPU")), 1) if self.gpus else self.workers

    def gpus_of(self, stage: Stage) -> int:
        return min(max(int(_resource("GPU")), 1), stage.parts) if stage.unit == "shard" else 1

    def execute(self, task: Task, progress: Progress) -> Artifact:
        try:
            if task.stage.work == "fit":
                return self._fit_as_task(task, progress) if self.many else self._fit(task, progress)
            if task.stage.unit == "shard":
                for done, _ in enumerate(self._parts(task), start=1):
                    progress.advance(done)
            finish = _finish.options(name=task.stage.name, max_retries=_RETRIES, num_cpus=1, num_gpus=self._gpus(task))
            return artifact_at(task.draft.store, str(ray.get(finish.remote(task))))
        except RayTaskError as failed:
            raise _cause(failed, task) from failed
        except RayError as failed:
            lost = _first_line(failed)
            raise Retryable(f"{task.stage.name}: Ray lost the work ({lost}); run the same command again.") from failed

    def close(self) -> None:
        ray.shutdown()

    def _gpus(self, task: Task) -> int:
        """Encode runs the model on a GPU where the cluster has one, and faiss searches there."""
        return 1 if self.gpus and task.stage.work in ("encode", "index", "tune", "mine", "evaluate", "analyze") else 0

    def _parts(self, task: Task) -> Iterator[FileRecord]:
        """Records of all parts, as they finish; a few more are submitted than there are workers."""
        gpu = self._gpus(task)
        part = _part.options(name=task.stage.name, max_retries=_RETRIES, num_cpus=1, num_gpus=gpu)
        waiting = list(range(task.stage.parts))[::-1]
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < 2 * self.workers:
                running.append(part.remote(task, waiting.pop()))
            finished, running = ray.wait(running)
            yield from ray.get(finished)

    def _fit_as_task(self, task: Task, progress: Progress) -> Artifact:
        """A retry after a lost process goes on from the last epoch; epochs are told when the task is over."""
        cpus = min(task.settings.threads, self.workers)
        gpus = 1 if self.gpus else 0
        fit = _fit_task.options(name=task.stage.name, max_retries=_RETRIES, num_cpus=cpus, num_gpus=gpus)
        prefix, lines = ray.get(fit.remote(task))
        for line in lines:
            progress.epoch(line)
        return artifact_at(task.draft.store, str(prefix))

    def _fit(self, task: Task, progress: Progress) -> Artifact:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        cpus = min(task.settings.threads, self.workers)
        name = f"r{task.stage.round}-fit-{secrets.token_hex(4)}"
        notes = _notes(task.draft.store, name)
        said = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _fit_loop,
            train_loop_config={"task": task, "said": said},
            scaling_config=ScalingConfig(num_workers=1, use_gpu=self.gpus, resources_per_worker={"CPU": cpus}),
            run_config=RunConfig(
                name=name,
                storage_path=str(notes),
                failure_config=FailureConfig(max_failures=_FIT_FAILURES),
            ),
        )
        prefix = ""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(trainer.fit)
            while True:
                ended = running.done()
                for what, value in _drain(said):
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
                f"{task.stage.name}: training failed {_FIT_FAILURES + 1} times ({_first_line(failed)}); "
                "run again to go on from its last epoch."
            ) from failed
        return artifact_at(task.draft.store, prefix)


@ray.remote
def _part(task: Task, index: int) -> FileRecord:
    return job_of(task).part(index)


@ray.remote
def _finish(task: Task) -> str:
    return job_of(task).finish().prefix


@ray.remote
def _fit_task(task: Task) -> tuple[str, list[dict[str, Any]]]:
    job = job_of(task)
    assert isinstance(job, FitJob)
    lines: list[dict[str, Any]] = []
    return job.finish(lines.append).prefix, lines


def _fit_loop(config: dict[str, Any]) -> None:
    """Runs in the Train worker. An error of the user's making is told, not raised: trying again would not mend it."""
    said: Queue = config["said"]
    job = job_of(config["task"])
    assert isinstance(job, FitJob)
    try:
        artifact = job.finish(lambda line: said.put(("epoch", line)))
    except (BadInput, DamagedArtifact) as wrong:
        said.put(("error", (wrong.exit_code, type(wrong), str(wrong))))
        return
    said.put(("done", artifact.prefix))


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cause(failed: RayTaskError, task: Task) -> Exception:
    cause = failed.cause
    if isinstance(cause, QuintainError | OSError):
        return cause
    return RuntimeError(f"{task.stage.name} failed in a worker:\n{failed}")


def _resource(name: str) -> float:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found.get(name, 0)
