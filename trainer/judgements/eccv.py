"""ECCV Caption (Chun et al., 2204.03359): all positives of 1,261 images and 1,332 captions of the COCO test.

The data come with the package `eccv-caption` (MIT); only its files are read. `labels = "cxc"` takes the positives of
Crisscrossed Captions from the same package. `order` says how rows are found:

ids        image ids of the data set hold COCO's image ids, its text ids those of the annotations
testall    the rows are those of `testall_caps.txt`, which the published precomputed features come with: caption r
           belongs to image r // 5; ids are not looked at

What the package lists for a judged query is all that belongs to it: 9 COCO pairs are missing there, and do not count.
Two captions that it lists are none of the test's 25,000, so nobody can find them; they do not count either.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.judgements import Judgements
from trainer.judgements._coco import coco_rows

__all__ = ["OR_TESTALL", "Config", "read", "testall_rows"]

OR_TESTALL = ", or say order=testall if the rows are those of testall_caps.txt"


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels: Literal["eccv", "cxc"] = "eccv"
    order: Literal["ids", "testall"] = "ids"


def read(config: Config, pairs: Pairs) -> Judgements:
    """Raises BadInput when the package is not installed, or `pairs` is not of the COCO test."""
    images, texts = testall_rows(pairs) if config.order == "testall" else coco_rows(pairs, OR_TESTALL)
    image_of = {caption: found[0] for caption, found in _lists("original_caption_to_image").items()}
    of_image, of_text = (_lists(f"{config.labels}_{key}") for key in ("image_to_caption", "caption_to_image"))
    caption_of, number_of = ({row: number for number, row in rows.items()} for rows in (texts, images))
    links = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
    known = {(i, t) for i, t in links if caption_of[t] in image_of}
    if not known:
        raise BadInput(
            f"{pairs.name}: none of its texts, the first {pairs.text_ids[0]!r}, is of the COCO test; text ids must be "
            f"those of COCO's annotations{OR_TESTALL}."
        )
    for image, text in sorted(known):
        if image_of[caption_of[text]] != number_of[image]:
            raise BadInput(
                f"{pairs.name}: text {pairs.text_ids[text]!r} belongs to image {pairs.image_ids[image]!r}, but in COCO "
                f"annotation {caption_of[text]} is of image {image_of[caption_of[text]]}; its ids are not COCO's: "
                f"give those{OR_TESTALL}."
            )
    listed = {(image, caption) for image, captions in of_image.items() for caption in captions}
    listed |= {(image, caption) for caption, found in of_text.items() for image in found}
    return Judgements.of(
        pairs,
        f"{config.labels} positives",
        added=[(images[i], texts[c]) for i, c in listed if i in images and c in texts],
        refuted=[
            (image, text)
            for image, text in known
            if (number_of[image] in of_image or caption_of[text] in of_text)
            and (number_of[image], caption_of[text]) not in listed
        ],
        judged_images=[images[image] for image in of_image if image in images],
        judged_texts=[texts[caption] for caption in of_text if caption in texts],
    )


def testall_rows(pairs: Pairs) -> tuple[dict[int, int], dict[int, int]]:
    """COCO number -> row, of the images and of the texts, in the order of `testall_caps.txt`.

    Raises BadInput when the package that knows it is not installed, or the rows are not that many.
    """
    captions = np.load(_folder() / "coco_test_ids.npy", allow_pickle=False).tolist()
    rows = np.arange(len(captions))
    if pairs.num_pairs != len(rows) or (pairs.image_rows != rows // 5).any() or (pairs.text_rows != rows).any():
        raise BadInput(
            f"{pairs.name}: {pairs.num_images} images, {pairs.num_texts} texts and {pairs.num_pairs} pairs are not the "
            f"rows of testall_caps.txt, {len(rows) // 5} images with 5 captions each in order; leave order=testall out."
        )
    image_of = _lists("original_caption_to_image")
    images = {image_of[caption][0]: row // 5 for row, caption in enumerate(captions)}
    return images, {caption: row for row, caption in enumerate(captions)}


@cache
def _lists(name: str) -> dict[int, list[int]]:
    """What belongs to an image, or a caption, both by COCO number."""
    found: dict[str, list[Any]] = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return {int(query): [int(item) for item in items] for query, items in found.items()}


def _folder() -> Path:
    # The package's own import warns about what it does not find; its files are all that is needed.
    found = importlib.util.find_spec("eccv_caption")
    if found is None or found.origin is None:
        raise BadInput("the positives of ECCV Caption are not installed; run `pip install eccv-caption` and try again.")
    return Path(found.origin).parent / "data"
