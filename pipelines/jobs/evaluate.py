"""Rank the dev and test galleries with a checkpoint."""

from __future__ import annotations

from typing import get_args

import numpy as np

from miner.artifacts.manifest import Artifact, FileRecord, canonical_json
from miner.artifacts.pairs import Side
from pipelines.jobs import Task

__all__ = ["EvaluateJob"]


class EvaluateJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("an evaluation is done in one piece")

    def finish(self) -> Artifact:
        from trainer.checkpoint import Checkpoint
        from trainer.encode import default_device, encode_rows
        from trainer.evaluate import metrics

        model = Checkpoint.open(self.task.parent("checkpoint")).model(default_device())
        found = {}
        for split in ("dev", "test"):
            dataset = self.task.dataset(split)
            images, texts = (
                encode_rows(model, dataset, side, np.arange(len(dataset.pairs.ids(side)))) for side in get_args(Side)
            )
            found[split] = metrics(images, texts, dataset.pairs)
        record = self.task.draft.add("metrics.json", canonical_json(found))
        return self.task.draft.commit({"metrics.json": record}, {"metrics": found})
