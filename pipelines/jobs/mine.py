"""Search one direction, shard of anchors by shard, and write the negative table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from miner.artifacts.embeddings import Embeddings, shard_ranges
from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.negatives import NegativeBlock, write_negatives
from miner.artifacts.pairs import Direction, sides
from miner.artifacts.store import Store
from pipelines.jobs import Task, artifact_at

__all__ = ["MineJob"]


class MineJob:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.direction: Direction = task.stage.parameters["direction"]
        self.anchor, self.gallery = sides(self.direction)
        self.pairs = task.pairs()
        self.order = self.pairs.order(self.anchor)
        self.ranges = shard_ranges(len(self.order), task.settings.mine.shard_anchors)

    def part(self, index: int) -> FileRecord:
        from miner.mine import mine_block

        name = _part_name(index)
        done = self.task.draft.find_part(name)
        if done is not None:
            return done
        start, stop = self.ranges[index]
        store, rows = self.task.draft.store, self.order[start:stop]
        block = mine_block(
            _vectors(store, self.task.prefix(self.anchor))[rows],
            _index(store, self.task.prefix("index")),
            _vectors(store, self.task.prefix(self.gallery)),
            self.pairs,
            self.direction,
            self.task.settings.mine.k,
            rows,
        )
        return self.task.draft.add_part(name, _pack(block), stop - start)

    def finish(self) -> Artifact:
        for index in range(len(self.ranges)):
            self.part(index)
        artifact = write_negatives(
            self.task.draft, self._blocks(), self.pairs, self.direction, self.task.settings.mine.k, self._provenance()
        )
        for index in range(len(self.ranges)):
            self.task.draft.drop_part(_part_name(index), keep_file=False)
        return artifact

    def _blocks(self) -> Iterator[NegativeBlock]:
        for index in range(len(self.ranges)):
            yield _unpack(self.task.draft.read_part(_part_name(index)))

    def _provenance(self) -> dict[str, Any]:
        checkpoint = self.task.parent(self.anchor).manifest.meta["checkpoint"]
        return {
            "round": self.task.stage.round,
            "metric": "ip",
            "index": self.task.parent("index").manifest.meta["kind"],
            "checkpoint": checkpoint,
        }


def _part_name(index: int) -> str:
    return f"anchors-{index:05d}.npz"


def _pack(block: NegativeBlock) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        anchor_rows=block.anchor_rows,
        negatives=block.negatives,
        scores=block.scores,
        lowest_positive=block.lowest_positive,
        reason_rows=np.array(list(block.reasons), dtype=np.int64),
        reasons=np.array(list(block.reasons.values()), dtype=np.str_),
    )
    return buffer.getvalue()


def _unpack(data: bytes) -> NegativeBlock:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        reasons = zip(arrays["reason_rows"].tolist(), arrays["reasons"].tolist(), strict=True)
        names = ("anchor_rows", "negatives", "scores", "lowest_positive")
        return NegativeBlock(**{name: arrays[name] for name in names}, reasons=dict(reasons))


@lru_cache(maxsize=2)
def _vectors(store: Store, prefix: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return Embeddings.open(artifact_at(store, prefix)).array()


@lru_cache(maxsize=1)
def _index(store: Store, prefix: str) -> Any:
    from miner.index import load

    return load(artifact_at(store, prefix))
