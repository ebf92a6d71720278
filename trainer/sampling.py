"""Which pairs meet in a batch, and which offline negatives each pair gets, as functions of (seed, epoch).

Nothing here remembers anything: the same (seed, epoch) gives the same batches and draws in any process, so a killed
training goes on exactly where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, Side, sides
from miner.artifacts.ranks import Law, drawn_ranks

__all__ = [
    "Draw", "Table", "batches", "check_table", "draw", "generator", "num_batches", "share_of", "step_seed",
]  # fmt: skip

Rows = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]
_STREAMS = {"model": 0, "batches": 1, "ranks": 2, "partners": 3, "step": 4, "neighbours": 5}


class Table(Protocol):
    """What sampling reads of a negative table (a `NegativeTable` is one), by row of the pairs.

    A law that weighs scores wants a `ranks.Scored` one.
    """

    @property
    def direction(self) -> Direction: ...

    @property
    def negatives(self) -> npt.NDArray[Any]:
        """(anchors, k) rows of the other side, hardest first, -1 beyond what was found."""

    @property
    def num_negatives(self) -> npt.NDArray[Any]:
        """(anchors,) how many were found."""


@dataclass(frozen=True)
class Draw:
    """Offline negatives of every pair for one epoch, as rows; -1 where there is none. All (pairs,)."""

    text: Rows  # T-, a hard text of the pair's image
    image: Rows  # I-, a hard image of the pair's text
    partner_image: Rows  # I*, an image T- belongs to
    partner_text: Rows  # T*, a text of I-
    text_share: Shares  # size of the pool that T- was drawn from, as a share of all negatives of the image
    image_share: Shares  # the same for I- and the text

    def take(self, pairs: Rows) -> Draw:
        """The draw of some pairs."""
        return Draw(*(getattr(self, field.name)[pairs] for field in fields(self)))


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """The random numbers of one purpose at one (epoch, step, ...)."""
    return np.random.default_rng([seed, _STREAMS[stream], *counters])


def step_seed(seed: int, epoch: int, step: int) -> int:
    """What torch's generator is set to before a step (dropout, shifts)."""
    return int(generator(seed, "step", epoch, step).integers(2**63))


def batches(
    pairs: Pairs,
    batch_size: int,
    seed: int,
    epoch: int,
    by: Literal["pairs", "images"] = "pairs",
    steps: int | None = None,
) -> list[Rows]:
    """Pairs of every batch of an epoch: a permutation, cut; what does not fill a batch waits for the next one.

    By "images", `batch_size` images are drawn, each with all its pairs. Fewer than `batch_size` are one batch. With
    `steps` the epoch has exactly so many batches, from as many permutations as that takes.
    """
    offsets = pairs.positives("image")[0]
    found: list[Rows] = []
    for passes in itertools.count():
        counters = (epoch, passes) if passes else (epoch,)
        num = pairs.num_pairs if by == "pairs" else pairs.num_images
        order = generator(seed, "batches", *counters).permutation(num).astype(np.int64)
        chosen = [order] if num <= batch_size else list(order[: num // batch_size * batch_size].reshape(-1, batch_size))
        if by == "images":
            # Pairs are sorted by image, so an image's pairs are a range.
            chosen = [np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in images]) for images in chosen]
        found += chosen
        if steps is None or len(found) >= steps:
            return found[:steps]
    raise AssertionError("unreachable")


