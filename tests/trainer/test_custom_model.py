"""A model of the user's: found, built, looked at; whatever is wrong with it is said in one sentence."""

from __future__ import annotations

import importlib
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from miner.artifacts.errors import BadInput
from tests.trainer.models_oracle import VOCABULARY
from trainer import models

TOWERS = """
import torch
from torch.nn.functional import normalize
from trainer.models import Elements, Encoder, PairScorer


class Plain(torch.nn.Module):
    def __init__(self, words, image_shape, dim):
        super().__init__()
        self.images = torch.nn.LazyLinear(dim)
        self.words = torch.nn.Embedding(words, dim)
        self.dropout = torch.nn.Dropout(0.5)

    def encode_images(self, images):
        return normalize(self.images(self.dropout(images.flatten(1).float() / 255)), dim=1)

    def encode_texts(self, tokens, lengths):
        return normalize(self.words(tokens)[:, 1], dim=1)


class Whole(Plain, Encoder):
    has_auxiliary_loss = True


class Scorer(Plain, PairScorer):
    def image_elements(self, images):
        vectors = self.encode_images(images)
        return Elements(vectors[:, None], torch.ones(len(images), dtype=torch.int64))

    def text_elements(self, tokens, lengths):
        return Elements(self.words(tokens), lengths)

    def scores(self, images, texts):
        return images.pooled @ texts.pooled.T

    def pair_scores(self, images, texts):
        return (images.pooled * texts.pooled).sum(1)


def build(tokenizer, image_shape, width=8, kind="Plain", **kept):
    return globals()[kind](len(tokenizer), image_shape, width)
"""
Write = Callable[[str], str]
_names = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module into the current folder, which is not on Python's path, and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def to(code: str) -> str:
        name = f"users_towers_{next(_names)}"
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        return name

    return to


def build(factory: str, shape: tuple[int, ...] = (9,), dim: int = 8, **more: Any) -> models.Encoder:
    return models.build(models.configure("custom", {"factory": factory, "dim": dim, **more}), VOCABULARY, shape)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("Plain", {}), ("Whole", {}), ("Scorer", {"cross_attention": True})],
)
@pytest.mark.parametrize("shape", [(9,), (4, 9), (6, 5, 3)])
def test_a_model_of_the_users_is_an_encoder(write: Write, kind: str, more: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build(f"{write(TOWERS)}:build", shape, settings={"kind": kind}, **more)
    assert isinstance(model, models.Encoder)
    assert isinstance(model, models.PairScorer) == (kind == "Scorer")
    assert model.tokenizer is VOCABULARY
    assert (model.dim, model.training) == (8, True)
    assert model.has_auxiliary_loss == (kind == "Whole")
    assert model.learning_rate_scale("anything") == 1
    values = torch.rand(3, *shape) * 255
    found = model.eval().encode_images(values.to(torch.uint8) if len(shape) == 3 else values.half())
    assert (found.shape, found.dtype) == ((3, 8), torch.float32)


def test_vectors_reach_a_plain_module_as_float32(write: Write) -> None:
    code = TOWERS.replace(".float()", "")
    assert build(f"{write(code)}:build").encode_images(torch.rand(2, 9).half()).dtype == torch.float32
    with pytest.raises(BadInput, match=r"torch.float16 images .* must have the same dtype"):
        build(f"{write(code)}:build", settings={"kind": "Whole"})


def test_settings_reach_the_factory(write: Write) -> None:
    factory = f"{write(TOWERS)}:build"
    assert build(factory, dim=5, settings={"width": 5, "more": [1, {"deep": None}]}).dim == 5
    with pytest.raises(BadInput, match=r"encode_images of .* gave \(2, 5\) for two items, but \(2, 8\) was expected"):
        build(factory, settings={"width": 5})


def test_looking_at_a_model_leaves_the_random_numbers_alone(write: Write) -> None:
    factory = f"{write(TOWERS.replace('torch.nn.LazyLinear(dim)', 'torch.nn.Linear(9, dim)'))}:build"
    build(factory)
    torch.manual_seed(0)
    build(factory)
    found = torch.rand(1)
    torch.manual_seed(0)
    importlib.import_module(factory.partition(":")[0]).build(VOCABULARY, (9,))
    assert torch.equal(torch.rand(1), found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("def build(", "def built("), r"has no function 'build'. Did you mean 'built'\?"),
        (
            ("import torch\n", "import torch, not_installed_at_all\n"),
            r"importing it ended in line 2 of .*not_installed",
        ),
        (
            ("return globals()[kind](len(tokenizer), image_shape, width)", "return 3"),
            "returned a int, but a torch module",
        ),
        (("def encode_texts", "def encode_captions"), "returned a Plain, but a torch module with the methods"),
        (("def build(", "def build(("), "importing it ended .*SyntaxError"),
        (("[:, 1], dim=1)", "[:, 1], dim=0)"), "encode_texts of .* gave vectors that are not of length 1"),
        (("[:, 1], dim=1)", "[:, 1] * torch.nan, dim=1)"), "encode_texts of .* gave values that are not finite"),
        (("return normalize(self.words", "return None or len(self.words"), "ended in line .* with TypeError"),
        ((".float() / 255", " @ 7"), r"encoding two torch.float16 images of shape \(9,\) ended in line 15 of"),
        (("[kind](len", "['Scorer'](len"), "returned a trainer.models.PairScorer, but cross_attention is false"),
    ],
)
def test_what_is_wrong_is_said(write: Write, change: tuple[str, str], said: str) -> None:
    assert TOWERS.count(change[0]) == 1
    with pytest.raises(BadInput, match=said):
        build(f"{write(TOWERS.replace(*change))}:build")


def test_wrong_settings(write: Write) -> None:
    name = write(TOWERS)
    with pytest.raises(BadInput, match=r"calling it ended with TypeError.*no_such"):
        build(f"{write(TOWERS.replace(', **kept', ''))}:build", settings={"no_such": 1})
    with pytest.raises(BadInput, match="there is no module 'no_such_towers', neither in the current folder"):
        build("no_such_towers:build")
    with pytest.raises(BadInput, match=r"there is no module 'no.such.towers'"):
        build("no.such.towers:build")
    with pytest.raises(BadInput, match="there is no module 'sys'"):
        build("sys:exit")
    for wrong in ("towers", "towers:", ":build", "towers.py:build()"):
        with pytest.raises(BadInput, match="factory"):
            build(wrong)
    with pytest.raises(BadInput, match=r"returned no trainer.models.PairScorer, but cross_attention is true"):
        build(f"{name}:build", cross_attention=True)
    with pytest.raises(BadInput, match=r"dim is missing; set it"):
        models.configure("custom", {"factory": "towers:build"})


def test_a_changed_file_is_noticed(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = write(TOWERS)
    config = models.configure("custom", {"factory": f"{name}:build", "dim": 8})
    resolved = models.resolved(config)
    assert resolved == models.resolved(resolved) != config
    with caplog.at_level(logging.WARNING):
        models.build(resolved, VOCABULARY, (9,))
        assert not caplog.text
        (tmp_path / f"{name}.py").write_text(TOWERS + "\n# another\n")
        assert models.resolved(config) != resolved
        models.build(resolved, VOCABULARY, (9,))
    assert f"{name}.py has changed since this model was set up" in caplog.text
