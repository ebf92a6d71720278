"""The step that every loss reads: masks, sides and hardest negatives against loops, and that order does not matter."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer import losses_oracle as oracle
from tests.trainer.losses_batches import (
    LAYOUTS,
    Step,
    gradients,
    image_step,
    pair_step,
    total,
)
from trainer import losses
from trainer.similarities import Similarities, reduce

pytestmark = pytest.mark.usefixtures("one_thread")

layouts = pytest.mark.parametrize("layout", LAYOUTS)
masks = pytest.mark.parametrize("mask", ["valid", "diagonal"])
CONFIGS: list[Any] = [
    losses.configure(name, chosen)
    for name, chosen in (
        ("triplet", {"offline": "OffQuin"}),
        ("triplet", {"max_violation": False, "mask": "diagonal"}),
        ("aoq", {}),
        ("ntxent", {"offline": "softmax", "correction": "stratified"}),
        ("smoothap", {"tau": 0.1}),
        ("goal", {"triplet": "nca", "pair": "sig_ms", "offline": "goal"}),
        ("goal", {"triplet": "cir", "pair": "lin_ms", "mask": "diagonal"}),
        ("sct", {}),
        ("selhn", {"epsilon": 0.3}),
    )
]
configs = pytest.mark.parametrize("config", CONFIGS, ids=losses.name_of)


@layouts
@masks
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 7), ties=st.booleans())
def test_both_sides_are_what_the_loops_say(layout: str, mask: str, seed: int, size: int, ties: bool) -> None:
    step = LAYOUTS[layout](seed, size, ties=ties)
    sides = step.similarities().sides(mask)
    assert [side.searched for side in sides] == ["text", "image"]
    for anchor in oracle.anchors(step, mask):
        side = sides[anchor.searched == "image"]
        pair = anchor.pair
        assert side.positive[pair] == anchor.positive
        assert side.num_negatives[pair] == len(anchor.negatives)
        turned = [place[anchor.searched == "text"] for place in anchor.negatives]
        assert side.at_pairs(side.negative)[pair].nonzero().flatten().tolist() == turned
        best = max(anchor.negatives.values(), default=None)
        assert bool(side.hardest.has[pair]) == (best is not None)
        assert side.hardest.score[pair] == (0 if best is None else best)
        if best is not None:
            assert side.at_pairs(side.scores)[pair, side.hardest.candidate[pair]] == best
            assert int(side.hardest.candidate[pair]) in turned
        masked = side.at_pairs(side.masked)[pair]
        assert [place for place, value in enumerate(masked.tolist()) if value > float("-inf")] == turned
        assert side.offline is not None
        assert side.has_offline is not None
        assert side.offline_share is not None
        assert side.offline[pair] == step.offline[anchor.searched][pair]
        assert bool(side.has_offline[pair]) == step.flags[f"has_{anchor.searched}"][pair]
        assert side.offline_share[pair].item() == step.shares[anchor.searched][pair]


@layouts
@masks
def test_the_sides_mirror_each_other(layout: str, mask: str) -> None:
    text, image = LAYOUTS[layout](1).similarities().sides(mask)
    for name in ("scores", "negative", "masked"):
        assert torch.equal(getattr(text, name), getattr(image, name).T)
    assert (text.anchor, text.candidate) == (image.candidate, image.anchor)
    assert torch.equal(text.positive, image.positive)


def test_masks_of_a_pair_batch() -> None:
    """Two captions of one image meet: `valid` leaves out both, `diagonal` the pairs alone."""
    valid = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
    step = Similarities(torch.zeros(3, 3), valid)
    assert step.negative_mask("valid").tolist() == valid.tolist()
    assert step.negative_mask("diagonal").tolist() == (~torch.eye(3, dtype=torch.bool)).tolist()


def test_masks_of_an_image_batch() -> None:
    """Image 0 has texts 0, 1 and, not listed, 2; image 1 has texts 2, 3."""
    valid = torch.tensor([[False, False, False, True], [True, True, False, False]])
    images, texts = torch.tensor([1, 0, 0, 1]), torch.tensor([3, 0, 1, 2])
    step = Similarities(torch.arange(8.0).reshape(2, 4), valid, None, images, texts)
    assert step.positive.tolist() == [7, 0, 1, 6]
    assert step.negative_mask("valid").tolist() == valid.tolist()
    assert step.negative_mask("diagonal").tolist() == [[False, False, True, True], [True, True, False, False]]
    assert torch.equal(step.valid, valid)
    assert step.valid is step.negative_mask("valid")
    text, image = step.sides("diagonal")
    assert text.hardest.score.tolist() == [5, 3, 3, 5]
    assert image.hardest.score.tolist() == [3, 4, 5, 2]
    assert text.num_negatives.tolist() == [2, 2, 2, 2]
    assert image.num_negatives.tolist() == [1, 1, 1, 1]
    text, image = step.sides("valid")
    assert text.hardest.score.tolist() == [5, 3, 3, 5]
    assert image.hardest.has.tolist() == [True, True, True, False]
    assert image.hardest.score.tolist() == [3, 4, 5, 0]
    assert text.num_negatives.tolist() == [2, 1, 1, 2]
    assert image.num_negatives.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scores_are_widened_to_float32(dtype: torch.dtype) -> None:
    for make in LAYOUTS.values():
        step = make(1).cast(dtype)
        similarities = step.similarities()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert {similarities.wide.dtype, similarities.positive.dtype} == {wide}
        for side in similarities.sides("valid"):
            assert side.offline is not None
            floats = [side.scores, side.masked, side.positive, side.hardest.score, side.offline]
            assert {one.dtype for one in floats} == {wide}
        (slope,) = gradients(similarities.positive.sum(), [step.scores])
        assert slope.dtype == dtype


def test_no_negative_has_score_0_and_no_gradient() -> None:
    scores = torch.ones(2, 2, requires_grad=True)
    valid = torch.tensor([[False, False], [True, False]])
    text, image = Similarities(scores, valid).sides("valid")
    assert text.hardest.score.tolist() == [0, 1]
    assert image.hardest.has.tolist() == [True, False]
    (slope,) = gradients(text.hardest.score.sum() + image.hardest.score.sum(), [scores])
    assert slope.tolist() == [[0, 0], [2, 0]]


@layouts
def test_without_offline_scores_the_sides_have_none(layout: str) -> None:
    for side in LAYOUTS[layout](1).similarities(offline=False).sides("valid"):
        assert (side.offline, side.has_offline, side.offline_share) == (None, None, None)


def test_reductions() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert reduce(values, "sum") == 9
    assert reduce(values, "mean") == 3
    assert reduce(values[:0], "sum") == reduce(values[:0], "mean") == 0


@layouts
def test_both_gives_a_part_for_each_direction(layout: str) -> None:
    step = LAYOUTS[layout](1)
    found = step.similarities().both("valid", lambda side: side.positive, "mean")
    expected = sum(step.scores[place].item() for place in step.pairs) / len(step.pairs)
    assert {name: part.item() for name, part in found.items()} == pytest.approx(
        {"online_text": expected, "online_image": expected}
    )


def outcome(config: Any, step: Step) -> tuple[dict[str, float], list[Tensor]]:
    parts = losses.parts(config, step.similarities())
    return {name: part.item() for name, part in parts.items()}, gradients(total(parts), step.leaves)


@configs
def test_pairs_listed_along_the_diagonal_are_the_pair_batch(config: Any) -> None:
    for seed in range(4):
        step = pair_step(seed)
        found, expected = outcome(config, replace(step, diagonal=False)), outcome(config, step)
        assert found[0] == pytest.approx(expected[0], abs=1e-12)
        for a, b in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def moved(step: Step, order: list[int], rows: list[int], columns: list[int]) -> Step:
    """Pairs, images and texts in another order; the leaves stay as they are."""
    row, column = ({old: new for new, old in enumerate(places)} for places in (rows, columns))
    return replace(
        step,
        scores=step.scores[rows][:, columns],
        pairs=[(row[step.pairs[pair][0]], column[step.pairs[pair][1]]) for pair in order],
        belong=frozenset((row[i], column[j]) for i, j in step.belong),
        offline={name: values[order] for name, values in step.offline.items()},
        flags={name: [values[pair] for pair in order] for name, values in step.flags.items()},
        shares={name: [values[pair] for pair in order] for name, values in step.shares.items()},
    )


@configs
@layouts
def test_order_does_not_matter(config: Any, layout: str) -> None:
    for seed in range(3):
        step = LAYOUTS[layout](seed)
        random = torch.Generator().manual_seed(seed)
        order, rows, columns = (
            torch.randperm(count, generator=random).tolist() for count in (len(step.pairs), *step.scores.shape)
        )
        if step.diagonal:
            rows = columns = order
        found, expected = outcome(config, moved(step, order, rows, columns)), outcome(config, step)
        assert found[0] == pytest.approx(expected[0], abs=1e-10)
        for a, b in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@configs
@layouts
def test_images_and_texts_can_change_places(config: Any, layout: str) -> None:
    """Transposed scores and swapped offline negatives swap the directions and nothing else."""
    swap = {"text": "image", "image": "text"}
    for seed in range(3):
        step = LAYOUTS[layout](seed)
        other = replace(
            step,
            scores=step.scores.T,
            pairs=[(j, i) for i, j in step.pairs],
            belong=frozenset((j, i) for i, j in step.belong),
            offline={name: step.offline[swap.get(name, name)] for name in step.offline},
            flags={name: step.flags[name.replace(*pair)] for name, pair in swapped(step.flags)},
            shares={name: step.shares[swap[name]] for name in step.shares},
        )
        found, expected = outcome(config, other), outcome(config, step)
        names = {name: name.replace(*pair) for name, pair in swapped(expected[0])}
        assert found[0] == pytest.approx({names[name]: value for name, value in expected[0].items()}, abs=1e-12)
        for a, b in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def swapped(names: Any) -> list[tuple[str, tuple[str, str]]]:
    return [(name, ("text", "image") if name.endswith("text") else ("image", "text")) for name in names]


def test_made_steps_have_what_they_are_made_for() -> None:
    """Repeated images, shared texts, unequal captions, anchors without negatives, unlisted links."""
    pairs, images = [pair_step(seed) for seed in range(9)], [image_step(seed) for seed in range(9)]
    assert any(len(step.belong) > len(step.pairs) for step in pairs)
    assert any(len(step.belong) > len(step.pairs) for step in images)
    for step in images:
        rows = [i for i, _ in step.pairs]
        columns = [j for _, j in step.pairs]
        assert set(rows) == set(range(step.scores.shape[0]))
        assert set(columns) == set(range(step.scores.shape[1]))
    counts = [[[i for i, _ in step.pairs].count(row) for row in range(4)] for step in images]
    assert all(len(set(count)) > 1 for count in counts)
    assert any(len({j for _, j in step.pairs}) < len(step.pairs) for step in images)
    for step in (pairs[0], images[0]):
        sides = step.similarities().sides("valid")
        assert not all(side.hardest.has.all() for side in sides)
    flags = itertools.chain.from_iterable(step.flags.values() for step in (*pairs, *images))
    assert {value for values in flags for value in values} == {True, False}
