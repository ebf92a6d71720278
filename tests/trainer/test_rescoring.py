"""A cross-attention model's scores from stored elements: those of the items themselves, whatever was asked before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.elements import ElementLists
from miner.artifacts.pairs import Direction
from trainer import models
from trainer.encode import quiet
from trainer.models import Elements, PairScorer
from trainer.rescoring import Scorer
from trainer.text import Vocabulary

DIM, IMAGES, TEXTS = 16, 300, 270  # more than one block of rows of each


def lists(rng: np.random.Generator, size: int, longest: int) -> ElementLists:
    """Items of unequal lengths, over three shards."""
    shards = []
    for rows in np.array_split(np.arange(size), 3):
        lengths = rng.integers(1, longest + 1, len(rows)).astype(np.int32)
        shards.append((rng.standard_normal((lengths.sum(), DIM)).astype(np.float16), lengths))
    return ElementLists._of(shards)


@pytest.fixture(scope="module")
def stored() -> tuple[ElementLists, ElementLists]:
    rng = np.random.default_rng(0)
    return lists(rng, IMAGES, 6), lists(rng, TEXTS, 9)


def model_of(name: str, settings: dict[str, Any]) -> PairScorer:
    config = models.configure(name, {"dim": DIM, "word_dim": 4, **settings})
    model = models.build(config, Vocabulary.build(["a cat", "a dog"], 1), (6, DIM)).eval()
    assert isinstance(model, PairScorer)
    return model


def one_by_one(model: PairScorer, images: ElementLists, texts: ElementLists, image: int, text: int) -> float:
    """The score of a pair at its own lengths, by itself."""
    sides = []
    for side, row in ((images, image), (texts, text)):
        values, lengths = side.take(np.array([row]))
        sides.append(Elements(torch.from_numpy(values).float(), torch.from_numpy(lengths)))
    return float(model.scores(*sides)[0, 0])


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("scan", {"attention": "t2i"}), ("scan", {"attention": "i2t"}), ("bfan", {}), ("bfan", {"memory_mib": 1})],
)
def test_scores_are_those_of_the_pairs(
    name: str, settings: dict[str, Any], direction: Direction, stored: tuple[ElementLists, ElementLists]
) -> None:
    model, rng = model_of(name, settings), np.random.default_rng(1)
    num_anchors, num_gallery = (IMAGES, TEXTS) if direction == "i2t" else (TEXTS, IMAGES)
    asked = [(anchor, rng.permutation(num_gallery)[:40]) for anchor in (0, 7, num_anchors - 1)]
    with quiet(model, 1):
        score = Scorer(model, *stored, direction)
        found = [score(anchor, rows) for anchor, rows in asked]
        table = score.table(np.array([anchor for anchor, _ in asked]), np.arange(num_gallery))
        for at, (anchor, rows) in enumerate(asked):
            pairs = [(anchor, row) if direction == "i2t" else (row, anchor) for row in rows]
            wanted = [one_by_one(model, *stored, *pair) for pair in pairs]
            np.testing.assert_allclose(found[at], wanted, atol=1e-5)
            np.testing.assert_allclose(table[at, rows], wanted, atol=1e-5)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_what_was_asked_before_changes_no_bit(direction: Direction, stored: tuple[ElementLists, ElementLists]) -> None:
    model, rng = model_of("bfan", {}), np.random.default_rng(2)
    rows = [rng.permutation(min(IMAGES, TEXTS))[:50] for _ in range(4)]
    with quiet(model, 1):
        before, fresh = Scorer(model, *stored, direction), []
        one_after_the_other = [before(anchor, asked) for anchor, asked in enumerate(rows)]
        for anchor, asked in reversed(list(enumerate(rows))):
            fresh.append(Scorer(model, *stored, direction)(anchor, asked))
    for first, second in zip(one_after_the_other, reversed(fresh), strict=True):
        assert first.tobytes() == second.tobytes()


def test_grams_are_kept_where_they_are_of_use_and_fit(stored: tuple[ElementLists, ElementLists]) -> None:
    kept = {
        (name, attention, direction): Scorer(
            model_of(name, {"attention": attention} if name == "scan" else {}), *stored, direction
        )._grams
        is not None
        for name, attention in (("scan", "t2i"), ("scan", "i2t"), ("bfan", ""))
        for direction in ("i2t", "t2i")
    }
    # Of the gallery, where the model attends to it.
    wanted = {("scan", "t2i", "t2i"), ("scan", "i2t", "i2t"), ("bfan", "", "t2i"), ("bfan", "", "i2t")}
    assert {case for case, found in kept.items() if found} == wanted
    model = model_of("scan", {"memory_mib": 1})
    assert model.uses_gram("image", 1 << 20)
    assert not model.uses_gram("image", (1 << 20) + 1)
