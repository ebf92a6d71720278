"""From the pairs of a step to its `Similarities`: every image and every text of the step is encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.artifacts.pairs import Pairs
from trainer.data import Dataset
from trainer.models import Encoder
from trainer.sampling import Draw
from trainer.similarities import Offline, Similarities

__all__ = ["Inputs", "Step", "score"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Inputs:
    """A dataset ready to encode: its captions as tokens of the model's vocabulary, all in memory."""

    dataset: Dataset
    tokens: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, model: Encoder) -> Inputs:
        return cls(dataset, *model.vocabulary.encode(dataset.pairs.texts))

    def images(self, rows: Rows, device: torch.device) -> Tensor:
        """(rows, ...) as the data format stores them."""
        return torch.from_numpy(np.ascontiguousarray(self.dataset.images[rows])).to(device)

    def texts(self, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
        """(tokens (rows, longest of these), lengths (rows,)); lengths stay on the CPU, where packing wants them."""
        lengths = self.lengths[rows]
        tokens = np.ascontiguousarray(self.tokens[rows, : int(lengths.max(initial=1))])
        return torch.from_numpy(tokens).to(device), torch.from_numpy(lengths)


@dataclass(frozen=True)
class Step:
    """Scores of one step and the embeddings that were compared, (I, dim) and (T, dim)."""

    similarities: Similarities
    images: Tensor
    texts: Tensor


def score(
    model: Encoder,
    inputs: Inputs,
    batch: Rows,
    offline: Draw | None,
    device: torch.device,
    precision: torch.dtype,
    by: Literal["pairs", "images"] = "pairs",
) -> Step:
    """Encode and score the pairs `batch`; `offline` is their draw. With partners -1 everywhere c_2 is left at zero.

    By "pairs" the scores are (B, B) with the pairs on the diagonal; by "images" every image and text of the batch has
    one row or column, however many pairs it is in.
    """
    pairs = inputs.dataset.pairs
    image_rows, text_rows = pairs.image_rows[batch], pairs.text_rows[batch]
    if by == "pairs":
        compared, images_at, texts_at = (image_rows, text_rows), None, None
    else:
        (image_unique, image_place), (text_unique, text_place) = (
            np.unique(rows, return_inverse=True) for rows in (image_rows, text_rows)
        )
        compared = (image_unique, text_unique)
        images_at, texts_at = (torch.from_numpy(place).to(device) for place in (image_place, text_place))
    image_groups, text_groups = [compared[0]], [compared[1]]
    if offline is not None:
        # A missing negative is scored as the pair itself, and masked by the loss.
        image_groups.append(np.where(offline.image >= 0, offline.image, image_rows))
        text_groups.append(np.where(offline.text >= 0, offline.text, text_rows))
        if (offline.partner_image >= 0).any():
            image_groups.append(np.where(offline.partner_image >= 0, offline.partner_image, image_rows))
            text_groups.append(np.where(offline.partner_text >= 0, offline.partner_text, text_rows))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        images = _encoded(model, inputs, image_groups, device, text=False)
        texts = _encoded(model, inputs, text_groups, device, text=True)
    valid = torch.from_numpy(~pairs.belong(*compared)).to(device)
    found = None
    if offline is not None:
        anchors = (
            images[0] if images_at is None else images[0].index_select(0, images_at),
            texts[0] if texts_at is None else texts[0].index_select(0, texts_at),
        )
        found = _offline(pairs, offline, anchors, images[1:], texts[1:], image_groups[1:], text_groups[1:], device)
    return Step(Similarities(images[0] @ texts[0].T, valid, found, images_at, texts_at), images[0], texts[0])


def _encoded(model: Encoder, inputs: Inputs, groups: list[Rows], device: torch.device, *, text: bool) -> list[Tensor]:
    """Embeddings of every group, (rows, dim) each; a row that occurs several times is encoded once."""
    rows, place = np.unique(np.concatenate(groups), return_inverse=True)
    if text:
        embeddings = model.encode_texts(*inputs.texts(rows, device))
    else:
        embeddings = model.encode_images(inputs.images(rows, device))
    places = torch.split(torch.from_numpy(place).to(device), [len(group) for group in groups])
    return [embeddings.float().index_select(0, here) for here in places]


def _offline(
    pairs: Pairs,
    draw: Draw,
    anchors: tuple[Tensor, Tensor],
    images: list[Tensor],
    texts: list[Tensor],
    image_groups: list[Rows],
    text_groups: list[Rows],
    device: torch.device,
) -> Offline:
    """Scores of the offline negatives (group 0) and, where they were encoded, their partners (group 1)."""

    def put(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def linked(group: int) -> Tensor:
        return put(pairs.linked(image_groups[group], text_groups[group]))

    def dot(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(1)

    with_partners = len(images) > 1
    return Offline(
        text=dot(anchors[0], texts[0]),
        image=dot(images[0], anchors[1]),
        negatives=dot(images[0], texts[0]),
        partners=dot(images[1], texts[1]) if with_partners else anchors[0].new_zeros(len(draw.text)),
        has_text=put(draw.text >= 0),
        has_image=put(draw.image >= 0),
        true_negatives=linked(0),
        true_partners=linked(1) if with_partners else put(np.zeros(len(draw.text), dtype=np.bool_)),
        share_text=put(draw.text_share.astype(np.float32)),
        share_image=put(draw.image_share.astype(np.float32)),
    )
