"""What the published models share: linear maps, word states, batch statistics, and which images they take."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from miner.artifacts.errors import BadInput
from trainer.text import PAD

__all__ = ["BatchNorm", "WordStates", "linear", "region_dim"]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """W ~ U(±sqrt(6 / (inputs + outputs))), bias 0: how this family of models starts."""
    layer = nn.Linear(inputs, outputs)
    bound = math.sqrt(6 / (inputs + outputs))
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def region_dim(model: str, image_shape: tuple[int, ...]) -> int:
    """The last dimension of an image that is (dim,) or (regions, dim). Raises BadInput for any other."""
    if len(image_shape) not in (1, 2):
        raise BadInput(
            f"model {model} takes vectors of shape (dim,) or (regions, dim), but these images are {image_shape}; "
            "for pictures take the model cnn_gru, or `trainer encode --backbone` to make vectors of them first."
        )
    return image_shape[-1]


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of every element there is, (..., channels).

    One element alone has no variance: in training too it is normalised by the running statistics, and leaves these.
    """

    def forward(self, values: Tensor) -> Tensor:
        elements = values.flatten(0, -2)
        if len(elements) > 1 or not self.training:
            return super().forward(elements).view_as(values)
        alone = batch_norm(elements, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return alone.view_as(values)


class WordStates(nn.Module):
    """Embedding, then a one-layer GRU: a state per word, (B, L, hidden). Two directions are averaged.

    Padding changes no state of a real word: one way by causality, two ways because the rows are packed.
    """

    def __init__(self, words: int, word_dim: int, hidden: int, *, bidirectional: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, word_dim, padding_idx=PAD)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(word_dim, hidden, batch_first=True, bidirectional=bidirectional)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, L) int64, lengths (B,) -> (B, L, hidden); zeros beyond a row's length when two-way."""
        words = self.dropout(self.embedding(tokens))
        if not self.gru.bidirectional:
            states: Tensor = self.gru(words)[0]
            return states
        # Longest first: left to sort by itself, unpacking waits for the device to tell it the order.
        lengths, order = lengths.cpu().sort(descending=True)
        packed = nn.utils.rnn.pack_padded_sequence(words[order.to(words.device)], lengths, batch_first=True)
        both, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=tokens.shape[1])
        forward, backward = both[order.argsort().to(words.device)].chunk(2, dim=2)
        return (forward + backward) / 2

    @staticmethod
    def last(states: Tensor, lengths: Tensor) -> Tensor:
        """(B, hidden): the state at every row's last token."""
        rows = torch.arange(len(states), device=states.device)
        return states[rows, lengths.to(states.device) - 1]
