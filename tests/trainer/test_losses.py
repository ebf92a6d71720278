"""Triplet, AOQ, SCT and SelHN against slow loops over explicit tuples, and what holds for every loss of the package.

The loops are in `losses_oracle`; SmoothAP, NT-Xent and GOAL have their own files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miner.artifacts.errors import BadInput
from tests.trainer import losses_oracle as oracle
from tests.trainer.losses_batches import (
    LAYOUTS,
    Step,
    agree,
    close,
    embedded_step,
    finite,
    gradients,
    hard_cases,
    pair_step,
    total,
)
from trainer import losses
from trainer.losses import aoq, selhn, triplet
from trainer.similarities import Similarities

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "triplet": [{}, {"max_violation": False}, {"margin": 0.5}, {"margin": 0.0, "max_violation": False}],
    "sct": [{}, {"weight": 0.3, "scale": 3.0}, {"too_close": 0.1}, {"too_close": 2.0, "scale": 20.0}],
    "selhn": [{}, {"epsilon": 0.0}, {"epsilon": 0.5}, {"epsilon": 3.0, "margin": 0.4}],
    "aoq": [
        {},
        {"margin_online": 0.5, "margin_offline": 0.1, "alpha": 0.7, "beta": 0.4},
        {"alpha": 1.0, "beta": -0.2},
    ],
    "ntxent": [{}],
    "smoothap": [{}],
    "goal": [{}],
}
ON_TOP: list[dict[str, Any]] = [
    {},
    {"offline": "OffTri", "margin_offline": 0.3},
    {"offline": "OffQuin", "offline_weight": 0.7, "margin_offline": 0.15},
    {"offline": "OffQuin", "offline_weight": 0.0},
]
SHARED = [{"mask": mask, "reduction": how} for mask in ("valid", "diagonal") for how in ("sum", "mean")]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def modes(name: str) -> list[dict[str, Any]]:
    """Settings for every way in which a loss uses offline negatives."""
    if name == "aoq":
        return [{"form": form} for form in ("OffTri", "OffQuin", "AdapOffQuin")]
    found: list[dict[str, Any]] = [{"offline": mode} for mode in ("none", "OffTri", "OffQuin")]
    if name == "ntxent":
        found += [{"offline": "softmax", "correction": how} for how in ("none", "stratified")]
    if name == "goal":
        found += [{"offline": mode} for mode in ("goal", "goal_only")]
    return found


def every_mode() -> Iterator[Any]:
    for name in losses.losses():
        for mode in modes(name):
            yield pytest.param(losses.configure(name, mode), id=f"{name}-{'-'.join(map(str, mode.values()))}")


@layouts
@pytest.mark.parametrize("on_top", ON_TOP, ids=lambda found: "-".join(map(str, found.values())) or "none")
@pytest.mark.parametrize("name", ["triplet", "sct", "selhn"])
def test_an_in_batch_loss_is_the_slow_loop(name: str, on_top: dict[str, Any], layout: str) -> None:
    every = itertools.product(OPTIONS[name], SHARED)
    for number, (options, shared) in enumerate(zip(OPTIONS[name], SHARED, strict=True) if on_top else every):
        config = losses.configure(name, {**options, **shared, **on_top})
        agree(config, getattr(oracle, name), LAYOUTS[layout](number))


@layouts
@pytest.mark.parametrize("form", ["OffTri", "OffQuin", "AdapOffQuin"])
@pytest.mark.parametrize(("detach", "clamp"), itertools.product([False, True], repeat=2))
def test_aoq_is_the_slow_loop(form: str, detach: bool, clamp: bool, layout: str) -> None:
    for number, (options, shared) in enumerate(itertools.product(OPTIONS["aoq"], SHARED)):
        chosen = {"form": form, "detach_weights": detach, "clamp_weights": clamp, **options, **shared}
        agree(losses.configure("aoq", chosen), oracle.aoq, LAYOUTS[layout](number))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 8),
    layout=st.sampled_from(sorted(LAYOUTS)),
    name=st.sampled_from(["triplet", "sct", "selhn", "aoq"]),
    shared=st.sampled_from(SHARED),
    data=st.data(),
)
def test_any_step_and_settings(
    seed: int, size: int, layout: str, name: str, shared: dict[str, Any], data: st.DataObject
) -> None:
    chosen = {**data.draw(st.sampled_from(OPTIONS[name])), **data.draw(st.sampled_from(modes(name))), **shared}
    agree(losses.configure(name, chosen), getattr(oracle, name), LAYOUTS[layout](seed, size))


@layouts
@pytest.mark.parametrize("name", ["triplet", "sct", "selhn", "aoq"])
def test_ties_give_the_slow_value(name: str, layout: str) -> None:
    """Scores in eighths, thresholds too: hinges at exactly 0, negatives as near as the positive, several hardest.

    Which of several hardest negatives is pushed is open; how much every anchor pushes and pulls altogether is not.
    """
    at_a_tie = {"triplet": "margin", "sct": "too_close", "selhn": "epsilon", "aoq": "margin_online"}[name]
    for seed, (shared, mode) in enumerate(itertools.product(SHARED, modes(name))):
        config, step = losses.configure(name, {at_a_tie: 0.25, **shared, **mode}), LAYOUTS[layout](seed, ties=True)
        slow = getattr(oracle, name)
        agree(config, slow, step, gradient=False)
        found, expected = losses.parts(config, step.similarities()), slow(config, step)
        for part, axis in (("online_text", 1), ("online_image", 0)):
            sums = [gradients(parts[part], [step.scores])[0].sum(axis) for parts in (found, expected)]
            close(sums[:1], sums[1:], torch.double, config)
        offline = step.leaves[1:]
        close(gradients(total(found), offline), gradients(total(expected), offline), torch.double, config)


@pytest.mark.parametrize("config", [c for c in every_mode() if not c.id.startswith("goal")])
def test_equal_rows_of_repeated_images_give_the_slow_gradient(config: Any) -> None:
    """A tie between rows of one image is the only kind that leaves the gradient by the embeddings well defined."""
    for seed in range(3):
        agree(config, getattr(oracle, losses.name_of(config)), embedded_step(seed))


@pytest.mark.parametrize("config", [c for c in every_mode() if not c.id.startswith("goal")])
def test_gradcheck(config: Any) -> None:
    """Finite differences, wherever there is a loss to differ."""
    if losses.name_of(config) == "smoothap":
        config = config.model_copy(update={"tau": 0.2})
    for make in LAYOUTS.values():
        step = make(4, 3)

        def loss(scores: Tensor, *offline: Tensor, step: Step = step) -> Tensor:
            seen = replace(step, scores=scores, offline=dict(zip(step.offline, offline, strict=True)))
            return total(losses.parts(config, seen.similarities()))

        assert torch.autograd.gradcheck(loss, step.leaves, eps=1e-6, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("config", every_mode())
def test_no_step_gives_nan(config: Any) -> None:
    """One pair, no negatives, identical, huge; with and without offline negatives."""
    for step in hard_cases().values():
        for one in (step, step.having(True), step.having(False)):
            finite(config, one)
        finite(config, step, offline=False)


@pytest.mark.parametrize("config", every_mode())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(config: Any, dtype: torch.dtype) -> None:
    """The loss is that of the same numbers in float32, and its gradient is a number."""
    config = config.model_copy(update={"margin_offline": 0.3})
    for make in LAYOUTS.values():
        for step in (make(0), make(1), make(2).having(False), make(2).filled(1.0)):
            half = step.cast(dtype)
            finite(config, half)
            expected = losses.parts(config, half.cast(torch.float32).similarities())
            for name, part in losses.parts(config, half.similarities()).items():
                torch.testing.assert_close(part, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", every_mode())
def test_scores_of_missing_offline_negatives_are_not_read(config: Any) -> None:
    for make in LAYOUTS.values():
        step = make(5)
        other = {name: values.detach().clone() for name, values in step.offline.items()}
        for pair in range(len(step.pairs)):
            has = [step.flags[f"has_{name}"][pair] for name in ("text", "image")]
            for name, counts in zip(
                ("text", "image", "negatives", "partners"), (*has, all(has), all(has)), strict=True
            ):
                if not counts:
                    other[name][pair] = 1e6
        found, expected = replace(step, offline=other).cast(torch.double), step
        values = [losses.parts(config, seen.similarities()) for seen in (found, expected)]
        assert {k: v.item() for k, v in values[0].items()} == {k: v.item() for k, v in values[1].items()}
        slopes = [gradients(total(parts), seen.leaves) for parts, seen in zip(values, (found, expected), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize("config", every_mode())
def test_without_tables_only_the_online_loss_is_left(config: Any) -> None:
    for make in LAYOUTS.values():
        similarities = make(2).similarities(offline=False)
        found, expected = losses.parts(config, similarities), losses.parts(config.online, similarities)
        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
    assert not config.online.needs_tables
    assert not config.online.needs_partners
    assert config.online.online == config.online


@layouts
@pytest.mark.parametrize("shared", SHARED, ids=lambda found: "-".join(found.values()))
def test_losses_that_are_the_max_violation_triplet(layout: str, shared: dict[str, Any]) -> None:
    """AOQ of every form without offline negatives (w = 1), and SelHN with epsilon 0: value and gradient."""
    for seed in range(3):
        step = LAYOUTS[layout](seed).having(False)
        expected = losses.parts(triplet.Config(margin=0.3, **shared), step.similarities())
        same: list[Any] = [aoq.Config(margin_online=0.3, **mode, **shared) for mode in modes("aoq")]
        same.append(selhn.Config(margin=0.3, epsilon=0.0, **shared))
        for config in same:
            found = losses.parts(config, step.similarities())
            assert all(found[name].item() == expected[name].item() for name in expected)
            assert total(found).item() == total(expected).item()
            pairs = zip(gradients(total(found), step.leaves), gradients(total(expected), step.leaves), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_a_negative_shared_by_two_anchors_is_pushed_twice() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.6], [0.1, 0.5, 0.7], [0.0, 0.0, 0.85]], dtype=torch.double, requires_grad=True)
    step = Similarities(scores, ~torch.eye(3, dtype=torch.bool))
    (found,) = gradients(losses.parts(triplet.Config(), step)["online_text"], [scores])
    assert found.tolist() == [[-1, 0, 1], [0, -1, 1], [0, 0, 0]]
    (found,) = gradients(losses.parts(triplet.Config(), step)["online_image"], [scores])
    assert found.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, -1]]


@pytest.mark.parametrize("clamp", [True, False])
def test_the_published_weights_carry_gradient(clamp: bool) -> None:
    step = pair_step(2).having(True)
    slopes = []
    for detach in (True, False):
        config = aoq.Config(detach_weights=detach, clamp_weights=clamp)
        slopes.append(gradients(total(losses.parts(config, step.similarities())), step.leaves))
    assert not torch.equal(slopes[0][1], slopes[1][1])
    assert not torch.equal(slopes[0][0], slopes[1][0])


def test_a_batch_read_off_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.4], [0.1, 0.9]], dtype=torch.double)
    similarities = Similarities(scores, ~torch.eye(2, dtype=torch.bool))
    found = losses.parts(triplet.Config(), similarities)
    assert float(found["online_text"]) == pytest.approx(0.1)  # [.2 + .4 - .5] + [.2 + .1 - .9]
    assert float(found["online_image"]) == pytest.approx(0.0)  # [.2 + .1 - .5] + [.2 + .4 - .9]


def test_collapse_freezes_the_loss_at_twice_batch_times_margin() -> None:
    similarities = Similarities(torch.ones(128, 128), ~torch.eye(128, dtype=torch.bool))
    assert sum(float(part) for part in losses.parts(triplet.Config(), similarities).values()) == pytest.approx(51.2)


@pytest.mark.parametrize("config", every_mode())
def test_every_loss_keeps_the_contract(config: Any) -> None:
    """Frozen, named after its module, and honest about what it needs."""
    with pytest.raises(ValueError, match="frozen"):
        config.reduction = "mean"
    assert config.warm_up is None or config.warm_up.max_violation is False
    assert config.warm_up is None or (config.warm_up.mask, config.warm_up.reduction) == (config.mask, config.reduction)
    assert losses.configure(losses.name_of(config), config.model_dump()) == config
    assert config.batch_by == ("images" if losses.name_of(config) == "smoothap" else "pairs")
    for make in LAYOUTS.values():
        step = make(1).having(True)
        parts = losses.parts(config, step.similarities())
        used = [bool(slope.any()) for slope in gradients(total(parts), step.leaves)[1:]]
        assert config.needs_tables or not any(used)
        assert config.needs_partners or not used[3]
        assert set(parts) <= {f"{kind}_{side}" for kind in ("online", "offline") for side in ("text", "image")} | {
            "negatives",
            "partners",
        }


def test_an_unknown_loss_or_setting_is_named() -> None:
    with pytest.raises(BadInput, match="Did you mean 'triplet'"):
        losses.configure("triplets")
    with pytest.raises(BadInput, match="'margn' is not a setting; did you mean 'margin'"):
        losses.configure("triplet", {"margn": 0.1})
