"""From the pairs of a step to its `Similarities`: every image and every text of the step is encoded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.artifacts.pairs import Pairs
from trainer.data import Dataset
from trainer.losses import Offline, Similarities
from trainer.models import Encoder
from trainer.sampling import Draw

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
    """Scores of one step and the embeddings of its B pairs, (B, dim) each."""

    similarities: Similarities
    images: Tensor
    texts: Tensor


def score(
    model: Encoder, inputs: Inputs, batch: Rows, offline: Draw | None, device: torch.device, precision: torch.dtype
) -> Step:
    """Encode and score the pairs `batch`; `offline` is their draw. With partners -1 everywhere c_2 is left at zero."""
    pairs = inputs.dataset.pairs
    image_rows, text_rows = pairs.image_rows[batch], pairs.text_rows[batch]
    image_groups, text_groups = [image_rows], [text_rows]
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
    valid = torch.from_numpy(~pairs.belong(image_rows, text_rows)).to(device)
    found = None
    if offline is not None:
        found = _offline(pairs, offline, images, texts, image_groups, text_groups, device)
    return Step(Similarities(images[0] @ texts[0].T, valid, found), images[0], texts[0])


def _encoded(model: Encoder, inputs: Inputs, groups: list[Rows], device: torch.device, *, text: bool) -> list[Tensor]:
    """Embeddings of every group, (B, dim) each; a row that occurs several times is encoded once."""
    rows, place = np.unique(np.concatenate(groups), return_inverse=True)
    if text:
        embeddings = model.encode_texts(*inputs.texts(rows, device))
    else:
        embeddings = model.encode_images(inputs.images(rows, device))
    places = torch.from_numpy(place.reshape(len(groups), -1)).to(device)
    return [embeddings.float().index_select(0, places[group]) for group in range(len(groups))]


def _offline(
    pairs: Pairs,
    draw: Draw,
    images: list[Tensor],
    texts: list[Tensor],
    image_groups: list[Rows],
    text_groups: list[Rows],
    device: torch.device,
) -> Offline:
    def flags(values: npt.NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def linked(group: int) -> Tensor:
        return flags(pairs.belong(image_groups[group], text_groups[group]).diagonal())

    def dot(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(1)

    with_partners = len(images) > 2
    return Offline(
        text=dot(images[0], texts[1]),
        image=dot(images[1], texts[0]),
        negatives=dot(images[1], texts[1]),
        partners=dot(images[2], texts[2]) if with_partners else images[0].new_zeros(len(images[0])),
        has_text=flags(draw.text >= 0),
        has_image=flags(draw.image >= 0),
        true_negatives=linked(1),
        true_partners=linked(2) if with_partners else flags(np.zeros(len(draw.text), dtype=np.bool_)),
    )
