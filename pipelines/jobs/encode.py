"""Encode one side of the training set with a checkpoint, shard by shard."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from miner.artifacts.embeddings import check_vectors, commit_embeddings, npy_bytes, part_name, shard_ranges
from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.store import Store
from pipelines.jobs import Task, artifact_at

__all__ = ["EncodeJob"]


class EncodeJob:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.side = task.stage.parameters["side"]
        self.ids = task.pairs().ids(self.side)
        self.ranges = shard_ranges(len(self.ids), task.settings.encode.shard_rows)

    def part(self, index: int) -> FileRecord:
        from trainer.encode import encode_rows

        name = part_name(index)
        done = self.task.draft.find_part(name)
        if done is not None:
            return done
        start, stop = self.ranges[index]
        vectors = encode_rows(
            _model(self.task.draft.store, self.task.prefix("checkpoint")),
            self.task.dataset("train"),
            self.side,
            np.arange(start, stop),
            batch_size=self.task.settings.encode.batch_size,
        )
        check_vectors(vectors, f"round {self.task.stage.round}, {self.side} embeddings", self.ids[start:stop])
        return self.task.draft.add_part(name, npy_bytes(vectors), stop - start)

    def finish(self) -> Artifact:
        parts = [self.part(index) for index in range(len(self.ranges))]
        dim = int(
            np.load(self.task.draft.store.local(f"{self.task.draft.prefix}/{part_name(0)}"), mmap_mode="r").shape[1]
        )
        meta = {
            "pairs": self.task.pairs().fingerprint,
            "checkpoint": self.task.parent("checkpoint").manifest.fingerprint,
        }
        return commit_embeddings(self.task.draft, self.side, self.ids, parts, dim, meta)


@lru_cache(maxsize=1)
def _model(store: Store, prefix: str) -> Any:
    """The model of a checkpoint, opened once per process."""
    from trainer.checkpoint import Checkpoint
    from trainer.encode import default_device

    return Checkpoint.open(artifact_at(store, prefix)).model(default_device())
