"""Everything in this process: for tests, for debugging, for a machine where a cluster is not worth its start."""

from __future__ import annotations

from miner.artifacts.manifest import Artifact
from pipelines.jobs import Task, job_of
from pipelines.jobs.fit import FitJob
from pipelines.progress import Progress

__all__ = ["InlineExecutor"]


class InlineExecutor:
    parallel = branches = 1

    def gpus_of(self, task: Task) -> int:
        return 1

    def execute(self, task: Task, progress: Progress) -> Artifact:
        job = job_of(task)
        if isinstance(job, FitJob):
            return job.finish(progress.epoch)
        if task.stage.unit == "shard":
            for index in range(task.stage.parts):
                job.part(index)
                progress.advance(index + 1)
        return job.finish()

    def rest(self) -> None:
        pass

    def give_up(self) -> None:
        pass

    def close(self) -> None:
        pass
