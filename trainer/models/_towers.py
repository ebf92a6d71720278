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


# On the CPU rows of like lengths are worked on together, so many at most: padding costs as much as words, and the
# backward pass over packed rows fills a gradient of all its steps once per step. VSE∞ of 1,024 dimensions, 2 threads: a
# step of training with 367 captions takes 5.8 s at once, 3.6 s in groups of 192, 3.0 s of 64, 3.4 s of 32. One way, 363
# captions: 3.0 s at once, 1.9 s in groups of 60.
_GROUP = 64


class WordStates(nn.Module):
    """Embedding, then a one-layer GRU: a state per word, (B, L, hidden). Two directions are averaged.

    Padding changes no state of a real word: one way by causality, two ways because the rows are packed. What stands
    beyond a row's length may be anything, but finite.
    """

    def __init__(self, words: int, word_dim: int, hidden: int, *, bidirectional: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, word_dim, padding_idx=PAD)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(word_dim, hidden, batch_first=True, bidirectional=bidirectional)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, L) int64, lengths (B,) -> (B, L, hidden)."""
        words = self.dropout(self.embedding(tokens))
        two_ways = self.gru.bidirectional
        size = _GROUP if words.device.type == "cpu" else len(words)
        groups = -(-len(words) // size) if len(words) else 1
        if groups == 1 and not two_ways:
            states: Tensor = self.gru(words)[0]
            return states
        # Longest first: left to sort by itself, unpacking waits for the device to tell it the order.
        lengths, order = lengths.cpu().sort(descending=True)
        words, longest = words[order.to(words.device)], tokens.shape[1]
        run = self._packed if two_ways else self._trimmed
        states = torch.cat(
            [run(*rows, longest) for rows in zip(words.chunk(groups), lengths.chunk(groups), strict=True)]
        )[order.argsort().to(words.device)]
        if not two_ways:
            return states
        forward, backward = states.chunk(2, dim=2)
        return (forward + backward) / 2

    def _trimmed(self, words: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Rows (B, L, word_dim), longest first -> (B, longest, hidden), zeros beyond the first row's length."""
        states = self.gru(words[:, : int(lengths[0])])[0]
        return nn.functional.pad(states, (0, 0, 0, longest - states.shape[1]))

    def _packed(self, words: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Rows (B, L, word_dim), longest first -> (B, longest, 2 hidden), zeros beyond a row's length."""
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True)
        states: Tensor = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)[
            0
        ]
        return states

    @staticmethod
    def last(states: Tensor, lengths: Tensor) -> Tensor:
        """(B, hidden): the state at every row's last token."""
        rows = torch.arange(len(states), device=states.device)
        return states[rows, lengths.to(states.device) - 1]
