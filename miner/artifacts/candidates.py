"""Candidates: what a search found for every anchor of one direction, before any rule, to choose negatives from again.

    candidates.npy        int32 (anchors, num_candidates), nearest first: positions in the gallery's id order, -1 beyond
                          what exists
    scores.npy            float32, the same shape; nan where there is no candidate
    lowest_positive.npy   float32 (anchors,), the lowest similarity of the anchor to one of its own positives; nan where
                          it has none (i2i, t2t)

Anchors are in id order. An anchor's own positives are never among its candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact, Draft, FileRecord, open_artifact
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Within, sides

__all__ = ["CANDIDATES", "Candidates", "write_candidates"]

CANDIDATES = "candidates"
_NAMES = ("candidates.npy", "scores.npy", "lowest_positive.npy")


def write_candidates(
    draft: Draft,
    blocks: Iterable[NegativeBlock],
    pairs: Pairs,
    direction: Direction | Within,
    num_candidates: int,
    provenance: Mapping[str, Any],
) -> Iterator[NegativeBlock]:
    """Pass the blocks on, and commit them as an artifact after the last: memory is bounded by a block.

    `blocks` cover every anchor once, in id order, `num_candidates` wide. Raises BadInput when they do not, and for a
    candidate whose score is not a finite number.
    """
    anchors, gallery = sides(direction)
    order = pairs.order(anchors)
    place = pairs.places(gallery)
    shapes = [(len(order), num_candidates), (len(order), num_candidates), (len(order),)]
    sources = [draft.scratch() for _ in _NAMES]
    done = 0
    try:
        with open(sources[0], "wb") as rows, open(sources[1], "wb") as scores, open(sources[2], "wb") as lowest:
            for file, shape, kind in zip((rows, scores, lowest), shapes, ("<i4", "<f4", "<f4"), strict=True):
                _begin(file, shape, kind)
            for block in blocks:
                expected = order[done : done + len(block)]
                if block.negatives.shape[1] != num_candidates or not np.array_equal(block.anchor_rows, expected):
                    raise BadInput(
                        f"candidates: the blocks must cover every {anchors} once, in id order, {num_candidates} wide; "
                        f"they do not from anchor {done} on."
                    )
                if not np.isfinite(block.scores[block.negatives >= 0]).all():
                    raise BadInput(
                        f"candidates: a score from {anchors} {done} on is not a finite number; search again."
                    )
                done += len(block)
                found = np.where(block.negatives >= 0, place[block.negatives], -1)
                rows.write(found.astype("<i4").tobytes())
                scores.write(block.scores.astype("<f4").tobytes())
                lowest.write(block.lowest_positive.astype("<f4").tobytes())
                yield block
        if done != len(order):
            raise BadInput(f"candidates: {done} of {len(order)} anchors were given; give every one once.")
        files: dict[str, FileRecord] = {
            name: draft.adopt(name, source, len(order)) for name, source in zip(_NAMES, sources, strict=True)
        }
    finally:
        for source in sources:
            source.unlink(missing_ok=True)
    meta = {
        "direction": direction,
        "num_candidates": num_candidates,
        "pairs": pairs.unordered_fingerprint,
        "provenance": dict(provenance),
    }
    draft.commit(files, meta)


@dataclass(frozen=True)
class Candidates:
    """The artifact, memory-mapped; see the module. `order` (anchors,) and `gallery_order` give rows of the Pairs it was
    opened with by position in id order."""

    direction: Direction | Within
    num_candidates: int
    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    lowest_positive: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]
    gallery_order: npt.NDArray[np.int64]
    provenance: dict[str, Any]
    fingerprint: str

    @classmethod
    def open(cls, source: Artifact | Path, pairs: Pairs) -> Candidates:
        """Open and verify. Raises BadInput when they were searched for other pairs, DamagedArtifact."""
        artifact = open_artifact(source, CANDIDATES) if isinstance(source, Path) else source
        if artifact.manifest.kind != CANDIDATES:
            raise BadInput(f"{artifact.where}: this is a {artifact.manifest.kind!r} artifact, not candidates.")
        meta = artifact.manifest.meta
        if meta["pairs"] != pairs.unordered_fingerprint:
            raise BadInput(
                f"{artifact.where}: these candidates were searched for other pairs (fingerprint {meta['pairs'][:12]}) "
                f"than {pairs.name} (fingerprint {pairs.unordered_fingerprint[:12]}); search again for these."
            )
        anchors, gallery = sides(meta["direction"])
        found, scores, lowest = (np.load(artifact.path(name), mmap_mode="r", allow_pickle=False) for name in _NAMES)
        return cls(
            meta["direction"],
            int(meta["num_candidates"]),
            found,
            scores,
            lowest,
            pairs.order(anchors),
            pairs.order(gallery),
            meta["provenance"],
            artifact.manifest.fingerprint,
        )

    def __len__(self) -> int:
        return len(self.order)

    def block(self, start: int, stop: int) -> NegativeBlock:
        """The anchors at these positions in id order, as rows of the Pairs."""
        return self.at(slice(start, stop))

    def at(self, places: slice | npt.NDArray[np.int64]) -> NegativeBlock:
        """The same of any positions."""
        positions = np.asarray(self.positions[places])
        rows = np.where(positions >= 0, self.gallery_order[positions], -1).astype(np.int32)
        scores, lowest = np.array(self.scores[places]), np.array(self.lowest_positive[places])
        return NegativeBlock(self.order[places], rows, scores, lowest)

    def blocks(self, step: int = 4096) -> Iterator[NegativeBlock]:
        """All of them, `step` anchors at a time."""
        for start in range(0, len(self), step):
            yield self.block(start, min(start + step, len(self)))


def _begin(file: BinaryIO, shape: tuple[int, ...], kind: str) -> None:
    """The header of a `.npy` file whose rows are written after it."""
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
