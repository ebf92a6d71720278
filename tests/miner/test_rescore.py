"""Two-stage search against a search of everything by the second score, item by item."""

from __future__ import annotations

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.rescore import recall, rescore


def many_to_many(seed: int = 0) -> Pairs:
    """12 images with 1 to 4 texts each, some texts on two images, one image with every text."""
    rng = np.random.default_rng(seed)
    links, count = [], 0
    for image in range(11):
        for _ in range(int(rng.integers(1, 5))):
            links.append((f"i{image:02d}", f"t{count:02d}"))
            if count % 4 == 0:
                links.append((f"i{(image + 3) % 11:02d}", f"t{count:02d}"))
            count += 1
    texts = [f"t{text:02d}" for text in range(count)]
    links += [("i11", text) for text in texts]
    images = [f"i{image:02d}" for image in rng.permutation(12)]
    return Pairs.from_ids(images, [texts[at] for at in rng.permutation(count)], links)


def second_score(pairs: Pairs, direction: Direction, seed: int = 1) -> np.ndarray:
    """(anchors, gallery), with ties."""
    shape = tuple(len(pairs.ids(side)) for side in sides(direction))
    return np.random.default_rng(seed).integers(0, 9, shape).astype(np.float32) / 8


def candidates(pairs: Pairs, direction: Direction, depth: int, seed: int = 2) -> NegativeBlock:
    """Random negatives as a first stage might give them, as many as there are up to `depth`, anchors in id order."""
    rng = np.random.default_rng(seed)
    anchors, gallery = sides(direction)
    offsets, positives = pairs.positives(anchors)
    order = pairs.order(anchors)
    rows = np.full((len(order), depth), -1, dtype=np.int32)
    for at, anchor in enumerate(order):
        free = np.setdiff1d(np.arange(len(pairs.ids(gallery))), positives[offsets[anchor] : offsets[anchor + 1]])
        some = rng.permutation(free)[:depth]
        rows[at, : len(some)] = some
    scores = np.where(rows >= 0, 0.5, np.nan).astype(np.float32)
    return NegativeBlock(order, rows, scores, np.zeros(len(order), np.float32))


DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_best_candidates_are_kept_ties_by_id(direction: Direction, k: int) -> None:
    pairs = many_to_many()
    matrix = second_score(pairs, direction)
    block = candidates(pairs, direction, 7)
    found = rescore(block, lambda anchor, rows: matrix[anchor, rows], pairs, direction, k)
    anchors, gallery = sides(direction)
    offsets, positives = pairs.positives(anchors)
    assert np.array_equal(found.anchor_rows, block.anchor_rows)
    for at, anchor in enumerate(block.anchor_rows):
        there = [int(row) for row in block.negatives[at] if row >= 0]
        wanted = sorted(there, key=lambda row: (-matrix[anchor, row], pairs.ids(gallery)[row]))[:k]
        kept = found.negatives[at]
        assert kept[: len(wanted)].tolist() == wanted
        assert (kept[len(wanted) :] == -1).all()
        assert np.isnan(found.scores[at, len(wanted) :]).all()
        assert found.scores[at, : len(wanted)].tolist() == [matrix[anchor, row] for row in wanted]
        assert found.lowest_positive[at] == matrix[anchor, positives[offsets[anchor] : offsets[anchor + 1]]].min()
        assert (len(wanted) < k) == (int(anchor) in found.reasons)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_recall_is_the_share_of_the_truly_hardest(direction: Direction) -> None:
    pairs = many_to_many()
    matrix = second_score(pairs, direction)
    block = candidates(pairs, direction, 5)
    anchors, gallery = sides(direction)
    offsets, positives = pairs.positives(anchors)
    wanted: dict[str, list[float]] = {"1": [], "2": [], "4": []}
    for at, anchor in enumerate(block.anchor_rows):
        free = set(range(len(pairs.ids(gallery)))) - set(positives[offsets[anchor] : offsets[anchor + 1]].tolist())
        hardest = sorted(free, key=lambda row: (-matrix[anchor, row], pairs.ids(gallery)[row]))
        for depth, shares in wanted.items():
            top = hardest[: int(depth)]
            if top:
                shares.append(np.mean([row in block.negatives[at] for row in top]))
    found = recall(block, lambda anchors, rows: matrix[np.ix_(anchors, rows)], pairs, direction, 4, depths=(1, 2, 10))
    assert found == {depth: pytest.approx(np.mean(shares), abs=1e-6) for depth, shares in wanted.items()}
    assert 0 < found["4"] < 1


def test_everything_as_candidates_has_recall_one() -> None:
    pairs = many_to_many()
    matrix = second_score(pairs, "i2t")
    block = candidates(pairs, "i2t", len(pairs.text_ids))
    assert set(recall(block, lambda anchors, rows: matrix[np.ix_(anchors, rows)], pairs, "i2t", 5).values()) == {1.0}


def test_bad_scores_and_too_few_candidates_are_refused() -> None:
    pairs = many_to_many()
    block = candidates(pairs, "i2t", 4)
    with pytest.raises(BadInput, match="cannot be kept of 4 candidates"):
        rescore(block, lambda anchor, rows: np.zeros(len(rows), np.float32), pairs, "i2t", 5)
    with pytest.raises(BadInput, match="not a finite number"):
        rescore(block, lambda anchor, rows: np.full(len(rows), np.nan, np.float32), pairs, "i2t", 2)
