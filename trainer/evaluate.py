"""Retrieval metrics over a gallery of all images and all texts, block by block.

The rank of an anchor is that of its best positive among everything that is not a positive of it. Ties count against the
model: a negative that scores as high, up to rounding, is ahead. So a collapsed model, whose scores are all the same,
ranks last everywhere.

All that ranking asks of a model is `Scores`: dot products of embeddings, a matrix that a cross-attention model filled,
or the mean of several models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np
import numpy.typing as npt

from miner.artifacts.embeddings import check_vectors
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, Side, sides

if TYPE_CHECKING:
    from trainer.data import Dataset
    from trainer.judgements import Judgements
    from trainer.models import Encoder

__all__ = [
    "CUTOFFS", "EXTENDED", "METRICS", "TIE", "DotProducts", "Matrix", "Mean", "Scores", "check_scores",
    "extended_metrics", "metrics", "metrics_of", "places", "ranks", "scores_of",
]  # fmt: skip

CUTOFFS = (1, 5, 10)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
METRICS = tuple(
    [f"{direction}_r{cutoff}" for direction in DIRECTIONS for cutoff in CUTOFFS]
    + ["rsum"]
    + [f"{direction}_{what}_rank" for direction in DIRECTIONS for what in ("median", "mean")]
)
EXTENDED = tuple(
    f"{direction}_{what}"
    for direction in DIRECTIONS
    for what in ("map_at_r", "r_precision", *(f"extended_r{cutoff}" for cutoff in CUTOFFS))
)
# A float32 dot product of unit vectors is off by about 1e-7; scores nearer to each other than this are one score.
TIE = 1e-6
# At most so many anchors, and so many scores (128 MiB), at a time.
BLOCK_ANCHORS, BLOCK_SCORES = 512, 2**25
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Scores(Protocol):
    """How alike every image and every text are; higher is closer."""

    @property
    def shape(self) -> tuple[int, int]:
        """(images, texts)."""

    @property
    def tie(self) -> float:
        """Scores nearer to each other than this are one score."""

    def block(self, direction: Direction, anchors: Rows) -> Vectors:
        """The scores of some anchors, by row, with all they search: a new (anchors, gallery) float32 array."""

    def within(self, image_rows: Rows, text_rows: Rows) -> Scores:
        """The scores over a smaller gallery, whose row r is row `image_rows[r]` or `text_rows[r]` here."""


@dataclass(frozen=True)
class DotProducts:
    """Dot products of `images` (images, dim) and `texts` (texts, dim), computed when they are asked for.

    Raises BadInput for NaN, infinity, zero vectors, or two dims.
    """

    images: Vectors
    texts: Vectors

    def __post_init__(self) -> None:
        for name, vectors in (("images", self.images), ("texts", self.texts)):
            check_vectors(vectors, f"{name.removesuffix('s')} embeddings")
            object.__setattr__(self, name, np.ascontiguousarray(vectors, dtype=np.float32))
        if self.images.shape[1] != self.texts.shape[1]:
            raise BadInput(
                f"image embeddings have dim {self.images.shape[1]}, text embeddings "
                f"{self.texts.shape[1]}; both must come from one model."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.images), len(self.texts)

    @cached_property
    def tie(self) -> float:
        longest = [float(np.linalg.norm(vectors, axis=1).max()) for vectors in (self.images, self.texts)]
        return TIE * longest[0] * longest[1]

    def block(self, direction: Direction, anchors: Rows) -> Vectors:
        vectors, gallery = (self.images, self.texts) if direction == "i2t" else (self.texts, self.images)
        return vectors[anchors] @ gallery.T

    def within(self, image_rows: Rows, text_rows: Rows) -> DotProducts:
        return DotProducts(self.images[image_rows], self.texts[text_rows])


@dataclass(frozen=True)
class Matrix:
    """Scores computed before: `array` (images, texts) of floats, in memory or memory-mapped.

    What rounding is in them is not known, so two scores are one when they differ by less than a millionth of the
    largest: no factor on all scores changes a metric. Raises BadInput for another shape, no floats, NaN or infinity.
    """

    array: npt.NDArray[np.floating[Any]]
    tie: float = field(init=False)

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or 0 in self.array.shape or not np.issubdtype(self.array.dtype, np.floating):
            raise BadInput(
                f"scores: shape {self.array.shape} of {self.array.dtype}; they must be (images, texts) floats, "
                "one row per image and one column per text."
            )
        largest = 0.0
        for anchors in _slices(*self.shape):
            block = np.abs(np.asarray(self.array[anchors], dtype=np.float32))
            finite = np.isfinite(block)
            if not finite.all():
                row, column = np.argwhere(~finite)[0]
                raise BadInput(
                    f"scores: image row {anchors.start + int(row)} with text row {int(column)} is "
                    f"{self.array[anchors.start + row, column]}; every score must be a finite float32: fix the model."
                )
            largest = max(largest, float(block.max()))
        object.__setattr__(self, "tie", TIE * largest)

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    def block(self, direction: Direction, anchors: Rows) -> Vectors:
        scores = self.array[anchors] if direction == "i2t" else self.array[:, anchors].T
        return np.ascontiguousarray(scores, dtype=np.float32)

    def within(self, image_rows: Rows, text_rows: Rows) -> Matrix:
        return Matrix(self.array[np.ix_(image_rows, text_rows)])


@dataclass(frozen=True)
class Mean:
    """An ensemble: the mean of several models' similarities, as in SCAN (1803.08024) and VSRN (1909.02701).

    Raises BadInput for no member, or members over different galleries.
    """

    members: Sequence[Scores]

    def __post_init__(self) -> None:
        shapes = {member.shape for member in self.members}
        if len(shapes) != 1:
            raise BadInput(
                f"an ensemble over (images, texts) {sorted(shapes)}; it needs at least one member, and all members "
                "must score the same images and texts."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.members[0].shape

    @property
    def tie(self) -> float:
        return sum(member.tie for member in self.members) / len(self.members)

    def block(self, direction: Direction, anchors: Rows) -> Vectors:
        total = self.members[0].block(direction, anchors)
        for member in self.members[1:]:
            total += member.block(direction, anchors)
        total /= len(self.members)
        return total

    def within(self, image_rows: Rows, text_rows: Rows) -> Mean:
        return Mean([member.within(image_rows, text_rows) for member in self.members])


def scores_of(
    model: Encoder,
    dataset: Dataset,
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Scores:
    """Every image with every text of `dataset`, scored on the model's device; as a matrix by a cross-attention model.

    `progress(what, done, total)`: of images, of texts, and of the scores of a cross-attention model.

    Raises BadInput for captions that are not there, or embeddings or scores that are not finite.
    """
    # These import torch, which ranking does without.
    from trainer.encode import encode_rows
    from trainer.models import PairScorer
    from trainer.rescoring import score_all

    if isinstance(model, PairScorer):
        return Matrix(score_all(model, dataset, threads, progress=progress))
    both: tuple[Side, ...] = get_args(Side)
    images, texts = (
        encode_rows(
            model, dataset, side, np.arange(len(dataset.pairs.ids(side))), threads=threads,
            progress=partial(progress, f"{side}s"),
        )
        for side in both
    )  # fmt: skip
    return DotProducts(images, texts)


def ranks(scores: Scores, pairs: Pairs, direction: Direction) -> Rows:
    """(anchors,) rank of every anchor's best positive among what is not its positive, from 1."""
    offsets, positives = pairs.positives(sides(direction)[0])
    anchors = np.arange(len(offsets) - 1)
    found = np.empty(len(anchors), dtype=np.int64)
    for part, block, row, own in _blocks(scores, direction, anchors, offsets, positives):
        best = np.full(len(block), -np.inf, dtype=np.float32)
        np.maximum.at(best, row, own)
        found[part] = (block >= best[:, None] - scores.tie).sum(1) + 1
    return found


