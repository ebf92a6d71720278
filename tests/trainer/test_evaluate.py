"""Ranks against a slow loop; ties and collapsed models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.evaluate import METRICS, TIE, metrics


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slow(images: np.ndarray, texts: np.ndarray, pairs: Pairs) -> dict[str, float]:
    links = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    found: dict[str, float] = {}
    for direction, table in (("i2t", scores), ("t2i", scores.T)):
        ranks = []
        for anchor in range(len(table)):
            own = [g for g in range(table.shape[1]) if ((anchor, g) if direction == "i2t" else (g, anchor)) in links]
            best = max(table[anchor, g] for g in own)
            ahead = sum(1 for g in range(table.shape[1]) if g not in own and table[anchor, g] >= best - TIE)
            ranks.append(ahead + 1)
        for cutoff in (1, 5, 10):
            found[f"{direction}_r{cutoff}"] = 100 * sum(rank <= cutoff for rank in ranks) / len(ranks)
        found[f"{direction}_median_rank"] = (
            sorted(ranks)[len(ranks) // 2]
            if len(ranks) % 2
            else float(np.mean(sorted(ranks)[len(ranks) // 2 - 1 : len(ranks) // 2 + 1]))
        )
        found[f"{direction}_mean_rank"] = sum(ranks) / len(ranks)
    found["rsum"] = sum(found[f"{d}_r{c}"] for d in ("i2t", "t2i") for c in (1, 5, 10))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_the_slow_loop(toys: SimpleNamespace, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    pairs = toys.pairs(600 if seed == 0 else 37, seed)
    images, texts = unit(rng, pairs.num_images, 6), unit(rng, pairs.num_texts, 6)
    texts[pairs.text_rows] += images[pairs.image_rows]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    if ties:
        images, texts = np.sign(images).astype(np.float32), np.sign(texts).astype(np.float32)
        images, texts = images / np.sqrt(6).astype(np.float32), texts / np.sqrt(6).astype(np.float32)
    found, expected = metrics(images, texts, pairs), slow(images, texts, pairs)
    assert tuple(found) == METRICS
    assert found == pytest.approx(expected)


def test_a_collapsed_model_scores_nothing(toys: SimpleNamespace) -> None:
    """All embeddings equal, up to rounding: every rank is the last one, not the first."""
    pairs = toys.pairs(50)
    rng = np.random.default_rng(0)
    point = unit(rng, 1, 256)
    images = (point + rng.normal(size=(pairs.num_images, 256)) * 1e-9).astype(np.float32)
    texts = (point + rng.normal(size=(pairs.num_texts, 256)) * 1e-9).astype(np.float32)
    found = metrics(images, texts, pairs)
    assert found["rsum"] == 0
    assert found["t2i_median_rank"] == 50


def test_a_perfect_model_scores_everything(toys: SimpleNamespace) -> None:
    pairs = Pairs.from_ids("abc", "xyzw", [("a", "x"), ("a", "y"), ("b", "z"), ("c", "w")])
    eye = np.eye(3, dtype=np.float32)
    found = metrics(eye, eye[[0, 0, 1, 2]], pairs)
    assert found["rsum"] == 600
    assert found["i2t_mean_rank"] == found["t2i_mean_rank"] == 1


def test_what_does_not_fit_is_refused(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(10)
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 10, 4), unit(rng, pairs.num_texts, 4)
    with pytest.raises(BadInput, match="9 rows for 10 ids"):
        metrics(images[:9], texts, pairs)
    with pytest.raises(BadInput, match="one model"):
        metrics(images[:, :3], texts, pairs)
    images[3, 0] = np.nan
    with pytest.raises(BadInput, match="row 3"):
        metrics(images, texts, pairs)
