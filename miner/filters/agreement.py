"""Drops by the other direction: what is (or is not) found when the candidate searches in turn.

Candidates of both directions must have been searched. Two that are among each other's nearest are more often a pair
that nobody wrote down; one that is near to everything is often near to the anchor without the reverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Within, sides
from miner.filters import Context, Judge

__all__ = ["OPPOSITE", "Config", "opposite", "prepare"]

OPPOSITE = True
_AT_ONCE = 1 << 22  # ranks of the other direction looked at together


@dataclass(frozen=True)
class Config:
    """Dropped where the anchor is not (one-sided), or is (mutual), among the candidate's own `within` nearest."""

    within: int = 50
    drop: Literal["one-sided", "mutual"] = "one-sided"

    def __post_init__(self) -> None:
        if self.within < 1:
            raise ValueError(f"within = {self.within}; give at least 1.")


def opposite(direction: Direction | Within) -> Direction | Within:
    """The direction in which the candidates search the anchors."""
    turned: dict[str, Direction] = {"i2t": "t2i", "t2i": "i2t"}
    return turned.get(direction, direction)


def check_searched(config: Config, back: Direction | Within, searched: int, pairs: Pairs) -> None:
    """Raise BadInput if `searched` candidates of direction `back` are too few to tell who is among the nearest."""
    gallery = sides(back)[1]
    everything = len(pairs.ids(gallery))
    if searched < min(config.within, everything):
        raise BadInput(
            f"rule agreement: within = {config.within}, but {searched} of {everything} {gallery}s are searched for "
            f"every anchor of {back}; ask for within={searched} at most, or search for more."
        )


def prepare(config: Config, context: Context) -> Judge:
    back = opposite(context.direction)
    candidates = context.candidates(back)
    if candidates is None:
        raise BadInput(
            f"rule agreement compares {context.direction} with the candidates of {back}, and these were not searched; "
            "search both directions."
        )
    check_searched(config, back, candidates.num_candidates, context.pairs)
    place_of_anchor, place_of_candidate = (context.pairs.places(side) for side in sides(context.direction))
    nearest = candidates.positions

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        mutual = np.zeros(block.negatives.shape, dtype=bool)
        anchor, place = np.nonzero(block.negatives >= 0)
        step = max(1, _AT_ONCE // config.within)
        for start in range(0, len(anchor), step):
            at, where = anchor[start : start + step], place[start : start + step]
            theirs = nearest[place_of_candidate[block.negatives[at, where]], : config.within]
            mutual[at, where] = (theirs == place_of_anchor[block.anchor_rows[at], None]).any(1)
        return mutual if config.drop == "mutual" else ~mutual

    return judge
