"""GOAL: its gradient is the table of weights, gathered triplet by triplet. Its value means nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
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
    close,
    embedded_step,
    finite,
    gradients,
    hard_cases,
    image_step,
    pair_step,
    total,
)
from trainer import losses
from trainer.losses import goal, triplet
from trainer.similarities import Side, Similarities

pytestmark = pytest.mark.usefixtures("one_thread")

TRIPLETS = ["con", "nca", "cir", "hinge"]
PAIRS = ["con", "lin", "sig", "lin_ms", "sig_ms", "sig_ms_bounded"]
SHARED = [
    {"mask": "valid", "reduction": "sum"},
    {"mask": "diagonal", "reduction": "mean"},
    {"mask": "valid", "reduction": "mean"},
    {"mask": "diagonal", "reduction": "sum"},
]
MODES: list[dict[str, Any]] = [
    {"offline": "none"},
    {"offline": "goal", "offline_weight": 0.7},
    {"offline": "goal_only", "offline_weight": 1.3},
    {"offline": "OffTri", "offline_weight": 0.5, "margin_offline": 0.3},
    {"offline": "OffQuin", "margin_offline": 0.1},
]
grid = pytest.mark.parametrize(("t", "p"), list(itertools.product(TRIPLETS, PAIRS)))
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def slow_gradient(config: goal.Config, step: Step) -> list[Tensor]:
    """By the leaves of the step: the weights, and AOQ's hinges if they are on top."""
    by_score = oracle.goal_gradient(config, step)
    reached = [step.scores, *step.offline.values()]
    found = torch.autograd.grad(reached, step.leaves, by_score, allow_unused=True, retain_graph=True)
    slopes = [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, step.leaves, strict=True)]
    if config.offline in ("OffTri", "OffQuin"):
        hinges = total(oracle.offline_hinges(config, step, quintuplet=config.offline == "OffQuin"))
        extra = gradients(config.offline_weight * hinges, step.leaves)
        slopes = [one + more for one, more in zip(slopes, extra, strict=True)]
    return slopes


def agree(config: goal.Config, step: Step) -> None:
    expected = slow_gradient(config, step)
    for dtype in (torch.double, torch.float32) if step.leaves[0] is step.scores else (torch.double,):
        seen = step if dtype == torch.double else step.cast(dtype)
        found = gradients(total(losses.parts(config, seen.similarities())), seen.leaves)
        close(found, expected, dtype, config)


@grid
@layouts
@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_the_gradient_is_the_table(t: str, p: str, tau: float, layout: str) -> None:
    start = TRIPLETS.index(t) + PAIRS.index(p)
    for number, mode in enumerate(MODES):
        shared = SHARED[(start + number) % 4]
        config = losses.configure("goal", {"triplet": t, "pair": p, "tau": tau, **mode, **shared})
        agree(config, LAYOUTS[layout](start + number))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 8),
    layout=st.sampled_from(sorted(LAYOUTS)),
    shared=st.sampled_from(SHARED),
    mode=st.sampled_from(MODES),
    chosen=st.fixed_dictionaries(
        {
            "triplet": st.sampled_from(TRIPLETS),
            "pair": st.sampled_from(PAIRS),
            "tau": st.floats(0.5, 20),
            "a": st.floats(0.5, 5),
            "b": st.floats(1, 12),
            "l": st.floats(-0.5, 1),
            "margin": st.floats(0, 0.5),
        }
    ),
)
def test_any_step_and_settings(
    seed: int, size: int, layout: str, shared: dict[str, Any], mode: dict[str, Any], chosen: dict[str, Any]
) -> None:
    agree(losses.configure("goal", {**shared, **mode, **chosen}), LAYOUTS[layout](seed, size))


@grid
def test_ties_are_pushed_as_much_altogether(t: str, p: str) -> None:
    """Which of several hardest negatives is pushed is open; how much every anchor pushes and pulls is not."""
    for seed, (make, shared) in enumerate(itertools.product(LAYOUTS.values(), SHARED)):
        step = make(seed, ties=True)
        config = losses.configure("goal", {"triplet": t, "pair": p, "margin": 0.25, "offline": "goal", **shared})
        parts = losses.parts(config, step.similarities())
        for name, axis in (("online_text", 1), ("online_image", 0)):
            (found,) = gradients(parts[name], [step.scores])
            expected = oracle.goal_gradient(config, step, (name,))[0]
            close([found.sum(axis)], [expected.sum(axis)], torch.double, config)
            for place in step.pairs:
                assert found[place].item() == pytest.approx(expected[place].item(), abs=1e-10)
        offline = total({name: part for name, part in parts.items() if name.startswith("offline")})
        close(gradients(offline, step.leaves), oracle.goal_gradient(config, step, ("offline",)), torch.double, config)


