"""The published models as slow loops in float64, one item at a time at its true length, from the formulas.

`Weights` are a model's state dict in numpy; `under` takes the part of one layer. `used` makes a fresh model one whose
every weight and statistic matters, and `CAPTIONS` are of unequal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.models import Encoder
from trainer.text import Vocabulary

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
CAPTIONS = ["red cat", "a very long caption of many many words", "dog", "one never seen word in it"]
VOCABULARY = Vocabulary.build(CAPTIONS[:3])


def used(model: Encoder, seed: int = 0) -> Encoder:
    """The model with all weights and batch statistics drawn anew, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
    return model.eval()


def padded(garbage: int = 0) -> tuple[Tensor, Tensor]:
    """(tokens, lengths) of the captions, with `garbage` more columns, and any tokens where there is no caption."""
    tokens, lengths = (torch.from_numpy(array) for array in VOCABULARY.encode(CAPTIONS))
    tokens = nn.functional.pad(tokens, (0, garbage))
    if garbage:
        beyond = torch.arange(tokens.shape[1]) >= lengths[:, None]
        any_words = torch.randint(0, len(VOCABULARY), tokens.shape, generator=torch.Generator().manual_seed(garbage))
        tokens = torch.where(beyond, any_words, tokens)
    return tokens, lengths


def captions() -> list[list[int]]:
    """The tokens of every caption, without padding."""
    tokens, lengths = padded()
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def weights_of(model: nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}


def under(weights: Weights, layer: str) -> dict[str, Array]:
    return {name[len(layer) + 1 :]: value for name, value in weights.items() if name.startswith(f"{layer}.")}


def linear(weights: Weights, values: Array) -> Array:
    mapped = np.array([[row @ values[i] for row in weights["weight"]] for i in range(len(values))])
    return mapped + weights.get("bias", 0.0)


def unit(values: Array, axis: int = -1) -> Array:
    return values / np.sqrt((values**2).sum(axis=axis, keepdims=True))


def softmax(values: Array) -> Array:
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def gru_step(weights: Weights, value: Array, state: Array, suffix: str) -> Array:
    """One step of the GRU that torch documents (reset gate inside the candidate's recurrent part)."""
    given = weights[f"weight_ih{suffix}"] @ value + weights[f"bias_ih{suffix}"]
    kept = weights[f"weight_hh{suffix}"] @ state + weights[f"bias_hh{suffix}"]
    (given_r, given_z, given_n), (kept_r, kept_z, kept_n) = np.split(given, 3), np.split(kept, 3)
    reset, update = sigmoid(given_r + kept_r), sigmoid(given_z + kept_z)
    return (1 - update) * np.tanh(given_n + reset * kept_n) + update * state


def gru(weights: Weights, values: Sequence[Array], suffix: str = "_l0") -> list[Array]:
    state, states = np.zeros(weights[f"weight_hh{suffix}"].shape[1]), []
    for value in values:
        state = gru_step(weights, value, state, suffix)
        states.append(state)
    return states


def two_way_gru(weights: Weights, values: Sequence[Array]) -> Array:
    """The two directions averaged at every step."""
    backward = gru(weights, values[::-1], "_l0_reverse")[::-1]
    return np.array([(a + b) / 2 for a, b in zip(gru(weights, values), backward, strict=True)])


def batch_norm(weights: Weights, items: list[Array], training: bool) -> list[Array]:
    """Every element (row) of every item, by the statistics of all or by the running ones."""
    rows = np.concatenate(items)
    mean, variance = weights["running_mean"], weights["running_var"]
    if training and len(rows) > 1:
        mean = np.array([sum(rows[:, c]) / len(rows) for c in range(rows.shape[1])])
        variance = np.array([sum((rows[:, c] - mean[c]) ** 2) / len(rows) for c in range(rows.shape[1])])
    return [(item - mean) / np.sqrt(variance + 1e-5) * weights["weight"] + weights["bias"] for item in items]


def last_word_state(weights: Weights, tokens: Sequence[int]) -> Array:
    """The text tower of VSE++ and VSRN."""
    return unit(gru(under(weights, "words.gru"), weights["words.embedding.weight"][list(tokens)])[-1])


def vsepp_image(weights: Weights, image: Array) -> Array:
    vector = image if image.ndim == 1 else sum(image) / len(image)
    return unit(linear(under(weights, "image_head"), unit(vector)[None])[0])


