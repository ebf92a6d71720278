"""A trained model on disk, without pickle: what `fit` returns, and the next round starts from.

weights.safetensors   the weights to encode and evaluate with (averaged ones when `ema_decay` > 0)
state.safetensors     what training needs to go on: raw weights `raw/...`, buffers `buffer/...`, Adam's moments
                      `exp_avg/...` and `exp_avg_sq/...`
model.json            model and its settings, tokenizer, image shape, counters
history.json          for every epoch that this training added: loss, its parts, what was observed; see `EpochLog`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, canonical_json, check_kind, open_artifact
from miner.artifacts.place import Place
from trainer import models
from trainer.text import Tokenizer, tokenizer_from_json

__all__ = ["CHECKPOINT", "Checkpoint"]

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Weights, training state (all on the CPU) and how far training came: whole epochs and optimiser updates.

    `warm`: whether training may go on with hardest negatives; see `FitConfig.warmup_epochs`.
    """

    model_config: Any
    tokenizer: Tokenizer
    image_shape: tuple[int, ...]
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    epoch: int
    updates: int
    warm: bool = True

    def model(self, device: str | torch.device = "cpu") -> models.Encoder:
        """The model with its weights, in eval mode. Torch's random state is as before."""
        with torch.random.fork_rng(devices=[]):
            model = models.build(self.model_config, self.tokenizer, self.image_shape)
        model.load_state_dict(self.weights)
        return model.to(device).eval()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything."""
        digest = sha256(self._json())
        for tensors in (self.weights, self.state):
            digest.update(save(_contiguous(tensors)))
        return digest.hexdigest()

    def _json(self) -> bytes:
        return canonical_json(
            {
                "model": models.name_of(self.model_config),
                "config": self.model_config.model_dump(mode="json"),
                "tokenizer": self.tokenizer.to_json(),
                "image_shape": list(self.image_shape),
                "epoch": self.epoch,
                "updates": self.updates,
                "warm": self.warm,
            }
        )

    def commit(self, draft: Draft, history: Sequence[Mapping[str, Any]] = ()) -> Artifact:
        """Write the artifact, with one line of `history` per epoch; `draft.kind` must be "checkpoint"."""
        files = {
            "weights.safetensors": draft.add("weights.safetensors", save(_contiguous(self.weights))),
            "state.safetensors": draft.add("state.safetensors", save(_contiguous(self.state))),
            "model.json": draft.add("model.json", self._json()),
            "history.json": draft.add("history.json", canonical_json({"epochs": list(history)})),
        }
        return draft.commit(files, {"epoch": self.epoch, "updates": self.updates})

    @classmethod
    def load(cls, where: Place | Path | str) -> Checkpoint:
        """Open the artifact at a place. Raises BadInput when there is none, DamagedArtifact for changed bytes."""
        return cls.open(open_artifact(where, CHECKPOINT))

    @classmethod
    def open(cls, artifact: Artifact) -> Checkpoint:
        """Read and verify. Raises DamagedArtifact for changed bytes, BadInput for another kind or an unknown model."""
        check_kind(artifact, CHECKPOINT)
        try:
            about = json.loads(artifact.read("model.json"))
            weights, state = load(artifact.read("weights.safetensors")), load(artifact.read("state.safetensors"))
            return cls(
                models.configure(about["model"], about["config"]),
                tokenizer_from_json(about["tokenizer"]),
                tuple(about["image_shape"]),
                weights,
                state,
                about["epoch"],
                about["updates"],
                about.get("warm", True),
            )
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise DamagedArtifact(
                f"{artifact.where}: not a checkpoint this version can read ({error!r}); train again."
            ) from error


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
