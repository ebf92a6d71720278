"""What every model promises: unit vectors, padding without effect, training that resumes bit by bit, a checkpoint."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore
from tests.trainer import models_oracle as oracle
from trainer import losses, models
from trainer.checkpoint import CHECKPOINT, Checkpoint
from trainer.data import Dataset
from trainer.encode import encode_rows
from trainer.models._towers import WordStates
from trainer.training import EpochLog, FitConfig, fit

FACTORY = """
import torch
from torch.nn.functional import normalize


class Towers(torch.nn.Module):
    def __init__(self, words, image_dim):
        super().__init__()
        self.images = torch.nn.Linear(image_dim, 16)
        self.words = torch.nn.Embedding(words, 16)

    def encode_images(self, images):
        return normalize(self.images(images), dim=1)

    def encode_texts(self, tokens, lengths):
        counted = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
        return normalize((self.words(tokens) * counted[:, :, None]).sum(1), dim=1)


def build(tokenizer, image_shape):
    return Towers(len(tokenizer), image_shape[0])
"""
# A model that is not here has its own file, which makes what the model cannot be built without.
SETTINGS: dict[str, dict[str, Any]] = {
    "bfan": {"dim": 16, "word_dim": 6},
    "cnn_gru": {"dim": 16, "channels": (8, 12), "word_dim": 6, "hidden": 5},
    "custom": {"dim": 16, "factory": "towers_of_test_models:build"},
    "scan": {"dim": 16, "word_dim": 6},
    "vse_inf": {"dim": 16, "word_dim": 6, "mlp_hidden": 8, "position_dim": 6, "pool_hidden": 4},
    "vsepp": {"dim": 16, "word_dim": 6},
    "vsrn": {"dim": 16, "word_dim": 6, "relations": 2, "caption_loss": 0.1, "caption_hidden": 5},
}
IMAGES = {"cnn_gru": (20, 16, 3), "custom": (9,), "vsepp": (9,)}  # others: regions
# Without these, a model is the same function in training.
RANDOM = {"cnn_gru": {"dropout": 0.0, "shift": 0}, "vse_inf": {"drop_regions": 0, "edit_words": 0}}
TRAINING = FitConfig(
    epochs=3, batch_size=16, lr=1e-2, warmup_epochs=1, threads=1, ema_decay=0.9, lr_schedule="cosine", weight_decay=1e-4
)


@pytest.fixture(autouse=True)
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the model `custom` names, in the current folder."""
    (tmp_path / "towers_of_test_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def config_of(name: str, **settings: Any) -> Any:
    return models.configure(name, {**SETTINGS[name], **settings})


def shape_of(name: str) -> tuple[int, ...]:
    return IMAGES.get(name, (4, 9))


def built(name: str, **settings: Any) -> models.Encoder:
    torch.manual_seed(0)
    return oracle.used(models.build(config_of(name, **settings), oracle.VOCABULARY, shape_of(name)))


def images(name: str, count: int) -> torch.Tensor:
    values = torch.rand(count, *shape_of(name), generator=torch.Generator().manual_seed(1))
    return (values * 255).to(torch.uint8) if name == "cnn_gru" else values.half()


def dataset_of(name: str, toys: SimpleNamespace) -> Dataset:
    pairs = toys.pairs()
    return Dataset(pairs, images(name, pairs.num_images).numpy(), "toy", "train")


def test_every_model_is_tested_here_or_has_its_own_file() -> None:
    for name in models.models():
        assert name in SETTINGS or (Path(__file__).parent / f"test_{name}.py").exists()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_model_keeps_the_contract(name: str) -> None:
    model = built(name)
    assert model.dim == config_of(name).dim
    assert isinstance(model, models.PairScorer) == getattr(config_of(name), "cross_attention", False)
    found = model.encode_images(images(name, 5))
    assert (found.shape, found.dtype) == ((5, model.dim), torch.float32)
    texts = model.encode_texts(*oracle.padded())
    assert (texts.shape, texts.dtype) == ((len(oracle.CAPTIONS), model.dim), torch.float32)
    for embeddings in (found, texts):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    for row, caption in enumerate(oracle.captions()):
        single = model.encode_texts(torch.tensor([caption]), torch.tensor([len(caption)]))
        torch.testing.assert_close(single[0], texts[row])
    torch.testing.assert_close(model.encode_texts(*oracle.padded(garbage=7)), texts)
    auxiliary = found.new_zeros(())
    if model.has_auxiliary_loss:
        auxiliary = model.auxiliary_loss(images(name, len(oracle.CAPTIONS)), *oracle.padded())
        assert auxiliary.shape == ()
    (texts.sum() + found.sum() + auxiliary).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_depends_on_its_batch_where_that_is_declared_and_nowhere_else(name: str) -> None:
    """Offline negatives share a step with a batch: a statistic over both shifts the others' embeddings."""
    model = built(name, **RANDOM.get(name, {})).train()
    few, many = model.encode_images(images(name, 2)), model.encode_images(images(name, 6))[:2]
    assert torch.allclose(few, many, atol=1e-5) != getattr(model, "batch_statistics", False)
    words, lengths = oracle.padded()
    torch.testing.assert_close(model.encode_texts(words[:2], lengths[:2]), model.encode_texts(words, lengths)[:2])
    model.eval()
    torch.testing.assert_close(model.encode_images(images(name, 2)), model.encode_images(images(name, 6))[:2])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_of_one_image_trains(name: str) -> None:
    """Two pairs of one image make such a step."""
    assert built(name).train().encode_images(images(name, 1)).isfinite().all()


@pytest.mark.parametrize("name", ["vse_inf", "vsepp", "vsrn"])
def test_a_step_never_waits_for_its_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On `meta`, which holds no numbers, reading one back raises. It knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **settings: contextlib.nullcontext())
    model = built(name).to("meta").train()
    tokens, lengths = oracle.padded()
    pictures = images(name, len(lengths)).to("meta")
    assert model.encode_images(pictures).is_meta
    assert model.encode_texts(tokens.to("meta"), lengths).is_meta
    if model.has_auxiliary_loss:
        assert model.auxiliary_loss(pictures, tokens.to("meta"), lengths).is_meta


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("name", SETTINGS)
def test_every_model_trains_and_ends_with_the_same_bits_after_a_kill(
    name: str, toys: SimpleNamespace, tmp_path: Path
) -> None:
    dataset, config, loss = dataset_of(name, toys), config_of(name), losses.configure("aoq")
    given = {"tables": toys.tables(dataset.pairs)}
    logs: list[EpochLog] = []
    whole = fit(dataset, config, loss, TRAINING, progress=logs.append, **given)
    assert logs[-1].hardness < logs[0].hardness
    assert ("model" in logs[0].parts) == whole.model().has_auxiliary_loss

    def killed(log: EpochLog) -> None:
        if log.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        fit(dataset, config, loss, TRAINING, scratch=tmp_path / "scratch", progress=killed, **given)
    resumed = fit(dataset, config, loss, TRAINING, scratch=tmp_path / "scratch", **given)
    assert resumed.fingerprint == whole.fingerprint
    if getattr(whole.model(), "batch_statistics", False):
        assert {name for name in whole.state if name.startswith("buffer/") and name.endswith("running_var")}
    whole.commit(Draft(LocalStore(tmp_path / "saved"), ".", CHECKPOINT, {}))
    loaded = Checkpoint.load(tmp_path / "saved")
    assert loaded.fingerprint == whole.fingerprint
    rows = np.arange(7)
    for side in ("image", "text"):
        found, wanted = (encode_rows(each.model(), dataset, side, rows) for each in (loaded, whole))
        assert np.array_equal(found, wanted)


