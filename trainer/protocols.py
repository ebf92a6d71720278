"""What is ranked against what: the whole gallery, or folds of it.

full     every image with every text: the 1K test of Flickr30k, the 5K test of COCO
folds    the mean over folds of 1,000 consecutive images with their texts: the 1K test of COCO

A fold's gallery is smaller, so its figures are higher; those of the two protocols are never compared with each other.
Every metric is the mean of the folds', rsum too, which makes it the sum of the six mean recalls. The evaluators
published with VSE++, SCAN and their descendants print another figure as the rsum of five folds: the mean of the three
image-to-text recalls, times six. Do not compare with such logs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.evaluate import Scores, check_scores, extended_metrics, metrics_of
from trainer.judgements import Judgements

__all__ = ["FOLD_IMAGES", "Gallery", "folds", "measure"]

FOLD_IMAGES = 1000


@dataclass(frozen=True)
class Gallery:
    """A part of a gallery: its pairs, and which rows of the whole its rows are."""

    pairs: Pairs
    image_rows: npt.NDArray[np.int64]
    text_rows: npt.NDArray[np.int64]


def folds(pairs: Pairs, num_images: int = FOLD_IMAGES) -> list[Gallery]:
    """Consecutive folds of `num_images` images, each with every text that belongs to one of them.

    A text whose images lie in several folds is in each of these, with the images of that fold for its positives. Raises
    BadInput unless the images make a whole number of folds, at least two: a shorter one would be easier than the
    others, and the mean over one is the full gallery under another name.
    """
    if num_images < 1 or pairs.num_images % num_images:
        raise BadInput(
            f"{pairs.name}: {pairs.num_images} images are not a whole number of folds of {num_images}; give a number "
            "of images per fold that divides them, or rank the full gallery."
        )
    if num_images == pairs.num_images:
        raise BadInput(
            f"{pairs.name}: {num_images} images are one fold, whose mean is no mean; rank the full gallery, or give "
            "the data of several folds (of COCO's published files, test=testall), or fewer images per fold."
        )
    found = []
    for start in range(0, pairs.num_images, num_images):
        inside = (pairs.image_rows >= start) & (pairs.image_rows < start + num_images)
        image_rows, text_rows = np.arange(start, start + num_images), np.unique(pairs.text_rows[inside])
        part = Pairs(
            pairs.image_ids.take(image_rows),
            pairs.text_ids.take(text_rows),
            pairs.image_rows[inside] - start,
            np.searchsorted(text_rows, pairs.text_rows[inside]),
            name=f"{pairs.name}, images {start} to {start + num_images - 1}",
        )
        found.append(Gallery(part, image_rows, text_rows))
    return found


def measure(
    scores: Scores, pairs: Pairs, judgements: Judgements | None = None, fold_images: int | None = None
) -> dict[str, float]:
    """Every metric over the full gallery, or its mean over folds of `fold_images`; with `judgements`, `EXTENDED` too.

    The gallery of a fold also bounds the extended positives. Raises BadInput for scores of other images or texts,
    images that make no whole number of folds, or a fold without a judged query.
    """
    check_scores(scores, pairs)
    if fold_images is None:
        return metrics_of(scores, pairs) | ({} if judgements is None else extended_metrics(scores, judgements))
    found = []
    for fold in folds(pairs, fold_images):
        judged = None if judgements is None else judgements.within(fold.image_rows, fold.text_rows)
        found.append(measure(scores.within(fold.image_rows, fold.text_rows), fold.pairs, judged))
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}
