"""Which anchors the page shows, and what was mined for each in every round, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, Side, sides

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeTable

__all__ = ["DIRECTIONS", "browse", "check_tables", "choose", "hardness_step", "items", "share_outscored"]

DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")
NUM_HARDEST = 8
MAX_POSITIVES = 24
_DECIMALS = 6

Rounds = Sequence[tuple[int, "NegativeTable"]]


def check_tables(pairs: Pairs, rounds: Sequence[tuple[int, dict[Direction, NegativeTable]]]) -> None:
    """Raise BadInput unless every table is of the direction it is filed under and of these pairs."""
    for number, tables in rounds:
        for direction, table in tables.items():
            side, other = sides(direction)
            where = f"{pairs.name}: the {direction} table of round {number}"
            if table.direction != direction:
                raise BadInput(f"{where} says its direction is {table.direction}; file each table under its own.")
            expected, found = len(pairs.ids(side)), len(table.negatives)
            if found != expected:
                raise BadInput(
                    f"{where} has {found} anchors, but the dataset has {expected} {side}s; "
                    "give the dataset that the table was mined from."
                )
            gallery = len(pairs.ids(other))
            highest = int(np.max(table.negatives, initial=-1))
            if highest >= gallery:
                raise BadInput(
                    f"{where} names {other} row {highest}, but the dataset has {gallery} {other}s; "
                    "give the dataset that the table was mined from."
                )


def hardest_margin(table: NegativeTable) -> npt.NDArray[np.float64]:
    """Hardness of every anchor's first negative, (num_anchors,): its score - the lowest positive; -inf without one."""
    if table.k == 0:
        return np.full(len(table.negatives), -np.inf)
    first = np.asarray(table.scores[:, 0], dtype=np.float64) - np.asarray(table.lowest_positive, dtype=np.float64)
    return np.where(np.asarray(table.negatives[:, 0]) >= 0, first, -np.inf)


def share_outscored(table: NegativeTable) -> float:
    """Share of all anchors whose first negative scores above their lowest positive."""
    return float(np.mean(hardest_margin(table) > 0))


def choose(table: NegativeTable, num_anchors: int, seed: int, num_hardest: int = NUM_HARDEST) -> list[tuple[int, bool]]:
    """[(anchor row, whether it is here for being among the hardest)], hardest of `table` first, ties by row.

    `num_anchors` of them are drawn by `seed` without replacement; the `num_hardest` hardest come on top.
    """
    margin = hardest_margin(table)
    size = len(margin)
    order = np.lexsort((np.arange(size), -margin))
    hardest = set(order[: min(num_hardest, size)].tolist())
    generator = np.random.default_rng([seed, DIRECTIONS.index(table.direction)])
    drawn = generator.choice(size, min(num_anchors, size), replace=False)
    chosen = hardest | set(drawn.tolist())
    return [(row, row in hardest) for row in order.tolist() if row in chosen]


def browse(
    pairs: Pairs, direction: Direction, rounds: Rounds, *, num_anchors: int, num_ranks: int, seed: int
) -> list[dict[str, Any]]:
    """Anchors chosen by the last round's table, each with its first `num_ranks` negatives in every round.

    An anchor is {row, hardest, positives: [row, ...], num_positives, rounds: {round: block}}; a block is
    {k, found, above, lowest, negatives: [[row, score, hardness, rank in the round before or null], ...]}.
    `found` and `above` (negatives over the lowest positive) count the whole list; ranks start at 1. A slot the
    miner left empty is not among the negatives.
    """
    if not rounds:
        return []
    offsets, positives = pairs.positives(sides(direction)[0])
    anchors = []
    for row, hardest in choose(rounds[-1][1], num_anchors, seed):
        own = positives[offsets[row] : offsets[row + 1]].tolist()
        blocks: dict[str, dict[str, Any]] = {}
        before: dict[int, int] | None = None
        for number, table in rounds:
            blocks[str(number)] = _block(table, row, num_ranks, before)
            before = {negative: rank for rank, negative in enumerate(table.negatives[row].tolist(), 1) if negative >= 0}
        anchors.append(
            {
                "row": row,
                "hardest": hardest,
                "positives": own[:MAX_POSITIVES],
                "num_positives": len(own),
                "rounds": blocks,
            }
        )
    return anchors


def _block(table: NegativeTable, row: int, num_ranks: int, before: dict[int, int] | None) -> dict[str, Any]:
    negatives = np.asarray(table.negatives[row])
    there = negatives >= 0
    scores = np.asarray(table.scores[row], dtype=np.float64)[there]
    lowest = float(table.lowest_positive[row])
    shown = zip(negatives[there].tolist()[:num_ranks], scores.tolist(), strict=False)
    return {
        "k": table.k,
        "found": int(there.sum()),
        "above": int((scores > lowest).sum()),
        "lowest": round(lowest, _DECIMALS),
        "negatives": [
            [
                negative,
                round(score, _DECIMALS),
                round(score - lowest, _DECIMALS),
                # 0 = was not in that list; null = there was no list to compare with.
                None if before is None else before.get(negative, 0),
            ]
            for negative, score in shown
        ],
    }


def items(pairs: Pairs, browsed: dict[Direction, list[dict[str, Any]]]) -> dict[Side, dict[int, dict[str, Any]]]:
    """Everything the anchors refer to, once: side -> row -> {id, text, seen_with}.

    `text` is a text's caption (its id when nobody brought captions) or an image's most specific caption. `seen_with`
    is the first image a text belongs to, so that a negative caption can be shown with what it really describes.
    """
    used: dict[Side, set[int]] = {"image": set(), "text": set()}
    for direction, anchors in browsed.items():
        side, other = sides(direction)
        for anchor in anchors:
            used[side].add(anchor["row"])
            used[other].update(anchor["positives"])
            for block in anchor["rounds"].values():
                used[other].update(negative[0] for negative in block["negatives"])
    by_text = pairs.positives("text")
    texts = {}
    for row in sorted(used["text"]):
        image = int(by_text[1][by_text[0][row]])
        used["image"].add(image)
        texts[row] = {"id": pairs.text_ids[row], "text": _caption(pairs, row), "seen_with": image}
    images = {
        row: {"id": pairs.image_ids[row], "text": _caption(pairs, _most_specific(pairs, row))}
        for row in sorted(used["image"])
    }
    return {"image": images, "text": texts}


def _caption(pairs: Pairs, row: int) -> str:
    return pairs.texts[row] if pairs.texts else pairs.text_ids[row]


def _most_specific(pairs: Pairs, image: int) -> int:
    """The text of an image that belongs to the fewest images: a shared keyword would not tell it from its siblings."""
    offsets, rows = pairs.positives("image")
    own = rows[offsets[image] : offsets[image + 1]]
    return int(own[np.argmin(np.diff(pairs.positives("text")[0])[own])])


def hardness_step(browsed: dict[Direction, list[dict[str, Any]]]) -> float:
    """Width of a colour band: 1, 2 or 5 times a power of ten, three bands a side reaching 80% of what is shown."""
    shown = [
        abs(negative[2])
        for anchors in browsed.values()
        for anchor in anchors
        for block in anchor["rounds"].values()
        for negative in block["negatives"]
    ]
    target = float(np.quantile(shown, 0.8)) / 3 if shown else 0.0
    if not np.isfinite(target) or target <= 0:
        return 0.1
    power = 10.0 ** np.floor(np.log10(target))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= target))
