"""Words, vocabulary and padded token rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from trainer.text import Vocabulary, tokenize


def test_words() -> None:
    assert tokenize("Man judge: medium-light skin tone, bald") == [
        "man",
        "judge",
        "medium-light",
        "skin",
        "tone",
        "bald",
    ]
    assert tokenize("one o’clock") == ["one", "o’clock"]
    assert tokenize("keycap: #") == ["keycap", "#"]
    assert tokenize("笑う") == ["笑", "う"]
    assert tokenize("вытирает слёзы") == ["вытирает", "слёзы"]


def test_frequent_words_first_and_rare_ones_unknown() -> None:
    vocabulary = Vocabulary.build(["b a", "a c", "a b"], min_count=2)
    assert vocabulary.words == ("<pad>", "<start>", "<end>", "<unk>", "a", "b")
    tokens, lengths = vocabulary.encode(["a c b", "", "b"])
    assert tokens.tolist() == [[1, 4, 3, 5, 2], [1, 2, 0, 0, 0], [1, 5, 2, 0, 0]]
    assert lengths.tolist() == [5, 2, 3]
    assert tokens.dtype == np.int64


def test_long_captions_are_cut() -> None:
    tokens, lengths = Vocabulary.build(["a"], max_words=3).encode(["a a a a a"])
    assert tokens.tolist() == [[1, 4, 4, 4, 2]]
    assert lengths.tolist() == [5]


def test_json_and_back() -> None:
    vocabulary = Vocabulary.build(["ein Häuschen", "zwei"])
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_a_vocabulary_without_the_special_words_is_refused() -> None:
    with pytest.raises(BadInput, match="<pad>"):
        Vocabulary(("a", "b"))