def relation(weights: Weights, images: list[Array], training: bool) -> list[Array]:
    """v*_i = BN(W (1/N sum_j (theta(v_i) . phi(v_j)) g(v_j))) + v_i."""
    messages = []
    for regions in images:
        theta, phi, g = (linear(under(weights, name), regions) for name in ("theta", "phi", "g"))
        count = len(regions)
        mixed = [sum((theta[i] @ phi[j]) * g[j] for j in range(count)) / count for i in range(count)]
        messages.append(linear(under(weights, "w"), np.array(mixed)))
    normed = batch_norm(under(weights, "norm"), messages, training)
    return [enhanced + regions for enhanced, regions in zip(normed, images, strict=True)]


def vsrn_regions(
    weights: Weights,
    images: list[Array],
    *,
    relations: int,
    norm: str = "vector",
    region_norm: bool = True,
    training: bool = False,
) -> list[Array]:
    """Every image's regions (N, dim) after the relation layers."""
    axis = 1 if norm == "vector" else 0
    found = [linear(under(weights, "region_head"), np.atleast_2d(image)) for image in images]
    if region_norm:
        found = [unit(regions, axis) for regions in found]
    for layer in range(relations):
        found = relation(under(weights, f"relations.{layer}"), found, training)
    return [unit(regions, axis) for regions in found]


def vsrn_images(weights: Weights, regions: list[Array], *, batch_norm_last: bool, training: bool = False) -> Array:
    """(B, dim): the regions, after the relation layers, read as a sequence."""
    last = np.array([gru(under(weights, "region_gru"), list(each))[-1] for each in regions])
    if batch_norm_last:
        (last,) = batch_norm(under(weights, "image_norm"), [last], training)
    return unit(last)


def caption_likelihood(weights: Weights, regions: Array, tokens: Sequence[int]) -> float:
    """log p(tokens[1:] | regions, tokens[0]) by the decoder's weights."""
    memory = gru(under(weights, "encoder"), list(regions))
    state, found = memory[-1], 0.0
    for before, word in pairwise(tokens):
        keys = linear(under(weights, "attend_region"), np.array(memory))
        query = linear(under(weights, "attend_state"), state[None])[0]
        attention = softmax(np.array([weights["attend.weight"][0] @ np.tanh(key + query) for key in keys]))
        context = sum(share * each for share, each in zip(attention, memory, strict=True))
        given = np.concatenate([weights["embedding.weight"][before], context])
        state = gru_step(under(weights, "cell"), given, state, "")
        found += math.log(softmax(linear(under(weights, "out"), state[None])[0])[word])
    return found


def rank_weights(weights: Weights, count: int, *, position_dim: int, temperature: float) -> Array:
    """The weights of generalised pooling for a set of `count` elements."""
    codes = np.zeros((count, position_dim))
    for position in range(count):
        for i in range(position_dim // 2):
            angle = position / 10000 ** (2 * i / position_dim)
            codes[position, 2 * i], codes[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    scores = linear(under(weights, "score"), two_way_gru(under(weights, "gru"), list(codes)))[:, 0]
    return softmax(scores / temperature)


def pooled(weights: Weights, elements: Array, *, position_dim: int, temperature: float) -> Array:
    shares = rank_weights(weights, len(elements), position_dim=position_dim, temperature=temperature)
    columns = [sorted(elements[:, c], reverse=True) for c in range(elements.shape[1])]
    return np.array([sum(w * value for w, value in zip(shares, column, strict=True)) for column in columns])


def vse_inf_regions(weights: Weights, images: list[Array], training: bool = False) -> list[Array]:
    """Linear(x) + MLP(x) of every region."""
    hidden = [linear(under(weights, "region_mlp.0"), np.atleast_2d(image)) for image in images]
    hidden = batch_norm(under(weights, "region_mlp.1"), hidden, training)
    return [
        linear(under(weights, "region_head"), np.atleast_2d(image))
        + linear(under(weights, "region_mlp.3"), np.maximum(each, 0))
        for image, each in zip(images, hidden, strict=True)
    ]


def vse_inf_word_states(weights: Weights, tokens: Sequence[int]) -> Array:
    return two_way_gru(under(weights, "words.gru"), list(weights["words.embedding.weight"][list(tokens)]))
