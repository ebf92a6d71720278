"""The same bits whoever encodes which rows, in which order, on how small a shard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miner.artifacts.embeddings import EMBEDDINGS
from miner.artifacts.errors import BadInput, QuintainError
from miner.artifacts.manifest import Draft
from miner.artifacts.pairs import Side
from miner.artifacts.store import LocalStore
from trainer import data, models
from trainer.data import Dataset
from trainer.encode import encode_rows
from trainer.models import Encoder
from trainer.shards import encode_shard, encode_shards
from trainer.text import Vocabulary


def toy(toys: SimpleNamespace) -> tuple[Encoder, Dataset]:
    dataset = toys.dataset(300, dim=40)
    torch.manual_seed(0)
    model = models.build(models.configure("vsepp", {"dim": 64}), Vocabulary.build(dataset.pairs.texts), (40,))
    return model, dataset


def pictures(toys: SimpleNamespace) -> tuple[Encoder, Dataset]:
    dataset = data.load(data.configure("emoji"), "dev")
    torch.manual_seed(0)
    model = models.build(models.configure("cnn_gru"), Vocabulary.build(dataset.pairs.texts), dataset.image_shape)
    return model, dataset


@pytest.mark.parametrize("make", [toy, pictures])
@pytest.mark.parametrize("side", ["image", "text"])
def test_shards_do_not_change_a_bit(
    toys: SimpleNamespace, make: Callable[..., tuple[Encoder, Dataset]], side: Side
) -> None:
    model, dataset = make(toys)
    size = len(dataset.pairs.ids(side))
    whole = encode_rows(model, dataset, side, np.arange(size), batch_size=64)
    assert whole.shape == (size, model.dim)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    for shard in (size, 100, 64, 17):
        parts = [
            encode_rows(model, dataset, side, np.arange(start, min(start + shard, size)), batch_size=64)
            for start in range(0, size, shard)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    some = np.random.default_rng(0).permutation(size)[:50]
    assert np.array_equal(encode_rows(model, dataset, side, some, batch_size=64), whole[some])


def test_the_model_and_the_threads_are_left_as_they_were(toys: SimpleNamespace) -> None:
    model, dataset = toy(toys)
    model.train()
    before = torch.get_num_threads()
    encode_rows(model, dataset, "image", np.arange(3))
    assert model.training
    assert torch.get_num_threads() == before


def test_dropout_is_off(toys: SimpleNamespace) -> None:
    model, dataset = pictures(toys)
    model.train()
    rows = np.arange(10)
    assert np.array_equal(*(encode_rows(model, dataset, "image", rows) for _ in range(2)))


def test_no_rows_and_unknown_rows(toys: SimpleNamespace) -> None:
    model, dataset = toy(toys)
    assert encode_rows(model, dataset, "text", np.arange(0)).shape == (0, 64)
    with pytest.raises(BadInput, match="row 300 of 300 images"):
        encode_rows(model, dataset, "image", np.array([300]))


def test_texts_of_like_lengths_are_encoded_together(toys: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within every block of fixed rows; each text where it belongs."""
    model, dataset = toy(toys)
    monkeypatch.setattr("trainer.encode.BLOCK", 256)  # so that this small set has several
    seen: list[tuple[tuple[int, ...], list[int]]] = []
    encode = model.encode_texts

    def spy(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(tokens.shape), lengths.tolist()))
        return encode(tokens, lengths)

    model.encode_texts = spy  # type: ignore[method-assign]  # to see what it is given
    size = dataset.pairs.num_texts
    assert size > 512
    found = encode_rows(model, dataset, "text", np.arange(size), batch_size=64)
    for first in range(0, len(seen), 4):
        lengths = [length for _, batch in seen[first : first + 4] for length in batch]
        assert lengths == sorted(lengths)
    assert all(shape == (len(lengths), max(lengths)) for shape, lengths in seen)
    for row in (0, 7, 255, 256, size - 1):
        tokens, lengths = model.tokenizer.encode([dataset.pairs.texts[row]])
        alone = encode(torch.from_numpy(tokens), torch.from_numpy(lengths)).detach().numpy()[0]
        np.testing.assert_allclose(found[row], alone, atol=1e-5)


def test_shards_are_written_while_the_next_is_encoded(toys: SimpleNamespace, tmp_path: Path) -> None:
    """The same files as one after the other, those of an earlier attempt untouched, and no error of a write lost."""
    model, dataset = toy(toys)
    ranges = [(0, 128), (128, 256), (256, 300)]
    drafts = [Draft(LocalStore(tmp_path / name), "image", EMBEDDINGS, {}) for name in ("one", "other")]
    one = [encode_shard(drafts[0], shard, rows, model, dataset, "image") for shard, rows in enumerate(ranges)]
    told: list[tuple[int, int]] = []
    before = encode_shard(drafts[1], 1, ranges[1], model, dataset, "image")
    other = encode_shards(drafts[1], ranges, model, dataset, "image", progress=lambda *rows: told.append(rows))
    assert other == one
    assert other[1] == before
    assert told == [(128, 300), (256, 300), (300, 300)]

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "image").write_text("a file where the artifact's folder belongs")
    with pytest.raises((OSError, QuintainError)):
        encode_shards(Draft(LocalStore(tmp_path / "full"), "image", EMBEDDINGS, {}), ranges, model, dataset, "image")
