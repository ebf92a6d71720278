"""Captions to token rows: what a tokenizer is, and the vocabulary of the training captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput

__all__ = ["PAD", "UNKNOWN", "Tokenizer", "Vocabulary", "tokenize", "tokenizer_from_json"]

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNKNOWN = range(4)
# A hyphenated word is one word ("medium-light" is not "medium", then "light"); kana and han, which are written
# without spaces, are one word per character; of the punctuation only what can be a whole keycap name is kept.
_HAN = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:[-’'][^\W{_HAN}]+)*|[#*!?&+]")


Tokens = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Tokenizer(Protocol):
    """What turns captions into numbers for a model, and is saved with it."""

    def __len__(self) -> int:
        """How many different tokens there are."""
        ...

    def encode(self, texts: Sequence[str]) -> Tokens:
        """(tokens (n, longest) int64, padded, lengths (n,) int64); a row's tokens are the same beside any others."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What `tokenizer_from_json` makes it from."""
        ...


def tokenize(text: str) -> list[str]:
    """Words of a caption, in lower case."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Words by token number; the first four are <pad>, <start>, <end>, <unk>. Part of a checkpoint."""

    words: tuple[str, ...]
    max_words: int = 64

    def __post_init__(self) -> None:
        if self.words[:4] != SPECIAL or len(set(self.words)) != len(self.words):
            raise BadInput(
                f"vocabulary: the first words must be {', '.join(SPECIAL)} and every word must be there once."
            )

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 1, max_words: int = 64) -> Vocabulary:
        """Words that occur at least `min_count` times, most frequent first, ties by spelling.

        Give training captions only: a vocabulary that has seen the test captions leaks which words matter there.
        """
        counts = Counter(word for text in texts for word in tokenize(text))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        return cls(SPECIAL + tuple(kept), max_words)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> Tokens:
        """(tokens (n, longest) padded with 0, lengths (n,)).

        Each row is <start> words <end>, cut to `max_words` words.
        """
        rows = [
            [START, *(self._numbers.get(word, UNKNOWN) for word in tokenize(text)[: self.max_words]), END]
            for text in texts
        ]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        tokens = np.full((len(rows), int(lengths.max(initial=2))), PAD, dtype=np.int64)
        for row, numbers in enumerate(rows):
            tokens[row, : len(numbers)] = numbers
        return tokens, lengths

    def to_json(self) -> dict[str, Any]:
        return {"words": list(self.words), "max_words": self.max_words}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Vocabulary:
        return cls(tuple(value["words"]), int(value["max_words"]))


def tokenizer_from_json(value: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a checkpoint holds. Raises KeyError or TypeError for a value that is none."""
    if "tokenizer" in value:
        from trainer.pretrained_text import PretrainedTokenizer

        return PretrainedTokenizer.from_json(value)
    return Vocabulary.from_json(dict(value))
