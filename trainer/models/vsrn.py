"""VSRN on precomputed region vectors (Li et al., ICCV 2019, arXiv 1909.02701): regions reason about each other, then a
GRU reads them as a sequence.

Image: Linear per region -> l2norm -> relation layers -> l2norm -> one-layer GRU over the regions -> last state ->
l2norm. Text: Embedding -> one-layer one-way GRU -> state at the last token -> l2norm, as VSE++.
Relation layer: v* = BatchNorm(W (R g(v))) + v with R = θ(v) φ(v)ᵀ / N over N regions, no softmax; the BatchNorm starts
at weight and bias 0, so that every layer starts as the identity.

In training, a decoder may write an image's caption from its regions (`caption_loss`).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from miner.artifacts.errors import BadInput
from trainer.models import Encoder
from trainer.models._towers import BatchNorm, WordStates, linear, region_dim
from trainer.text import Tokenizer

__all__ = ["Config", "Vsrn", "build"]

_IGNORED = -100  # of cross_entropy


class Config(BaseModel):
    """`norm`: what the regions' two l2norms divide by. "vector": the length of each region's vector. "published": the
    length of each dimension over the image's regions, as the published code does.

    Published on Flickr30k: `region_norm = false`, which leaves the first of the two out, and `batch_norm = true`, which
    puts a BatchNorm behind the region GRU. `caption_loss` is the weight of the caption decoder's loss; published: 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: int = Field(default=2048, ge=1)
    word_dim: int = Field(default=300, ge=1)
    relations: int = Field(default=4, ge=0, description="relation layers")
    norm: Literal["vector", "published"] = "vector"
    region_norm: bool = True
    batch_norm: bool = False
    caption_loss: float = Field(default=0.0, ge=0)
    caption_hidden: int = Field(default=512, ge=1, description="units of the caption decoder")


class Relation(nn.Module):
    """One relation layer: regions (B, N, dim) to regions. Its maps start as torch's own do, like the published ones."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.w = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = BatchNorm(dim)
        nn.init.zeros_(self.norm.weight)

    def forward(self, regions: Tensor) -> Tensor:
        affinity = self.theta(regions) @ self.phi(regions).mT / regions.shape[1]
        enhanced: Tensor = self.norm(self.w(affinity @ self.g(regions)))
        return enhanced + regions


class CaptionDecoder(nn.Module):
    """Writes a caption word by word from regions: a GRU that attends over them (Venugopalan et al., ICCV 2015, with the
    additive attention of Bahdanau et al., ICLR 2015), the encoder and decoder that VSRN takes.
    """

    def __init__(self, words: int, word_dim: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.GRU(dim, hidden, batch_first=True)
        self.embedding = nn.Embedding(words, word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.attend_region = nn.Linear(hidden, hidden)
        self.attend_state = nn.Linear(hidden, hidden, bias=False)
        self.attend = nn.Linear(hidden, 1, bias=False)
        self.cell = nn.GRUCell(word_dim + hidden, hidden)
        self.out = linear(hidden, words)

    def forward(self, regions: Tensor, tokens: Tensor) -> Tensor:
        """Regions (B, N, dim) and captions (B, L): logits (B, L - 1, words) of tokens 1..., each given those before."""
        memory, last = self.encoder(regions)
        keys, state = self.attend_region(memory), last[0]
        states = []
        for word in self.embedding(tokens[:, :-1]).unbind(1):
            attention = self.attend(torch.tanh(keys + self.attend_state(state)[:, None])).softmax(dim=1)
            context = (attention * memory).sum(1)
            state = self.cell(torch.cat([word, context], dim=1), state)
            states.append(state)
        logits: Tensor = self.out(torch.stack(states, dim=1))
        return logits


class Vsrn(Encoder):
    """Images (B, image_dim), which are one region, or (B, regions, image_dim) float16/32; texts as tokens.

    BatchNorm makes an image's embedding depend on the others of its step in training, the offline negatives among them.
    Its running statistics are those of the raw weights, also beside averaged weights.

    The caption loss is the mean over a batch's pairs of -log p(caption | image), a sum over words, times its weight. It
    encodes the images a second time, which the running statistics see.
    """

    batch_statistics = True

    def __init__(self, config: Config, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__()
        self.tokenizer, self.dim, self.config = tokenizer, config.dim, config
        self.region_head = linear(image_dim, config.dim)
        self.relations = nn.Sequential(*(Relation(config.dim) for _ in range(config.relations)))
        self.region_gru = nn.GRU(config.dim, config.dim, batch_first=True)
        self.image_norm = BatchNorm(config.dim) if config.batch_norm else nn.Identity()
        self.words = WordStates(len(tokenizer), config.word_dim, config.dim, bidirectional=False)
        self.has_auxiliary_loss = config.caption_loss > 0
        if self.has_auxiliary_loss:
            self.decoder = CaptionDecoder(len(tokenizer), config.word_dim, config.dim, config.caption_hidden)

    def encode_images(self, images: Tensor) -> Tensor:
        last = self.region_gru(self._regions(images))[1][0]
        return normalize(self.image_norm(last).float(), dim=1)

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return normalize(self.words.last(self.words(tokens, lengths), lengths).float(), dim=1)

    def auxiliary_loss(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        logits = self.decoder(self._regions(images), tokens)
        padding = torch.arange(1, tokens.shape[1]) >= lengths.cpu()[:, None]
        targets = tokens[:, 1:].masked_fill(padding.to(tokens.device), _IGNORED)
        summed = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="sum")
        return self.config.caption_loss * summed / len(tokens)

    def _regions(self, images: Tensor) -> Tensor:
        """(B, N, dim): the regions after the relation layers."""
        along = 2 if self.config.norm == "vector" else 1
        regions = images.float()
        if regions.ndim == 2:
            regions = regions[:, None]
        regions = self.region_head(regions)
        if self.config.region_norm:
            regions = normalize(regions, dim=along)
        return normalize(self.relations(regions), dim=along)


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Vsrn:
    """Raises BadInput unless an image is (dim,) or (regions, dim); with norm "published", (regions, dim) alone."""
    image_dim = region_dim("vsrn", image_shape)
    if config.norm == "published" and (len(image_shape) == 1 or image_shape[0] == 1):
        raise BadInput(
            'models vsrn: norm = "published" divides by lengths over the regions, which leaves nothing but signs of an '
            f'image of one region, and these images are {image_shape}; take norm = "vector".'
        )
    return Vsrn(config, tokenizer, image_dim)