def num_batches(pairs: Pairs, batch_size: int, steps: int | None = None) -> int:
    """How many batches of so many pairs an epoch has."""
    return steps or max(1, pairs.num_pairs // batch_size)


def draw(
    pairs: Pairs,
    tables: Mapping[Direction, Table],
    *,
    pool_text: int,
    pool_image: int,
    skip_text: int = 0,
    skip_image: int = 0,
    ranks: Law,
    seed: int,
    epoch: int,
    partners: bool = True,
) -> Draw:
    """One offline text and one offline image for every pair, with their partners unless `partners` is False.

    `pool_text` (h_t) and `pool_image` (h_v) are how many of the hardest are drawn from, or as many as an anchor has,
    after the first `skip_text` and `skip_image`, which are passed over.
    Tied, as published: n ~ U{0..h_t - 1}, text rank n, image rank floor(n h_v / h_t). Any other law of `ranks`: two
    independent draws. "top" leaves a pool of one.
    """
    i2t, t2i = tables["i2t"], tables["t2i"]
    if ranks == "top":
        pool_text = pool_image = 1
    text_pool = np.clip(i2t.num_negatives[pairs.image_rows].astype(np.int64) - skip_text, 0, pool_text)
    image_pool = np.clip(t2i.num_negatives[pairs.text_rows].astype(np.int64) - skip_image, 0, pool_image)
    random = generator(seed, "ranks", epoch).random((2, pairs.num_pairs))
    if ranks == "tied":
        text_rank = (random[0] * text_pool).astype(np.int64)
        # An image without negatives has no rank n to share; its texts then keep the draw itself.
        shared = text_rank * image_pool // np.maximum(text_pool, 1)
        image_rank = np.where(text_pool > 0, shared, (random[0] * image_pool).astype(np.int64))
    else:
        text_rank = drawn_ranks(ranks, i2t, pairs.image_rows, text_pool, skip_text, random[0])
        image_rank = drawn_ranks(ranks, t2i, pairs.text_rows, image_pool, skip_image, random[1])
    text = _pick(i2t, pairs.image_rows, skip_text + text_rank, text_pool)
    image = _pick(t2i, pairs.text_rows, skip_image + image_rank, image_pool)
    partner_image, partner_text = np.full_like(text, -1), np.full_like(text, -1)
    if partners:
        random = generator(seed, "partners", epoch).random((2, pairs.num_pairs))
        partner_image = _positive(pairs, "text", text, random[0])
        partner_text = _positive(pairs, "image", image, random[1])
    shares = (
        share_of(pairs, "image", pairs.image_rows, text_pool),
        share_of(pairs, "text", pairs.text_rows, image_pool),
    )
    return Draw(text, image, partner_image, partner_text, *shares)


def share_of(pairs: Pairs, side: Side, rows: Rows, pool: Rows) -> Shares:
    """Pool size over the number of negatives of these anchors on `side`, (anchors,)."""
    gallery = pairs.num_texts if side == "image" else pairs.num_images
    negatives = gallery - np.diff(pairs.positives(side)[0])[rows]
    return np.asarray(pool / np.maximum(negatives, 1), dtype=np.float64)


def _pick(table: Table, anchors: Rows, ranks: Rows, pool: Rows) -> Rows:
    rows = np.asarray(table.negatives[anchors, np.where(pool > 0, ranks, 0)]).astype(np.int64)
    return np.where(pool > 0, rows, -1)


def _positive(pairs: Pairs, side: Side, rows: Rows, random: npt.NDArray[np.float64]) -> Rows:
    """A positive of each row of `side`, drawn evenly; -1 for row -1."""
    offsets, positives = pairs.positives(side)
    there = np.maximum(rows, 0)
    chosen = positives[offsets[there] + (random * (offsets[there + 1] - offsets[there])).astype(np.int64)]
    return np.where(rows >= 0, chosen, -1)


def check_table(table: Table, direction: Direction, pairs: Pairs) -> None:
    """Raise BadInput unless `table` is of this direction and its rows fit `pairs`."""
    if table.direction != direction:
        raise BadInput(
            f"the table given as {direction} is of direction {table.direction}; give each under its own name."
        )
    anchor, gallery = sides(direction)
    found, expected = np.shape(table.negatives), len(pairs.ids(anchor))
    if len(found) != 2 or found[0] != expected:
        raise BadInput(
            f"the {direction} table has shape {found}, but {pairs.name} has {expected} {anchor}s; "
            "mine the pairs you train on."
        )
    if np.size(table.negatives) and int(np.max(table.negatives)) >= len(pairs.ids(gallery)):
        raise BadInput(
            f"the {direction} table names {gallery} row {int(np.max(table.negatives))}, but {pairs.name} has "
            f"{len(pairs.ids(gallery))} {gallery}s; mine the pairs you train on."
        )