@grid
def test_equal_rows_of_repeated_images(t: str, p: str) -> None:
    for seed, mode in enumerate(MODES[1:3]):
        agree(losses.configure("goal", {"triplet": t, "pair": p, **mode}), embedded_step(seed))


def log_sigmoid_loss(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


CLOSED: dict[tuple[str, str], Callable[[Tensor, Tensor, goal.Config], Tensor]] = {
    ("con", "con"): lambda p, n, c: n - p,
    ("con", "lin"): lambda p, n, c: (1 - p) ** 2 / 2 + n**2 / 2,
    ("con", "sig"): lambda p, n, c: log_sigmoid_loss(-c.a * (p - c.l)) / c.a + log_sigmoid_loss(c.b * (n - c.l)) / c.b,
    ("nca", "con"): lambda p, n, c: log_sigmoid_loss(c.tau * (n - p)) / c.tau,
    ("cir", "lin"): lambda p, n, c: log_sigmoid_loss(c.tau * (n**2 + (1 - p) ** 2 - 0.5)) / (2 * c.tau),
}


@pytest.mark.parametrize(("t", "p"), list(CLOSED))
@layouts
@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_integrable_pairs_match_autograd_of_their_losses(t: str, p: str, tau: float, layout: str) -> None:
    for number, (shared, mode) in enumerate(itertools.product(SHARED, MODES[:3])):
        step = LAYOUTS[layout](number)
        config = losses.configure("goal", {"triplet": t, "pair": p, "tau": tau, **shared, **mode})
        values = []
        for one in oracle.goal_tuples(config, step):
            negative = step.offline[one.name[8:]][one.pair] if one.negative is None else step.scores[one.negative]
            value = CLOSED[t, p](step.scores[one.positive], negative, config)
            values.append(value * (config.offline_weight if one.negative is None else 1.0))
        loss = torch.stack(values).sum() / (len(step.pairs) if config.reduction == "mean" else 1)
        found = gradients(total(losses.parts(config, step.similarities())), step.leaves)
        close(found, gradients(loss, step.leaves), torch.double, config)


@layouts
@pytest.mark.parametrize("shared", SHARED, ids=lambda found: "-".join(found.values()))
@pytest.mark.parametrize("ties", [False, True])
def test_hinge_with_con_is_the_max_violation_triplet(layout: str, shared: dict[str, Any], ties: bool) -> None:
    for seed in range(4):
        step = LAYOUTS[layout](seed, ties=ties)
        found, expected = (
            gradients(
                total(losses.parts(losses.configure(name, {**chosen, **shared}), step.similarities())), step.leaves
            )
            for name, chosen in (("goal", {"triplet": "hinge", "margin": 0.25}), ("triplet", {"margin": 0.25}))
        )
        close(found, expected, torch.double, shared)


def test_two_anchors_that_share_a_negative_accumulate() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.6], [0.1, 0.4, 0.7], [0.0, 0.2, 0.9]], dtype=torch.double, requires_grad=True)
    step = Similarities(scores, ~torch.eye(3, dtype=torch.bool))
    config = losses.configure("goal", {"triplet": "con", "pair": "lin"})
    (text,) = gradients(losses.parts(config, step)["online_text"], [scores])
    expected = [[-0.5, 0, 0.6], [0, -0.6, 0.7], [0, 0.2, -0.1]]
    torch.testing.assert_close(text, torch.tensor(expected, dtype=torch.double))
    (image,) = gradients(losses.parts(config, step)["online_image"], [scores])
    expected = [[-0.5, 0, 0], [0.1, -0.6, 0.7], [0, 0.2, -0.1]]
    torch.testing.assert_close(image, torch.tensor(expected, dtype=torch.double))
    (both,) = gradients(total(losses.parts(config, step)), [scores])
    torch.testing.assert_close(both, text + image)  # (2, 1) is the negative of an image and of a text


@grid
def test_scaling_the_loss_scales_the_gradient(t: str, p: str) -> None:
    step = pair_step(2)
    config = losses.configure("goal", {"triplet": t, "pair": p, "offline": "goal"})
    loss = total(losses.parts(config, step.similarities()))
    for a, b in zip(gradients(1024 * loss, step.leaves), gradients(loss, step.leaves), strict=True):
        assert torch.equal(a, 1024 * b)


@grid
@layouts
def test_through_embeddings_it_is_the_weights_times_the_other_side(t: str, p: str, layout: str) -> None:
    step = LAYOUTS[layout](4)
    random = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, 5, generator=random, dtype=torch.double) for rows in step.scores.shape)
    x, y = (torch.nn.functional.normalize(one, dim=1).requires_grad_() for one in (x, y))
    config = losses.configure("goal", {"triplet": t, "pair": p})
    seen = replace(step, scores=x @ y.T)
    found = gradients(total(losses.parts(config, seen.similarities())), [x, y])
    weights = oracle.goal_gradient(config, seen)[0]
    close(found, [weights @ y.detach(), weights.T @ x.detach()], torch.double, config)


