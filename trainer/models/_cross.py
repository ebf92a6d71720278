"""What SCAN and BFAN share: their encoders, and block-wise scores of all pairs or of given ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from miner.artifacts.pairs import Direction, Side, sides
from trainer.models import Elements, PairScorer
from trainer.models._attention import View
from trainer.models._towers import WordStates, linear
from trainer.text import Tokenizer

__all__ = ["CrossAttention", "Settings"]

# Texts are compared this many at a time, shortest first, each run cut to its longest: little is spent on padding.
_TEXTS = 16
# Products of a block: on a CPU what its caches hold, elsewhere enough to keep a GPU busy.
_CPU_BLOCK, _BLOCK = 1 << 18, 1 << 24
_NARROW = 32  # words
# For every product and direction, floats that are kept for the gradient or held at once.
_COPIES = 10


class Settings(BaseModel):
    """Published: 1024-d space, 300-d words, GRU states of two directions averaged, all elements of length 1.

    `memory_mib` bounds what comparing holds beside the elements themselves; where the gradient would need more, every
    block is computed a second time instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    cross_attention: ClassVar[bool] = True

    dim: int = Field(default=1024, ge=1)
    word_dim: int = Field(default=300, ge=1)
    bidirectional: bool = True
    image_norm: bool = True
    text_norm: bool = True
    memory_mib: int = Field(default=1024, ge=1)