def test_shifting_moves_whole_pictures() -> None:
    from trainer.models.cnn_gru import _shifted

    torch.manual_seed(0)
    values = torch.arange(2 * 3 * 6 * 5, dtype=torch.float32).reshape(2, 3, 6, 5)
    padded = torch.nn.functional.pad(values, (2,) * 4, mode="replicate")
    for _ in range(20):
        for picture, moved in zip(padded, _shifted(values, 2), strict=True):
            assert any(torch.equal(picture[:, y : y + 6, x : x + 5], moved) for y in range(5) for x in range(5))


@pytest.mark.parametrize("shape", [(9,), (8, 8, 4)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="take the model"):
        models.build(models.configure("cnn_gru"), oracle.VOCABULARY, shape)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_captions_in_groups_have_the_states_of_each_alone(bidirectional: bool) -> None:
    """More captions than are worked on at once, of all lengths: states and gradients."""
    torch.manual_seed(0)
    words = WordStates(20, 4, 3, bidirectional=bidirectional)
    lengths = torch.randint(1, 12, (450,))
    tokens = torch.randint(1, 20, (450, 12)) * (torch.arange(12) < lengths[:, None])
    weights = torch.rand(450, 12, 3) * (torch.arange(12) < lengths[:, None])[:, :, None]
    states = words(tokens, lengths)
    assert states.shape == (450, 12, 3)
    (states * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in words.named_parameters() if p.grad is not None}
    words.zero_grad()
    alone = [words(tokens[row : row + 1, :n], lengths[row : row + 1])[0] for row, n in enumerate(lengths.tolist())]
    torch.stack([(each * weights[row, : len(each)]).sum() for row, each in enumerate(alone)]).sum().backward()
    for row, each in enumerate(alone):
        torch.testing.assert_close(states[row, : len(each)], each, rtol=1e-5, atol=1e-6)
    for name, parameter in words.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)
