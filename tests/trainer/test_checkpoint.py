"""A checkpoint comes back as it was, is the same bytes each time, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore
from trainer import losses, models
from trainer.checkpoint import CHECKPOINT, Checkpoint
from trainer.data import Dataset
from trainer.training import FitConfig, fit


@pytest.fixture
def checkpoint(dataset: Dataset) -> Checkpoint:
    config = FitConfig(epochs=1, batch_size=16, threads=1, ema_decay=0.9)
    return fit(dataset, models.configure("vsepp", {"dim": 8, "word_dim": 4}), losses.configure("triplet"), config)


def committed(checkpoint: Checkpoint, folder: Path) -> Path:
    checkpoint.commit(Draft(LocalStore(folder), ".", CHECKPOINT, {"seed": 0}))
    return folder


def test_there_and_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = Checkpoint.load(committed(checkpoint, tmp_path / "a"))
    assert found.fingerprint == checkpoint.fingerprint
    assert found.model_config == checkpoint.model_config
    assert found.tokenizer == checkpoint.tokenizer
    assert (found.epoch, found.updates, found.image_shape) == (1, checkpoint.updates, (12,))
    assert all(torch.equal(found.state[name], checkpoint.state[name]) for name in checkpoint.state)
    before = torch.random.get_rng_state()
    model = found.model()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training
    assert all(torch.equal(value, checkpoint.weights[name]) for name, value in model.state_dict().items())


def test_the_same_checkpoint_is_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    one, two = (committed(checkpoint, tmp_path / name) for name in "ab")
    for path in sorted(one.iterdir()):
        assert path.read_bytes() == (two / path.name).read_bytes()


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors", "model.json", "manifest.json"])
def test_a_flipped_bit_is_found(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    folder = committed(checkpoint, tmp_path / "a")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedArtifact):
        Checkpoint.load(folder)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint artifact here"):
        Checkpoint.load(tmp_path)
