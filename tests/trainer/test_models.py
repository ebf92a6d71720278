"""What every model promises: unit vectors, padding without effect, images in the data's own layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miner.artifacts.errors import BadInput
from trainer import models
from trainer.text import Vocabulary

VOCABULARY = Vocabulary.build(["red cat", "blue dog", "a very long caption of many many words"])
SETTINGS: dict[str, dict[str, Any]] = {
    "cnn_gru": {"dim": 16, "channels": (8, 12), "word_dim": 6, "hidden": 5},
    "vsepp": {"dim": 16, "word_dim": 6},
}
IMAGES = {"cnn_gru": (20, 16, 3), "vsepp": (9,)}


def built(name: str) -> models.Encoder:
    torch.manual_seed(0)
    return models.build(models.configure(name, SETTINGS[name]), VOCABULARY, IMAGES[name]).eval()


def images(name: str, count: int) -> torch.Tensor:
    values = torch.rand(count, *IMAGES[name], generator=torch.Generator().manual_seed(1))
    return (values * 255).to(torch.uint8) if name == "cnn_gru" else values.half()


@pytest.mark.parametrize("name", models.models())
def test_every_model_keeps_the_contract(name: str) -> None:
    model = built(name)
    found = model.encode_images(images(name, 5))
    assert (found.shape, found.dtype) == ((5, model.dim), torch.float32)
    tokens, lengths = VOCABULARY.encode(["red cat", "a very long caption of many many words", "dog"])
    texts = model.encode_texts(torch.from_numpy(tokens), torch.from_numpy(lengths))
    assert (texts.shape, texts.dtype) == ((3, model.dim), torch.float32)
    for embeddings in (found, texts):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    for row, caption in enumerate(["red cat", "a very long caption of many many words", "dog"]):
        alone, length = VOCABULARY.encode([caption])
        single = model.encode_texts(torch.from_numpy(alone), torch.from_numpy(length))
        torch.testing.assert_close(single[0], texts[row])
    more = torch.nn.functional.pad(torch.from_numpy(tokens), (0, 7))
    torch.testing.assert_close(model.encode_texts(more, torch.from_numpy(lengths)), texts)
    (texts.sum() + found.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", models.models())
def test_a_row_does_not_depend_on_its_batch_in_training_either(name: str) -> None:
    """No statistic over the batch: offline negatives in a step must not change the others' embeddings."""
    settings = {**SETTINGS[name], **({"dropout": 0.0, "shift": 0} if name == "cnn_gru" else {})}
    torch.manual_seed(0)
    model = models.build(models.configure(name, settings), VOCABULARY, IMAGES[name]).train()
    pictures = images(name, 6)
    torch.testing.assert_close(model.encode_images(pictures[:2]), model.encode_images(pictures)[:2])


def test_regions_are_averaged() -> None:
    model = models.build(models.configure("vsepp", SETTINGS["vsepp"]), VOCABULARY, (4, 9))
    regions = torch.rand(3, 4, 9)
    torch.testing.assert_close(model.encode_images(regions), model.encode_images(regions.mean(1)))


def test_shifting_moves_whole_pictures() -> None:
    from trainer.models.cnn_gru import _shifted

    torch.manual_seed(0)
    values = torch.arange(2 * 3 * 6 * 5, dtype=torch.float32).reshape(2, 3, 6, 5)
    padded = torch.nn.functional.pad(values, (2,) * 4, mode="replicate")
    for _ in range(20):
        for picture, moved in zip(padded, _shifted(values, 2), strict=True):
            assert any(torch.equal(picture[:, y : y + 6, x : x + 5], moved) for y in range(5) for x in range(5))


@pytest.mark.parametrize(("name", "shape"), [("cnn_gru", (9,)), ("cnn_gru", (8, 8, 4)), ("vsepp", (8, 8, 3))])
def test_images_of_another_kind_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="take the model"):
        models.build(models.configure(name), VOCABULARY, shape)
