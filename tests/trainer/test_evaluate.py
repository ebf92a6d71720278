"""Ranks against a slow loop; every kind of scores; ties, collapsed models and ensembles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from tests.trainer import ranking_oracle as oracle
from trainer import evaluate, models
from trainer.evaluate import (
    EXTENDED,
    METRICS,
    DotProducts,
    Matrix,
    Mean,
    Scores,
    extended_metrics,
    metrics,
    metrics_of,
    scores_of,
)
from trainer.judgements import Judgements
from trainer.text import Vocabulary


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judged(pairs: Pairs, seed: int = 0) -> tuple[Judgements, oracle.Links, dict[str, set[int]]]:
    """Added positives in unequal numbers, a refuted one, one image that keeps none, and queries nobody judged."""
    rng = np.random.default_rng(seed)
    own = oracle.links_of(pairs)
    more = {(int(rng.integers(pairs.num_images) ** 2 // pairs.num_images), int(t)) for t in rng.permutation(60)}
    gone = {next(iter(sorted(own)))} | {(image, text) for image, text in own if image == 4}
    more -= {(image, text) for image, text in more if image == 4} | gone
    queries = {"i2t": set(range(0, pairs.num_images, 2)) | {4}, "t2i": set(range(1, pairs.num_texts, 3))}
    found = Judgements.of(
        pairs, "toy", added=more, refuted=gone, judged_images=queries["i2t"], judged_texts=sorted(queries["t2i"])
    )
    return found, (own - gone) | more, queries


@pytest.mark.parametrize("values", [None, 5, 200])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_the_slow_loop(toys: SimpleNamespace, seed: int, values: int | None) -> None:
    pairs = toys.pairs(600 if (seed, values) == (0, 200) else 37, seed)  # several blocks
    scores = oracle.whole_scores(pairs.num_images, pairs.num_texts, seed, values)
    scores[pairs.image_rows, pairs.text_rows] += scores.max() // 3
    found = metrics_of(Matrix(scores), pairs)
    assert tuple(found) == METRICS
    assert found == pytest.approx(oracle.metrics(scores, oracle.links_of(pairs)))


@pytest.mark.parametrize("seed", range(2))
def test_embeddings_are_ranked_by_their_dot_products(toys: SimpleNamespace, seed: int) -> None:
    """Whole numbers again: their dot products are exact, and often equal."""
    rng = np.random.default_rng(seed)
    pairs = toys.pairs(60, seed)
    images, texts = (rng.integers(-3, 4, size=(rows, 6)) for rows in (pairs.num_images, pairs.num_texts))
    images[:, 0], texts[:, 0] = 1, 2
    scores = (images @ texts.T).astype(np.float32)
    expected = oracle.metrics(scores, oracle.links_of(pairs))
    for dtype in (np.float16, np.float32, np.float64):
        assert metrics(images.astype(dtype), texts.astype(dtype), pairs) == pytest.approx(expected)


@pytest.mark.parametrize("values", [None, 4, 60])
@pytest.mark.parametrize("seed", range(3))
def test_extended_metrics_are_the_slow_loop(toys: SimpleNamespace, seed: int, values: int | None) -> None:
    pairs = toys.pairs(40, seed)
    judgements, links, queries = judged(pairs, seed)
    scores = oracle.whole_scores(pairs.num_images, pairs.num_texts, seed, values)
    for image, text in links:
        scores[image, text] += scores.max() // 3
    found = extended_metrics(Matrix(scores), judgements)
    assert tuple(found) == EXTENDED
    assert found == pytest.approx(oracle.extended(scores, links, queries))
    counts = np.diff(judgements.positives("image")[1])
    assert len(set(counts.tolist())) > 3
    assert 4 not in judgements.positives("image")[0]


def test_a_ranking_by_hand() -> None:
    """One image, positives b, d, e of a..f: places 2, 4 and 6, since c is as good as d and f as good as e."""
    pairs = Pairs.from_ids("xy", "abcdef", [("x", t) for t in "bde"] + [("y", t) for t in "acf"])
    scores = np.array([[9, 8, 5, 5, 2, 2], [0, 1, 0, 1, 1, 0]], dtype=np.float32)
    anchors, offsets, positives = np.array([0]), np.array([0, 3]), np.array([1, 3, 4])
    assert evaluate.places(Matrix(scores), "i2t", anchors, offsets, positives).tolist() == [2, 4, 6]
    own = Judgements.of(pairs, "own", added=[], judged_images=[0])
    found = extended_metrics(Matrix(scores), own)
    assert found["i2t_map_at_r"] == pytest.approx(100 / 3 * (1 / 2))
    assert found["i2t_r_precision"] == pytest.approx(100 / 3)
    assert (found["i2t_extended_r1"], found["i2t_extended_r5"]) == (0, 100)


def test_blocks_do_not_matter(toys: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = toys.pairs(40)
    judgements = judged(pairs)[0]
    scores = oracle.whole_scores(pairs.num_images, pairs.num_texts, 0, 30)
    whole = metrics_of(Matrix(scores), pairs) | extended_metrics(Matrix(scores), judgements)
    for limit in (1, 300, 1000):
        monkeypatch.setattr(evaluate, "BLOCK_SCORES", limit)
        assert whole == metrics_of(Matrix(scores), pairs) | extended_metrics(Matrix(scores), judgements)


def test_a_collapsed_model_scores_nothing(toys: SimpleNamespace) -> None:
    """All embeddings equal, up to rounding: every rank is the last one, not the first."""
    pairs = toys.pairs(50)
    rng = np.random.default_rng(0)
    point = unit(rng, 1, 256)
    images = (point + rng.normal(size=(pairs.num_images, 256)) * 1e-9).astype(np.float32)
    texts = (point + rng.normal(size=(pairs.num_texts, 256)) * 1e-9).astype(np.float32)
    collapsed: list[Scores] = [DotProducts(images, texts), Matrix(images @ texts.T), Matrix(1000 * (images @ texts.T))]
    own = Judgements.of(pairs, "own", added=[])
    for scores in (*collapsed, Mean(collapsed[:2])):
        found = metrics_of(scores, pairs)
        assert found["rsum"] == 0
        assert found["t2i_median_rank"] == 50
        assert set(extended_metrics(scores, own).values()) == {0}


def test_a_perfect_model_scores_everything() -> None:
    pairs = Pairs.from_ids("abc", "xyzw", [("a", "x"), ("a", "y"), ("b", "z"), ("c", "w")])
    eye = np.eye(3, dtype=np.float32)
    found = metrics(eye, eye[[0, 0, 1, 2]], pairs)
    assert found["rsum"] == 600
    assert found["i2t_mean_rank"] == found["t2i_mean_rank"] == 1
    perfect = extended_metrics(DotProducts(eye, eye[[0, 0, 1, 2]]), Judgements.of(pairs, "own", added=[]))
    assert set(perfect.values()) == {100}


def test_a_factor_on_all_scores_changes_nothing(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(40)
    scores = oracle.whole_scores(pairs.num_images, pairs.num_texts, 0, 40) - 20
    expected = metrics_of(Matrix(scores), pairs)
    for factor in (1e-4, 1e4):
        assert metrics_of(Matrix((scores * factor).astype(np.float32)), pairs) == expected


def test_a_matrix_on_disk_or_of_other_floats_is_the_same(toys: SimpleNamespace, tmp_path: Path) -> None:
    pairs = toys.pairs(40)
    scores = oracle.whole_scores(pairs.num_images, pairs.num_texts, 0, 40)
    np.save(tmp_path / "scores.npy", scores)
    mapped = Matrix(np.load(tmp_path / "scores.npy", mmap_mode="r"))
    for other in (mapped, Matrix(scores.astype(np.float16)), Matrix(scores.astype(np.float64))):
        assert metrics_of(other, pairs) == metrics_of(Matrix(scores), pairs)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), scores)


def test_an_ensemble_is_the_mean_of_the_matrices(toys: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    pairs = toys.pairs(60)
    models = [(unit(rng, pairs.num_images, dim), unit(rng, pairs.num_texts, dim)) for dim in (5, 9)]
    for images, texts in models:
        texts[pairs.text_rows, :5] += images[pairs.image_rows, :5]
    third = rng.normal(size=(pairs.num_images, pairs.num_texts))
    members: list[Scores] = [*(DotProducts(images, texts) for images, texts in models), Matrix(third)]
    mean = sum([images.astype(float) @ texts.T.astype(float) for images, texts in models], third) / 3
    together = metrics_of(Mean(members), pairs)
    assert together == metrics_of(Matrix(mean), pairs)
    assert all(together != metrics_of(member, pairs) for member in members)
    assert metrics_of(Mean([members[0], members[0]]), pairs) == metrics_of(members[0], pairs)


def test_a_cross_attention_model_scores_every_pair(toys: SimpleNamespace) -> None:
    """Not the pooled vectors that it is searched with."""
    regions = np.random.default_rng(0).normal(size=(7, 4, 5)).astype(np.float32)
    dataset = replace(toys.dataset(7), images=regions)
    pairs = dataset.pairs
    config = models.configure("scan", {"dim": 16, "word_dim": 6})
    model = models.build(config, Vocabulary.build(pairs.texts, 1), (4, 5)).eval()
    assert isinstance(model, models.PairScorer)
    expected = np.empty((7, pairs.num_texts), dtype=np.float32)
    with torch.inference_mode():
        for image in range(7):
            for text in range(pairs.num_texts):
                tokens, lengths = (torch.from_numpy(found) for found in model.tokenizer.encode([pairs.texts[text]]))
                one = model.image_elements(torch.from_numpy(regions[[image]])), model.text_elements(tokens, lengths)
                expected[image, text] = model.pair_scores(*one).item()
    scores = scores_of(model, dataset)
    assert scores.shape == expected.shape
    np.testing.assert_allclose(scores.block("i2t", np.arange(7)), expected, atol=1e-5)


def test_a_smaller_gallery_is_the_smaller_matrix(toys: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 9, 4), unit(rng, 14, 4)
    matrix = images @ texts.T
    image_rows, text_rows = np.array([1, 4, 5]), np.array([0, 2, 3, 13])
    kinds: list[Scores] = [DotProducts(images, texts), Matrix(matrix)]
    kinds.append(Mean([*kinds, kinds[0]]))
    for scores in kinds:
        small = scores.within(image_rows, text_rows)
        assert (scores.shape, small.shape) == ((9, 14), (3, 4))
        expected = matrix[np.ix_(image_rows, text_rows)]
        np.testing.assert_allclose(small.block("i2t", np.array([2, 0])), expected[[2, 0]], atol=1e-6)
        np.testing.assert_allclose(small.block("t2i", np.array([3, 1])), expected.T[[3, 1]], atol=1e-6)


def test_what_does_not_fit_is_refused(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(10)
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 10, 4), unit(rng, pairs.num_texts, 4)
    with pytest.raises(BadInput, match="scores of 9 images, but toy has 10 image ids"):
        metrics(images[:9], texts, pairs)
    with pytest.raises(BadInput, match=f"has {pairs.num_texts} text ids"):
        metrics(images, texts[1:], pairs)
    with pytest.raises(BadInput, match="one model"):
        metrics(images[:, :3], texts, pairs)
    images[3, 0] = np.nan
    with pytest.raises(BadInput, match="image embeddings: row 3"):
        metrics(images, texts, pairs)


def test_scores_that_are_none_are_refused() -> None:
    scores = np.zeros((700, 3), dtype=np.float32)
    for wrong in (scores[0], scores.astype(int), scores[:0], np.zeros((2, 2), dtype=object)):
        with pytest.raises(BadInput, match="must be \\(images, texts\\) floats"):
            Matrix(wrong)
    for bad in (np.nan, np.inf, -np.inf):
        scores[650, 2] = bad
        with pytest.raises(BadInput, match="image row 650 with text row 2"):
            Matrix(scores)
    with pytest.raises(BadInput, match="finite float32"), np.errstate(over="ignore"):
        Matrix(np.full((2, 2), 1e300))
    with pytest.raises(BadInput, match="at least one member"):
        Mean([])
    with pytest.raises(BadInput, match="same images and texts"):
        Mean([Matrix(np.zeros((2, 3), dtype=np.float32)), Matrix(np.zeros((3, 3), dtype=np.float32))])
