"""The tokenizer of a pretrained model: one of the `tokenizers` library, kept whole in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from miner.artifacts.errors import BadInput
from trainer.text import Tokens

__all__ = ["PretrainedTokenizer"]


@dataclass(frozen=True)
class PretrainedTokenizer:
    """`json` is all the library needs to make it; no file is read after that.

    Captions are cut to `max_tokens`, special tokens included. `fixed`: every row is `max_tokens` long and its padding
    counts as tokens, for models that were trained to read it (SigLIP). `mask` stands for a hidden word: the tokenizer's
    own mask, else its unknown word.
    """

    json: str
    max_tokens: int
    pad: int
    fixed: bool = False
    mask: int = 0

    @cached_property
    def _fast(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as missing:
            raise BadInput(
                "a pretrained model's tokenizer needs the package tokenizers; pip install 'quintain[pretrained]'."
            ) from missing
        made = Tokenizer.from_str(self.json)
        made.no_padding()
        made.enable_truncation(self.max_tokens)
        return made

    @cached_property
    def continuations(self) -> tuple[int, ...]:
        """Numbers of the tokens that go on with the word before them: "##ing"."""
        return tuple(sorted(number for token, number in self._fast.get_vocab().items() if token.startswith("##")))

    def __len__(self) -> int:
        return int(self._fast.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> Tokens:
        """(tokens (n, longest, or `max_tokens` when fixed) int64, lengths (n,))."""
        # An empty caption of a tokenizer without marks for start and end is one padding token.
        rows = [encoding.ids or [self.pad] for encoding in self._fast.encode_batch(list(texts))]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        width = self.max_tokens if self.fixed else int(lengths.max(initial=1))
        tokens = np.full((len(rows), width), self.pad, dtype=np.int64)
        for row, numbers in enumerate(rows):
            tokens[row, : len(numbers)] = numbers
        return tokens, np.full_like(lengths, width) if self.fixed else lengths

    def to_json(self) -> dict[str, Any]:
        return {
            "tokenizer": self.json,
            "max_tokens": self.max_tokens,
            "pad": self.pad,
            "fixed": self.fixed,
            "mask": self.mask,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PretrainedTokenizer:
        return cls(value["tokenizer"], value["max_tokens"], value["pad"], value["fixed"], value["mask"])
