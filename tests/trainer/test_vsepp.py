"""VSE++ against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from tests.trainer import models_oracle as oracle
from trainer import models


def made(shape: tuple[int, ...] = (9,), **settings: object) -> models.Encoder:
    config = models.configure("vsepp", {"dim": 16, "word_dim": 6, **settings})
    return oracle.used(models.build(config, oracle.VOCABULARY, shape))


@pytest.mark.parametrize("shape", [(9,), (4, 9)])
@pytest.mark.parametrize("use_abs", [False, True])
def test_vsepp_is_the_slow_loop(shape: tuple[int, ...], use_abs: bool) -> None:
    model = made(shape, use_abs=use_abs)
    weights = oracle.weights_of(model)
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).half()
    expected = [oracle.vsepp_image(weights, image) for image in images.double().numpy()]
    expected_texts = [oracle.last_word_state(weights, tokens) for tokens in oracle.captions()]
    if use_abs:
        expected, expected_texts = ([np.abs(row) for row in rows] for rows in (expected, expected_texts))
    np.testing.assert_allclose(model.encode_images(images).detach(), expected, atol=1e-5)
    for garbage in (0, 5):
        found = model.encode_texts(*oracle.padded(garbage))
        np.testing.assert_allclose(found.detach(), expected_texts, atol=1e-5)


def test_how_it_starts() -> None:
    """Linear: U(±sqrt(6 / (in + out))) and bias 0; words: U(±0.1)."""
    torch.manual_seed(0)
    model = models.build(models.configure("vsepp", {"dim": 64, "word_dim": 30}), oracle.VOCABULARY, (86,))
    state = model.state_dict()
    assert 0.19 < state["image_head.weight"].abs().max() <= 0.2
    assert not state["image_head.bias"].any()
    assert 0.09 < state["words.embedding.weight"].abs().max() <= 0.1


def test_normalised_vectors_are_taken_as_they_are() -> None:
    """The published code leaves precomputed vectors alone, as they are of length 1; so does this for those."""
    model = made()
    vectors = torch.randn(3, 9)
    torch.testing.assert_close(model.encode_images(vectors), model.encode_images(vectors * 7))


def test_pictures_are_refused() -> None:
    with pytest.raises(BadInput, match=r"vectors of shape .* take the model cnn_gru"):
        made((8, 8, 3))
