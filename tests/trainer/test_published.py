"""The notebooks' arithmetic: both slips on batches made by hand, and the arithmetic again as loops, on any batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from tests.trainer.losses_batches import Step, image_step, pair_step
from tests.trainer.test_analyze import HAND, counted, hand
from trainer import losses
from trainer.published import published
from trainer.similarities import Similarities

pytestmark = pytest.mark.usefixtures("one_thread")

FIGURES = ("queries", "count", "none", "share", "per_query")
Figures = dict[str, float]


def of_counts(counts: list[float]) -> Figures:
    """Mean over the queries that have any, as the notebook takes it for triplets."""
    none = sum(count == 0 for count in counts)
    found = {"queries": len(counts), "count": sum(counts), "none": none, "share": sum(counts) / len(counts)}
    return found | {"per_query": sum(counts) / (len(counts) - none) if none < len(counts) else 0.0}


def triplet_loops(scores: np.ndarray, margin: float, hardest: bool) -> dict[str, Figures]:
    size = len(scores)
    i2t, t2i = np.zeros((size, size)), np.zeros((size, size))  # both images x texts
    for image in range(size):
        for text in range(size):
            if image != text:
                i2t[image, text] = max(margin + scores[image, text] - scores[image, image], 0)
                t2i[image, text] = max(margin + scores[image, text] - scores[text, text], 0)
    if hardest:
        columns = [float(t2i[:, text].max() > 0) for text in range(size)]
        return {"i2t": of_counts([float(row.max() > 0) for row in i2t]), "t2i": of_counts(columns)}
    # The slip: rows of both, though a text's hinges are a column.
    return {
        name: of_counts([float((row > 0).sum()) for row in hinges]) for name, hinges in (("i2t", i2t), ("t2i", t2i))
    }


def ntxent_loops(scores: np.ndarray, tau: float) -> dict[str, Figures]:
    found = {}
    for direction, lines in (("i2t", scores), ("t2i", scores.T)):
        counts, heard, own = [], [], []
        for query, line in enumerate(lines):
            powers = [math.exp((score - line.max()) / tau) for score in line]
            shares = [power / sum(powers) for power in powers]
            above = [share for other, share in enumerate(shares) if other != query and share > 0.01]
            counts.append(float(len(above)))
            heard.append(sum(above))
            own.append(shares[query])
        size = len(scores)
        figures = of_counts(counts) | {"per_query": sum(counts) / size}  # over all queries
        found[direction] = figures | {"weight": sum(heard) / size, "positive": 1 - sum(own) / size}
    return found


def smoothap_loops(scores: np.ndarray, captions: list[int], tau: float) -> dict[str, Figures]:
    """`scores` (images, texts), the texts in the order of their images; `captions` of each image."""
    found = {}
    for direction, lines in (("i2t", scores), ("t2i", scores.T)):
        total, none = 0.0, 0
        for query, line in enumerate(lines):
            # The slip: of a text query too, the rows of an image query. Beyond the matrix there is nothing.
            rows = range(sum(captions[:query]), sum(captions[: query + 1])) if query < len(captions) else range(0)
            counted = 0
            for row in rows:
                if row >= len(line):
                    continue
                above = {
                    other: 1 / (1 + math.exp(-min(max((line[other] - line[row]) / tau, -50), 50)))
                    for other in range(len(line))
                    if other != row
                }
                rank = 1 + sum(above.values())
                counted += sum(g * (1 - g) / rank**2 > 0.01 for g in above.values())
            total += counted / (len(rows) if direction == "i2t" else 1)
            none += counted == 0
        learning = len(lines) - none
        found[direction] = {
            "queries": len(lines), "count": total, "none": none, "share": total / len(lines),
            "per_query": total / learning if learning else 0.0,
        }  # fmt: skip
    return found


def same(found: dict[str, Figures], expected: dict[str, Figures]) -> None:
    assert found.keys() == expected.keys()
    for direction, figures in expected.items():
        assert found[direction] == pytest.approx(figures, abs=1e-9)


def test_the_first_slip_by_hand() -> None:
    """Of `HAND`, hinges of texts: t0: i3, t1: i0, t2: i0 and i3, t3: none. By rows: i0 two, i3 two, i1 and i2 none."""
    config = losses.configure("triplet", {"max_violation": False})
    right = counted(config, hand(), 0.0)
    wrong = published(config, hand())
    assert right["t2i", "online", 0.0]["count"] == wrong["t2i"]["count"] == 4
    assert (right["t2i", "online", 0.0]["none"], wrong["t2i"]["none"]) == (1, 2)
    assert (right["t2i", "online", 0.0]["per_query"], wrong["t2i"]["per_query"]) == (pytest.approx(4 / 3), 2.0)
    assert wrong["i2t"] == {key: right["i2t", "online", 0.0][key] for key in FIGURES}  # 2, 0, 0, 3: no slip
    same(wrong, triplet_loops(np.array(HAND), 0.2, hardest=False))


def test_the_second_slip_by_hand() -> None:
    """Two images with two captions: texts 0 and 1 tie with the other image almost, but only text 0 is looked at."""
    scores = torch.tensor([[0.900, 0.500, 0.1, 0.3], [0.895, 0.505, 0.9, 0.8]], dtype=torch.double)
    valid = torch.tensor([[False, False, True, True], [True, True, False, False]])
    step = Similarities(scores, valid, None, torch.tensor([0, 0, 1, 1]), torch.arange(4))
    config = losses.configure("smoothap")
    right = counted(config, step, 0.01)["t2i", "online", 0.01]
    wrong = published(config, step)["t2i"]
    # A tie within half a temperature: 0.24 / 1.38^2 = 0.12 where the positive leads, 0.24 / 1.62^2 = 0.09 where not.
    assert [right[key] for key in FIGURES] == [4, 2, 2, 0.5, 1.0]  # t0: i1, t1: i0
    # Read as text 0's positives are rows 0 and 1: both images, i0 against i1 and i1 against i0. Text 1 reads rows 2, 3.
    assert [wrong[key] for key in FIGURES] == [4, 2, 3, 0.5, 2.0]
    same(published(config, step), smoothap_loops(scores.numpy(), [2, 2], 0.01))


@pytest.mark.parametrize("hardest", [False, True])
@pytest.mark.parametrize("margin", [0.2, 0.7])
def test_triplets_are_the_loops(hardest: bool, margin: float) -> None:
    config = losses.configure("triplet", {"max_violation": hardest, "margin": margin})
    all_but_diagonal = config.model_copy(update={"mask": "diagonal"})
    differs = 0
    for seed in range(8):
        step = pair_step(seed).similarities(offline=False)
        found = published(config, step)
        same(found, triplet_loops(step.scores.detach().numpy(), margin, hardest))
        right = counted(all_but_diagonal, step, 0.0)
        for direction in ("i2t", "t2i") if hardest else ("i2t",):
            assert found[direction] == pytest.approx({key: right[direction, "online", 0.0][key] for key in FIGURES})
        assert found["t2i"]["count"] == right["t2i", "online", 0.0]["count"]
        differs += found["t2i"]["none"] != right["t2i", "online", 0.0]["none"]
    assert (differs == 0) == hardest


@pytest.mark.parametrize("tau", [0.1, 0.3])
def test_ntxent_is_the_loops_and_the_true_gradient(tau: float) -> None:
    config = losses.configure("ntxent", {"tau": tau})
    for seed in range(8):
        step = pair_step(seed).similarities(offline=False)
        found = published(config, step)
        same(found, ntxent_loops(step.scores.detach().numpy(), tau))
        right = counted(config.model_copy(update={"mask": "diagonal"}), step, 0.01)
        for direction in ("i2t", "t2i"):
            one = right[direction, "online", 0.01]
            for key in ("queries", "count", "none", "share", "weight", "positive"):
                assert found[direction][key] == pytest.approx(one[key], abs=1e-9)
            assert found[direction]["per_query"] == pytest.approx(one["share"])


def own_captions(seed: int, captions: list[int], *, shuffled: bool) -> tuple[Step, np.ndarray]:
    """Every image with captions of its own, and the scores with the texts in the order of their images."""
    random = torch.Generator().manual_seed(seed)
    texts = sum(captions)
    order = torch.randperm(texts, generator=random) if shuffled else torch.arange(texts)
    owner = torch.repeat_interleave(torch.arange(len(captions)), torch.tensor(captions))
    pairs = [(int(image), int(column)) for image, column in zip(owner, order, strict=True)]
    scores = (torch.rand(len(captions), texts, generator=random) * 0.2).double()
    step = replace(image_step(seed), scores=scores, pairs=pairs, belong=frozenset(pairs))
    return step, scores[:, sorted_by_owner(pairs)].numpy()


def sorted_by_owner(pairs: list[tuple[int, int]]) -> list[int]:
    return [column for _, column in sorted(pairs)]


@pytest.mark.parametrize("captions", [[5, 5, 5], [2] * 6, [1, 3, 2, 4], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("tau", [0.01, 0.05])
def test_smoothap_is_the_loops(captions: list[int], tau: float) -> None:
    config = losses.configure("smoothap", {"tau": tau})
    counts = 0.0
    for seed in range(6):
        step, ordered = own_captions(seed, captions, shuffled=seed % 2 == 1)
        found = published(config, step.similarities(offline=False))
        same(found, smoothap_loops(ordered, captions, tau))
        counts += found["t2i"]["count"]
        if max(captions) == 1:  # one caption each: the slice is right, and both directions are alike
            assert found["t2i"] == pytest.approx(smoothap_loops(ordered.T, captions, tau)["i2t"])
        else:
            # Texts beyond the last image, and those whose rows lie outside the matrix, count nothing.
            beyond = sum(sum(captions[:query]) >= len(captions) for query in range(len(captions)))
            assert found["t2i"]["none"] >= sum(captions) - len(captions) + beyond
    assert counts > 0


def test_duplicates_count_as_the_notebooks_count_them() -> None:
    """All but the diagonal is a negative there, whatever the loss's own mask."""
    scores = torch.full((3, 3), -0.9, dtype=torch.double).fill_diagonal_(0.9)
    scores[0, 1] = scores[1, 0] = 0.9
    valid = ~torch.eye(3, dtype=torch.bool)
    valid[0, 1] = valid[1, 0] = False
    for name in ("triplet", "ntxent"):
        found = published(losses.configure(name), Similarities(scores, valid))
        assert [found[d]["count"] for d in ("i2t", "t2i")] == [2, 2]


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("goal", {}, "the notebooks count triplet, ntxent, smoothap, not goal"),
        ("aoq", {}, "not aoq; leave --as-published out"),
        ("ntxent", {"offline": "softmax"}, "in-batch negatives alone; leave offline=... or --as-published out"),
    ],
)
def test_what_they_do_not_count_is_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        published(losses.configure(name, settings), hand(offline=True))


def test_smoothap_needs_captions_of_one_image() -> None:
    step = replace(image_step(1), belong=frozenset({(i, j) for i in range(4) for j in (i, i + 1)}))
    with pytest.raises(BadInput, match="a caption belongs to two images of a batch"):
        published(losses.configure("smoothap"), step.similarities(offline=False))
