"""Folds against a slow loop that builds each of them by hand; what cannot be folded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from tests.trainer import ranking_oracle as oracle
from trainer.evaluate import EXTENDED, METRICS, DotProducts, Matrix, metrics_of
from trainer.judgements import Judgements
from trainer.protocols import folds, measure


def by_hand(
    scores: np.ndarray, links: set[tuple[int, int]], fold: range
) -> tuple[np.ndarray, list[int], set[tuple[int, int]]]:
    """The scores, texts and links of the images in `fold`, renumbered."""
    inside = {(image, text) for image, text in links if image in fold}
    texts = sorted({text for _, text in inside})
    renumbered = {(image - fold.start, texts.index(text)) for image, text in inside}
    return scores[fold.start : fold.stop][:, texts], texts, renumbered


@pytest.mark.parametrize("values", [None, 20])
@pytest.mark.parametrize(("num_images", "size"), [(36, 12), (36, 18), (8, 2)])
def test_folds_are_the_mean_of_galleries_made_by_hand(
    toys: SimpleNamespace, num_images: int, size: int, values: int | None
) -> None:
    pairs = toys.pairs(num_images)
    links = oracle.links_of(pairs)
    scores = oracle.whole_scores(pairs.num_images, pairs.num_texts, 1, values)
    scores[pairs.image_rows, pairs.text_rows] += scores.max() // 4
    rng = np.random.default_rng(2)
    added = {(int(rng.integers(num_images)), int(rng.integers(pairs.num_texts))) for _ in range(3 * num_images)}
    queries = {"i2t": set(range(0, num_images, 2)), "t2i": set(range(pairs.num_texts))}
    judgements = Judgements.of(pairs, "toy", added=added, judged_images=queries["i2t"])
    expected: list[dict[str, float]] = []
    shared = 0
    for start in range(0, num_images, size):
        fold = range(start, start + size)
        part, texts, own = by_hand(scores, links, fold)
        more = {(image - start, texts.index(text)) for image, text in added if image in fold and text in texts}
        judged = {"i2t": {image - start for image in queries["i2t"] if image in fold}, "t2i": set(range(len(texts)))}
        expected.append(oracle.metrics(part, own) | oracle.extended(part, own | more, judged))
        shared += len(texts)
    assert shared > pairs.num_texts  # some text has images in several folds
    found = measure(Matrix(scores), pairs, judgements, size)
    assert tuple(found) == METRICS + EXTENDED
    for name in found:
        assert found[name] == pytest.approx(np.mean([one[name] for one in expected])), name
    assert found["rsum"] == pytest.approx(sum(found[f"{d}_r{c}"] for d in ("i2t", "t2i") for c in (1, 5, 10)))


def test_folds_of_embeddings_are_embeddings_of_folds(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(30)
    rng = np.random.default_rng(0)
    images, texts = (
        rng.normal(size=(30, 5)).astype(np.float32),
        rng.normal(size=(pairs.num_texts, 5)).astype(np.float32),
    )
    found = [
        metrics_of(DotProducts(images[fold.image_rows], texts[fold.text_rows]), fold.pairs) for fold in folds(pairs, 10)
    ]
    measured = measure(DotProducts(images, texts), pairs, fold_images=10)
    assert measured == {name: pytest.approx(np.mean([one[name] for one in found])) for name in METRICS}
    assert measured["rsum"] > measure(DotProducts(images, texts), pairs)["rsum"]  # a smaller gallery is easier


def test_a_fold_keeps_ids_and_restricts_positives() -> None:
    pairs = Pairs.from_ids("abcd", "uvwx", [("a", "u"), ("b", "u"), ("b", "v"), ("c", "u"), ("c", "w"), ("d", "x")])
    first, second = folds(pairs, 2)
    assert (first.pairs.image_ids, first.pairs.text_ids) == (("a", "b"), ("u", "v"))
    assert (second.pairs.image_ids, second.pairs.text_ids) == (("c", "d"), ("u", "w", "x"))
    assert oracle.links_of(second.pairs) == {(0, 0), (0, 1), (1, 2)}
    assert second.text_rows.tolist() == [0, 2, 3]


def test_what_cannot_be_folded_is_refused(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(30)
    scores = Matrix(oracle.whole_scores(pairs.num_images, pairs.num_texts, 0))
    for size in (7, 31, 1000, 0):
        with pytest.raises(BadInput, match=f"30 images are not a whole number of folds of {size}"):
            measure(scores, pairs, fold_images=size)
    with pytest.raises(BadInput, match=r"30 images are one fold.*test=testall"):
        measure(scores, pairs, fold_images=30)
    with pytest.raises(BadInput, match="score this split"):
        measure(Matrix(scores.array[:, 1:]), pairs, fold_images=10)
    alone = Judgements.of(pairs, "toy", added=[], judged_images=[0, 3])
    measure(scores, pairs, alone)
    with pytest.raises(BadInput, match=r"no image was judged that has a positive; .* full gallery"):
        measure(scores, pairs, alone, 10)
