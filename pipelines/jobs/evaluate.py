"""Rank the dev and test galleries with a checkpoint."""

from __future__ import annotations

from miner.artifacts.manifest import Artifact, FileRecord, canonical_json
from pipelines.jobs import Task

__all__ = ["EvaluateJob"]


class EvaluateJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("an evaluation is done in one piece")

    def finish(self) -> Artifact:
        from trainer.checkpoint import Checkpoint
        from trainer.encode import default_device
        from trainer.evaluate import metrics_of, scores_of

        model = Checkpoint.open(self.task.parent("checkpoint")).model(default_device())
        found = {}
        for split in ("dev", "test"):
            dataset = self.task.dataset(split)
            found[split] = metrics_of(scores_of(model, dataset), dataset.pairs)
        record = self.task.draft.add("metrics.json", canonical_json(found))
        return self.task.draft.commit({"metrics.json": record}, {"metrics": found})
