"""Batches composed from the mined tables: a pair's offline negatives come into its batch as pairs of their own.

The quintuplet of a pair (I, T) needs its offline text T- with an image I* it belongs to, and its offline image I- with
a text T* of its own. Where the pairs (I*, T-) and (I-, T*) are in the batch, all its terms are entries of the batch's
own score matrix, and nothing is encoded beyond the batch.

A neighbourhood begins with a pair drawn at random. The members bring in their neighbours, one after the other: a text
drawn from the pool of their image's list, then an image from that of their text, each as one of its pairs that have not
had their turn. Full neighbourhoods of `size` pairs fill the batch. So every pair is in one batch of an epoch, at most,
and a size of 1 is a batch at random, that of the batch a single neighbourhood. Which rank is drawn follows the loss's
`ranks`, among what has not had its turn; "tied" is taken as "untied", since a batch ties them anyway.

Closeness cuts both ways: what was passed over as a likely false negative is drawn into the same batches. So it is no
in-batch negative there either (`passed_over`): the first ranks that are skipped, and what a rule dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Direction, Pairs, Side, sides
from miner.artifacts.ranks import Law, log_weights, one_of, scores_of
from trainer.sampling import Draw, Table, generator, num_batches, share_of

__all__ = ["Neighbourhoods"]

Rows = npt.NDArray[np.int64]
_DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")


@runtime_checkable
class Passing(Protocol):
    """A table that knows what rules dropped (a `NegativeTable` does)."""

    def dropped(self) -> tuple[Rows, Rows] | None:
        """By anchor row, as (offsets, rows of the other side); None where no rule was asked."""


@dataclass(frozen=True)
class _List:
    """One direction: the part of every anchor's list that is drawn from, and what is passed over."""

    table: Table
    law: Law
    pool: int
    skip: int
    dropped: tuple[Rows, Rows] | None

    @classmethod
    def of(cls, table: Table, law: Law, pool: int, skip: int) -> _List:
        return cls(table, law, pool, skip, table.dropped() if isinstance(table, Passing) else None)

    def rows(self, anchors: Any) -> npt.NDArray[Any]:
        """(..., n) rows of the pool, -1 beyond what was found."""
        return np.asarray(self.table.negatives[anchors, self.skip : self.skip + self.pool])

    def drawn(self, anchors: Rows, there: npt.NDArray[np.bool_], random: npt.NDArray[np.float64]) -> Rows:
        """(anchors,) one of the ranks of the pool that are `there` (anchors, n), by the law; any where none is."""
        scored, at = scores_of(self.law, self.table), slice(self.skip, self.skip + there.shape[1])
        scores = there if scored is None else scored.scores[anchors, at]
        lowest = random if scored is None else scored.lowest_positive[anchors]
        return one_of(self.law, log_weights(self.law, scores, lowest, there), there, random)

    def passed_over(self, anchors: Rows) -> tuple[Rows, Rows]:
        """(place among these anchors, row) of what is no negative though nobody linked the two."""
        first = np.asarray(self.table.negatives[anchors, : self.skip])
        at, rank = np.nonzero(first >= 0)
        found = [(at, first[at, rank].astype(np.int64))]
        if self.dropped is not None:
            offsets, rows = self.dropped
            counts = offsets[anchors + 1] - offsets[anchors]
            places = np.repeat(offsets[anchors] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            found.append((np.repeat(np.arange(len(anchors)), counts), rows[places]))
        return np.concatenate([at for at, _ in found]), np.concatenate([rows for _, rows in found])


class Neighbourhoods:
    """The batches of a data set and its tables; `size` pairs make a neighbourhood."""

    def __init__(
        self,
        pairs: Pairs,
        tables: Mapping[Direction, Table],
        size: int,
        *,
        pool_text: int,
        pool_image: int,
        skip_text: int = 0,
        skip_image: int = 0,
        ranks: Law,
    ) -> None:
        law: Law = "untied" if ranks == "tied" else ranks
        self.pairs, self.size = pairs, size
        self.lists: dict[Direction, _List] = {
            "i2t": _List.of(tables["i2t"], law, pool_text, skip_text),
            "t2i": _List.of(tables["t2i"], law, pool_image, skip_image),
        }

    def batches(self, batch_size: int, seed: int, epoch: int, steps: int | None = None) -> Iterator[Rows]:
        """Pairs of every batch of an epoch, composed as they are asked for; as many as `sampling.num_batches` says.

        The same (seed, epoch) gives the same batches. What does not fill a batch, chosen at random, waits for the next
        epoch; with `steps` there are as many passes as that takes.
        """
        num = self.pairs.num_pairs
        left = num_batches(self.pairs, batch_size, steps)
        for passes in itertools.count():
            counters = (epoch, passes) if passes else (epoch,)
            order = generator(seed, "batches", *counters).permutation(num).astype(np.int64)
            chosen = order if num <= batch_size else order[: num // batch_size * batch_size]
            composing = _Pass(self, chosen, generator(seed, "neighbours", *counters))
            for start in range(0, len(chosen), batch_size):
                if not left:
                    return
                yield composing.batch(min(batch_size, len(chosen) - start))
                left -= 1
            if not left:
                return

    def draw(self, batch: Rows, seed: int, epoch: int, step: int) -> Draw:
        """The offline negatives that each pair of the batch finds in it, with their partners; -1 where there is none.

        Of several that belong to its pool one is drawn, by the same law.
        """
        images, texts = self.pairs.image_rows[batch], self.pairs.text_rows[batch]
        random = generator(seed, "ranks", epoch, step).random((2, len(batch)))
        text_at = self._drawn("i2t", images, texts, random[0])
        image_at = self._drawn("t2i", texts, images, random[1])

        def pick(rows: Rows, at: Rows) -> Rows:
            return np.where(at >= 0, rows[at], -1)

        return Draw(
            pick(texts, text_at),
            pick(images, image_at),
            pick(images, text_at),
            pick(texts, image_at),
            self._share("i2t", batch),
            self._share("t2i", batch),
        )

    def passed_over(self, batch: Rows) -> npt.NDArray[np.bool_]:
        """(B, B): whether image i and text j of the batch are passed over as a negative, by either's list."""
        images, texts = self.pairs.image_rows[batch], self.pairs.text_rows[batch]
        found = np.zeros((len(batch), len(batch)), dtype=np.bool_)
        for direction in _DIRECTIONS:
            anchors, gallery = (images, texts) if direction == "i2t" else (texts, images)
            at, rows = self.lists[direction].passed_over(anchors)
            there, column = np.unique(gallery, return_inverse=True)
            place = np.minimum(np.searchsorted(there, rows), len(there) - 1)
            hit = there[place] == rows
            marked = np.zeros((len(batch), len(there)), dtype=np.bool_)
            marked[at[hit], place[hit]] = True
            found |= marked[:, column] if direction == "i2t" else marked[:, column].T
        return found

    def _drawn(self, direction: Direction, anchors: Rows, gallery: Rows, random: npt.NDArray[np.float64]) -> Rows:
        """(B,) place in the batch of what each anchor draws, -1 for none."""
        rows = self.lists[direction].rows(anchors)
        there, first = np.unique(gallery, return_index=True)
        place = np.minimum(np.searchsorted(there, rows), len(there) - 1)
        present = (there[place] == rows) & (rows >= 0)
        rank = self.lists[direction].drawn(anchors, present, random)
        return np.where(present.any(1), first[place[np.arange(len(anchors)), rank]], -1)

    def _share(self, direction: Direction, batch: Rows) -> npt.NDArray[np.float64]:
        anchors, _ = sides(direction)
        rows = self.pairs.image_rows if anchors == "image" else self.pairs.text_rows
        held, found = self.lists[direction], self.lists[direction].table.num_negatives[rows[batch]].astype(np.int64)
        return share_of(self.pairs, anchors, rows[batch], np.clip(found - held.skip, 0, held.pool))


@dataclass
class _Pass:
    """One pass over the pairs `order`, which are shared out among batches."""

    of: Neighbourhoods
    order: Rows
    random: np.random.Generator
    next: int = 0
    free: npt.NDArray[np.bool_] = field(init=False)
    left: dict[Side, npt.NDArray[np.int64]] = field(init=False)
    pairs_of: dict[Side, tuple[Rows, Rows]] = field(init=False)

    def __post_init__(self) -> None:
        pairs = self.of.pairs
        self.free = np.zeros(pairs.num_pairs, dtype=np.bool_)
        self.free[self.order] = True
        self.left, self.pairs_of = {}, {}
        rows_of: tuple[tuple[Side, Rows], ...] = (("image", pairs.image_rows), ("text", pairs.text_rows))
        for side, rows in rows_of:
            size = len(pairs.ids(side))
            self.left[side] = np.bincount(rows[self.order], minlength=size)
            offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
            self.pairs_of[side] = offsets, np.argsort(rows, kind="stable")

    def batch(self, size: int) -> Rows:
        """The next batch, of `size` pairs."""
        found: list[int] = []
        while len(found) < size:
            found += self._neighbourhood(min(self.of.size, size - len(found)))
        return np.array(found, dtype=np.int64)

    def _neighbourhood(self, size: int) -> list[int]:
        """At most `size` pairs: one that is next in line, and who it and its neighbours bring in."""
        while not self.free[self.order[self.next]]:
            self.next += 1
        members = [self._take(int(self.order[self.next]))]
        for member in members:  # which grows meanwhile
            for direction in _DIRECTIONS:
                if len(members) < size:
                    members += self._neighbour(direction, member)
        return members

    def _neighbour(self, direction: Direction, pair: int) -> list[int]:
        """A pair of an item from the list of this pair's item, drawn by the law among those that are free."""
        pairs, drawn_from = self.of.pairs, self.of.lists[direction]
        gallery = sides(direction)[1]
        anchor = (pairs.image_rows if direction == "i2t" else pairs.text_rows)[pair]
        rows = drawn_from.rows(anchor)
        open_to = np.flatnonzero((self.left[gallery][rows] > 0) & (rows >= 0))
        if not len(open_to):
            return []
        if drawn_from.law == "untied":  # the usual one, and one pair after the other
            rank = open_to[int(self.random.random() * len(open_to))]
        else:
            there = np.zeros((1, len(rows)), dtype=np.bool_)
            there[0, open_to] = True
            rank = drawn_from.drawn(np.array([anchor]), there, self.random.random(1))[0]
        offsets, by_item = self.pairs_of[gallery]
        of_item = by_item[offsets[rows[rank]] : offsets[rows[rank] + 1]]
        of_item = of_item[self.free[of_item]]
        return [self._take(int(of_item[int(self.random.random() * len(of_item))]))]

    def _take(self, pair: int) -> int:
        self.free[pair] = False
        self.left["image"][self.of.pairs.image_rows[pair]] -= 1
        self.left["text"][self.of.pairs.text_rows[pair]] -= 1
        return pair
