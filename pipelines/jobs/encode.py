"""Encode one side of the training set with a checkpoint, shard by shard."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from miner.artifacts.embeddings import shard_ranges
from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.store import Store
from pipelines.jobs import Task, artifact_at, named_rows

__all__ = ["EncodeJob", "model_at"]


class EncodeJob:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.side = task.stage.parameters["side"]
        self.ids = task.pairs().ids(self.side)
        self.ranges = shard_ranges(len(self.ids), task.settings.encode.shard_rows)

    def part(self, index: int) -> FileRecord:
        from trainer.shards import encode_shard

        settings = self.task.settings.encode
        return encode_shard(
            self.task.draft,
            index,
            self.ranges[index],
            model_at(self.task.draft.store, self.task.prefix("checkpoint")),
            self.task.dataset("train"),
            self.side,
            elements=settings.element_dtype if self.task.settings.two_stage else None,
            batch_size=settings.batch_size,
        )

    def where(self, index: int) -> str:
        start, stop = self.ranges[index]
        return named_rows(f"{self.side} rows", (start, stop), (self.ids[start], self.ids[stop - 1]))

    def finish(self) -> Artifact:
        from trainer.shards import commit_shards

        shards = [self.part(index) for index in range(len(self.ranges))]
        meta = {
            "pairs": self.task.pairs().fingerprint,
            "checkpoint": self.task.parent("checkpoint").manifest.fingerprint,
        }
        elements = self.task.settings.two_stage
        return commit_shards(self.task.draft, shards, self.ids, self.side, meta, elements=elements)


@lru_cache(maxsize=1)
def model_at(store: Store, prefix: str) -> Any:
    """The model of a checkpoint, opened once per process."""
    from trainer.checkpoint import Checkpoint
    from trainer.encode import default_device

    return Checkpoint.open(artifact_at(store, prefix)).model(default_device())
