"""Retrieval metrics over a gallery of all images and all texts, block by block.

The rank of an anchor is that of its best positive among everything that is not a positive of it. Ties count against the
model: a negative that scores as high, up to rounding, is ahead. So a collapsed model, whose scores are all the same,
ranks last everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.artifacts.embeddings import check_vectors
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, sides

__all__ = ["METRICS", "metrics", "ranks"]

CUTOFFS = (1, 5, 10)
METRICS = tuple(
    [f"{direction}_r{cutoff}" for direction in ("i2t", "t2i") for cutoff in CUTOFFS]
    + ["rsum"]
    + [f"{direction}_{what}_rank" for direction in ("i2t", "t2i") for what in ("median", "mean")]
)
# A float32 dot product of unit vectors is off by about 1e-7; scores nearer to each other than this are one score.
TIE = 1e-6
Vectors = npt.NDArray[np.float32]


def ranks(
    images: Vectors, texts: Vectors, pairs: Pairs, direction: Direction, block: int = 512
) -> npt.NDArray[np.int64]:
    """(anchors,) rank of every anchor's best positive, from 1. `images` (images, dim), `texts` (texts, dim) float32."""
    anchor_side, _ = sides(direction)
    anchors, gallery = (images, texts) if direction == "i2t" else (texts, images)
    offsets, positives = pairs.positives(anchor_side)
    scale = float(np.linalg.norm(anchors, axis=1).max() * np.linalg.norm(gallery, axis=1).max())
    found = np.empty(len(anchors), dtype=np.int64)
    for start in range(0, len(anchors), block):
        stop = min(start + block, len(anchors))
        scores = anchors[start:stop] @ gallery.T
        own = positives[offsets[start] : offsets[stop]]
        row = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
        own_scores = scores[row, own]
        best = np.full(stop - start, -np.inf, dtype=np.float32)
        np.maximum.at(best, row, own_scores)
        scores[row, own] = -np.inf
        found[start:stop] = (scores >= best[:, None] - TIE * scale).sum(1) + 1
    return found


def metrics(image_embeddings: Vectors, text_embeddings: Vectors, pairs: Pairs) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank of both directions, and rsum, the six recalls' sum.

    Captions per image and images per caption may differ. Raises BadInput for shapes that do not fit or NaN.
    """
    for name, vectors, ids in (
        ("image embeddings", image_embeddings, pairs.image_ids),
        ("text embeddings", text_embeddings, pairs.text_ids),
    ):
        if len(vectors) != len(ids):
            raise BadInput(f"{name}: {len(vectors)} rows for {len(ids)} ids of {pairs.name}; encode this very split.")
        check_vectors(vectors, name, ids)
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise BadInput(
            f"image embeddings have dim {image_embeddings.shape[1]}, text embeddings "
            f"{text_embeddings.shape[1]}; both must come from one model."
        )
    images = np.ascontiguousarray(image_embeddings, dtype=np.float32)
    texts = np.ascontiguousarray(text_embeddings, dtype=np.float32)
    found: dict[str, float] = {}
    both: tuple[Direction, Direction] = ("i2t", "t2i")
    for direction in both:
        at = ranks(images, texts, pairs, direction)
        found |= {f"{direction}_r{cutoff}": 100 * float((at <= cutoff).mean()) for cutoff in CUTOFFS}
        found |= {f"{direction}_median_rank": float(np.median(at)), f"{direction}_mean_rank": float(at.mean())}
    found["rsum"] = sum(found[name] for name in METRICS[:6])
    return {name: found[name] for name in METRICS}
