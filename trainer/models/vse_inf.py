"""VSE∞ on precomputed vectors (Chen et al., CVPR 2021, arXiv 2011.04305): learnt pooling of regions and of words.

Image: Linear(x) + MLP(x) per region, MLP = Linear -> BatchNorm -> ReLU -> Linear; generalised pooling; l2norm.
Text: a state per word, of a two-way GRU with its directions averaged or of BERT and a Linear; its own pooling; l2norm.

In training, regions are dropped and words edited, so that both poolings see sets of many sizes.

Three settings do as the published code does: `zeros_in_batch_norm`, `edit_whole_words` and `may_lose_all_words`.
BERT: Devlin et al., NAACL 2019, arXiv 1810.04805.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainer.models import Encoder
from trainer.models._pooling import GeneralizedPooling
from trainer.models._pretrained import BertWords, Pretrained
from trainer.models._towers import BatchNorm, WordStates, linear, region_dim
from trainer.text import UNKNOWN, Tokenizer, Vocabulary

__all__ = ["Config", "VseInf", "build", "edited", "load_pretrained", "resolve", "tokenizer"]


class Config(BaseModel):
    """`text = "bert"` takes the text encoder in the folder `bert.path`, which learns at `bert_lr_scale` times the rate.

    `drop_regions` and `edit_words` are shares, in training. Of edited words the share `edit_masked` becomes the unknown
    word (the mask of a tokenizer that has one), `edit_random` any word, and the rest is dropped.

    Published, each of these is true. `zeros_in_batch_norm`: batch statistics count what fills an image up to the most
    regions of its batch, and no dropped region; else all regions, dropped or not. `edit_whole_words`: one draw for all
    the pieces of a word (those that "##" begins, as in BERT), else one for each. `may_lose_all_words`: a caption may
    lose every word, else it keeps those it would have dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: int = Field(default=1024, ge=1)
    text: Literal["bigru", "bert"] = "bigru"
    word_dim: int = Field(default=300, ge=1, description='of "bigru"')
    bert: Pretrained = Pretrained()
    bert_lr_scale: float = Field(default=0.1, gt=0)
    mlp_hidden: int = Field(default=512, ge=1)
    position_dim: int = Field(default=32, ge=2, multiple_of=2, description="of the pooling's position codes")
    pool_hidden: int = Field(default=32, ge=1, description="units per direction of the pooling's GRU")
    temperature: float = Field(default=0.1, gt=0, description="of the softmax over the pooling's weights")
    drop_regions: float = Field(default=0.2, ge=0, lt=1)
    edit_words: float = Field(default=0.2, ge=0, lt=1)
    edit_masked: float = Field(default=0.5, ge=0, le=1)
    edit_random: float = Field(default=0.1, ge=0, le=1)
    zeros_in_batch_norm: bool = False
    edit_whole_words: bool = False
    may_lose_all_words: bool = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose version shapes what the model computes."""
        return self.bert.libraries if self.text == "bert" else ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.text == "bert") != bool(self.bert.path):
            raise ValueError(
                'text = "bert" and bert.path belong together; give both, [model.bert] path = "FOLDER" or in one word '
                'vse_inf:text=bert,bert={path="FOLDER"}, or neither'
            )
        if self.edit_masked + self.edit_random > 1:
            raise ValueError("edit_masked + edit_random is above 1; they are shares of the edited words")
        return self


class VseInf(Encoder):
    """Images (B, image_dim), which are one region, or (B, regions, image_dim) float16/32; texts as tokens.

    BatchNorm makes an image's embedding depend on the others of its step in training, the offline negatives among them.
    Its running statistics are those of the raw weights, also beside averaged weights.
    """

    batch_statistics = True

    def __init__(self, config: Config, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__()
        self.tokenizer, self.dim, self.config = tokenizer, config.dim, config
        self.region_head = linear(image_dim, config.dim)
        self.region_mlp = nn.Sequential(
            nn.Linear(image_dim, config.mlp_hidden),
            BatchNorm(config.mlp_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(config.mlp_hidden, config.dim),
        )
        self.region_pooling = GeneralizedPooling(config.position_dim, config.pool_hidden, config.temperature)
        self.words, self.word_head = _text_states(config, tokenizer)
        self.word_pooling = GeneralizedPooling(config.position_dim, config.pool_hidden, config.temperature)

    def encode_images(self, images: Tensor) -> Tensor:
        regions = images.float()
        if regions.ndim == 2:
            regions = regions[:, None]
        kept = torch.ones(regions.shape[:2], dtype=torch.bool)
        if self.training and self.config.drop_regions:
            kept = torch.rand(kept.shape) >= self.config.drop_regions
            kept |= ~kept.any(1, keepdim=True)  # never an image without regions
            if self.config.zeros_in_batch_norm:
                regions, kept = _filled_up(regions, kept)
        features = self.region_head(regions) + self.region_mlp(regions)
        return normalize(self.region_pooling(features, kept), dim=1)

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.cpu()
        if self.training and self.config.edit_words:
            tokens, lengths = edited(tokens, lengths, self.config, self.tokenizer)
        states = self.word_head(self.words(tokens, lengths))
        return normalize(self.word_pooling(states, torch.arange(tokens.shape[1]) < lengths[:, None]), dim=1)

    def learning_rate_scale(self, parameter: str) -> float:
        pretrained = self.config.text == "bert" and parameter.startswith("words.")
        return self.config.bert_lr_scale if pretrained else 1.0


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> VseInf:
    """Raises BadInput unless an image is (dim,) or (regions, dim)."""
    return VseInf(config, tokenizer, region_dim("vse_inf", image_shape))


def tokenizer(config: Config, texts: Sequence[str], min_count: int) -> Tokenizer:
    """BERT's own, or a vocabulary of the training captions. Raises BadInput."""
    return config.bert.tokenizer() if config.text == "bert" else Vocabulary.build(texts, min_count)


