"""The counting arithmetic of the notebooks behind Bleeker & de Rijke (ECIR 2022), for comparison with their tables.

Source: github.com/MauritsBleeker/ecir-2022-reproducibility-bleeker at f0a9f28, `shared/losses.py` and the notebooks
`evaluation/Gradient counting*`. Two slips are kept:

- Triplet over all negatives, text to image: hinges are (images, texts) and a text's negatives lie in its column, but
  the notebook sums rows. The count per batch is right; the queries without any, and so the mean per query, are not.
- SmoothAP: the rows of query i that are read as its positives are i k .. i k + k - 1. That is right for images with k
  captions each; for a text query i the candidates are B images, its one positive is image i // k, and rows beyond B do
  not exist. So all but the first B / k text queries count nothing, and those count other rows.

The threshold is 0.01 for NT-Xent and SmoothAP. SmoothAP is counted by sigma (1 - sigma) / R^2, not by its gradient: R_P
is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from miner.artifacts.errors import BadInput
from trainer import losses
from trainer.similarities import Similarities

__all__ = ["published"]

THRESHOLD = 0.01


@torch.no_grad()
def published(config: Any, step: Similarities) -> dict[str, dict[str, float]]:
    """{"i2t": figures, "t2i": figures} of one batch. Raises BadInput for a loss that they do not count."""
    known: dict[str, Callable[[Any, Similarities], dict[str, dict[str, float]]]] = {
        "triplet": _triplet,
        "ntxent": _ntxent,
        "smoothap": _smoothap,
    }
    name = losses.name_of(config)
    if name not in known:
        raise BadInput(
            f"the notebooks count {', '.join(known)}, not {name}; leave --as-published out to count its true gradient."
        )
    if config.needs_tables:
        raise BadInput("the notebooks count in-batch negatives alone; leave offline=... or --as-published out.")
    return known[name](config, step)


def _triplet(config: Any, step: Similarities) -> dict[str, dict[str, float]]:
    text, image = step.sides("diagonal")
    found = {}
    for direction, side in (("i2t", text), ("t2i", image)):
        hinges = (config.margin + side.scores - side.positive[:, None]) * side.negative
        if config.max_violation:
            counts = (hinges.max(1).values > 0).float()
        else:
            # The slip: for t2i the notebook sums the rows of the (images, texts) matrix, which here are columns.
            counts = (hinges > 0).float().sum(1 if direction == "i2t" else 0)
        found[direction] = _per_learning_query(counts)
    return found


def _ntxent(config: Any, step: Similarities) -> dict[str, dict[str, float]]:
    found = {}
    for direction, side in zip(("i2t", "t2i"), step.sides("diagonal"), strict=True):
        share = torch.softmax(side.scores / config.tau, dim=1)
        negative = share * side.negative
        counted = negative > THRESHOLD
        figures = _per_learning_query(counted.sum(1).float())
        # The notebook's mean is over all queries.
        found[direction] = figures | {
            "per_query": figures["share"],
            "weight": float((negative * counted).sum(1).mean()),
            "positive": float(1 - share.diagonal().mean()),
        }
    return found


def _smoothap(config: Any, step: Similarities) -> dict[str, dict[str, float]]:
    text, image = step.sides("valid")
    own = [torch.nonzero(~row).flatten() for row in text.negative]
    order = torch.cat(own)
    if step.images is None or len(order) != text.scores.shape[1]:
        raise BadInput(
            "the notebooks' SmoothAP arithmetic needs images with captions of their own; here a caption belongs to two "
            "images of a batch. Leave --as-published out."
        )
    starts = torch.tensor([0, *(len(mine) for mine in own)]).cumsum(0).tolist()
    # The notebook's texts lie in the order of their images.
    return {
        "i2t": _smoothap_rows(text.scores[:, order], config.tau, starts, divide=True),
        "t2i": _smoothap_rows(image.scores[order], config.tau, starts, divide=False),
    }


def _smoothap_rows(scores: Tensor, tau: float, starts: list[int], *, divide: bool) -> dict[str, float]:
    """`scores` (queries, candidates); query i reads the rows starts[i] .. starts[i + 1] as its positives'."""
    num_candidates = scores.shape[1]
    every = torch.arange(num_candidates, device=scores.device)
    total, none = 0.0, 0
    for query, row in enumerate(scores):
        first, last = (starts[query], starts[query + 1]) if query + 1 < len(starts) else (num_candidates,) * 2
        last = min(last, num_candidates)
        chosen = row[first:last]
        above = torch.sigmoid(((row[None, :] - chosen[:, None]) / tau).clamp(-50, 50))
        above = above * (every[None, :] != every[first:last, None])
        counted = int((above * (1 - above) / (1 + above.sum(1, keepdim=True)).square() > THRESHOLD).sum())
        total += counted / (max(last - first, 1) if divide else 1)
        none += counted == 0
    learning = len(scores) - none
    figures = {"queries": len(scores), "count": total, "none": none, "share": total / len(scores)}
    return figures | {"per_query": total / learning if learning else 0.0}


def _per_learning_query(counts: Tensor) -> dict[str, float]:
    queries, none, count = len(counts), int((counts == 0).sum()), float(counts.sum())
    return {
        "queries": queries,
        "count": count,
        "none": none,
        "share": count / queries,
        "per_query": count / (queries - none) if none < queries else 0.0,
    }
