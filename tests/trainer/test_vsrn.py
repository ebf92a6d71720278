"""VSRN against a slow loop: relation layers, the published odd norm, batch statistics, the caption decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from tests.trainer import models_oracle as oracle
from trainer import models
from trainer.models.vsrn import Vsrn

SMALL = {"dim": 12, "word_dim": 6, "caption_hidden": 7}


def fresh(shape: tuple[int, ...] = (4, 9), **settings: Any) -> Vsrn:
    torch.manual_seed(0)
    model = models.build(models.configure("vsrn", {**SMALL, **settings}), oracle.VOCABULARY, shape)
    assert isinstance(model, Vsrn)
    return model


def made(shape: tuple[int, ...] = (4, 9), **settings: Any) -> Vsrn:
    model = oracle.used(fresh(shape, **settings))
    assert isinstance(model, Vsrn)
    return model


def regions(shape: tuple[int, ...] = (4, 9), count: int = 5) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def expected(model: Vsrn, images: torch.Tensor, training: bool = False) -> np.ndarray:
    weights, config = oracle.weights_of(model), model.config
    after = oracle.vsrn_regions(
        weights,
        list(images.double().numpy()),
        relations=config.relations,
        norm=config.norm,
        region_norm=config.region_norm,
        training=training,
    )
    return oracle.vsrn_images(weights, after, batch_norm_last=config.batch_norm, training=training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"relations": 2, "norm": "published"},
        {"relations": 1, "region_norm": False, "batch_norm": True},
        {"relations": 0, "batch_norm": True},
    ],
)
def test_images_are_the_slow_loop(settings: dict[str, Any], training: bool) -> None:
    model, images = made(**settings), regions()
    wanted = expected(model, images, training)
    np.testing.assert_allclose(model.train(training).encode_images(images).detach(), wanted, atol=1e-5)


def test_a_vector_is_an_image_of_one_region() -> None:
    model, images = made((9,)), regions((9,))
    np.testing.assert_allclose(model.encode_images(images.half()).detach(), expected(model, images.half()), atol=1e-5)
    torch.testing.assert_close(model.encode_images(images), model.encode_images(images[:, None]))


def test_texts_are_the_slow_loop() -> None:
    model = made()
    wanted = [oracle.last_word_state(oracle.weights_of(model), tokens) for tokens in oracle.captions()]
    for garbage in (0, 5):
        np.testing.assert_allclose(model.encode_texts(*oracle.padded(garbage)).detach(), wanted, atol=1e-5)


def test_the_caption_loss_is_the_slow_loop() -> None:
    model, images = made(caption_loss=0.5, relations=2), regions(count=4)
    weights = oracle.weights_of(model)
    after = oracle.vsrn_regions(weights, list(images.double().numpy()), relations=2)
    likelihoods = [
        oracle.caption_likelihood(oracle.under(weights, "decoder"), each, tokens)
        for each, tokens in zip(after, oracle.captions(), strict=True)
    ]
    for garbage in (0, 5):
        found = model.auxiliary_loss(images, *oracle.padded(garbage))
        assert found.item() == pytest.approx(-0.5 * np.mean(likelihoods), rel=1e-5)


def test_without_the_caption_loss_there_is_no_decoder() -> None:
    assert not fresh().has_auxiliary_loss
    assert not any(name.startswith("decoder.") for name in fresh().state_dict())
    assert fresh(caption_loss=1).has_auxiliary_loss


def test_every_relation_layer_starts_as_the_identity() -> None:
    """Its batch normalisation, at 0, lets no gradient into the maps before it until it has moved itself."""
    model = fresh(relations=3)
    before = model.encode_images(regions())
    model.relations = torch.nn.Sequential()
    assert torch.equal(model.encode_images(regions()), before)
    model = fresh(relations=2, caption_loss=1.0, batch_norm=True).train()
    direction = torch.randn(5, 12)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        tokens, lengths = oracle.padded()
        total = (model.encode_images(regions()) * direction).sum() + model.encode_texts(tokens, lengths).sum()
        (total + model.auxiliary_loss(regions(count=4), tokens, lengths)).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    found = gradients()
    assert found.keys() == dict(model.named_parameters()).keys()
    blocked = {name for name, gradient in found.items() if not gradient.any()}
    maps = {f"relations.{i}.{m}.{p}" for i in (0, 1) for m in ("theta", "phi", "g", "w") for p in ("weight", "bias")}
    assert blocked == maps
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm." in name:
                parameter.fill_(0.5)
    assert all(gradient.any() for gradient in gradients().values())


def test_one_region_alone_in_a_step_is_normalised_by_the_running_statistics() -> None:
    """Two pairs of one image make such a step. It has no variance; torch raises."""
    model = made((9,), batch_norm=True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    image = regions((9,), 1)
    np.testing.assert_allclose(model.encode_images(image).detach(), expected(model, image), atol=1e-5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model.encode_images(regions((9,), 2))
    assert not any(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("shape", [(9,), (1, 9)])
def test_the_published_norm_of_one_region_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r'nothing but signs .* take norm = "vector"'):
        fresh(shape, norm="published")


def test_pictures_are_refused() -> None:
    with pytest.raises(BadInput, match="take the model cnn_gru"):
        fresh((8, 8, 3))