def load_pretrained(config: Config, model: VseInf) -> None:
    """Fill a fresh model's BERT. Raises BadInput."""
    if isinstance(model.words, BertWords):
        config.bert.load_into(model.words.encoder)


def resolve(config: Config, base: Path = Path()) -> Config:
    """The settings with what `bert.path` refers to. Raises BadInput when it is not there."""
    return config.model_copy(update={"bert": config.bert.resolved(base)}) if config.text == "bert" else config


def edited(tokens: Tensor, lengths: Tensor, config: Config, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Captions (B, L) and lengths (B,) on the CPU with words masked, replaced and dropped: (B, L' <= L), (B,).

    The first and last token, which mark start and end, stay. Which words it meets is drawn on the CPU: a caption's new
    length is known without waiting for the device of its tokens, unless whole words are edited.
    """
    place = torch.arange(tokens.shape[1])
    word = (place > 0) & (place < lengths[:, None] - 1)
    drawn = torch.rand(word.shape) / config.edit_words  # below 1 for an edited word, and then uniform again
    if config.edit_whole_words:
        drawn = drawn.gather(1, _first_pieces(tokens.cpu(), tokenizer))
    masked = word & (drawn < config.edit_masked)
    replaced = word & ~masked & (drawn < config.edit_masked + config.edit_random)
    dropped = word & ~masked & ~replaced & (drawn < 1)
    if not config.may_lose_all_words:
        dropped &= (word & ~dropped).any(1, keepdim=True)
    ordinary = min(UNKNOWN + 1, len(tokenizer) - 1)
    others = torch.randint(ordinary, len(tokenizer), word.shape)
    kept = (place < lengths[:, None]) & ~dropped
    lengths = kept.sum(1)
    order = (~kept).byte().argsort(dim=1, stable=True)[:, : int(lengths.max())]
    masked, replaced, others, order = (each.to(tokens.device) for each in (masked, replaced, others, order))
    tokens = torch.where(replaced, others, tokens.masked_fill(masked, getattr(tokenizer, "mask", UNKNOWN)))
    return tokens.gather(1, order), lengths


def _filled_up(regions: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept regions of each image first, then zeros up to the most that one has: (B, R' <= R, dim), (B, R')."""
    order = (~kept).byte().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
    kept = kept.gather(1, order)
    order, there = order.to(regions.device), kept.to(regions.device)
    return regions.gather(1, order[..., None].expand(-1, -1, regions.shape[2])) * there[..., None], kept


def _first_pieces(tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Of every token (B, L) the place where its word begins."""
    goes_on = torch.tensor(getattr(tokenizer, "continuations", ()), dtype=torch.int64)
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    return places.masked_fill(torch.isin(tokens, goes_on), 0).cummax(1).values


def _text_states(config: Config, tokenizer: Tokenizer) -> tuple[nn.Module, nn.Module]:
    """What gives (tokens, lengths) a state per word, and what maps these to the space."""
    if config.text == "bigru":
        return WordStates(len(tokenizer), config.word_dim, config.dim, bidirectional=True), nn.Identity()
    words = BertWords(config.bert)
    return words, linear(words.hidden, config.dim)