class CrossAttention(PairScorer):
    """Regions (B, regions, image_dim), or (B, image_dim) as one region each; texts as tokens."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__()
        self.tokenizer, self.dim, self.settings = tokenizer, settings.dim, settings
        self.region_head = linear(image_dim, settings.dim)
        self.words = WordStates(len(tokenizer), settings.word_dim, settings.dim, bidirectional=settings.bidirectional)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Who attends: words to regions in "t2i", regions to words in "i2t". The score is the sum over these."""
        raise NotImplementedError

    def uses_gram(self, side: Side, size: int) -> bool:
        attended = [sides(direction)[1] for direction in self.directions]
        return side in attended and size <= self.settings.memory_mib << 20

    def compare(self, direction: Direction, view: View) -> Tensor:
        """One direction's part of the scores of a block, (context items, query items)."""
        raise NotImplementedError

    def image_elements(self, images: Tensor) -> Elements:
        vectors = images.float()
        regions = self.region_head(vectors[:, None] if vectors.ndim == 2 else vectors).float()
        lengths = torch.full((len(regions),), regions.shape[1], device=regions.device)
        return Elements(normalize(regions, dim=2) if self.settings.image_norm else regions, lengths)

    def text_elements(self, tokens: Tensor, lengths: Tensor) -> Elements:
        states = self.words(tokens, lengths).float()
        return Elements(normalize(states, dim=2) if self.settings.text_norm else states, lengths.to(states.device))

    def scores(self, images: Elements, texts: Elements) -> Tensor:
        if not (len(images) and len(texts)):
            return images.values.new_zeros(len(images), len(texts))
        room, area = self._room(images), images.values.shape[1] * texts.values.shape[1]
        texts_at_once = min(max(_TEXTS, room // (area * len(images))), max(1, room // area), len(texts))
        images_at_once = max(1, room // (area * texts_at_once))
        images, image_places = _shortest_first(images, images_at_once)
        texts, text_places = _shortest_first(texts, texts_at_once)
        run = self._runner(_padded(images, images_at_once) * _padded(texts, texts_at_once), images, texts)
        with torch.autocast(images.values.device.type, enabled=False):
            image_blocks = list(self._blocks(images, images_at_once, "t2i"))
            columns = []
            for text in self._blocks(texts, texts_at_once, "i2t"):
                # Few regions: their products are smaller to turn round than the words.
                turn = len(images) * images.values.shape[1] >= self.dim
                words = (text.values.transpose(0, 1) if turn else text.values).flatten(0, 1)
                columns.append(torch.cat([run(image, text, words, turn) for image in image_blocks]))
            found = torch.cat(columns, 1)
        found = found if image_places is None else found.index_select(0, image_places)
        return found if text_places is None else found.index_select(1, text_places)

    def pair_scores(self, images: Elements, texts: Elements) -> Tensor:
        if not len(images):
            return images.values.new_zeros(0)
        regions, words = images.values.shape[1], texts.values.shape[1]
        area = regions * words + regions * regions + words * words
        at_once = max(1, self._room(images) // area)
        run = self._runner(area * len(images), images, texts)
        with torch.autocast(images.values.device.type, enabled=False):
            blocks = zip(self._blocks(images, at_once, "t2i"), self._blocks(texts, at_once, "i2t"), strict=True)
            return torch.cat([run(image, text)[:, 0] for image, text in blocks])

    def _block(
        self, images: _Block, texts: _Block, words: Tensor | None = None, first_words_first: bool = True
    ) -> Tensor:
        """(images, texts) with `words` (words * texts, dim), first words first or text by text.

        Without: (n, 1) of image and text i.
        """
        paired = words is None
        if words is None:
            products = torch.bmm(images.values, texts.values.transpose(1, 2))[..., None]
            counts = texts.mask[:, None, :, None]
        else:
            regions = images.values.flatten(0, 1)
            # The product of a tall matrix with a narrow one takes twice as long as that of a flat one with a wide one.
            products = (words @ regions.T).T if len(words) < _NARROW else regions @ words.T
            if first_words_first:
                products = products.reshape(*images.mask.shape, *texts.mask.T.shape)
            else:
                products = products.reshape(*images.mask.shape, *texts.mask.shape).transpose(2, 3)
            counts = texts.mask.T
        if images.padded or texts.padded:
            products = products.masked_fill(~(images.mask[:, :, None, None] & counts), 0)
        turned = products.transpose(1, 2) if paired else products.permute(3, 2, 1, 0)
        found = []
        if "t2i" in self.directions:
            found.append(self.compare("t2i", _view(products, images, texts, paired)))
        if "i2t" in self.directions:
            by_text = self.compare("i2t", _view(turned, texts, images, paired))
            found.append(by_text if paired else by_text.T)
        return torch.stack(found).sum(0)

    def _blocks(self, elements: Elements, at_once: int, context_of: Direction) -> Iterator[_Block]:
        for run in _runs(elements, at_once):
            values, mask, padded = run.values, run.mask, not bool(run.mask.all())
            if padded and values.requires_grad and torch.is_grad_enabled():
                # 0 times what overflows in padding would be its gradient. Else what is computed of elements is masked:
                # it is smaller.
                values, padded = values.masked_fill(~mask[:, :, None], 0), False
            gram = squares = None
            if context_of in self.directions:
                gram = torch.bmm(values, values.transpose(1, 2)) if run.gram is None else run.gram
                gram = gram.masked_fill(~(mask[:, :, None] & mask[:, None]), 0) if padded else gram
            if self.directions != (context_of,):
                squares = torch.linalg.vector_norm(values, dim=2).square()
                squares = squares.masked_fill(~mask, 0) if padded else squares
            yield _Block(values, mask, padded, squares, gram)

    def _bytes(self) -> int:
        return 4 * _COPIES * len(self.directions)

    def _room(self, elements: Elements) -> int:
        """How many products a block may have: by settings and kind of device, never by what is free."""
        most = _CPU_BLOCK if elements.values.device.type == "cpu" else _BLOCK
        return min(most, (self.settings.memory_mib << 20) // self._bytes())

    def _runner(self, products: int, images: Elements, texts: Elements) -> Callable[..., Tensor]:
        """`_block`, or where so many products do not fit for the gradient, `_block` keeping nothing."""
        wanted = torch.is_grad_enabled() and (images.values.requires_grad or texts.values.requires_grad)
        if wanted and products * self._bytes() > self.settings.memory_mib << 20:
            return partial(checkpoint, self._block, use_reentrant=False, preserve_rng_state=False)
        return self._block


@dataclass(frozen=True)
class _Block:
    """Some items: elements (n, K, dim), of which those count that `mask` (n, K) says; the others are 0 unless `padded`.

    0 at those: `squares` (n, K), squared lengths, of items that ask, `gram` (n, K, K) of items that are attended to.
    """

    values: Tensor
    mask: Tensor
    padded: bool
    squares: Tensor | None
    gram: Tensor | None


def _view(products: Tensor, contexts: _Block, queries: _Block, paired: bool) -> View:
    assert contexts.gram is not None
    assert queries.squares is not None
    mask, squares = (each[:, :, None] if paired else each.T[None] for each in (queries.mask, queries.squares))
    return View(products.contiguous(), contexts.gram, contexts.mask[:, :, None, None], mask, squares)


def _shortest_first(elements: Elements, at_once: int) -> tuple[Elements, Tensor | None]:
    """Items in order of length, and where each item went; None when all stay, as they do where one run holds all."""
    if len(elements) <= at_once or bool((elements.lengths[1:] >= elements.lengths[:-1]).all()):
        return elements, None
    order = elements.lengths.argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return elements.take(order), places


def _runs(elements: Elements, at_once: int) -> Iterator[Elements]:
    """`at_once` items at a time, cut to the longest of them."""
    for start in range(0, len(elements), at_once):
        lengths = elements.lengths[start : start + at_once]
        length = int(lengths.max())
        gram = None if elements.gram is None else elements.gram[start : start + at_once, :length, :length]
        yield Elements(elements.values[start : start + at_once, :length], lengths, gram)


def _padded(elements: Elements, at_once: int) -> int:
    """Elements of all runs, padding included."""
    return sum(run.values.shape[:2].numel() for run in _runs(elements, at_once))
