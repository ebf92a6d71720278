"""One file per family of losses; every loss takes the same `Similarities` and gives named parts that add up to it.

A loss is a module of this package with

- a frozen `Config`, a `Loss` or, for in-batch losses that AOQ's offline hinges may be set on, an `InBatch`; its
  properties tell `fit` and the loop what it needs;
- `parts(config, similarities) -> dict[str, Tensor]`: scalars whose sum is the loss. A name that ends in `_text` is of
  the direction image to text, one in `_image` of text to image, any other of neither;
- perhaps `figures(config, similarities) -> dict[str, Tensor]`: scalars worth logging beside it.

Its module name is its name on the command line and in a run file. A loss sees scores only, so a model that scores pairs
by cross-attention can use any of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from trainer import registry
from trainer.losses import _offline
from trainer.losses._settings import InBatch, Loss
from trainer.similarities import Similarities, reduce

__all__ = ["InBatch", "Loss", "configure", "figures", "losses", "name_of", "parts"]


def losses() -> list[str]:
    """Names of the losses."""
    return registry.names(__name__)


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a loss. Raises BadInput for an unknown loss or setting."""
    return registry.configure(__name__, name, settings or {})


def name_of(config: Any) -> str:
    """Name of the loss whose `Config` this is."""
    return type(config).__module__.rpartition(".")[2]


def parts(config: Any, similarities: Similarities) -> dict[str, Tensor]:
    """Named scalars that add up to the loss which `config`, some loss's `Config`, describes."""
    found = cast(dict[str, Tensor], sys.modules[type(config).__module__].parts(config, similarities))
    on_top = getattr(config, "offline", "none")
    if on_top in ("OffTri", "OffQuin") and similarities.offline is not None:
        margin, quintuplet = config.margin_offline, on_top == "OffQuin"
        for name, hinge in _offline.hinges(similarities, margin, config.mask, quintuplet=quintuplet).items():
            found[name] = config.offline_weight * reduce(hinge, config.reduction)
    return found


def figures(config: Any, similarities: Similarities) -> dict[str, Tensor]:
    """Named scalars worth logging beside the loss, without gradient; none for most losses."""
    found = getattr(sys.modules[type(config).__module__], "figures", None)
    return {} if found is None else cast(dict[str, Tensor], found(config, similarities))
