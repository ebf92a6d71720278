"""Drops what is in the group of the anchor or of one of its positives: one product, one video, one page.

The files have the columns id (or image_id, text_id) and group, as .csv, .tsv, .parquet or .jsonl. An item without a row
is in no group. Groups of images and of texts are the same where they have the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Side, sides
from miner.filters import Context, Judge
from miner.filters._items import sharing
from miner.filters._outside import columns

__all__ = ["FILES", "Config", "prepare"]

FILES = ("images", "texts")
Groups = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Config:
    """Files of the groups of images, of texts, or both."""

    images: str = ""
    texts: str = ""

    def __post_init__(self) -> None:
        if not (self.images or self.texts):
            raise ValueError("give images=FILE or texts=FILE with the columns id and group.")


def prepare(config: Config, context: Context) -> Judge:
    given: dict[Side, str] = {"image": config.images, "text": config.texts}
    names: dict[str, int] = {}
    groups = {side: _read(Path(file), side, context, names) for side, file in given.items() if file}
    judges = [sharing(context, side, numbers) for side, numbers in groups.items()]
    anchor_side, gallery_side = sides(context.direction)

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        drop = np.zeros(block.negatives.shape, dtype=bool)
        for each in judges:
            drop |= each(block, rank)
        if anchor_side in groups and gallery_side in groups:
            own = groups[anchor_side][block.anchor_rows]
            drop |= (
                (block.negatives >= 0) & (own >= 0)[:, None] & (groups[gallery_side][block.negatives] == own[:, None])
            )
        return drop

    return judge


def _read(path: Path, side: Side, context: Context, names: dict[str, int]) -> Groups:
    """(items,) number of the group of every item, -1 for none; `names` numbers the groups of both sides."""
    ids = context.pairs.ids(side)
    table = columns(path, [("group", "id"), ("group", f"{side}_id")], what=f"the groups of {side}s")
    rows = ids.rows(next(table[name] for name in ("id", f"{side}_id") if name in table))
    groups = np.full(len(ids), -1, dtype=np.int64)
    for row, group in zip(rows.tolist(), table["group"].to_pylist(), strict=True):
        if row >= 0:
            number = names.setdefault(group, len(names))
            if groups[row] not in (-1, number):
                raise BadInput(f"{path}: {side} {ids[row]!r} is in two groups; give it one.")
            groups[row] = number
    if (groups < 0).all():
        raise BadInput(
            f"{path}: not one of its ids is an id of the {len(ids)} {side}s, such as {ids[0]!r}; give those."
        )
    return groups
