"""Which samples contribute to a loss's gradient, counted (COCOS: Bleeker & de Rijke, ECIR 2022, arXiv 2202.07474).

For a query q and candidates c_j the gradient is dL/dq = sum_j (dL/ds(q, c_j)) c_j when scores are dot products, so
dL/ds(q, c_j) is what candidate j contributes. It is taken by autograd from the loss's own parts, the image-to-text
parts for image queries and the text-to-image parts for text queries; any loss and any scorer can thus be counted.
Offline negatives (of tables) are counted apart from the batch's own.

Weights are absolute, in the loss's `unit`: 1 for a hinge of a summed triplet, a softmax probability for NT-Xent, a
derivative in 1 / tau for SmoothAP. Hinges over offline negatives have a hinge's unit on top of any loss. A negative
counts at threshold e when its weight is above e. Per batch:

    count       negatives that count, over all queries          (the paper's C^B)
    none        queries without any                              (C^0)
    per_query   count / (queries - none): of queries that learn  (C^q)
    share       count / queries: over all queries
    weight      sum of the weights that count, per query         (W^q-)
    nearer      share of the negatives that count whose derivative is below 0: the loss pulls them nearer (AOQ's offline
                negatives through its weights, where their own hinges are empty)
    positive    weight of the positive, per pair                 (W^q+)

All are given as mean and standard deviation over full batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction
from trainer import losses, sampling
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset
from trainer.published import published
from trainer.scoring import Inputs, gather, score
from trainer.similarities import Side, Similarities

__all__ = ["COLUMNS", "THRESHOLDS", "Threshold", "analyze", "contributions", "steps_of", "thresholds_for"]

THRESHOLDS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
CHANCE = (0.5, 1.0, 2.0, 5.0)
FIGURES = ("count", "none", "per_query", "share", "weight", "nearer", "positive")
COLUMNS = (
    *("label", "loss", "direction", "negatives", "threshold", "of_chance", "queries", "batches"),
    *(f"{name}{suffix}" for name in FIGURES for suffix in ("", "_std")),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Threshold:
    """A weight above which a negative counts; `of_chance` is the multiple of 1 / batch size it came from, if so."""

    value: float
    of_chance: float | None = None


def thresholds_for(batch_size: int, absolute: Sequence[float] = THRESHOLDS) -> list[Threshold]:
    """The sweep: absolute ones, and multiples of chance level, 1 / `batch_size`."""
    chance = [Threshold(multiple / batch_size, multiple) for multiple in CHANCE]
    return [*(Threshold(value) for value in sorted(absolute)), *chance]


def analyze(
    dataset: Dataset,
    checkpoint: Checkpoint,
    loss_config: Any,
    *,
    tables: Mapping[Direction, sampling.Table] | None = None,
    batch_size: int = 128,
    max_batches: int | None = None,
    thresholds: Sequence[Threshold] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    as_published: bool = False,
    label: str = "",
) -> list[Row]:
    """Count over the batches of one epoch of `dataset`, the model in eval mode. One row per `COLUMNS`.

    `as_published` reproduces the arithmetic of the paper's notebooks instead, with its two slips; see `published`.
    Raises BadInput for a loss over offline negatives without `tables`, and for fewer items than one batch.
    """
    if loss_config.needs_tables and tables is None:
        raise BadInput(
            f"the loss {losses.name_of(loss_config)} uses offline negatives, but no tables were given; give those that "
            "`miner mine` wrote (--negatives), or count a loss without offline negatives."
        )
    steps = steps_of(dataset, checkpoint, loss_config, tables, batch_size, max_batches, seed, device)
    name = losses.name_of(loss_config)
    # One that is asked for twice is counted once.
    sweep = list(dict.fromkeys(thresholds or thresholds_for(batch_size)))
    if as_published:
        found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
        for step in steps:
            for direction, figures in published(loss_config, step).items():
                found.setdefault((direction, "online", *_published_threshold(name)), []).append(figures)
    else:
        found = {}
        for step in steps:
            for key, figures in contributions(loss_config, step, sweep):
                found.setdefault(key, []).append(figures)
    return [_row(label, name, key, batches) for key, batches in found.items()]


def steps_of(
    dataset: Dataset,
    checkpoint: Checkpoint,
    loss_config: Any,
    tables: Mapping[Direction, sampling.Table] | None,
    batch_size: int,
    max_batches: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> Iterator[Similarities]:
    """Similarities of the full batches of one epoch as the loss would be given them, the model in eval mode."""
    device = device or torch.device("cpu")
    pairs, by = dataset.pairs, loss_config.batch_by
    there = pairs.num_pairs if by == "pairs" else pairs.num_images
    if there < batch_size:
        raise BadInput(
            f"{dataset.name}: {there} {by} do not fill one batch of {batch_size}; give a smaller batch size."
        )
    draw = None
    if loss_config.needs_tables:
        assert tables is not None
        draw = sampling.draw(
            pairs, tables, pool_text=loss_config.h_t, pool_image=loss_config.h_v,
            skip_text=loss_config.skip_t, skip_image=loss_config.skip_v, ranks=loss_config.law, seed=seed,
            epoch=checkpoint.epoch, partners=loss_config.needs_partners,
        )  # fmt: skip
    model = checkpoint.model(device)
    inputs = Inputs.of(dataset, model)
    for batch in sampling.batches(pairs, batch_size, seed, checkpoint.epoch, by)[:max_batches]:
        drawn = draw.take(batch) if draw is not None else None
        # Nothing is yielded under a grad mode: whoever stops early would be left in it.
        with torch.no_grad():
            step = score(model, gather(inputs, batch, drawn, by), device, torch.float32)
        yield step.similarities


def contributions(
    loss_config: Any, step: Similarities, thresholds: Sequence[Threshold]
) -> Iterator[tuple[tuple[Any, ...], dict[str, float]]]:
    """((direction, "online" or "offline", threshold, of_chance), figures of this batch), for every threshold.

    Also (("both", "c_1" or "c_2", ...), ...) for the offline pairs without a common anchor, one per pair at most.
    """
    for direction, negatives, weights, positive in _weights(loss_config, step):
        for threshold in thresholds:
            key = (direction, negatives, threshold.value, threshold.of_chance)
            yield key, _figures(weights, threshold.value) | {"positive": positive}


def _weights(loss_config: Any, step: Similarities) -> list[tuple[str, str, Tensor, float]]:
    """(direction, negatives, derivative by every negative (queries, candidates), mean weight of the positives)."""
    leaf = step.wide.detach().requires_grad_()
    leaves = {}
    if step.offline is not None:
        for field in ("text", "image", "negatives", "partners"):
            leaves[field] = getattr(step.offline, field).detach().requires_grad_()
    step = replace(step, scores=leaf, offline=step.offline and replace(step.offline, **leaves))
    found: list[tuple[str, str, Tensor, float]] = []
    with torch.enable_grad():
        parts = losses.parts(loss_config, step)
        sides = step.sides(loss_config.mask)
        for direction, side in zip(("i2t", "t2i"), sides, strict=True):
            wanted = [leaf, *(leaves[field] for field in (side.searched,) if field in leaves)]
            # What the loss does with its batch is in its own unit, what offline hinges add in a hinge's.
            unit, hinge = loss_config.unit(side), losses.Loss.unit(loss_config, side)
            toward = {name: part for name, part in parts.items() if name.endswith(f"_{side.searched}")}
            weighed = [part / (hinge if name.startswith("offline_") else unit) for name, part in toward.items()]
            by_score, *by_offline = _gradients(weighed, wanted)
            by_score = by_score if side.searched == "text" else by_score.T
            positive = _at_pairs(side, by_score).abs().mean().item()
            found.append((direction, "online", by_score * side.negative, positive))
            if by_offline and side.has_offline is not None:
                found.append((direction, "offline", (by_offline[0] * side.has_offline)[:, None], positive))
        for field, name in (("negatives", "c_1"), ("partners", "c_2")):
            if field in parts:
                (gradient,) = _gradients([parts[field] / losses.Loss.unit(loss_config, sides[0])], [leaves[field]])
                found.append(("both", name, gradient[:, None], float("nan")))
    return found


def _gradients(parts: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Derivatives of the sum of `parts` by each of `wanted`; zeros where it does not matter."""
    total = torch.stack([part for part in parts if part.requires_grad] or [wanted[0].sum() * 0]).sum()
    found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def _at_pairs(side: Side, values: Tensor) -> Tensor:
    """Entries of an (anchors, candidates) matrix at the pairs, (P,)."""
    if side.anchor is None or side.candidate is None:
        return values.diagonal()
    return values[side.anchor, side.candidate]


