"""A backbone of the user's own: `module:function`, called without arguments, returns the network.

It takes pictures normalised with ImageNet's mean and standard deviation; one that wants others can undo that.
"""

from __future__ import annotations

from torch import nn

from miner.artifacts.errors import BadInput
from trainer.factory import Factory
from trainer.pixels import Preprocessing

__all__ = ["build"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(name: str, size: tuple[int, int]) -> tuple[nn.Module, Preprocessing]:
    """The network, for pictures of `size` (height, width) as they are.

    Raises BadInput when there is no such function, and for whatever the user's code raises.
    """
    made = Factory(name, f"backbone {name}")()
    if not isinstance(made, nn.Module):
        raise BadInput(f"backbone {name}: it returned a {type(made).__name__}; a torch module was expected.")
    return made, Preprocessing(size=size, mean=_MEAN, std=_STD)
