"""VSE++ on precomputed vectors (Faghri et al., BMVC 2018, arXiv 1707.05612): a linear map and the last state of a GRU.

Image: l2norm -> Linear -> l2norm. Text: Embedding -> one-layer one-way GRU -> state at the last token -> l2norm.
Regions, (regions, dim) per image, are averaged first.

The published code takes it that precomputed vectors are normalised; here they are, which changes no such vector. Its
`no_imgnorm` is not here: embeddings of any length cannot be searched by cosine.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from trainer.models import Encoder
from trainer.models._towers import WordStates, linear, region_dim
from trainer.text import Tokenizer

__all__ = ["Config", "VsePp", "build"]


class Config(BaseModel):
    """`dim` of the space and of the GRU, `word_dim` of a word. `use_abs` takes the absolute value of every embedding,
    as the published code can for order embeddings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: int = Field(default=1024, ge=1)
    word_dim: int = Field(default=300, ge=1)
    use_abs: bool = False


class VsePp(Encoder):
    """Images (B, image_dim) or (B, regions, image_dim) float16/32; texts as tokens."""

    def __init__(self, config: Config, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__()
        self.tokenizer, self.dim, self.use_abs = tokenizer, config.dim, config.use_abs
        self.image_head = linear(image_dim, config.dim)
        self.words = WordStates(len(tokenizer), config.word_dim, config.dim, bidirectional=False)

    def encode_images(self, images: Tensor) -> Tensor:
        vectors = images.float()
        if vectors.ndim == 3:
            vectors = vectors.mean(dim=1)
        return self._unit(self.image_head(normalize(vectors, dim=1)))

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self._unit(self.words.last(self.words(tokens, lengths), lengths))

    def _unit(self, embeddings: Tensor) -> Tensor:
        unit = normalize(embeddings.float(), dim=1)
        return unit.abs() if self.use_abs else unit


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> VsePp:
    """Raises BadInput unless an image is (dim,) or (regions, dim)."""
    return VsePp(config, tokenizer, region_dim("vsepp", image_shape))
