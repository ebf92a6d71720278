"""The scores of a cross-attention model over stored elements: of candidates, and of a whole gallery."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from miner.artifacts.elements import ElementLists
from miner.artifacts.pairs import Direction, Side
from trainer.data import Dataset
from trainer.encode import encode_elements, quiet
from trainer.models import Elements, PairScorer

__all__ = ["score_all", "scorer"]

Rows = npt.NDArray[np.int64]
# Items of the gallery read and scored at once; fixed, since a product rounds differently when its shape changes.
_ITEMS = 256


def scorer(
    model: PairScorer, images: ElementLists, texts: ElementLists, direction: Direction
) -> Callable[[int, Rows], npt.NDArray[np.float32]]:
    """The function (row of an anchor, rows (n,) of the gallery) -> scores (n,) float32; call it inside `quiet`."""
    anchors, gallery = (images, texts) if direction == "i2t" else (texts, images)

    def score(anchor: int, rows: Rows) -> npt.NDArray[np.float32]:
        one = _elements(model, anchors, np.array([anchor]))
        found = np.empty(len(rows), dtype=np.float32)
        # Shortest first, so that little is read and compared for padding.
        order = np.argsort(gallery.lengths(rows), kind="stable")
        for start in range(0, len(rows), _ITEMS):
            some = order[start : start + _ITEMS]
            items = _elements(model, gallery, rows[some])
            scores = model.scores(one, items) if direction == "i2t" else model.scores(items, one)
            found[some] = scores.float().flatten().cpu().numpy()
        return found

    return score


def score_all(
    model: PairScorer,
    dataset: Dataset,
    threads: int = 1,
    block: int = 128,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> npt.NDArray[np.float32]:
    """Every image of a split with every text: (images, texts) float32; `progress(what, done, total)` of every kind."""
    with quiet(model, threads):
        sides = {}
        for side in get_args(Side):
            rows = np.arange(len(dataset.pairs.ids(side)))
            sides[side] = ElementLists.of(
                *encode_elements(model, dataset, side, rows, threads=threads, progress=partial(progress, f"{side}s"))[
                    1:
                ]
            )
        images, texts = sides["image"], sides["text"]
        found = np.empty((len(images), len(texts)), dtype=np.float32)
        for start in range(0, len(images), block):
            some = _elements(model, images, np.arange(start, min(start + block, len(images))))
            for at in range(0, len(texts), block):
                others = _elements(model, texts, np.arange(at, min(at + block, len(texts))))
                found[start : start + block, at : at + block] = model.scores(some, others).float().cpu().numpy()
                progress("scores", start * len(texts) + len(some) * (at + len(others)), found.size)
    return found


def _elements(model: PairScorer, lists: ElementLists, rows: Rows) -> Elements:
    device = next(model.parameters()).device
    values, lengths = lists.take(rows)
    return Elements(torch.from_numpy(values).to(device).float(), torch.from_numpy(lengths).to(device))
