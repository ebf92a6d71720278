"""From the pairs of a step to its `Similarities`: every image and every text of the step is encoded once.

`gather` reads what a step needs, on the CPU and without a model, so that it can be done ahead of time; `score` encodes
and compares it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.chunks import WHOLE, Chunk, Division, Encoded, encoded
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
    `image_groups[g]` are dataset rows, and `image_places[g]` where these stand among the step's distinct ones. `images`
    holds those that are encoded here: each once, and with one process all of them.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    image_groups: list[Rows]
    text_groups: list[Rows]
    image_places: list[Tensor]
    text_places: list[Tensor]
    valid: Tensor  # (I, T) of group 0: whether text j is a negative of image i
    linked: list[Tensor]  # of groups 1 and 2, (P,): whether image and text happen to be a pair
    drawn: list[Tensor]  # of the offline negatives, (P,) each: has_text, has_image, share_text, share_image
    images_at: Tensor | None  # (P,) place of every pair's image in group 0; None: pair i is place i
    texts_at: Tensor | None
    division: Division = WHOLE
    image_chunks: list[Chunk] = field(default_factory=list)
    text_chunks: list[Chunk] = field(default_factory=list)
    num_images: int = 0  # distinct ones of the step, wherever they are encoded
    num_texts: int = 0

    def pinned(self) -> Gathered:
        """The same in pinned memory, from which copies to a GPU do not hold up the process."""

        def pin(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.pin_memory()
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return [each.pin_memory() for each in value]
            return value

        # Lengths are read on the CPU, and are too few to matter.
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "lengths"}
        return replace(self, **{name: pin(value) for name, value in named.items()})

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
    encoded: Encoded

    def backward(self, loss: Tensor) -> None:
        """Leave the gradient of a loss of these scores in the model's parameters."""
        self.encoded.backward(loss)


def gather(
    inputs: Inputs,
    batch: Rows,
    offline: Draw | None = None,
    by: Literal["pairs", "images"] = "pairs",
    passed_over: npt.NDArray[np.bool_] | None = None,
    division: Division = WHOLE,
) -> Gathered:
    """Read the pairs `batch` and what `offline`, their draw, names. With partners -1 everywhere there are none.

    By "pairs" the scores will be (B, B) with the pairs on the diagonal; by "images" every image and text of the batch
    has one row or column, however many pairs it is in. `passed_over` (I, T) are no negatives, though nobody linked
    them. Only those items are read that `division` encodes here.
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
    drawn: list[Tensor] = []
    if offline is not None:
        shares = (share.astype(np.float32) for share in (offline.text_share, offline.image_share))
        drawn = [torch.from_numpy(each) for each in (offline.text >= 0, offline.image >= 0, *shares)]
    negative = ~pairs.belong(*compared)
    if passed_over is not None:
        negative &= ~passed_over
    linked = [torch.from_numpy(pairs.linked(*group)) for group in zip(image_groups[1:], text_groups[1:], strict=True)]
    unique_images, image_places = _once(image_groups)
    unique_texts, text_places = _once(text_groups)
    counts = len(unique_images), len(unique_texts)
    image_chunks: list[Chunk] = []
    text_chunks: list[Chunk] = []
    if not division.whole:
        read, image_chunks = division.of(np.zeros(counts[0], dtype=np.int64))
        unique_images = unique_images[read]
        read, text_chunks = division.of(inputs.lengths[unique_texts])
        unique_texts = unique_texts[read]
    return Gathered(
        inputs.images(unique_images), *inputs.texts(unique_texts), image_groups, text_groups,
        image_places, text_places, torch.from_numpy(negative), linked, drawn, images_at, texts_at,
        division, image_chunks, text_chunks, *counts,
    )  # fmt: skip


def _once(groups: list[Rows]) -> tuple[Rows, list[Tensor]]:
    rows, place = np.unique(np.concatenate(groups), return_inverse=True)
    return rows, list(torch.split(torch.from_numpy(place), [len(group) for group in groups]))


def score(model: Encoder, gathered: Gathered, device: torch.device, precision: torch.dtype, seed: int = 0) -> Step:
    """Encode what was gathered and compare it. The scores have float32 gradients whatever `precision` encodes in.

    `seed` is for what an encoder draws where it works in chunks; else torch's generator goes on.
    """
    sides = encoded(model, gathered, device, precision, seed)
    compare = _Elements(model, sides) if isinstance(model, PairScorer) else _Vectors(sides)

    def put(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    image_places, text_places = ([put(place) for place in at] for at in (gathered.image_places, gathered.text_places))
    at = [None if place is None else put(place) for place in (gathered.images_at, gathered.texts_at)]
    anchors = [
        places[0] if here is None else places[0].index_select(0, here)
        for places, here in zip((image_places, text_places), at, strict=True)
    ]
    found = None
    if gathered.drawn:
        masks = [put(each) for each in (*gathered.drawn, *gathered.linked)]
        found = _offline(masks, compare, (image_places, text_places), (anchors[0], anchors[1]))
    scores = compare.all(image_places[0], text_places[0])
    images, texts = compare.embeddings()
    return Step(
        Similarities(scores, put(gathered.valid), found, *at),
        images.index_select(0, image_places[0]),
        texts.index_select(0, text_places[0]),
        sides,
    )


class _Vectors:
    """A step of two towers: a score is a dot product."""

    def __init__(self, sides: Encoded) -> None:
        self.images, self.texts = cast(Tensor, sides.images), cast(Tensor, sides.texts)

    def all(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.images.index_select(0, images) @ self.texts.index_select(0, texts).T

    def pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        return (self.images.index_select(0, images) * self.texts.index_select(0, texts)).sum(1)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.images, self.texts


class _Elements:
    """A step of a cross-attention model: regions are compared with words."""

    def __init__(self, model: PairScorer, sides: Encoded) -> None:
        self.model, self.images, self.texts = model, cast(Elements, sides.images), cast(Elements, sides.texts)

    def all(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.model.scores(self.images.take(images), self.texts.take(texts))

    def pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.model.pair_scores(self.images.take(images), self.texts.take(texts))

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.images.pooled, self.texts.pooled


def _offline(
    masks: list[Tensor],
    compare: _Vectors | _Elements,
    places: tuple[list[Tensor], list[Tensor]],
    anchors: tuple[Tensor, Tensor],
) -> Offline:
    """Scores of the offline negatives (group 1) and, where they were gathered, their partners (group 2)."""
    has_text, has_image, share_text, share_image, true_negatives, *true_partners = masks
    images, texts = places
    text = compare.pairs(anchors[0], texts[1])
    return Offline(
        text=text,
        image=compare.pairs(images[1], anchors[1]),
        negatives=compare.pairs(images[1], texts[1]),
        partners=compare.pairs(images[2], texts[2]) if true_partners else torch.zeros_like(text),
        has_text=has_text,
        has_image=has_image,
        true_negatives=true_negatives,
        true_partners=true_partners[0] if true_partners else torch.zeros_like(has_text),
        share_text=share_text,
        share_image=share_image,
    )
