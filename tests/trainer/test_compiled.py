"""Compiled encoders train what eager ones do."""

from __future__ import annotations

import shutil

import pytest
import torch

from miner.artifacts.errors import BadInput
from trainer import losses, models
from trainer.data import Dataset
from trainer.training import FitConfig, fit

QUICK = FitConfig(epochs=2, batch_size=16, lr=5e-3, warmup_epochs=0, threads=1, compile=True)
MODEL = models.configure("vsepp", {"dim": 16, "word_dim": 8})


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_training_is_training(dataset: Dataset) -> None:
    ways = [QUICK, QUICK, QUICK.model_copy(update={"compile": False})]
    one, again, eager = (fit(dataset, MODEL, losses.configure("triplet"), way) for way in ways)
    assert one.fingerprint == again.fingerprint
    for name, values in eager.weights.items():
        torch.testing.assert_close(one.weights[name], values, rtol=1e-3, atol=1e-5)


def test_no_compiler_is_said(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"no C\+\+ compiler here \(no-such-compiler\); install one"):
        fit(dataset, MODEL, losses.configure("triplet"), QUICK)
