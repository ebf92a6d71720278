"""Positives of anybody's own, by the ids of the data set.

    PATH             CSV or TSV with the columns image_id, text_id and perhaps score: one line per positive
    judged_images    optional file, one id per line: the images whose positives are all listed; only these are queries
    judged_texts     the same for texts; without such a file every image, or text, is a query

The pairs of the data set are positives without being listed. With a score, a line is a positive from `min_score` on.
Lines about items that are not in the split are left out, so one file may serve all splits.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, Side
from trainer.data._lines import read_lines
from trainer.judgements import Judgements
from trainer.judgements._tables import number, table

__all__ = ["Config", "read"]


class Config(BaseModel):
    """`min_score` is needed where the table has scores, and only there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: Path
    min_score: float | None = None
    judged_images: Path | None = None
    judged_texts: Path | None = None


def read(config: Config, pairs: Pairs) -> Judgements:
    """Raises BadInput for a table of another form, or one without a line about this data."""
    path = config.path
    images, texts = ({own: row for row, own in enumerate(pairs.ids(side))} for side in ("image", "text"))
    columns = ["image_id", "text_id", *(["score"] if config.min_score is not None else [])]
    added, num_lines, known = [], 0, 0
    for line, cells in table(path, columns):
        num_lines += 1
        if "score" in cells and config.min_score is None:
            raise BadInput(f"{path}: has a column score; say from where on a pair is positive with min_score=...")
        link = images.get(cells["image_id"]), texts.get(cells["text_id"])
        positive = config.min_score is None or number(path, line, "score", cells["score"]) >= config.min_score
        if link[0] is not None and link[1] is not None:
            known += 1
            if positive:
                added.append((link[0], link[1]))
    if not known:
        raise BadInput(
            f"{path}: none of {num_lines} lines is about an image and a text of {pairs.name}, whose ids are like "
            f"{pairs.image_ids[0]!r} and {pairs.text_ids[0]!r}; write the ids of this data."
        )
    return Judgements.of(
        pairs,
        path.name,
        added=added,
        judged_images=_judged(config.judged_images, "image", images),
        judged_texts=_judged(config.judged_texts, "text", texts),
        notes=(f"{path}: {known} of {num_lines} lines are about {pairs.name}.",),
    )


def _judged(path: Path | None, side: Side, rows: dict[str, int]) -> list[int] | None:
    if path is None:
        return None
    return [rows[own] for own in read_lines(path, f"it must hold one {side} id per line") if own in rows]
