"""Encode one side of the training set with a checkpoint, shard by shard."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from miner.artifacts.elements import add_element_parts, element_names
from miner.artifacts.embeddings import commit_embeddings, npy_bytes, part_name, shard_ranges
from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.store import Store
from pipelines.jobs import Task, artifact_at

__all__ = ["EncodeJob", "model_at"]


class EncodeJob:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.side = task.stage.parameters["side"]
        self.ids = task.pairs().ids(self.side)
        self.ranges = shard_ranges(len(self.ids), task.settings.encode.shard_rows)

    def part(self, index: int) -> FileRecord:
        from trainer.encode import encode_elements, encode_rows

        done = [self.task.draft.find_part(name) for name in self._names(index)]
        if done[0] is not None and None not in done:
            return done[0]
        start, stop = self.ranges[index]
        settings = self.task.settings.encode
        model = model_at(self.task.draft.store, self.task.prefix("checkpoint"))
        what = (model, self.task.dataset("train"), self.side, np.arange(start, stop), settings.batch_size)
        if self.task.settings.two_stage:
            vectors, values, lengths = encode_elements(*what, dtype=settings.element_dtype)
            add_element_parts(self.task.draft, index, values, lengths)
        else:
            vectors = encode_rows(*what)
        return self.task.draft.add_part(part_name(index), npy_bytes(vectors), stop - start)

    def _names(self, index: int) -> tuple[str, ...]:
        """The files of a shard, vectors first."""
        return (part_name(index), *(element_names(index) if self.task.settings.two_stage else ()))

    def finish(self) -> Artifact:
        parts = [self.part(index) for index in range(len(self.ranges))]
        dim = int(
            np.load(self.task.draft.store.local(f"{self.task.draft.prefix}/{part_name(0)}"), mmap_mode="r").shape[1]
        )
        meta = {
            "pairs": self.task.pairs().fingerprint,
            "checkpoint": self.task.parent("checkpoint").manifest.fingerprint,
        }
        more = {}
        for name in (name for index in range(len(self.ranges)) for name in self._names(index)[1:]):
            record = self.task.draft.find_part(name)
            if record is None:
                raise DamagedArtifact(f"{self.task.draft.prefix}/{name}: gone; run the same command again.")
            more[name] = record
        return commit_embeddings(self.task.draft, self.side, self.ids, parts, dim, meta, more)


@lru_cache(maxsize=1)
def model_at(store: Store, prefix: str) -> Any:
    """The model of a checkpoint, opened once per process."""
    from trainer.checkpoint import Checkpoint
    from trainer.encode import default_device

    return Checkpoint.open(artifact_at(store, prefix)).model(default_device())
