"""Pictures are prepared as the image processors of transformers prepare them with Pillow, to one grey level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from miner.artifacts.errors import BadInput
from tests.trainer.pretrained_models import pictures
from trainer.pixels import Preprocessing

PROCESSORS: dict[str, Any] = {
    "clip": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "clip, crop below its size": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 28}
    ),
    "siglip": lambda: transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
    "vit, bilinear": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    "resnet's": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    "resnet's, too large to crop": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
}


@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("shape", [(32, 32), (48, 48), (20, 20), (61, 48), (40, 57)])
def test_prepared_as_the_librarys_processor_does(name: str, shape: tuple[int, int]) -> None:
    processor = PROCESSORS[name]()
    images = pictures(4, *shape)
    images[0] = np.random.default_rng(0).integers(0, 256, images[0].shape)  # where overshoots are clipped on the way
    expected = processor(list(images), return_tensors="pt")["pixel_values"]
    pixels = Preprocessing.of_processor(processor, name)
    found = pixels(torch.from_numpy(images))
    assert (found.shape, found.dtype) == (expected.shape, torch.float32)
    levels = (found - expected).abs() * torch.tensor(pixels.std)[:, None, None] * 255
    assert levels.max() < 1.01
    assert (levels > 0.5).float().mean() < 0.05


def test_a_picture_of_the_right_size_is_only_normalised() -> None:
    image = torch.from_numpy(pictures(2, 12, 20))
    pixels = Preprocessing(size=(12, 20), mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    expected = (image.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(
        [1.0, 2.0, 4.0]
    )[:, None, None]
    torch.testing.assert_close(pixels(image), expected)


def test_another_size_is_squeezed() -> None:
    images = pictures(1, 30, 50)
    pixels = Preprocessing(size=(8, 8), shortest_edge=10, mean=(0, 0, 0), std=(1, 1, 1)).resized(16)
    expected = np.asarray(Image.fromarray(images[0]).resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    found = (pixels(torch.from_numpy(images))[0].permute(1, 2, 0) * 255).round().int().numpy()
    assert np.abs(found - expected).max() <= 1


def test_the_settings_come_back_from_json() -> None:
    pixels = Preprocessing.of_processor(PROCESSORS["clip"](), "clip")
    assert Preprocessing.model_validate_json(pixels.model_dump_json()) == pixels


@pytest.mark.parametrize(
    "settings", [{"resample": 0}, {"do_resize": False}, {"do_normalize": False}, {"do_rescale": False}]
)
def test_another_kind_of_preprocessing_is_refused(settings: dict[str, Any]) -> None:
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, **settings)
    with pytest.raises(BadInput, match="does not resize"):
        Preprocessing.of_processor(processor, "here")


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    pixels = Preprocessing(size=(32, 32), shortest_edge=20, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(BadInput, match="which is smaller"):
        pixels.scaled(48, 48)
