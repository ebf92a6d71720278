"""Small made-up problems with unequal numbers of positives, and the slow oracle of mining."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from miner.artifacts.ids import Ids
from miner.artifacts.pairs import Direction, Pairs, sides


@dataclass(frozen=True)
class Problem:
    pairs: Pairs
    images: np.ndarray
    texts: np.ndarray

    def vectors(self, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """(anchor vectors, gallery vectors)."""
        return (self.images, self.texts) if direction == "i2t" else (self.texts, self.images)

    def permuted(self, seed: int) -> Problem:
        """The same items stored in another order."""
        rng = np.random.default_rng(seed)
        images, texts = rng.permutation(len(self.images)), rng.permutation(len(self.texts))
        links = [
            (self.pairs.image_ids[i], self.pairs.text_ids[t])
            for i, t in zip(self.pairs.image_rows, self.pairs.text_rows, strict=True)
        ]
        pairs = Pairs.from_ids(
            [self.pairs.image_ids[i] for i in images], [self.pairs.text_ids[t] for t in texts], links
        )
        return Problem(pairs, self.images[images], self.texts[texts])

    def write(self, folder: Path) -> Path:
        """As a folder for the command line."""
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", self.images)
        np.save(folder / "texts.npy", self.texts)
        (folder / "image_ids.txt").write_text("\n".join(self.pairs.image_ids) + "\n")
        (folder / "text_ids.txt").write_text("\n".join(self.pairs.text_ids) + "\n")
        rows = zip(self.pairs.image_rows, self.pairs.text_rows, strict=True)
        lines = [f"{self.pairs.image_ids[i]},{self.pairs.text_ids[t]}" for i, t in rows]
        (folder / "pairs.csv").write_text("\n".join(["image_id,text_id", *lines]) + "\n")
        return folder


@pytest.fixture
def problem() -> Callable[..., Problem]:
    def make(seed: int = 0, images: int = 40, dim: int = 16, dtype: str = "f4", grid: bool = False) -> Problem:
        """1 to 5 texts per image, some shared by two images; `grid` coordinates make ties and duplicates."""
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 6, images)
        image_rows = np.repeat(np.arange(images), counts)
        text_rows = np.arange(len(image_rows))
        shared = rng.choice(text_rows, images // 4, replace=False)
        image_rows = np.concatenate([image_rows, rng.integers(0, images, len(shared))])
        text_rows = np.concatenate([text_rows, shared])
        num_texts = int(counts.sum())
        image_ids = tuple(f"{i * 7919 % 10007}" for i in range(images))
        text_ids = tuple(f"t{t * 104729 % 1000003}" for t in range(num_texts))
        pairs = Pairs(Ids(image_ids), Ids(text_ids), image_rows, text_rows)

        def draw(rows: int) -> np.ndarray:
            if grid:
                vectors = rng.integers(-1, 2, (rows, dim)) / 2
                vectors[:, 0] = 1
                return vectors.astype(dtype)
            return rng.normal(size=(rows, dim)).astype(dtype)

        return Problem(pairs, draw(images), draw(num_texts))

    return make


@pytest.fixture
def oracle() -> Callable[..., dict[int, tuple[list[int], list[float], float]]]:
    def mine(problem: Problem, direction: Direction, k: int) -> dict[int, tuple[list[int], list[float], float]]:
        """By anchor row: rows of its negatives, their scores, its lowest positive score; one pair at a time."""
        vectors, gallery = problem.vectors(direction)
        _, other = sides(direction)
        own = set(zip(problem.pairs.image_rows.tolist(), problem.pairs.text_rows.tolist(), strict=True))
        names = problem.pairs.ids(other)
        numeric = all(name.isdigit() for name in names)
        found = {}
        for a, anchor in enumerate(vectors.astype(np.float64)):
            scores = [float(np.float32(math.fsum((anchor * item).tolist()))) for item in gallery.astype(np.float64)]
            is_own = [((a, g) if direction == "i2t" else (g, a)) in own for g in range(len(gallery))]
            rows = sorted(
                (g for g in range(len(gallery)) if not is_own[g]),
                key=lambda g: (-scores[g], int(names[g]) if numeric else names[g]),
            )[:k]
            lowest = min(scores[g] for g in range(len(gallery)) if is_own[g])
            found[a] = (rows, [scores[g] for g in rows], lowest)
        return found

    return mine
