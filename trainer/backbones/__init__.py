"""Networks that turn pictures into image features, for models that are trained on precomputed ones.

A backbone is named by one of

    efficientnet-lite0     a module of this package, with `build() -> (network, preprocessing)`
    module:function        a function of the user's, called without arguments, that returns the network
    anything else          a folder or hub name of a vision model of transformers, or of a dual encoder, for its image
                           tower

The network takes normalised pictures (B, 3, height, width) and gives its last map (B, C, rows, columns), tokens
(B, N, C), of which the last rows x columns are the patches and the first, if there are more, is the class token, or
one vector per picture (B, C).
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from miner.artifacts.errors import BadInput
from trainer import registry
from trainer.backbones import _transformers, _users
from trainer.pixels import Preprocessing

__all__ = ["Backbone", "Features", "open_backbone"]


_MOST_EXTRA = 8  # class, distillation and register tokens


@dataclass(frozen=True)
class Features:
    """What a network says of pictures: `map` (B, C, rows, columns), `vector` (B, C), or both."""

    map: Tensor | None
    vector: Tensor | None


class Backbone(nn.Module):
    """A network in eval mode, with the preprocessing it wants; `squeezes` where that makes a square of any picture."""

    def __init__(self, network: nn.Module, pixels: Preprocessing, name: str, squeezes: bool = False) -> None:
        super().__init__()
        # Channels last: convolutions take half the time on a CPU, and no more elsewhere.
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.pixels, self.name, self.squeezes = pixels, name, squeezes

    def forward(self, images: Tensor) -> Features:
        """Pictures (B, H, W, 3) uint8 -> features, float32. Raises BadInput when the network gives something else."""
        found = self.network(self.pixels(images).contiguous(memory_format=torch.channels_last))
        if isinstance(found, Tensor) and len(found) == len(images):
            if found.ndim == 4:
                return Features(found.float(), None)
            if found.ndim == 3:
                return _of_tokens(found.float(), self.pixels.size, self.name)
            if found.ndim == 2:
                return Features(None, found.float())
        said = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise BadInput(
            f"backbone {self.name}: it gave {said} for {len(images)} pictures; a map (B, C, rows, columns), tokens "
            "(B, N, C) or vectors (B, C) were expected."
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over layers, weights, buffers and preprocessing, whatever the name of the network was."""
        digest = hashlib.sha256(f"{self.pixels.model_dump_json()} {self.network}".encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def open_backbone(name: str, image_shape: tuple[int, ...], image_size: int | None = None) -> Backbone:
    """The backbone `name` for pictures of `image_shape`, which are resized to `image_size` pixels a side.

    Without `image_size`: to what the model was trained on; for a function of the user's, not at all. Raises BadInput
    for a name that is nowhere, for images that are no pictures, and when the network cannot take one of that size.
    """
    if len(image_shape) != 3 or image_shape[2] != 3:
        raise BadInput(
            f"a backbone takes pictures of shape (height, width, 3), but these images are {image_shape}: vectors "
            "already. Train on them, or give the data set of the pictures they were made from."
        )
    own, squeezes = name.replace("-", "_"), False
    if own in registry.names(__name__):
        network, pixels = registry.module(__name__, own).build()
    elif ":" in name:
        network, pixels = _users.build(name, (image_shape[0], image_shape[1]))
    else:
        try:
            network, pixels = _transformers.build(name)
            squeezes = pixels.squeezes
        except BadInput as wrong:
            nearest = difflib.get_close_matches(own, registry.names(__name__), 1)
            if not nearest or Path(name).exists():
                raise
            raise BadInput(f"{wrong} Did you mean {nearest[0].replace('_', '-')!r}?") from wrong
    if image_size is not None:
        pixels = pixels.resized(image_size)
    backbone = Backbone(network, pixels, name, squeezes)
    _probe(backbone, image_shape)
    return backbone


def _probe(backbone: Backbone, image_shape: tuple[int, ...]) -> None:
    try:
        with torch.inference_mode():
            backbone(torch.zeros(1, *image_shape, dtype=torch.uint8))
    except BadInput:
        raise
    except Exception as error:  # whatever a network raises for a picture it cannot take
        raise BadInput(
            f"backbone {backbone.name}: a picture of {backbone.pixels.size} pixels ended in {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}; try another --image-size."
        ) from error


def _of_tokens(tokens: Tensor, size: tuple[int, int], name: str) -> Features:
    """Patches are a grid of the picture's proportions; what comes before them are class and register tokens."""
    height, width = size
    for extra in range(min(tokens.shape[1], _MOST_EXTRA + 1)):
        patches = tokens.shape[1] - extra
        rows = round((patches * height / width) ** 0.5)
        if rows and patches % rows == 0 and rows * width == patches // rows * height:
            grid = tokens[:, extra:].transpose(1, 2).reshape(len(tokens), -1, rows, patches // rows)
            return Features(grid, tokens[:, 0] if extra else None)
    raise BadInput(
        f"backbone {name}: its {tokens.shape[1]} tokens are no grid of {size} pixels; try a square --image-size."
    )