def _figures(weights: Tensor, threshold: float) -> dict[str, float]:
    """`weights` is (queries, candidates), with their signs; a weight's size is what counts."""
    counted = weights.abs() > threshold
    per_query = counted.sum(1)
    queries, count, none = len(weights), int(per_query.sum()), int((per_query == 0).sum())
    return {
        "queries": queries,
        "count": count,
        "none": none,
        "per_query": count / (queries - none) if none < queries else 0.0,
        "share": count / queries,
        "weight": float((weights.abs() * counted).sum()) / queries,
        "nearer": int((counted & (weights < 0)).sum()) / max(count, 1),
    }


def _published_threshold(name: str) -> tuple[float, float | None]:
    return (0.0 if name == "triplet" else 0.01), None


def _row(label: str, name: str, key: tuple[Any, ...], batches: list[dict[str, float]]) -> Row:
    direction, negatives, threshold, of_chance = key
    row: Row = {
        "label": label, "loss": name, "direction": direction, "negatives": negatives, "threshold": threshold,
        "of_chance": of_chance, "queries": float(np.mean([b["queries"] for b in batches])), "batches": len(batches),
    }  # fmt: skip
    for figure in FIGURES:
        values = [b.get(figure, float("nan")) for b in batches]
        row[figure], row[f"{figure}_std"] = float(np.mean(values)), float(np.std(values))
    return row