@grid
def test_figures_are_means_over_anchors_with_a_negative(t: str, p: str) -> None:
    for make, shared in itertools.product(LAYOUTS.values(), SHARED):
        step = make(3)  # some anchors have none
        config = losses.configure("goal", {"triplet": t, "pair": p, **shared})
        seen = [one.scores + one.weights for one in oracle.goal_tuples(config, step)]
        found = losses.figures(config, step.similarities())
        assert list(found) == ["S_p", "S_n", "T", "P+", "P-"]
        for value, column in zip(found.values(), zip(*seen, strict=True), strict=True):
            assert not value.requires_grad
            assert value.item() == pytest.approx(oracle.mean(list(column)), abs=1e-10)
    nothing = replace(step, belong=frozenset((i, j) for i in range(9) for j in range(9)))
    found = losses.figures(losses.configure("goal", {"triplet": t, "pair": p}), nothing.similarities())
    assert [value.item() for value in found.values()] == [0.0] * 5


def alone(positive: float, negative: float) -> Side:
    """One pair and one other text, so that A and B are empty."""
    scores, places = torch.tensor([[positive, negative]], dtype=torch.double), torch.zeros(1, dtype=torch.long)
    return Similarities(scores, torch.tensor([[False, True]]), None, places, places).sides("valid")[0]


def test_empty_sets_and_the_bound() -> None:
    """R = 0 leaves `sig_ms` unbounded, 148 at S_n = 1; the bounded one is then `sig`, and never above 1."""
    side = alone(0.5, 1.0)
    found = {p: goal.weights(goal.Config(pair=p), side, *side.hardest[::2]) for p in PAIRS}
    assert found["sig_ms"].negative.item() == pytest.approx(math.exp(5))
    assert 148 < found["sig_ms"].negative.item() < 149
    assert found["sig_ms"].positive.item() == pytest.approx(1.0)
    assert found["sig_ms_bounded"].negative.item() == found["sig"].negative.item()
    assert found["sig_ms_bounded"].positive.item() == found["sig"].positive.item()
    assert found["lin_ms"] == found["lin"]
    for make, seed in itertools.product(LAYOUTS.values(), range(6)):
        for side in make(seed).similarities().sides("valid"):
            bounded = goal.weights(goal.Config(pair="sig_ms_bounded"), side, *side.hardest[::2])
            assert ((bounded.positive > 0) & (bounded.positive <= 1)).all()
            assert ((bounded.negative > 0) & (bounded.negative <= 1)).all()


@grid
def test_no_gradient_flows_through_the_weights(t: str, p: str) -> None:
    """The gradient by the scores does not depend on them any further: its own derivative is zero."""
    step = image_step(2)
    loss = total(
        losses.parts(losses.configure("goal", {"triplet": t, "pair": p, "offline": "goal"}), step.similarities())
    )
    slopes = torch.autograd.grad(loss, step.leaves, create_graph=True, allow_unused=True)
    assert not any(slope.requires_grad for slope in slopes if slope is not None)


@grid
@pytest.mark.parametrize("offline", ["none", "goal", "goal_only"])
def test_no_step_gives_nan(t: str, p: str, offline: str) -> None:
    """Huge scores too, where 1 / e^-x overflows; and half precision gives the gradient of the same numbers."""
    config = losses.configure("goal", {"triplet": t, "pair": p, "offline": offline})
    for step in hard_cases().values():
        finite(config, step.having(True))
        finite(config, step.having(False))
        assert all(value.isfinite() for value in losses.figures(config, step.similarities()).values())
    for dtype in (torch.bfloat16, torch.float16):
        for make in LAYOUTS.values():
            half = make(1).cast(dtype)
            finite(config, half)
            wide = half.cast(torch.float32)
            found, expected = (
                gradients(total(losses.parts(config, one.similarities())), one.leaves) for one in (half, wide)
            )
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a.float(), b, rtol=torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_without_tables_every_mode_is_the_batch_alone() -> None:
    step = pair_step(1)
    for mode in MODES:
        found = losses.parts(losses.configure("goal", mode), step.similarities(offline=False))
        assert found.keys() == {"online_text", "online_image"}
    only = losses.parts(losses.configure("goal", {"offline": "goal_only"}), step.similarities())
    assert only.keys() == {"offline_text", "offline_image"}
    assert losses.configure("goal", {}).warm_up == triplet.Config(max_violation=False)
