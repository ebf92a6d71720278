"""Encoding into the shards of an embeddings artifact: each is on disk before it counts, and is made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from miner.artifacts.elements import add_element_parts, element_names
from miner.artifacts.embeddings import commit_embeddings, npy_bytes, part_name
from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, FileRecord
from miner.artifacts.pairs import Side
from trainer.data import Dataset
from trainer.encode import BATCH_SIZE, encode_elements, encode_rows
from trainer.models import Encoder, PairScorer

__all__ = ["commit_shards", "encode_shard", "encode_shards"]


def encode_shard(
    draft: Draft,
    shard: int,
    rows: tuple[int, int],
    model: Encoder,
    dataset: Dataset,
    side: Side,
    *,
    elements: str | None = None,
    batch_size: int = BATCH_SIZE,
    threads: int = 1,
) -> FileRecord:
    """The vectors of the rows (start, stop) as shard number `shard`, or those of an earlier attempt.

    With `elements`, "float16" or "float32", a cross-attention model's elements are written beside them. Raises as
    `encode_rows`.
    """
    return _encoded(draft, shard, rows, model, dataset, side, elements, batch_size, threads)()


def encode_shards(
    draft: Draft,
    ranges: Sequence[tuple[int, int]],
    model: Encoder,
    dataset: Dataset,
    side: Side,
    *,
    elements: str | None = None,
    batch_size: int = BATCH_SIZE,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda rows, all_rows: None,
) -> list[FileRecord]:
    """All shards as `encode_shard` makes them, each written while the next one is encoded.

    `progress(rows written, all rows)` after every shard. Raises as `encode_rows`.
    """
    written: list[Future[FileRecord]] = []
    with ThreadPoolExecutor(1, "write") as writer:
        for shard, rows in enumerate(ranges):
            write = _encoded(draft, shard, rows, model, dataset, side, elements, batch_size, threads)
            if written:  # no more than one waits with its vectors in memory
                written[-1].result()
                progress(ranges[shard - 1][1], ranges[-1][1])
            written.append(writer.submit(write))
        found = [future.result() for future in written]
        progress(ranges[-1][1], ranges[-1][1])
    return found


def _encoded(
    draft: Draft,
    shard: int,
    rows: tuple[int, int],
    model: Encoder,
    dataset: Dataset,
    side: Side,
    elements: str | None,
    batch_size: int,
    threads: int,
) -> Callable[[], FileRecord]:
    """What writes a shard, whose vectors are there, or tells of an earlier attempt's."""
    done = [draft.find_part(name) for name in _names(shard, elements is not None)]
    first = done[0]
    if first is not None and None not in done:
        return lambda: first
    what = (dataset, side, np.arange(*rows), batch_size, threads)
    if elements is None:
        vectors = encode_rows(model, *what)
        return lambda: draft.add_part(part_name(shard), npy_bytes(vectors), len(vectors))
    pooled, values, lengths = encode_elements(cast(PairScorer, model), *what, dtype=elements)

    def write() -> FileRecord:
        add_element_parts(draft, shard, values, lengths)
        return draft.add_part(part_name(shard), npy_bytes(pooled), len(pooled))

    return write


def commit_shards(
    draft: Draft,
    shards: Sequence[FileRecord],
    ids: Sequence[str],
    side: Side,
    meta: Mapping[str, Any],
    *,
    elements: bool,
) -> Artifact:
    """Commit the shards, which `encode_shard` gave. Raises DamagedArtifact when a file of one is gone since."""
    more = {}
    for name in (name for shard in range(len(shards)) for name in _names(shard, elements)[1:]):
        record = draft.find_part(name)
        if record is None:
            raise DamagedArtifact(f"{draft.prefix}/{name}: gone since it was written; run the same command again.")
        more[name] = record
    first = np.load(draft.store.local(f"{draft.prefix}/{part_name(0)}"), mmap_mode="r", allow_pickle=False)
    return commit_embeddings(draft, side, ids, shards, int(first.shape[1]), meta, more)


def _names(shard: int, elements: bool) -> tuple[str, ...]:
    """Files of a shard, vectors first."""
    return (part_name(shard), *(element_names(shard) if elements else ()))
