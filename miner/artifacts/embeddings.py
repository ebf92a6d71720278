"""Embeddings: one side's vectors in fixed shards of `.npy`, with their ids.

    part-00000.npy ...   float32 or float16, (shard_rows, dim); the last one may be shorter
    ids.parquet          one column `id`, by row

The shards depend on the number of rows and on `shard_rows` alone, never on how many workers wrote them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import Artifact, Draft, FileRecord, check_kind
from miner.artifacts.pairs import Side
from miner.artifacts.parquet import open_parquet

__all__ = ["EMBEDDINGS", "Embeddings", "check_vectors", "commit_embeddings", "npy_bytes", "part_name", "shard_ranges"]

EMBEDDINGS = "embeddings"
Vectors = npt.NDArray[np.floating[Any]]


def shard_ranges(num_rows: int, shard_rows: int) -> list[tuple[int, int]]:
    """[(start, stop), ...] covering `num_rows` in shards of `shard_rows`."""
    return [(start, min(start + shard_rows, num_rows)) for start in range(0, num_rows, shard_rows)]


def part_name(index: int) -> str:
    return f"part-{index:05d}.npy"


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """`array` as the bytes of a `.npy` file, without pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def check_vectors(vectors: npt.NDArray[Any], name: str, ids: Sequence[str] | None = None, block: int = 65536) -> None:
    """Raise BadInput unless `vectors` is a (rows, dim) float16/32/64 array without NaN, infinity or a zero vector."""
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise BadInput(f"{name}: shape {vectors.shape}; vectors must be (rows, dim) with dim at least 1.")
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        raise BadInput(
            f"{name}: dtype {vectors.dtype}; vectors must be float16, float32 or float64, the lowest byte first, as "
            "`vectors.astype('<f4')` makes them."
        )
    if len(vectors) == 0:
        raise BadInput(f"{name}: no vector at all; an empty set cannot be searched.")
    for start in range(0, len(vectors), block):
        chunk = np.asarray(vectors[start : start + block])
        for bad, what in ((~np.isfinite(chunk).all(1), "NaN or infinity"), (~chunk.any(1), "only zeros")):
            if bad.any():
                row = start + int(np.argmax(bad))
                label = f"row {row}" + (f" (id {ids[row]!r})" if ids is not None else "")
                raise BadInput(
                    f"{name}: {label} holds {what}; a similarity with it means nothing. "
                    "Fix the encoder or leave the item out."
                )


def commit_embeddings(
    draft: Draft,
    side: Side,
    ids: Sequence[str],
    parts: Sequence[FileRecord],
    dim: int,
    meta: Mapping[str, Any],
    more: Mapping[str, FileRecord] | None = None,
) -> Artifact:
    """Write the ids, then the manifest, of shards already in place; `more` are other files in place, by name.

    Raises BadInput on a row count that is off.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if sum(part.rows for part in parts) != len(ids):
        raise BadInput(f"{draft.prefix}: {sum(p.rows for p in parts)} vectors, {len(ids)} {side} ids; give one each.")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": Ids(ids).arrow}), buffer, compression="zstd")
    files = {part_name(index): record for index, record in enumerate(parts)} | dict(more or {})
    files["ids.parquet"] = draft.add("ids.parquet", buffer.getvalue(), len(ids))
    artifact = draft.commit(files, {**meta, "side": side, "rows": len(ids), "dim": dim})
    for name in files:
        draft.drop_part(name, keep_file=True)
    return artifact


@dataclass(frozen=True)
class Embeddings:
    """Vectors of one side, memory-mapped: `parts` stacked are (rows, dim), `ids` names the rows.

    `checkpoint` is the fingerprint of the model that made them, where that is known.
    """

    side: Side
    ids: Ids
    parts: tuple[Vectors, ...]
    fingerprint: str
    checkpoint: str | None = None

    @classmethod
    def open(cls, artifact: Artifact) -> Embeddings:
        """Open and verify. Raises DamagedArtifact; BadInput when the artifact is of another kind."""
        manifest = artifact.manifest
        check_kind(artifact, EMBEDDINGS)
        ids = Ids(open_parquet(artifact, "ids.parquet").read()["id"])
        names = sorted(name for name in manifest.files if name.startswith("part-"))
        parts = tuple(np.load(artifact.path(name), mmap_mode="r", allow_pickle=False) for name in names)
        if sum(len(part) for part in parts) != len(ids):
            raise DamagedArtifact(f"{artifact.where}: {sum(map(len, parts))} vectors for {len(ids)} ids.")
        return cls(manifest.meta["side"], ids, parts, manifest.fingerprint, manifest.meta.get("checkpoint"))

    @property
    def dim(self) -> int:
        return int(self.parts[0].shape[1])

    def array(self) -> npt.NDArray[np.float32]:
        """All vectors as one contiguous float32 (rows, dim) array in memory."""
        return np.concatenate([np.asarray(part, dtype=np.float32) for part in self.parts])
