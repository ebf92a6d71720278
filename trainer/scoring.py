"""From the pairs of a step to its `Similarities`: every image and every text of the step is encoded once.

`gather` reads what a step needs, on the CPU and without a model, so that it can be done ahead of time; `score` encodes
and compares it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.artifacts.pairs import Pairs
from trainer.data import Dataset
from trainer.models import Elements, Encoder, PairScorer
from trainer.sampling import Draw
from trainer.similarities import Offline, Similarities

__all__ = ["Gathered", "Inputs", "Step", "gather", "score"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Inputs:
    """A dataset ready to encode: its captions as the model's tokens, all in memory."""

    dataset: Dataset
    tokens: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, model: Encoder) -> Inputs:
        return cls(dataset, *model.tokenizer.encode(dataset.pairs.texts))

    def images(self, rows: Rows) -> Tensor:
        """(rows, ...) as the data format stores them."""
        return torch.from_numpy(np.ascontiguousarray(self.dataset.images[rows]))

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(tokens (rows, longest of these), lengths (rows,))."""
        lengths = self.lengths[rows]
        tokens = np.ascontiguousarray(self.tokens[rows, : int(lengths.max(initial=1))])
        return torch.from_numpy(tokens), torch.from_numpy(lengths)


@dataclass(frozen=True)
class Gathered:
    """What a step encodes and how it compares it, all on the CPU.

    Group 0 is what is scored all against all, group 1 the offline negatives of every pair, group 2 their partners;
    `image_groups[g]` are dataset rows, and `image_places[g]` where these stand in `images`, which holds each once.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    image_groups: list[Rows]
    text_groups: list[Rows]
    image_places: list[Tensor]
    text_places: list[Tensor]
    pairs: Pairs
    draw: Draw | None
    images_at: Tensor | None  # (P,) place of every pair's image in group 0; None: pair i is place i
    texts_at: Tensor | None
    passed_over: npt.NDArray[np.bool_] | None = None  # (I, T) of group 0: no negatives, though nobody linked them

    @property
    def num_pairs(self) -> int:
        return len(self.image_groups[0] if self.images_at is None else self.images_at)

    def of_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """(images, tokens, lengths) of every pair of the batch, (P, ...)."""
        image, text = self.image_places[0], self.text_places[0]
        image = image if self.images_at is None else image[self.images_at]
        text = text if self.texts_at is None else text[self.texts_at]
        return self.images[image], self.tokens[text], self.lengths[text]


@dataclass(frozen=True)
class Step:
    """Scores of one step and the embeddings that were compared, (I, dim) and (T, dim)."""

    similarities: Similarities
    images: Tensor
    texts: Tensor


def gather(
    inputs: Inputs,
    batch: Rows,
    offline: Draw | None = None,
    by: Literal["pairs", "images"] = "pairs",
    passed_over: npt.NDArray[np.bool_] | None = None,
) -> Gathered:
    """Read the pairs `batch` and what `offline`, their draw, names. With partners -1 everywhere there are none.

    By "pairs" the scores will be (B, B) with the pairs on the diagonal; by "images" every image and text of the batch
    has one row or column, however many pairs it is in.
    """
    pairs = inputs.dataset.pairs
    image_rows, text_rows = pairs.image_rows[batch], pairs.text_rows[batch]
    compared, images_at, texts_at = (image_rows, text_rows), None, None
    if by == "images":
        (image_unique, image_place), (text_unique, text_place) = (
            np.unique(rows, return_inverse=True) for rows in (image_rows, text_rows)
        )
        compared = (image_unique, text_unique)
        images_at, texts_at = torch.from_numpy(image_place), torch.from_numpy(text_place)
    image_groups, text_groups = [compared[0]], [compared[1]]
    if offline is not None:
        # A missing negative is scored as the pair itself, and masked by the loss.
        image_groups.append(np.where(offline.image >= 0, offline.image, image_rows))
        text_groups.append(np.where(offline.text >= 0, offline.text, text_rows))
        if (offline.partner_image >= 0).any():
            image_groups.append(np.where(offline.partner_image >= 0, offline.partner_image, image_rows))
            text_groups.append(np.where(offline.partner_text >= 0, offline.partner_text, text_rows))
    unique_images, image_places = _once(image_groups)
    unique_texts, text_places = _once(text_groups)
    return Gathered(
        inputs.images(unique_images), *inputs.texts(unique_texts), image_groups, text_groups,
        image_places, text_places, pairs, offline, images_at, texts_at, passed_over,
    )  # fmt: skip


