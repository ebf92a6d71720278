"""Crisscrossed Captions (Parekh et al., 2004.15020): pairs of the COCO dev and test images and captions, rated 0 to 5.

    PATH    sits_val.csv or sits_test.csv of github.com/google-research-datasets/Crisscrossed-Captions: the columns
            caption (COCO_val2014:sentid:732091), image (COCO_val2014_000000365325.jpg), agg_score, sampling_method

A pair is positive from a rating of 3 on, as in the paper; a COCO pair that people rated lower is none (29 of the 25,000
of the test). Image ids of the data set must hold COCO's image ids, its text ids those of the annotations, or the rows
be those of `testall_caps.txt` (`order = "testall"`, see `eccv`, whose package knows the order). The rated pairs were
sampled, so an unrated pair may be positive: R@K means more here than mAP@R.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.judgements import Judgements
from trainer.judgements._coco import coco_id, coco_rows
from trainer.judgements._tables import number, table
from trainer.judgements.eccv import OR_TESTALL, testall_rows

__all__ = ["Config", "read"]

COLUMNS = ("caption", "image", "agg_score", "sampling_method")


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: Path
    min_score: float = Field(3.0, ge=0, le=5)
    order: Literal["ids", "testall"] = "ids"


def read(config: Config, pairs: Pairs) -> Judgements:
    """Raises BadInput for another table, ids that are not COCO's, or ratings of other images and captions."""
    path = config.path
    images, texts = testall_rows(pairs) if config.order == "testall" else coco_rows(pairs, OR_TESTALL)
    own = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
    verdicts: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    num_lines = 0
    for line, cells in table(path, COLUMNS):
        num_lines += 1
        link = images.get(coco_id(cells["image"]) or -1), texts.get(coco_id(cells["caption"]) or -1)
        score = number(path, line, "agg_score", cells["agg_score"])
        if link[0] is None or link[1] is None:
            continue
        if cells["sampling_method"] == "c2i_original" and (link[0], link[1]) not in own:
            raise BadInput(
                f"{path}, line {line}: {cells['caption']} was written for {cells['image']}, but {pairs.name} does not "
                f"pair {pairs.image_ids[link[0]]!r} with {pairs.text_ids[link[1]]!r}; its ids are not COCO's: "
                f"give those{OR_TESTALL}."
            )
        verdicts[score >= config.min_score].append((link[0], link[1]))
    rated = verdicts[True] + verdicts[False]
    if not rated:
        raise BadInput(f"{path}: no rated pair is of {pairs.name}; give the file of its split, sits_val or sits_test.")
    return Judgements.of(
        pairs,
        path.name,
        added=verdicts[True],
        refuted=verdicts[False],
        judged_images={image for image, _ in rated},
        judged_texts={text for _, text in rated},
        notes=(f"{path}: {len(rated)} of {num_lines} lines are about {pairs.name}.",),
    )