def places(scores: Scores, direction: Direction, anchors: Rows, offsets: Rows, positives: Rows) -> Rows:
    """(positives,) the place of every positive in its anchor's ranking of the whole gallery, from 1.

    Anchor n is row `anchors[n]`; its positives are `positives[offsets[n]:offsets[n + 1]]`, at least one, and their
    places come best first.
    """
    found = np.empty(len(positives), dtype=np.int64)
    for part, block, row, own in _blocks(scores, direction, anchors, offsets, positives):
        block.sort(axis=1)
        best_first = own[np.lexsort((-own, row))]
        start = offsets[part.start]
        for negatives, begin, end in zip(
            block, offsets[part.start : part.stop], offsets[part.start + 1 : part.stop + 1], strict=True
        ):
            ahead = len(negatives) - np.searchsorted(negatives, best_first[begin - start : end - start] - scores.tie)
            found[begin:end] = ahead + np.arange(1, end - begin + 1)
    return found


def _slices(num_anchors: int, num_gallery: int) -> Iterator[slice]:
    step = max(1, min(BLOCK_ANCHORS, BLOCK_SCORES // num_gallery))
    return (slice(start, min(start + step, num_anchors)) for start in range(0, num_anchors, step))


def _blocks(
    scores: Scores, direction: Direction, anchors: Rows, offsets: Rows, positives: Rows
) -> Iterator[tuple[slice, Vectors, Rows, Vectors]]:
    """(part of the anchors, their scores with -inf for positives, row there and score of each positive)."""
    gallery = scores.shape[1 if direction == "i2t" else 0]
    for part in _slices(len(anchors), gallery):
        block = scores.block(direction, anchors[part])
        row = np.repeat(np.arange(len(block)), np.diff(offsets[part.start : part.stop + 1]))
        column = positives[offsets[part.start] : offsets[part.stop]]
        own = block[row, column]
        block[row, column] = -np.inf
        yield part, block, row, own


def check_scores(scores: Scores, pairs: Pairs) -> None:
    """Raise BadInput unless there is one row for each image and one column for each text."""
    for size, side in zip(scores.shape, get_args(Side), strict=True):
        if size != len(pairs.ids(side)):
            raise BadInput(
                f"scores of {size} {side}s, but {pairs.name} has {len(pairs.ids(side))} {side} ids; score this split."
            )


def metrics_of(scores: Scores, pairs: Pairs) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank of both directions, and rsum, the six recalls' sum.

    Captions per image and images per caption may differ. Raises BadInput for scores of other images or texts.
    """
    check_scores(scores, pairs)
    found: dict[str, float] = {}
    for direction in DIRECTIONS:
        at = ranks(scores, pairs, direction)
        found |= {f"{direction}_r{cutoff}": 100 * float((at <= cutoff).mean()) for cutoff in CUTOFFS}
        found |= {f"{direction}_median_rank": float(np.median(at)), f"{direction}_mean_rank": float(at.mean())}
    found["rsum"] = sum(found[name] for name in METRICS[:6])
    return {name: found[name] for name in METRICS}


def metrics(image_embeddings: Vectors, text_embeddings: Vectors, pairs: Pairs) -> dict[str, float]:
    """`metrics_of` dot products: (images, dim) and (texts, dim), in the rows of `pairs`. Raises BadInput likewise."""
    return metrics_of(DotProducts(image_embeddings, text_embeddings), pairs)


def extended_metrics(scores: Scores, judgements: Judgements) -> dict[str, float]:
    """mAP@R, R-precision and R@1, R@5, R@10 over extended positives, both directions, in percent: `EXTENDED`.

    With R the number of positives of a query, rel(i) whether the item at place i is one, and P(i) the share of
    positives among the first i places (Musgrave et al., 2003.08505; for this task Chun et al., 2204.03359):

        R-precision = P(R)        mAP@R = 1/R · Σ_{i ≤ R} P(i)·rel(i)        both averaged over the judged queries
    """
    found: dict[str, float] = {}
    for direction in DIRECTIONS:
        anchors, offsets, positives = judgements.positives(sides(direction)[0])
        place = places(scores, direction, anchors, offsets, positives)
        begins, count = offsets[:-1], np.diff(offsets)
        inside = place <= np.repeat(count, count)
        nth = np.arange(len(place)) - np.repeat(begins, count) + 1
        precision = np.add.reduceat(np.where(inside, nth / place, 0.0), begins) / count
        found[f"{direction}_map_at_r"] = 100 * float(precision.mean())
        found[f"{direction}_r_precision"] = 100 * float((np.add.reduceat(inside, begins, dtype=float) / count).mean())
        for cutoff in CUTOFFS:
            found[f"{direction}_extended_r{cutoff}"] = 100 * float((place[begins] <= cutoff).mean())
    return {name: found[name] for name in EXTENDED}
