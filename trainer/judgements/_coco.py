"""COCO's own numbers, by which judgements about COCO name images and captions."""

from __future__ import annotations

import re
from typing import get_args

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, Side

__all__ = ["coco_id", "coco_rows"]

# 391895, COCO_val2014_000000391895.jpg, COCO_val2014:sentid:770337
_NUMBER = re.compile(r"(?:.*[:/_])?0*(\d+)(?:\.\w+)?", re.ASCII)


def coco_id(text: str) -> int | None:
    """The COCO number in an id, a file name or a path; None where there is none."""
    found = _NUMBER.fullmatch(text)
    return int(found[1]) if found else None


def coco_rows(pairs: Pairs, otherwise: str = "") -> tuple[dict[int, int], dict[int, int]]:
    """COCO number -> row, of the images and of the texts.

    Raises BadInput for ids that are no such numbers; `otherwise` says what else would do.
    """
    found: list[dict[int, int]] = []
    sides: tuple[Side, ...] = get_args(Side)
    for side in sides:
        rows: dict[int, int] = {}
        for row, own in enumerate(pairs.ids(side)):
            number = coco_id(own)
            if number is None or number in rows:
                raise BadInput(
                    f"{pairs.name}: {side} id {own!r} is not COCO's number of one {side}; image ids must hold COCO's "
                    "image id (391895 or COCO_val2014_000000391895.jpg), text ids that of the annotation (770337)"
                    f"{otherwise}."
                )
            rows[number] = row
        found.append(rows)
    return found[0], found[1]
