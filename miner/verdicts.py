"""Verdicts: what a person who looked at a negative says of it, and a file of them.

    direction     i2t, t2i, i2i or t2t
    anchor_id     the anchor's id
    negative_id   the id of the negative that was judged
    verdict       false_negative: it belongs to the anchor after all
                  fine:           a negative, and a good one
                  too_easy:       a negative that teaches nothing
                  none:           whatever was said before is taken back

One line each as JSON (.jsonl, which `pipelines serve` appends to), or a table with these columns (.csv, .tsv,
.parquet); others, such as who said it and when, are passed over. Of several lines about the same direction, anchor and
negative the last one counts.

False negative and fine are said of an image and a text, so they hold in the other direction too, unless something was
said there. Too easy holds in its own direction alone: it depends on what else there is for the anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, Within, sides
from miner.judged import Judged

__all__ = ["DIRECTIONS", "NOTHING", "VERDICTS", "Verdicts", "judged", "left_out", "lines", "read_verdicts"]

Rows = npt.NDArray[np.int64]

VERDICTS = ("false_negative", "fine", "too_easy")
NOTHING = "none"
DIRECTIONS = ("i2t", "t2i", "i2i", "t2t")
_OPPOSITE = {"i2t": "t2i", "t2i": "i2t"}
_NAMES = ("direction", "anchor_id", "negative_id", "verdict")


@dataclass(frozen=True)
class Verdicts:
    """What holds in one direction: (n,) rows of anchors and of negatives, each pair once, and `verdict`, a position
    in VERDICTS. `unknown` counts lines of the file about other items."""

    anchors: Rows
    negatives: Rows
    verdict: npt.NDArray[np.int8]
    unknown: int

    def __len__(self) -> int:
        return len(self.verdict)

    def said(self, verdict: str) -> tuple[Rows, Rows]:
        """(anchors, negatives) of one verdict."""
        found = self.verdict == VERDICTS.index(verdict)
        return self.anchors[found], self.negatives[found]


def read_verdicts(path: Path, pairs: Pairs, direction: Direction | Within) -> Verdicts:
    """The verdicts of a file that hold in a direction.

    Raises BadInput for what is no file of verdicts, and for one that is about other items alone.
    """
    columns = lines(path)
    said = np.array(columns["direction"])
    verdict = np.array([(*VERDICTS, NOTHING).index(each) for each in columns["verdict"]], dtype=np.int8)
    opposite = _OPPOSITE.get(direction)
    own, known_own = _rows(columns, said == direction, pairs, direction)
    other, known_other = _rows(columns, said == opposite, pairs, direction, turned=True)
    elsewhere = [
        _rows(columns, said == each, pairs, each)[1]  # type: ignore[arg-type]  # one of the four
        for each in DIRECTIONS
        if each not in (direction, opposite)
    ]
    known = np.logical_or.reduce([known_own, known_other, *elsewhere])
    if not known.any():
        raise BadInput(
            f"{path}: not one of its {len(said)} verdicts is about two items of {pairs.name} (the first: "
            f"{said[0]} {columns['anchor_id'][0]!r}, {columns['negative_id'][0]!r}); give verdicts on this data."
        )
    there = {pair: at for pair, at in _last(other, verdict[known_other]).items() if VERDICTS[at] != "too_easy"}
    holding = sorted({**there, **_last(own, verdict[known_own])}.items())
    anchors, negatives, verdicts = np.array([(*pair, at) for pair, at in holding], dtype=np.int64).reshape(-1, 3).T
    return Verdicts(anchors, negatives, verdicts.astype(np.int8), int((~known).sum()))


def judged(path: Path, pairs: Pairs, direction: Direction | Within) -> Judged:
    """Verdicts as judged pairs: a false negative matches, what is fine or too easy does not. Raises BadInput."""
    found = read_verdicts(path, pairs, direction)
    offsets, positives = pairs.positives_of(direction)
    own = {
        (anchor, positive)
        for anchor in np.unique(found.anchors).tolist()
        for positive in positives[offsets[anchor] : offsets[anchor + 1]].tolist()
    }
    pair = list(zip(found.anchors.tolist(), found.negatives.tolist(), strict=True))
    kept = np.array([each not in own for each in pair], dtype=bool)
    notes = [left_out(found.unknown)] if found.unknown else []
    if not kept.all():
        notes.append(f"{(~kept).sum()} verdicts are on positives and were left out")
    match = found.verdict == VERDICTS.index("false_negative")
    return Judged(found.anchors[kept], found.negatives[kept], match[kept], tuple(notes))


def left_out(unknown: int) -> str:
    """What is said of verdicts about other items."""
    return f"{unknown} verdict{'s are' if unknown > 1 else ' is'} about other items and left out"


def lines(path: Path) -> dict[str, list[str]]:
    """The four columns of a file, line by line. Raises BadInput for what is none, naming the line."""
    from miner.filters._outside import columns

    found: dict[str, list[str]] = {
        name: column.to_pylist() for name, column in columns(path, [_NAMES], what="verdicts").items()
    }
    if not found["verdict"]:
        raise BadInput(f"{path}: no verdict is in it; mark some negatives, or leave the file out.")
    for name, allowed in (("direction", DIRECTIONS), ("verdict", (*VERDICTS, NOTHING))):
        wrong = next((at for at, value in enumerate(found[name]) if value not in allowed), None)
        if wrong is not None:
            raise BadInput(
                f"{path}: row {wrong + 1} has {name} {found[name][wrong]!r}; write one of {', '.join(allowed)}."
            )
    return found


def _rows(
    columns: dict[str, list[str]],
    wanted: npt.NDArray[np.bool_],
    pairs: Pairs,
    direction: Direction | Within,
    turned: bool = False,
) -> tuple[Sequence[tuple[int, int]], npt.NDArray[np.bool_]]:
    """(anchor row, negative row) of the `wanted` lines whose items are known, and which lines these are.

    `turned`: the lines are of the opposite direction, so their negatives are this one's anchors.
    """
    names = ("negative_id", "anchor_id") if turned else ("anchor_id", "negative_id")
    rows: list[Any] = [
        pairs.ids(side).rows([value for value, here in zip(columns[name], wanted, strict=True) if here])
        if wanted.any()
        else np.empty(0, dtype=np.int64)
        for side, name in zip(sides(direction), names, strict=True)
    ]
    both = (rows[0] >= 0) & (rows[1] >= 0)
    known = np.zeros(len(wanted), dtype=bool)
    known[np.flatnonzero(wanted)[both]] = True
    return list(zip(rows[0][both].tolist(), rows[1][both].tolist(), strict=True)), known


def _last(pair: Sequence[tuple[int, int]], verdict: npt.NDArray[np.int8]) -> dict[tuple[int, int], int]:
    """The last verdict on every pair that was not taken back."""
    last = dict(zip(pair, verdict.tolist(), strict=True))
    return {each: at for each, at in last.items() if at < len(VERDICTS)}
