"""SCAN and BFAN as loops over images, captions at true length and queries, with every attended vector written out.

Differentiable, in the type of its input; from the formulas in `trainer/models/scan.py` and `bfan.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainer.models import Elements

PUBLISHED = {"t2i": (9.0, 6.0), "i2t": (4.0, 5.0)}


def matrix(config: Any, images: Elements, texts: Elements) -> Tensor:
    """(images, texts) of the model whose `Config` this is."""
    rows = []
    for image, regions in zip(images.values, images.lengths.tolist(), strict=True):
        row = []
        for text, words in zip(texts.values, texts.lengths.tolist(), strict=True):
            row.append(bfan(config, image[:regions], text[:words]) if hasattr(config, "focal") else
                       scan(config, image[:regions], text[:words]))  # fmt: skip
        rows.append(torch.stack(row))
    return torch.stack(rows)


def scan(config: Any, regions: Tensor, words: Tensor) -> Tensor:
    found = []
    for direction in ("t2i", "i2t") if config.attention == "both" else (config.attention,):
        queries, contexts = (words, regions) if direction == "t2i" else (regions, words)
        smooth, lse = PUBLISHED[direction]
        cosines = compare(queries, contexts, config.raw_norm, config.lambda_softmax or smooth)
        found.append(pool(cosines, config.pooling, config.lambda_lse or lse))
    return torch.stack(found).mean()


def bfan(config: Any, regions: Tensor, words: Tensor) -> Tensor:
    smooth = config.lambda_softmax
    return torch.stack(
        [
            torch.stack(compare(queries, contexts, "clipped_l2norm", smooth, config.focal)).mean()
            for queries, contexts in ((words, regions), (regions, words))
        ]
    ).sum()


def compare(queries: Tensor, contexts: Tensor, norm: str, smooth: float, focal: str | None = None) -> list[Tensor]:
    """cos(q, c) of every query."""
    normed = torch.stack([normalised([key @ query for query in queries], norm) for key in contexts])
    found = []
    for at, query in enumerate(queries):
        exponents = [torch.exp(smooth * (value - normed[:, at].max().detach())) for value in normed[:, at]]
        weights = [value / sum(exponents) for value in exponents]
        weights = weights if focal is None else refocused(weights, focal)
        attended = sum(weight * key for weight, key in zip(weights, contexts, strict=True))
        lengths = [(vector * vector).sum().sqrt() for vector in (query, attended)]
        found.append(query @ attended / torch.clamp(lengths[0] * lengths[1], min=1e-8))
    return found


def normalised(products: list[Tensor], norm: str) -> Tensor:
    """One context element's products with all queries."""
    values = [value if value > 0 or not norm.startswith("clipped") else 0.1 * value for value in products]
    if norm == "softmax":
        exponents = [torch.exp(value) for value in values]
        return torch.stack([value / sum(exponents) for value in exponents])
    if norm.endswith("l2norm"):
        length = torch.sqrt(sum(value * value for value in values))
        return torch.stack([value / (length + 1e-8) for value in values])
    if norm.endswith("l1norm"):
        length = sum(abs(value) for value in values)
        return torch.stack([value / (length + 1e-8) for value in values])
    return torch.stack(values)


def refocused(weights: list[Tensor], focal: str) -> list[Tensor]:
    """The weights that are kept, scaled to sum 1; all of them where none is."""
    plain = [weight.item() for weight in weights]
    says = [1.0 if focal == "equal" else math.sqrt(weight) for weight in plain]
    others = [*zip(plain, says, strict=True)]
    tie = 1e-4 * sum(other * say for other, say in others)
    kept = [sum((one - other) * say for other, say in others) > tie for one in plain]
    if not any(kept):
        return weights
    total = sum(weight for weight, keep in zip(weights, kept, strict=True) if keep)
    return [weight / total if keep else weight * 0 for weight, keep in zip(weights, kept, strict=True)]


def pool(cosines: list[Tensor], pooling: str, smooth: float) -> Tensor:
    if pooling == "logsumexp":
        return torch.log(sum(torch.exp(smooth * value) for value in cosines)) / smooth
    values = torch.stack(cosines)
    return {"mean": values.mean, "sum": values.sum, "max": values.max}[pooling]()
