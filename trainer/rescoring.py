"""The scores of a cross-attention model over stored elements: of candidates, and of a whole gallery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.artifacts.elements import ElementLists
from miner.artifacts.pairs import Direction, Side, sides
from trainer.data import Dataset
from trainer.encode import encode_elements, quiet
from trainer.models import Elements, PairScorer

__all__ = ["Scorer", "score_all"]

Rows = npt.NDArray[np.int64]
# Items of the gallery read and scored at once; fixed, since a product rounds differently when its shape changes.
_ITEMS = 512
_BLOCK = 128


class Scorer:
    """A model's scores of anchors with rows of the gallery, from stored elements; call it inside `quiet`."""

    def __init__(self, model: PairScorer, images: ElementLists, texts: ElementLists, direction: Direction) -> None:
        self._model, self._direction = model, direction
        self._lists: dict[Side, ElementLists] = {"image": images, "text": texts}
        gallery = sides(direction)[1]
        self._grams = _Grams.of(model, self._lists[gallery], gallery)

    def __call__(self, anchor: int, rows: Rows) -> npt.NDArray[np.float32]:
        """Scores (n,) of one anchor with `rows` (n,)."""
        anchors, gallery = sides(self._direction)
        lists = self._lists[gallery]
        one = _elements(self._model, self._lists[anchors], np.array([anchor]))
        found = np.empty(len(rows), dtype=np.float32)
        # Shortest first, so that little is compared for padding.
        order = np.argsort(lists.lengths(rows), kind="stable")
        for start in range(0, len(rows), _ITEMS):
            some = order[start : start + _ITEMS]
            some = some[np.argsort(rows[some], kind="stable")]  # as they are stored
            items = _elements(self._model, lists, rows[some])
            if self._grams is not None:
                items = replace(items, gram=self._grams.take(rows[some]))
            scores = self._scores(one, items) if anchors == "image" else self._scores(items, one)
            found[some] = scores.flatten()
        return found

    def table(self, anchors: Rows, rows: Rows) -> npt.NDArray[np.float32]:
        """Scores (a, n) of `anchors` (a,) with `rows` (n,), in a fraction of the time of a call for each."""
        one, other = sides(self._direction)
        found = np.empty((len(anchors), len(rows)), dtype=np.float32)
        stored = np.argsort(rows, kind="stable")
        for start in range(0, len(anchors), _BLOCK):
            some = _elements(self._model, self._lists[one], anchors[start : start + _BLOCK])
            for at in range(0, len(rows), _BLOCK):
                columns = stored[at : at + _BLOCK]
                items = _elements(self._model, self._lists[other], rows[columns])
                scores = self._scores(some, items) if one == "image" else self._scores(items, some).T
                found[start : start + _BLOCK, columns] = scores
        return found

    def _scores(self, images: Elements, texts: Elements) -> npt.NDArray[np.float32]:
        return np.asarray(self._model.scores(images, texts).float().cpu().numpy())


@dataclass(frozen=True)
class _Grams:
    """`Elements.gram` of a side, of all whose block of rows was asked for before.

    Blocks are the same whatever is asked for and when, since a product rounds differently when its shape changes.
    """

    model: PairScorer
    lists: ElementLists
    values: Tensor
    known: set[int]

    @classmethod
    def of(cls, model: PairScorer, lists: ElementLists, side: Side) -> _Grams | None:
        """None where a model has no use for them, or would keep more than it may."""
        longest = int(lists.lengths(np.arange(len(lists))).max(initial=1))
        if not model.uses_gram(side, 4 * len(lists) * longest**2):
            return None
        device = next(model.parameters()).device
        return cls(model, lists, torch.zeros(len(lists), longest, longest, device=device), set())

    def take(self, rows: Rows) -> Tensor:
        for block in sorted({*np.unique(rows // _BLOCK).tolist()} - self.known):
            start, stop = block * _BLOCK, min((block + 1) * _BLOCK, len(self.lists))
            values = _elements(self.model, self.lists, np.arange(start, stop)).values
            longest = values.shape[1]
            self.values[start:stop, :longest, :longest] = torch.bmm(values, values.transpose(1, 2))
            self.known.add(block)
        return self.values.index_select(0, torch.from_numpy(rows).to(self.values.device))


def score_all(
    model: PairScorer,
    dataset: Dataset,
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> npt.NDArray[np.float32]:
    """Every image of a split with every text: (images, texts) float32; `progress(what, done, total)` of every kind."""
    with quiet(model, threads):
        lists = {}
        for side in get_args(Side):
            rows = np.arange(len(dataset.pairs.ids(side)))
            lists[side] = ElementLists.of(
                *encode_elements(model, dataset, side, rows, threads=threads, progress=partial(progress, f"{side}s"))[
                    1:
                ]
            )
        score, texts = Scorer(model, lists["image"], lists["text"], "i2t"), np.arange(len(lists["text"]))
        found = np.empty((len(lists["image"]), len(texts)), dtype=np.float32)
        for start in range(0, len(found), _BLOCK):
            found[start : start + _BLOCK] = score.table(np.arange(start, min(start + _BLOCK, len(found))), texts)
            progress("scores", min(start + _BLOCK, len(found)) * len(texts), found.size)
    return found


def _elements(model: PairScorer, lists: ElementLists, rows: Rows) -> Elements:
    device = next(model.parameters()).device
    values, lengths = lists.take(rows)
    return Elements(torch.from_numpy(values).to(device).float(), torch.from_numpy(lengths).to(device))