def _once(groups: list[Rows]) -> tuple[Rows, list[Tensor]]:
    rows, place = np.unique(np.concatenate(groups), return_inverse=True)
    return rows, list(torch.split(torch.from_numpy(place), [len(group) for group in groups]))


def score(model: Encoder, gathered: Gathered, device: torch.device, precision: torch.dtype) -> Step:
    """Encode what was gathered and compare it. The scores have float32 gradients whatever `precision` encodes in."""
    compare = _Elements(model) if isinstance(model, PairScorer) else _Vectors(model)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        # Lengths stay on the CPU, where packing wants them.
        compare.encode(gathered.images.to(device), gathered.tokens.to(device), gathered.lengths)
    image_places = [place.to(device) for place in gathered.image_places]
    text_places = [place.to(device) for place in gathered.text_places]
    at = [None if place is None else place.to(device) for place in (gathered.images_at, gathered.texts_at)]
    anchors = [
        places[0] if here is None else places[0].index_select(0, here)
        for places, here in zip((image_places, text_places), at, strict=True)
    ]
    pairs, groups = gathered.pairs, (gathered.image_groups, gathered.text_groups)
    negative = ~pairs.belong(groups[0][0], groups[1][0])
    if gathered.passed_over is not None:
        negative &= ~gathered.passed_over
    valid = torch.from_numpy(negative).to(device)
    found = None
    if gathered.draw is not None:
        found = _offline(gathered, gathered.draw, compare, (image_places, text_places), (anchors[0], anchors[1]))
    scores = compare.all(image_places[0], text_places[0])
    images, texts = compare.embeddings()
    return Step(
        Similarities(scores, valid, found, *at),
        images.index_select(0, image_places[0]),
        texts.index_select(0, text_places[0]),
    )


class _Vectors:
    """A step of two towers: a score is a dot product."""

    def __init__(self, model: Encoder) -> None:
        self.model = model

    def encode(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        self.images = self.model.encode_images(images).float()
        self.texts = self.model.encode_texts(tokens, lengths).float()

    def all(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.images.index_select(0, images) @ self.texts.index_select(0, texts).T

    def pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        return (self.images.index_select(0, images) * self.texts.index_select(0, texts)).sum(1)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.images, self.texts


class _Elements:
    """A step of a cross-attention model: regions are compared with words."""

    def __init__(self, model: PairScorer) -> None:
        self.model = model

    def encode(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        self.images, self.texts = self.model.image_elements(images), self.model.text_elements(tokens, lengths)
        self.images = Elements(self.images.values.float(), self.images.lengths)
        self.texts = Elements(self.texts.values.float(), self.texts.lengths)

    def all(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.model.scores(self.images.take(images), self.texts.take(texts))

    def pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.model.pair_scores(self.images.take(images), self.texts.take(texts))

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.images.pooled, self.texts.pooled


def _offline(
    gathered: Gathered,
    draw: Draw,
    compare: _Vectors | _Elements,
    places: tuple[list[Tensor], list[Tensor]],
    anchors: tuple[Tensor, Tensor],
) -> Offline:
    """Scores of the offline negatives (group 1) and, where they were gathered, their partners (group 2)."""
    device = anchors[0].device

    def put(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def linked(group: int) -> Tensor:
        return put(gathered.pairs.linked(gathered.image_groups[group], gathered.text_groups[group]))

    images, texts = places
    with_partners = len(images) > 2
    text = compare.pairs(anchors[0], texts[1])
    return Offline(
        text=text,
        image=compare.pairs(images[1], anchors[1]),
        negatives=compare.pairs(images[1], texts[1]),
        partners=compare.pairs(images[2], texts[2]) if with_partners else torch.zeros_like(text),
        has_text=put(draw.text >= 0),
        has_image=put(draw.image >= 0),
        true_negatives=linked(1),
        true_partners=linked(2) if with_partners else put(np.zeros(len(draw.text), dtype=np.bool_)),
        share_text=put(draw.text_share.astype(np.float32)),
        share_image=put(draw.image_share.astype(np.float32)),
    )
