"""Drops what a file lists: pairs, or items that are never to be a negative.

The file has the columns anchor_id and negative_id (of the direction that is filtered), or image_id and text_id (of
either), or one of negative_id, image_id and text_id alone: that item for every anchor, in the direction in which it is
a candidate. As .csv, .tsv, .parquet or .jsonl. Ids of other items are passed over, but not a file of nothing else; one
without a row blocks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import sides
from miner.filters import Context, Judge
from miner.filters._items import listed
from miner.filters._outside import columns, pair_rows

__all__ = ["FILES", "Config", "prepare"]

FILES = ("file",)
_LAYOUTS = [("anchor_id", "negative_id"), ("image_id", "text_id"), ("negative_id",), ("image_id",), ("text_id",)]


@dataclass(frozen=True)
class Config:
    """The file."""

    file: str


def prepare(config: Config, context: Context) -> Judge:
    path = Path(config.file)
    table = columns(path, _LAYOUTS, what="the blocked")
    if not any(len(column) for column in table.values()):
        return lambda block, rank: np.zeros(block.negatives.shape, dtype=bool)
    if len(table) == 2:
        anchors, negatives, _ = pair_rows(path, table, context)
        size = len(context.pairs.ids(sides(context.direction)[1]))
        codes = np.unique(anchors * size + negatives)

        def blocked_pair(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
            wanted = block.anchor_rows[:, None] * size + block.negatives
            return np.asarray(listed(codes, wanted.ravel()).reshape(wanted.shape) & (block.negatives >= 0))

        return blocked_pair

    blocked = _items(path, table, context)

    def blocked_item(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        return np.asarray(blocked[block.negatives] & (block.negatives >= 0))

    return blocked_item


def _items(path: Path, table: dict[str, object], context: Context) -> npt.NDArray[np.bool_]:
    """Which items of the gallery are listed."""
    _, gallery = sides(context.direction)
    ids = context.pairs.ids(gallery)
    found = np.zeros(len(ids), dtype=bool)
    (name, column), *_ = table.items()
    if name not in ("negative_id", f"{gallery}_id"):
        return found  # items of the other side
    rows = ids.rows(column)
    found[rows[rows >= 0]] = True
    if not found.any():
        raise BadInput(
            f"{path}: not one of its ids is an id of the {len(ids)} {gallery}s, such as {ids[0]!r}; give those, in a "
            f"column {gallery}_id if they are for one direction alone."
        )
    return found
