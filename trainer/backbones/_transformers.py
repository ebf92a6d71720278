"""Vision models of the transformers library: ViT, DINOv2, ResNet, Swin, the image tower of CLIP, and so on."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from miner.artifacts.errors import BadInput
from trainer.models._pretrained import find, load, processor
from trainer.pixels import Preprocessing

__all__ = ["build"]


class _LastState(nn.Module):
    """The last layer's map or tokens; positions are interpolated where a picture is of another size."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.trained_on = getattr(model.config, "image_size", None)
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, images: Tensor) -> Tensor:
        other = self.interpolates and self.trained_on not in (images.shape[2], None)
        settings = {"interpolate_pos_encoding": True} if other else {}
        found: Tensor = self.model(pixel_values=images, **settings).last_hidden_state
        return found


def build(path: str) -> tuple[nn.Module, Preprocessing]:
    """The network in a folder or of a hub name, and its preprocessing. Raises BadInput."""
    folder = find(path)
    model = load(folder)
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise BadInput(f"{folder}: {type(model).__name__} takes no pictures; give a vision model or a dual encoder.")
    return _LastState(model), Preprocessing.of_processor(processor(folder), str(folder))
