"""Texts as near-duplicates are told: without case, width, punctuation or spacing; as sets of overlapping pieces."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Shingles", "normalised"]

Rows = npt.NDArray[np.int64]
_HASHES = 128
_DEVIATIONS = 5.0


def normalised(text: str) -> str:
    """Words between single spaces: NFKC, without case; punctuation and symbols part words, and count where there is
    nothing else."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = "".join(" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in folded).split()
    return " ".join(words or folded.split())


class Shingles:
    """Every text as the set of its pieces of `size` words (or characters) in a row; a shorter one is one piece.

    Which pairs have a Jaccard similarity (pieces in common / pieces in either) of at least a threshold is answered from
    the sets. MinHash (Broder, On the resemblance and containment of documents, 1997) only leaves out what cannot have
    it: the share of 128 hashes that agree estimates the similarity, and who falls short by five standard deviations is
    not looked at. Of a million pairs at the very threshold, one or two are missed so.
    """

    def __init__(self, texts: Sequence[str], size: int, unit: Literal["word", "character"]) -> None:
        known: dict[str, int] = {}
        sets = [sorted({known.setdefault(piece, len(known)) for piece in _pieces(text, size, unit)}) for text in texts]
        self.offsets = np.concatenate([[0], np.cumsum([len(each) for each in sets])]).astype(np.int64)
        self.pieces = np.array([piece for each in sets for piece in each], dtype=np.int64)
        self.number = len(known)
        self.signatures = self._signatures(known)

    def _signatures(self, known: dict[str, int]) -> npt.NDArray[np.uint8]:
        """(texts, 128): a byte of the least of every hash over the pieces."""
        digests = b"".join(
            hashlib.blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8).digest() for piece in known
        )
        codes = np.frombuffer(digests, dtype="<u8")[self.pieces]
        factors, terms = np.random.default_rng(0).integers(0, 1 << 64, (2, _HASHES), dtype=np.uint64)
        filled = np.flatnonzero(np.diff(self.offsets))
        found = np.zeros((len(self.offsets) - 1, _HASHES), dtype=np.uint8)
        for at, (factor, term) in enumerate(zip(factors | np.uint64(1), terms, strict=True)):
            if len(filled):
                hashed = (codes * factor + term) >> np.uint64(32)
                found[filled, at] = np.minimum.reduceat(hashed, self.offsets[:-1][filled]).astype(np.uint8)
        return found

    def alike(self, rows: Rows, others: Rows, jaccard: float) -> npt.NDArray[np.bool_]:
        """(n,) whether texts `rows` and `others` have a similarity of at least `jaccard`; an empty one never has."""
        least = _HASHES * jaccard - _DEVIATIONS * np.sqrt(_HASHES * jaccard * (1 - jaccard))
        agree = np.empty(len(rows), dtype=np.int64)
        step = 1 << 16
        for start in range(0, len(rows), step):
            at = slice(start, start + step)
            agree[at] = (self.signatures[rows[at]] == self.signatures[others[at]]).sum(1)
        some = np.flatnonzero(agree >= least)
        size = len(self.offsets) - 1
        pairs, which = np.unique(rows[some] * size + others[some], return_inverse=True)
        found = np.zeros(len(rows), dtype=bool)
        found[some] = (self._jaccard(pairs // size, pairs % size) >= jaccard)[which]
        return found

    def _jaccard(self, rows: Rows, others: Rows) -> npt.NDArray[np.float64]:
        first, second = (self._codes(each) for each in (rows, others))
        place = np.minimum(np.searchsorted(second, first), max(len(second) - 1, 0))
        common = first[second[place] == first] if len(second) else first[:0]
        both = np.bincount(common // max(self.number, 1), minlength=len(rows))
        counts = np.diff(self.offsets)
        either = counts[rows] + counts[others] - both
        return np.asarray(both / np.maximum(either, 1))

    def _codes(self, rows: Rows) -> Rows:
        """Number of the pair and piece in one, sorted."""
        counts = np.diff(self.offsets)[rows]
        at = np.repeat(np.arange(len(rows)), counts)
        before = np.cumsum(counts) - counts
        return np.asarray(at * self.number + self.pieces[self.offsets[rows][at] + np.arange(len(at)) - before[at]])


def _pieces(text: str, size: int, unit: Literal["word", "character"]) -> set[str]:
    clean = normalised(text)
    if not clean:
        return set()
    if unit == "character":
        return {clean[at : at + size] for at in range(max(1, len(clean) - size + 1))}
    words = clean.split()
    return {" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}
