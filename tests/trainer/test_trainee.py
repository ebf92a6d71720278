"""What one update does to the weights, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer import models
from trainer.data import Dataset
from trainer.models import vsepp
from trainer.trainee import Trainee
from trainer.training import FitConfig

CPU = torch.device("cpu")
MODEL = models.configure("vsepp", {"dim": 16, "word_dim": 8})


def trainee(dataset: Dataset, **settings: Any) -> Trainee:
    return Trainee(dataset, MODEL, FitConfig(lr=0.01, **settings), None, CPU)


def update_without_gradient(made: Trainee, lr: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    before = [raw.detach().clone() for raw in made.raw]
    torch.stack([(raw * 0).sum() for raw in made.raw]).sum().backward()
    made.update(lr)
    return {name: (old, raw.detach()) for name, old, raw in zip(made.names, before, made.raw, strict=True)}


def test_weight_decay_is_decoupled_and_follows_the_learning_rate(dataset: Dataset) -> None:
    for old, new in update_without_gradient(trainee(dataset, weight_decay=0.5), lr=0.02).values():
        torch.testing.assert_close(new, old * (1 - 0.02 * 0.5))
    for old, new in update_without_gradient(trainee(dataset), lr=0.02).values():
        torch.testing.assert_close(new, old)


def test_a_model_says_how_fast_its_parts_learn(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def scale(self: vsepp.VsePp, parameter: str) -> float:
        return 0.1 if parameter.startswith("words.") else 1.0

    monkeypatch.setattr(vsepp.VsePp, "learning_rate_scale", scale)
    found = update_without_gradient(trainee(dataset, weight_decay=0.5), lr=0.02)
    assert {name.split(".")[0] for name in found} >= {"words", "image_head"}
    for name, (old, new) in found.items():
        torch.testing.assert_close(new, old * (1 - 0.02 * (0.1 if name.startswith("words.") else 1.0) * 0.5))
    made = trainee(dataset)
    before = {name: raw.detach().clone() for name, raw in zip(made.names, made.raw, strict=True)}
    torch.stack([raw.sum() for raw in made.raw]).sum().backward()
    made.update(0.02)
    for name, raw in zip(made.names, made.raw, strict=True):
        # Adam's first step is the learning rate, whatever the gradient.
        step = (before[name] - raw.detach()).abs().max()
        assert float(step) == pytest.approx(0.002 if name.startswith("words.") else 0.02, rel=1e-3)


def test_frozen_weights_are_kept_like_buffers(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    build = vsepp.build

    def frozen(*given: Any) -> vsepp.VsePp:
        model = build(*given)
        model.image_head.requires_grad_(False)
        return model

    monkeypatch.setattr(vsepp, "build", frozen)
    made = trainee(dataset)
    before = made.model.image_head.weight.detach().clone()
    torch.stack([raw.sum() for raw in made.raw]).sum().backward()
    made.update(0.02)
    checkpoint = made.checkpoint(1, warm=True)
    assert not any(name.startswith("image_head") for name in made.names)
    assert torch.equal(checkpoint.weights["image_head.weight"], before)
    assert torch.equal(checkpoint.model().image_head.weight, before)
    again = Trainee(dataset, MODEL, FitConfig(lr=0.01), checkpoint, CPU)
    assert torch.equal(again.model.image_head.weight, before)
