"""NT-Xent: the slow softmax under every option, and what the stratified correction of offline negatives is for."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer import losses_oracle as oracle
from tests.trainer.losses_batches import (
    LAYOUTS,
    agree,
    finite,
    gradients,
    pair_step,
    total,
)
from trainer import losses
from trainer.losses import ntxent
from trainer.similarities import Offline, Similarities

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = [{"mask": mask, "reduction": how} for mask in ("valid", "diagonal") for how in ("sum", "mean")]
MODES: list[dict[str, Any]] = [
    {},
    {"offline": "OffTri", "margin_offline": 0.3, "offline_weight": 0.5},
    {"offline": "OffQuin", "margin_offline": 0.1},
    {"offline": "softmax"},
    {"offline": "softmax", "correction": "stratified"},
    {"offline": "softmax", "correction": "stratified", "offline_weight": 0.3},
    {"offline": "softmax", "offline_weight": 2.5},
]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda found: "-".join(map(str, found.values())) or "none")
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@layouts
@modes
@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_it_is_the_slow_loop(mode: dict[str, Any], tau: float, layout: str) -> None:
    for number, shared in enumerate(SHARED):
        for ties in (False, True):  # ties do not matter to a softmax
            config = losses.configure("ntxent", {"tau": tau, **mode, **shared})
            agree(config, oracle.ntxent, LAYOUTS[layout](number, ties=ties))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 8),
    layout=st.sampled_from(sorted(LAYOUTS)),
    mode=st.sampled_from(MODES),
    shared=st.sampled_from(SHARED),
    tau=st.floats(0.05, 5.0),
)
def test_any_step_and_settings(
    seed: int, size: int, layout: str, mode: dict[str, Any], shared: dict[str, Any], tau: float
) -> None:
    agree(losses.configure("ntxent", {"tau": tau, **mode, **shared}), oracle.ntxent, LAYOUTS[layout](seed, size))


def test_without_repeated_images_it_is_cross_entropy() -> None:
    """The published loss: the mean of both directions, over the whole batch."""
    scores = pair_step(1).scores
    step = Similarities(scores, ~torch.eye(len(scores), dtype=torch.bool))
    target = torch.arange(len(scores))
    expected = [torch.nn.functional.cross_entropy(side / 0.1, target) / 2 for side in (scores, scores.T)]
    for mask in ("valid", "diagonal"):
        found = losses.parts(losses.configure("ntxent", {"mask": mask}), step)
        for name, value in zip(("online_text", "online_image"), expected, strict=True):
            assert found[name].item() == pytest.approx(value.item(), abs=1e-12)
        pairs = zip(gradients(total(found), [scores]), gradients(expected[0] + expected[1], [scores]), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_float32_is_precise_where_the_positive_is_far_ahead() -> None:
    """A learnt batch has a loss near 0: it must not be the difference of two large logits."""
    random = torch.Generator().manual_seed(0)
    scores = (torch.rand(8, 8, generator=random) * 0.2 + 0.7 * torch.eye(8)).double()
    step = pair_step(1, 8)
    low = {name: values.detach().abs() * 0.2 for name, values in step.offline.items()}
    step = replace(step, scores=scores, offline=low).cast(torch.float32).cast(torch.double)
    for mode in ({}, *MODES[3:]):
        agree(losses.configure("ntxent", {"tau": 0.05, **mode}), oracle.ntxent, step)


def test_the_positives_of_an_anchor_leave_its_denominator_under_valid_alone() -> None:
    scores = torch.tensor([[0.3, 0.9, 0.1], [0.2, 0.4, 0.2], [0.1, 0.1, 0.5]], dtype=torch.double, requires_grad=True)
    valid = ~torch.eye(3, dtype=torch.bool)
    valid[0, 1] = valid[1, 0] = False
    for mask in ("valid", "diagonal"):
        found = losses.parts(losses.configure("ntxent", {"mask": mask}), Similarities(scores, valid))
        (slope,) = gradients(total(found), [scores])
        assert (slope[0, 1] == 0) == (mask == "valid")


@pytest.mark.parametrize("correction", ["none", "stratified"])
def test_an_offline_negative_is_pushed_away(correction: str) -> None:
    step = pair_step(1).having(True)
    config = losses.configure("ntxent", {"offline": "softmax", "correction": correction})
    slopes = gradients(total(losses.parts(config, step.similarities())), step.leaves)
    assert (slopes[1] > 0).all()
    assert (slopes[2] > 0).all()
    assert not slopes[3].any()
    assert not slopes[4].any()


def denominator(
    in_batch: list[float], offline: float, share: float, correction: str, tau: float, searched: str = "text"
) -> float:
    """Sum over the negatives that the softmax of one anchor with one positive has, read back from the loss."""
    positive = torch.tensor([0.2], dtype=torch.double)
    scores = torch.cat([positive, torch.tensor(in_batch, dtype=torch.double)])
    valid = torch.tensor([False] + [True] * len(in_batch))
    one, yes = torch.tensor([offline], dtype=torch.double), torch.tensor([True])
    shares = torch.tensor([share], dtype=torch.double)
    found = Offline(one, one, one, one, yes, yes, ~yes, ~yes, shares, shares)
    place = torch.tensor([0])
    shape = (1, -1) if searched == "text" else (-1, 1)
    step = Similarities(scores.reshape(shape), valid.reshape(shape), found, place, place)
    config = losses.configure(
        "ntxent", {"tau": tau, "offline": "softmax", "correction": correction, "reduction": "sum"}
    )
    loss = losses.parts(config, step)[f"online_{searched}"].item()
    own = math.exp(0.2 / tau)
    return math.exp(2 * loss) * own - own


def factor(gallery: list[float], pool: list[float], in_batch: int, correction: str, searched: str = "text") -> float:
    """Mean denominator over every draw there is, as a multiple of the sum over the whole gallery and the pool."""
    tau, share = 0.3, len(pool) / (len(pool) + len(gallery))
    draws = [
        denominator(list(chosen), offline, share, correction, tau, searched)
        for chosen in itertools.combinations(gallery, in_batch)
        for offline in pool
    ]
    return sum(draws) / len(draws) / sum(math.exp(score / tau) for score in (*gallery, *pool))


@pytest.mark.parametrize("searched", ["text", "image"])
@pytest.mark.parametrize(("num_gallery", "num_pool", "in_batch"), [(6, 3, 3), (7, 1, 3), (3, 6, 1), (5, 4, 5)])
def test_the_stratified_denominator_is_unbiased(num_gallery: int, num_pool: int, in_batch: int, searched: str) -> None:
    """In-batch negatives uniform outside the pool, the offline one uniform in it: on average proportional to the sum
    over everything, with a factor that the scores do not enter. Every draw is listed, so this holds exactly."""
    random = torch.Generator().manual_seed(num_gallery)
    found: dict[str, list[float]] = {"none": [], "stratified": []}
    for _ in range(3):
        gallery = (torch.rand(num_gallery, generator=random) * 0.4).tolist()
        pool = (torch.rand(num_pool, generator=random) * 0.4 + 0.5).tolist()
        for correction, factors in found.items():
            factors.append(factor(gallery, pool, in_batch, correction, searched))
    assert found["stratified"] == pytest.approx([in_batch / (num_gallery + num_pool)] * 3, rel=1e-9)
    assert max(found["none"]) - min(found["none"]) > 1e-3 * max(found["none"])


def test_the_bias_of_in_batch_negatives_from_everywhere_is_the_documented_one() -> None:
    """n (1 - q) q (mean of the pool - mean of the rest), in exponentials."""
    rest, pool, in_batch, tau = [0.1, 0.2, 0.35], [0.7, 0.9], 2, 0.3
    share = len(pool) / (len(rest) + len(pool))
    draws = [
        denominator(list(chosen), offline, share, "stratified", tau)
        for chosen in itertools.combinations(rest + pool, in_batch)
        for offline in pool
    ]
    whole, hard, easy = (sum(math.exp(s / tau) for s in part) / len(part) for part in (rest + pool, pool, rest))
    bias = in_batch * (1 - share) * share * (hard - easy)
    assert sum(draws) / len(draws) == pytest.approx(in_batch * whole + bias, rel=1e-9)


@pytest.mark.parametrize("correction", ["none", "stratified"])
def test_a_weight_of_nothing_leaves_offline_negatives_out(correction: str) -> None:
    step = pair_step(1).having(True)
    settings = {"tau": 0.01, "offline": "softmax", "correction": correction, "offline_weight": 0.0}
    step = replace(step, shares={name: [1e-9] * len(step.pairs) for name in step.shares})
    config = losses.configure("ntxent", settings)
    found = total(losses.parts(config, step.similarities())).item()
    assert found == pytest.approx(total(losses.parts(config.online, step.similarities())).item(), rel=1e-6)


def test_many_random_draws_come_near_the_whole_gallery() -> None:
    """The same by chance and at scale, every draw one anchor of a large batch: of 500 negatives 50 are the pool."""
    random = torch.Generator().manual_seed(5)
    tau, count, pool, in_batch, draws = 0.3, 500, 50, 30, 4000
    gallery = (torch.randn(count, generator=random, dtype=torch.double) * 0.2).sort(descending=True).values
    rest = gallery[pool:][torch.rand(draws, count - pool, generator=random).argsort(1)[:, :in_batch]]
    hard = gallery[torch.randint(pool, (draws,), generator=random)]
    scores = torch.cat([torch.zeros(draws, 1, dtype=torch.double), rest], dim=1).requires_grad_()
    valid = torch.ones_like(scores, dtype=torch.bool)
    valid[:, 0] = False
    yes, shares = torch.ones(draws, dtype=torch.bool), torch.full((draws,), pool / count)
    offline = Offline(hard, hard, hard, hard, yes, yes, ~yes, ~yes, shares, shares)
    step = Similarities(scores, valid, offline, torch.arange(draws), torch.zeros(draws, dtype=torch.long))
    ratios = {}
    for correction in ("none", "stratified"):
        config = ntxent.Config(tau=tau, offline="softmax", correction=correction, reduction="sum")
        (slope,) = gradients(losses.parts(config, step)["online_text"], [scores])
        chance = 1 + 2 * tau * slope[:, 0]  # of the positive, whose exponential is 1
        ratios[correction] = (1 / chance - 1).mean().item() / (gallery / tau).exp().sum().item()
    assert ratios["stratified"] == pytest.approx(in_batch / count, rel=0.02)
    assert abs(ratios["none"] * count / in_batch - 1) > 0.05


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_pool_of_nothing_or_of_everything_is_finite(share: float) -> None:
    """And a pool that is no part of the gallery weighs nothing."""
    step = pair_step(1).having(True)
    step = replace(step, shares={name: [share] * len(step.pairs) for name in step.shares})
    config = losses.configure("ntxent", {"offline": "softmax", "correction": "stratified"})
    finite(config, step)
    if share == 0:
        found = total(losses.parts(config, step.similarities())).item()
        assert found == pytest.approx(total(losses.parts(config.online, step.similarities())).item(), abs=1e-6)
