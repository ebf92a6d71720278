"""A model's encoders through torch.compile."""

from __future__ import annotations

import logging
import os
import shutil

import torch

from miner.artifacts.errors import BadInput
from trainer.models import Encoder, PairScorer

__all__ = ["encoders"]


def encoders(model: Encoder) -> None:
    """Compile what encodes images and texts, for batches of any size; parts that cannot be are run as they are.

    Raises BadInput without a C++ compiler, which compiling for a CPU and for a GPU both need.
    """
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else ["g++", "clang++", "c++"])):
        raise BadInput(
            f"fit.compile: no C++ compiler here ({asked or 'g++, clang++'}); install one, or set compile = false."
        )
    # A model that leaves the graph for a moment, as packing does, is slower for it, not wrong.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    for name in (
        ("image_elements", "text_elements") if isinstance(model, PairScorer) else ("encode_images", "encode_texts")
    ):
        # On the instance: a checkpoint sees parameters and buffers, and these are the same.
        setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
