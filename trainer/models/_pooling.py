"""The generalised pooling operator of VSE∞ (Chen et al., CVPR 2021, arXiv 2011.04305)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["GeneralizedPooling", "position_codes"]


def position_codes(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """(length, dim): sin(p / 10000^(2i / dim)) and cos of the same, in turns (Vaswani et al., 2017). `dim` is even."""
    positions = torch.arange(length, device=device, dtype=torch.float32)
    frequencies = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000) / dim))
    angles = positions[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class GeneralizedPooling(nn.Module):
    """Sorts each dimension of an item's elements in descending order and takes a weighted sum over the ranks.

    The weights are learnt, and depend on how many elements there are: softmax over the ranks of score / temperature,
    where the scores come from position codes -> two-way GRU, directions averaged -> Linear(hidden, 1).
    """

    def __init__(self, position_dim: int = 32, hidden: int = 32, temperature: float = 0.1) -> None:
        super().__init__()
        self.position_dim, self.temperature = position_dim, temperature
        self.gru = nn.GRU(position_dim, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden, 1, bias=False)  # the softmax would cancel a bias

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Elements (B, length, dim) and which of them count, (B, length) bool on the CPU -> (B, dim) float32.

        Every item has at least one that counts; what the others hold does not matter.
        """
        with torch.autocast(values.device.type, enabled=False):
            lengths = mask.sum(1)
            weights = self.weights(lengths, mask.shape[1])
            # Sorting along the last dimension is several times faster, copy included.
            columns = values.float().transpose(1, 2).contiguous()
            whole = bool(mask.all())
            if not whole:
                columns = columns.masked_fill(~mask[:, None].to(values.device), -math.inf)
            falling = columns.sort(dim=2, descending=True).values
            if not whole:
                beyond = torch.arange(mask.shape[1]) >= lengths[:, None]
                falling = falling.masked_fill(beyond[:, None].to(values.device), 0)
            return (falling @ weights[:, :, None]).squeeze(2)

    def weights(self, lengths: Tensor, longest: int) -> Tensor:
        """(B, longest): the weight of every rank, 0 beyond a row's length, for `lengths` (B,) on the CPU.

        A row's weights depend on its length alone, so they are computed once per length that occurs.
        """
        device = self.score.weight.device
        shortened, place = torch.unique(-lengths, return_inverse=True)
        distinct = -shortened  # longest first, as packing wants them
        codes = position_codes(longest, self.position_dim, device).expand(len(distinct), -1, -1)
        packed = nn.utils.rnn.pack_padded_sequence(codes, distinct, batch_first=True)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)
        forward, backward = states.chunk(2, dim=2)
        scores = self.score((forward + backward) / 2).squeeze(2) / self.temperature
        beyond = torch.arange(longest) >= distinct[:, None]
        weights: Tensor = scores.masked_fill(beyond.to(device), -math.inf).softmax(dim=1)
        return weights[place.to(device)]
