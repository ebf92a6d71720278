"""Elements of cross-attention models as they are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from trainer.data import Dataset
from trainer.encode import encode_elements, encode_rows
from trainer.models import Elements, PairScorer
from trainer.text import Vocabulary


class Odd(PairScorer):
    """Elements of 6 numbers, and vectors of 4 to search with that are no mean of them."""

    def __init__(self, dataset: Dataset, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer, self.dim, self.scale = Vocabulary.build(dataset.pairs.texts), 4, scale
        self.regions = torch.nn.Linear(dataset.image_shape[0], 12)
        self.search = torch.nn.Linear(dataset.image_shape[0], 4)
        self.words = torch.nn.Embedding(len(self.tokenizer), 6)

    def image_elements(self, images: Tensor) -> Elements:
        values = self.regions(images.float()).view(-1, 2, 6) * self.scale
        return Elements(values, torch.full((len(values),), 2))

    def text_elements(self, tokens: Tensor, lengths: Tensor) -> Elements:
        return Elements(self.words(tokens), lengths)

    def encode_images(self, images: Tensor) -> Tensor:
        return normalize(self.search(images.float()), dim=1)

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return normalize(self.words(tokens)[:, 1, :4], dim=1)


def test_a_models_own_search_vector_is_stored_and_elements_have_their_own_dim(dataset: Dataset) -> None:
    model = Odd(dataset)
    for side in ("image", "text"):
        rows = np.arange(len(dataset.pairs.ids(side)))
        pooled, values, lengths = encode_elements(model, dataset, side, rows, batch_size=7)
        np.testing.assert_array_equal(pooled, encode_rows(model, dataset, side, rows, batch_size=7))
        assert values.shape == (lengths.sum(), 6)
        some, some_values, some_lengths = encode_elements(model, dataset, side, rows[5:9], batch_size=7)
        np.testing.assert_array_equal(some, pooled[5:9])
        start = lengths[:5].sum()
        np.testing.assert_array_equal(some_values, values[start : start + some_lengths.sum()])
    tokens, expected = model.tokenizer.encode(dataset.pairs.texts)
    assert lengths.tolist() == expected.tolist()
    with torch.no_grad():
        np.testing.assert_array_equal(values[: lengths[0]], model.words(torch.from_numpy(tokens))[0, : lengths[0]])


def test_elements_that_overflow_are_refused(dataset: Dataset) -> None:
    rows = np.arange(dataset.pairs.num_images)
    with pytest.raises(BadInput, match=r"not finite as float16; set encode.element_dtype"):
        encode_elements(Odd(dataset, scale=1e6), dataset, "image", rows, dtype="float16")
    assert np.isfinite(encode_elements(Odd(dataset, scale=1e6), dataset, "image", rows)[1]).all()
