"""Every loss against a slow loop over explicit tuples, value and gradient, in double precision."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from miner.artifacts.errors import BadInput
from trainer import losses
from trainer.losses import aoq, triplet
from trainer.similarities import Offline, Similarities


def make(seed: int, batch: int = 7, *, offline: bool = True, ties: bool = False) -> tuple[list[Tensor], Similarities]:
    """Leaf tensors (scores, a_t, a_v, c_1, c_2) and their step; images 0 and 1 share texts, item 2 has no negative."""
    random = torch.Generator().manual_seed(seed)
    leaves = [torch.rand(batch, batch, dtype=torch.double, generator=random) * 2 - 1]
    leaves += [torch.rand(batch, dtype=torch.double, generator=random) * 2 - 1 for _ in range(4)]
    if ties:
        leaves = [(leaf * 4).round() / 4 for leaf in leaves]
    for leaf in leaves:
        leaf.requires_grad_()
    valid = ~torch.eye(batch, dtype=torch.bool)
    valid[0, 1] = valid[1, 0] = False
    valid[2, :] = False
    flags = [torch.rand(batch, generator=random) < chance for chance in (0.8, 0.8, 0.3, 0.3)]
    return leaves, Similarities(leaves[0], valid, Offline(*leaves[1:], *flags) if offline else None)


def hinge(value: Tensor) -> Tensor:
    return value if value > 0 else value * 0


def slow_triplet(config: triplet.Config, similarities: Similarities) -> Tensor:
    scores, valid = similarities.scores, similarities.valid
    total = scores.new_zeros(())
    batch = len(scores)
    for i in range(batch):
        for column in (True, False):
            found = []
            for j in range(batch):
                allowed = i != j if config.mask == "diagonal" else bool(valid[i, j] if column else valid[j, i])
                if allowed:
                    found.append(scores[i, j] if column else scores[j, i])
            if config.max_violation and found:
                found = [max(found, key=torch.Tensor.item)]
            for score in found:
                total = total + hinge(config.margin + score - scores[i, i])
    return total / batch if config.reduction == "mean" else total


def slow_aoq(config: aoq.Config, similarities: Similarities) -> Tensor:
    scores, valid, off = similarities.scores, similarities.valid, similarities.offline
    assert off is not None
    total = scores.new_zeros(())
    batch = len(scores)
    for i in range(batch):
        p = scores[i, i]
        sides = (
            (
                [scores[i, j] for j in range(batch) if (i != j if config.mask == "diagonal" else valid[i, j])],
                off.text[i],
                bool(off.has_text[i]),
            ),
            (
                [scores[j, i] for j in range(batch) if (i != j if config.mask == "diagonal" else valid[j, i])],
                off.image[i],
                bool(off.has_image[i]),
            ),
        )
        for online, a, has in sides:
            if online:
                o = max(online, key=torch.Tensor.item)
                w = torch.ones_like(o)
                if config.form == "AdapOffQuin" and has:
                    w = config.beta - (a - o) / config.alpha
                    w = w.detach() if config.detach_weights else w
                    w = w * 0 if config.clamp_weights and w < 0 else w
                total = total + w * hinge(config.margin_online + o - p)
            if has:
                total = total + hinge(config.margin_offline + a - p)
        if config.form != "OffTri" and off.has_text[i] and off.has_image[i]:
            for c, true_pair in ((off.negatives[i], off.true_negatives[i]), (off.partners[i], off.true_partners[i])):
                if config.mask == "diagonal" or not true_pair:
                    total = total + hinge(config.margin_offline + c - p)
    return total / batch if config.reduction == "mean" else total


def agree(config: Any, slow: Any, seed: int) -> None:
    leaves, similarities = make(seed)
    fast = torch.stack(list(losses.parts(config, similarities).values())).sum()
    slow_value = slow(config, similarities)
    assert abs(float((fast - slow_value).detach())) < 1e-10
    mine = torch.autograd.grad(fast, leaves, allow_unused=True)
    expected = torch.autograd.grad(slow_value, leaves, allow_unused=True)
    for leaf, a, b in zip(leaves, mine, expected, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("max_violation", [True, False])
@pytest.mark.parametrize("mask", ["valid", "diagonal"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_triplet_is_the_slow_loop(max_violation: bool, mask: str, reduction: str) -> None:
    config = losses.configure("triplet", {"max_violation": max_violation, "mask": mask, "reduction": reduction})
    for seed in range(5):
        agree(config, slow_triplet, seed)


@pytest.mark.parametrize("form", ["OffTri", "OffQuin", "AdapOffQuin"])
@pytest.mark.parametrize("mask", ["valid", "diagonal"])
@pytest.mark.parametrize(("detach", "clamp"), itertools.product([False, True], repeat=2))
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_aoq_is_the_slow_loop(form: str, mask: str, detach: bool, clamp: bool, reduction: str) -> None:
    settings = {"form": form, "mask": mask, "detach_weights": detach, "clamp_weights": clamp, "reduction": reduction}
    for extra in ({}, {"margin_online": 0.5, "margin_offline": 0.1, "alpha": 0.7, "beta": 0.4}):
        config = losses.configure("aoq", {**settings, **extra})
        for seed in range(3):
            agree(config, slow_aoq, seed)


def test_ties_give_the_slow_value() -> None:
    for config, slow in ((aoq.Config(), slow_aoq), (triplet.Config(), slow_triplet)):
        _, similarities = make(1, ties=True)
        fast = sum(part.item() for part in losses.parts(config, similarities).values())
        assert abs(fast - slow(config, similarities).item()) < 1e-10


def test_the_published_weights_carry_gradient() -> None:
    leaves, similarities = make(2)
    grads = {}
    for detach in (True, False):
        loss = torch.stack(list(losses.parts(aoq.Config(detach_weights=detach), similarities).values())).sum()
        grads[detach] = torch.autograd.grad(loss, leaves[1], retain_graph=True)[0]
    assert not torch.equal(grads[True], grads[False])


def test_a_batch_read_off_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.4], [0.1, 0.9]], dtype=torch.double)
    similarities = Similarities(scores, ~torch.eye(2, dtype=torch.bool))
    found = losses.parts(triplet.Config(), similarities)
    assert float(found["online_text"]) == pytest.approx(0.1)  # [.2 + .4 - .5] + [.2 + .1 - .9]
    assert float(found["online_image"]) == pytest.approx(0.0)  # [.2 + .1 - .5] + [.2 + .4 - .9]


def test_without_tables_aoq_is_the_max_violation_triplet() -> None:
    _, similarities = make(3, offline=False)
    for config in (aoq.Config(), aoq.Config(form="OffTri", margin_online=0.3, mask="diagonal")):
        expected = losses.parts(config.online, similarities)
        assert {k: v.item() for k, v in losses.parts(config, similarities).items()} == {
            k: v.item() for k, v in expected.items()
        }


@pytest.mark.parametrize("name", losses.losses())
def test_every_loss_keeps_the_contract(name: str) -> None:
    """One pair, no negative at all, identical scores: finite, no NaN in the gradient; frozen Config; its properties."""
    config = losses.configure(name)
    with pytest.raises(ValueError, match="frozen"):
        config.reduction = "mean"
    assert config.warm_up is None or config.warm_up.max_violation is False
    assert not config.online.needs_tables
    assert losses.name_of(config) == name
    for batch, valid in (
        (1, torch.zeros(1, 1, dtype=torch.bool)),
        (4, torch.zeros(4, 4, dtype=torch.bool)),
        (4, ~torch.eye(4, dtype=torch.bool)),
    ):
        scores = torch.ones(batch, batch, requires_grad=True)
        ones = torch.ones(batch)
        flags = torch.ones(batch, dtype=torch.bool)
        offline = Offline(ones, ones, ones, ones, flags, ~flags, flags, ~flags) if config.needs_tables else None
        loss = torch.stack(list(losses.parts(config, Similarities(scores, valid, offline)).values())).sum()
        (grad,) = torch.autograd.grad(loss, scores)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_collapse_freezes_the_loss_at_twice_batch_times_margin() -> None:
    similarities = Similarities(torch.ones(128, 128), ~torch.eye(128, dtype=torch.bool))
    assert sum(float(part) for part in losses.parts(triplet.Config(), similarities).values()) == pytest.approx(51.2)


def test_an_unknown_loss_or_setting_is_named() -> None:
    with pytest.raises(BadInput, match="Did you mean 'triplet'"):
        losses.configure("triplets")
    with pytest.raises(BadInput, match="'margn' is not a setting; did you mean 'margin'"):
        losses.configure("triplet", {"margn": 0.1})
