"""A model under training: what `fit` updates, saves after every epoch, and hands on as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from miner.artifacts.errors import BadInput
from trainer import models, sampling
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset
from trainer.fit_section import FitConfig
from trainer.processes import Processes

__all__ = ["Trainee"]


class Trainee:
    """A model under training: weights, their running average, Adam's moments, updates so far."""

    def __init__(
        self, dataset: Dataset, model_config: Any, config: FitConfig, start: Checkpoint | None, device: torch.device
    ) -> None:
        self.config, self.model_config, self.image_shape = config, model_config, dataset.image_shape
        if start is not None:
            if start.model_config != model_config or models.name_of(start.model_config) != models.name_of(model_config):
                raise BadInput(
                    "the checkpoint to start from is of another model or of other model settings; "
                    "give the same ones, or start afresh."
                )
            if start.image_shape != dataset.image_shape:
                raise BadInput(
                    f"the checkpoint to start from takes images of shape {start.image_shape}, but these are "
                    f"{dataset.image_shape}; train on the data it was trained on."
                )
        torch.manual_seed(int(sampling.generator(config.seed, "model").integers(2**63)))
        if start is None:
            tokenizer = models.tokenizer_of(model_config, dataset.pairs.texts, config.min_count)
            self.model = models.fresh(model_config, tokenizer, dataset.image_shape).to(device)
        else:
            self.model = models.build(model_config, start.tokenizer, dataset.image_shape).to(device)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not trained:
            raise BadInput(f"model {models.name_of(model_config)}: its settings freeze every weight; thaw some.")
        self.names, self.raw = list(trained), list(trained.values())
        # A frozen weight is part of the model like a buffer: saved, never updated.
        kept = self.model.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in kept}
        buffers |= {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        self.buffer_names, self.buffers = list(buffers), list(buffers.values())
        if start is not None:
            _copy(self.raw, self.names, "raw/", start.state)
            _copy(self.buffers, self.buffer_names, "buffer/", start.state)
        self.average = [parameter.detach().clone() for parameter in self.raw]
        self.adam = self._optimizer()
        self.updates = 0
        if start is not None:
            self.updates = start.updates
            _copy(self.average, self.names, "", start.weights)
            self._set_moments(start.state, start.updates)

    def update(self, lr: float) -> None:
        """One step of Adam on the clipped gradient, which is then gone; the average follows, faster at first to forget
        the start."""
        for group in self.adam.param_groups:
            group["lr"] = lr * group["scale"]
        nn.utils.clip_grad_norm_(self.raw, self.config.clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.updates += 1
        if self.config.ema_decay > 0:
            decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.raw], 1 - decay)

    def follow_first(self, processes: Processes, epochs: int, warm: bool) -> tuple[int, bool]:
        """Take over the first process's state, batch statistics too, and its word on epochs done and warmth."""
        if processes.size == 1:
            return epochs, warm
        told = torch.tensor([epochs, self.updates, int(warm)], device=self.raw[0].device)
        processes.copy_first([told])
        epochs, self.updates, warmth = told.tolist()
        for parameter in self.raw:
            if not self.adam.state[parameter]:
                self.adam.state[parameter] = _moments(torch.zeros_like(parameter), torch.zeros_like(parameter), 0)
            self.adam.state[parameter]["step"].fill_(self.updates)
        moments = [self.adam.state[p][name] for p in self.raw for name in ("exp_avg", "exp_avg_sq")]
        processes.copy_first([*self.raw, *self.average, *moments, *self.buffers])
        return epochs, bool(warmth)

    def _optimizer(self) -> torch.optim.Optimizer:
        """One group of parameters per scale of the learning rate; weight decay is decoupled (AdamW)."""
        scaled: dict[float, list[nn.Parameter]] = {}
        for name, parameter in zip(self.names, self.raw, strict=True):
            scaled.setdefault(self.model.learning_rate_scale(name), []).append(parameter)
        groups = [{"params": some, "scale": scale} for scale, some in scaled.items()]
        if self.config.weight_decay:
            return torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True)
        return torch.optim.Adam(groups, lr=self.config.lr, fused=True)

    def tensors(self) -> dict[str, Tensor]:
        """Raw weights, moments, averages and buffers by name, on the CPU."""
        found: dict[str, Tensor] = {}
        for name, raw, average in zip(self.names, self.raw, self.average, strict=True):
            moments = self.adam.state[raw]
            found[f"raw/{name}"], found[f"ema/{name}"] = raw.detach(), average
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}/{name}"] = moments[moment] if moments else torch.zeros_like(raw)
        found |= {f"buffer/{name}": buffer for name, buffer in zip(self.buffer_names, self.buffers, strict=True)}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        _copy(self.raw, self.names, "raw/", tensors)
        _copy(self.average, self.names, "ema/", tensors)
        _copy(self.buffers, self.buffer_names, "buffer/", tensors)
        self.updates = updates
        self._set_moments(tensors, updates)

    def _set_moments(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        for name, raw in zip(self.names, self.raw, strict=True):
            average, squared = tensors[f"exp_avg/{name}"], tensors[f"exp_avg_sq/{name}"]
            at = raw.device
            self.adam.state[raw] = _moments(average.to(at, copy=True), squared.to(at, copy=True), updates)

    def checkpoint(self, epoch: int, warm: bool) -> Checkpoint:
        tensors = self.tensors()
        chosen = "ema/" if self.config.ema_decay > 0 else "raw/"
        weights = {name: tensors[chosen + name] for name in self.names}
        weights |= {name: tensors["buffer/" + name] for name in self.buffer_names}
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith("ema/")}
        return Checkpoint(
            self.model_config, self.model.tokenizer, self.image_shape, weights, state, epoch, self.updates, warm
        )


def _moments(average: Tensor, squared: Tensor, updates: int) -> dict[str, Tensor]:
    """Adam's state of one parameter."""
    step = torch.tensor(float(updates), device=average.device)
    return {"step": step, "exp_avg": average, "exp_avg_sq": squared}


@torch.no_grad()
def _copy(targets: list[Any], names: list[str], prefix: str, tensors: Mapping[str, Tensor]) -> None:
    for name, target in zip(names, targets, strict=True):
        target.copy_(tensors[prefix + name])
