"""COCOS: counts are of the true gradient by the query's embedding, on any batch; then of a data set and checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from tests.trainer.losses_batches import LAYOUTS, uniform
from tests.trainer.test_analyze import counted
from trainer import losses, models, sampling
from trainer.analyze import COLUMNS, Threshold, analyze, contributions, steps_of, thresholds_for
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset
from trainer.encode import encode_rows
from trainer.published import published
from trainer.similarities import Offline, Similarities
from trainer.training import FitConfig, fit

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("triplet", {"max_violation": False}),
    ("triplet", {"offline": "OffQuin", "offline_weight": 0.5, "margin_offline": 0.3, "reduction": "mean"}),
    ("aoq", {"form": "OffTri"}),
    ("aoq", {"form": "AdapOffQuin", "margin_offline": 0.2}),
    ("ntxent", {}),
    ("ntxent", {"offline": "softmax", "correction": "stratified"}),
    ("ntxent", {"offline": "OffTri", "reduction": "sum"}),
    ("smoothap", {"tau": 0.1}),
    ("smoothap", {"tau": 0.1, "reduction": "sum", "offline": "OffTri"}),
    ("goal", {"triplet": "cir", "pair": "lin"}),
    ("goal", {"triplet": "nca", "pair": "lin_ms", "offline": "goal"}),
    ("goal", {"triplet": "con", "pair": "sig_ms_bounded", "offline": "goal_only", "reduction": "mean"}),
    ("sct", {"offline": "OffTri"}),
    ("selhn", {"epsilon": 0.3}),
]
THRESHOLDS = (0.0, 0.013, 0.11, 0.45)  # no weight is exactly one of them
every_loss = pytest.mark.parametrize(("name", "settings"), CONFIGS, ids=lambda v: v if isinstance(v, str) else "")


@every_loss
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_make_the_gradient_of_the_query(name: str, settings: dict[str, Any], layout: str) -> None:
    """dL/dq = sum_j w_j c_j: candidates are independent vectors, so that w can be solved for and counted apart."""
    config = losses.configure(name, settings)
    for seed in range(4):
        made = LAYOUTS[layout](seed)
        random = torch.Generator().manual_seed(seed)
        images, texts = made.scores.shape
        # (anchors, candidates, the pairs' offline candidates), image to text and text to image
        sizes = images, texts, len(made.pairs), len(made.pairs)
        x, y, t, v = (normalize(uniform(random, rows, 24), dim=1).requires_grad_() for rows in sizes)
        rows, columns = (torch.tensor(places) for places in zip(*made.pairs, strict=True))
        flags = {name: torch.tensor(values) for name, values in made.flags.items()}
        shares = {f"share_{name}": torch.tensor(values) for name, values in made.shares.items()}
        apart = {"negatives": (v * t).sum(1).detach(), "partners": torch.zeros(len(rows), dtype=torch.double)}
        offline = Offline((x[rows] * t).sum(1), (v * y[columns]).sum(1), **apart, **flags, **shares)
        step = made.similarities()
        step = Similarities(x @ y.T, step.valid, offline if config.needs_tables else None, step.images, step.texts)
        parts = losses.parts(config, step)
        found = counted(config, step, *THRESHOLDS)
        for direction, side, query, candidates, extra, anchors, own in (
            ("i2t", step.sides("valid")[0], x, y, t, rows, flags["has_text"]),
            ("t2i", step.sides("valid")[1], y, x, v, columns, flags["has_image"]),
        ):
            # Offline hinges count in a hinge's unit on top of any loss.
            units = {"online": config.unit(side), "offline": losses.Loss.unit(config, side)}
            split = {part_name: part_name.rpartition("_")[::2] for part_name in parts}
            toward = [parts[n] / units[kind] for n, (kind, to) in split.items() if to == side.searched]
            (gradient,) = torch.autograd.grad(torch.stack(toward).sum(), query, retain_graph=True)
            online = torch.zeros(len(query), len(candidates), dtype=torch.double)
            away = torch.zeros(len(rows), 1, dtype=torch.double)
            for number, slope in enumerate(gradient):
                mine = (anchors == number).nonzero().flatten()
                spanned = torch.cat([candidates, extra[mine]]).detach()
                weights = torch.linalg.lstsq(spanned.T, slope[:, None]).solution[:, 0]
                assert (spanned.T @ weights - slope).abs().max() < 1e-9  # nothing but the candidates
                online[number], away[mine, 0] = weights[: len(candidates)], weights[len(candidates) :]
            assert away[~own].abs().sum() < 1e-9
            positive = online[rows, columns] if direction == "i2t" else online[columns, rows]
            for threshold in THRESHOLDS:
                agree(found[direction, "online", threshold], online * side.negative, positive, threshold)
                assert ((direction, "offline", threshold) in found) == config.needs_tables
                if config.needs_tables:
                    agree(found[direction, "offline", threshold], away, positive, threshold)


def agree(found: dict[str, float], weights: Tensor, positive: Tensor, above: float) -> None:
    weights = weights.abs()
    counts = weights > max(above, 1e-9)  # what was solved for has no exact zero
    none = int((~counts.any(1)).sum())
    assert (found["queries"], found["count"], found["none"]) == (len(weights), int(counts.sum()), none)
    assert found["share"] == pytest.approx(found["count"] / len(weights))
    assert found["per_query"] == pytest.approx(found["count"] / max(len(weights) - none, 1))
    assert found["weight"] == pytest.approx(float((weights * counts).sum()) / len(weights), abs=1e-8)
    assert found["positive"] == pytest.approx(float(positive.abs().mean()), abs=1e-8)


def test_any_name_that_says_its_direction_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `trainer.losses` promises somebody who adds a loss: parts that end in _text and _image, and others."""
    step, config = LAYOUTS["pairs"](1).similarities(offline=False), losses.configure("ntxent")
    expected = counted(config, step, 0.01)
    named = losses.parts(config, step)
    assert set(named) == {"online_text", "online_image"}

    def renamed(config: Any, step: Similarities) -> dict[str, Tensor]:
        text, image = plain(config, step).values()
        return {"near_text": 0.25 * text, "far_text": 0.75 * text, "softmax_image": image, "regular": step.wide.sum()}

    plain = losses.parts
    monkeypatch.setattr(losses, "parts", renamed)
    for key, figures in counted(config, step, 0.01).items():
        assert figures == pytest.approx(expected[key])


@pytest.mark.parametrize(
    ("name", "settings"), [("triplet", {}), ("triplet", {"max_violation": False}), *CONFIGS[2:7], *CONFIGS[9:]]
)
def test_an_image_twice_in_a_batch_is_no_negative_of_itself(name: str, settings: dict[str, Any]) -> None:
    """Pairs 0 and 1 are two captions of one image. All else is far: nothing counts, but as published these would."""
    scores = torch.full((4, 4), -0.9, dtype=torch.double).fill_diagonal_(0.9)
    scores[0, 1] = scores[1, 0] = 0.9
    valid = ~torch.eye(4, dtype=torch.bool)
    valid[0, 1] = valid[1, 0] = False
    far, never = torch.full((4,), -0.9, dtype=torch.double), torch.zeros(4, dtype=torch.bool)
    shares = torch.full((4,), 0.1)
    step = Similarities(scores, valid, Offline(far, far, far, far, ~never, ~never, never, never, shares, shares))
    for direction in ("i2t", "t2i"):
        # GOAL with T = 1 pushes however far a negative is; P- then says how much, 0.9 as the linear one has |S_n|.
        above = 0.91 if settings.get("triplet") == "con" or settings.get("pair") == "lin" else 0.15
        found = counted(losses.configure(name, settings), step, 0.0, above)
        assert found[direction, "online", 0.0]["count"] <= 10  # of 12 off the diagonal
        assert found[direction, "online", above]["count"] == 0
        if settings.get("offline") != "goal_only":
            published = counted(losses.configure(name, {**settings, "mask": "diagonal"}), step, 0.15)
            assert published[direction, "online", 0.15]["count"] >= 2


def test_a_text_of_two_images_is_a_negative_of_neither() -> None:
    """SmoothAP's batches: text 1 is listed with image 0 alone, and belongs to image 1 as well."""
    scores = torch.tensor([[0.9, 0.9, 0.0], [0.0, 0.9, 0.9]], dtype=torch.double)
    valid = torch.tensor([[False, False, True], [True, False, False]])
    step = Similarities(scores, valid, None, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]))
    found = counted(losses.configure("smoothap"), step, 0.01)
    assert [found[d, "online", 0.01]["count"] for d in ("i2t", "t2i")] == [0, 0]
    found = counted(losses.configure("smoothap", {"mask": "diagonal"}), step, 0.01)
    assert [found[d, "online", 0.01]["count"] for d in ("i2t", "t2i")] == [1, 1]  # (i1, t1), tied with what is theirs


@pytest.fixture(scope="module")
def trained(toys: SimpleNamespace) -> tuple[Dataset, Checkpoint]:
    dataset = toys.dataset()
    model = models.configure("vsepp", {"dim": 16, "word_dim": 8})
    config = FitConfig(epochs=3, batch_size=16, lr=5e-3, warmup_epochs=1, threads=1)
    return dataset, fit(dataset, model, losses.configure("triplet"), config)


def test_a_data_set_is_counted_batch_by_batch(trained: tuple[Dataset, Checkpoint], toys: SimpleNamespace) -> None:
    """Every hinge again, from embeddings, batches and draws; mean and standard deviation over the full batches."""
    dataset, checkpoint = trained
    pairs, model, tables = dataset.pairs, checkpoint.model(), toys.tables(dataset.pairs)
    config = losses.configure("triplet", {"max_violation": False, "offline": "OffTri", "margin_offline": 0.1})
    x = encode_rows(model, dataset, "image", np.arange(pairs.num_images))
    y = encode_rows(model, dataset, "text", np.arange(pairs.num_texts))
    draw = sampling.draw(
        pairs, tables, pool_text=300, pool_image=60, ranks="tied", seed=5, epoch=checkpoint.epoch, partners=False
    )
    counts: dict[tuple[str, str], list[list[int]]] = {}
    for batch in sampling.batches(pairs, 16, 5, checkpoint.epoch):
        images, texts = pairs.image_rows[batch], pairs.text_rows[batch]
        belong = pairs.belong(images, texts)
        here: dict[tuple[str, str], list[int]] = {}
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            p = x[image] @ y[text]
            toward_texts = [x[image] @ y[other] > p - 0.2 and not belong[i, j] for j, other in enumerate(texts)]
            toward_images = [x[other] @ y[text] > p - 0.2 and not belong[j, i] for j, other in enumerate(images)]
            far_text, far_image = draw.text[batch[i]], draw.image[batch[i]]
            here.setdefault(("i2t", "online"), []).append(sum(toward_texts))
            here.setdefault(("t2i", "online"), []).append(sum(toward_images))
            here.setdefault(("i2t", "offline"), []).append(int(far_text >= 0 and x[image] @ y[far_text] > p - 0.1))
            here.setdefault(("t2i", "offline"), []).append(int(far_image >= 0 and x[far_image] @ y[text] > p - 0.1))
        for key, values in here.items():
            counts.setdefault(key, []).append(values)
    rows = analyze(
        dataset, checkpoint, config, tables=tables, batch_size=16, thresholds=[Threshold(0.0)], seed=5, label="all"
    )
    assert [(row["direction"], row["negatives"]) for row in rows] == [
        ("i2t", "online"), ("i2t", "offline"), ("t2i", "online"), ("t2i", "offline"),
    ]  # fmt: skip
    for row in rows:
        per_batch = np.array(counts[row["direction"], row["negatives"]])
        assert len(per_batch) == pairs.num_pairs // 16 == row["batches"]
        none = (per_batch == 0).sum(1)
        figures = {"count": per_batch.sum(1), "none": none, "share": per_batch.mean(1)}
        figures |= {"per_query": per_batch.sum(1) / (16 - none), "weight": per_batch.mean(1)}
        for figure, values in figures.items():
            assert row[figure] == pytest.approx(values.mean())
            assert row[f"{figure}_std"] == pytest.approx(values.std())
        assert tuple(row) == COLUMNS
        assert (row["label"], row["loss"], row["queries"], row["of_chance"]) == ("all", "triplet", 16, None)


@every_loss
def test_the_sweep(
    trained: tuple[Dataset, Checkpoint], toys: SimpleNamespace, name: str, settings: dict[str, Any]
) -> None:
    dataset, checkpoint = trained
    config = losses.configure(name, settings)
    tables = toys.tables(dataset.pairs) if config.needs_tables else None
    rows, again = (analyze(dataset, checkpoint, config, tables=tables, batch_size=8, max_batches=2) for _ in range(2))
    assert repr(rows) == repr(again)
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        assert tuple(row) == COLUMNS
        assert row["batches"] == 2
        kinds.setdefault((row["direction"], row["negatives"]), []).append(row)
    extra = {("i2t", "offline"), ("t2i", "offline")} if config.needs_tables else set()
    if config.needs_partners:
        extra |= {("both", "c_1"), ("both", "c_2")}
    assert set(kinds) == {("i2t", "online"), ("t2i", "online")} | extra
    for found in kinds.values():
        chance = {row["of_chance"]: row["threshold"] for row in found if row["of_chance"] is not None}
        assert chance == {0.5: 0.0625, 1.0: 0.125, 2.0: 0.25, 5.0: 0.625}
        assert [row["threshold"] for row in found if row["of_chance"] is None] == [
            0,
            0.001,
            0.003,
            0.01,
            0.03,
            0.1,
            0.3,
        ]
        found.sort(key=lambda row: row["threshold"])
        for lower, higher in itertools.pairwise(found):
            assert lower["count"] >= higher["count"]
            assert lower["none"] <= higher["none"]
            assert lower["weight"] >= higher["weight"]
            assert np.array_equal(lower["positive"], higher["positive"], equal_nan=True)


def test_a_threshold_named_twice_is_one(trained: tuple[Dataset, Checkpoint]) -> None:
    once, twice = (
        analyze(*trained, losses.configure("ntxent"), batch_size=16, thresholds=[Threshold(0.1)] * times)
        for times in (1, 2)
    )
    assert once == twice
    assert len(once) == 2


def test_what_cannot_be_counted_gets_a_sentence(trained: tuple[Dataset, Checkpoint], toys: SimpleNamespace) -> None:
    tables = toys.tables(trained[0].pairs)
    wrong: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("triplet", {}, {"batch_size": 500}, "pairs do not fill one batch of 500"),
        ("smoothap", {}, {"batch_size": 31}, "30 images do not fill one batch of 31"),
        ("aoq", {}, {}, "the loss aoq uses offline negatives, but no tables were given"),
        ("ntxent", {"offline": "softmax"}, {}, "the loss ntxent uses offline negatives"),
        ("goal", {}, {"as_published": True}, "not goal; leave --as-published out"),
        ("aoq", {}, {"as_published": True, "tables": tables}, "not aoq; leave --as-published out"),
        ("triplet", {"offline": "OffTri"}, {"as_published": True, "tables": tables}, "in-batch negatives alone"),
        ("smoothap", {}, {"as_published": True}, "a caption belongs to two images"),
    ]
    for name, settings, given, sentence in wrong:
        with pytest.raises(BadInput, match=sentence):
            analyze(*trained, losses.configure(name, settings), **{"batch_size": 16, **given})


def test_stopping_early_leaves_gradients_on(trained: tuple[Dataset, Checkpoint]) -> None:
    steps: Iterator[Similarities] = steps_of(*trained, losses.configure("triplet"), None, 16)
    step = next(steps)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        next(contributions(losses.configure("triplet"), step, thresholds_for(16)))
        assert not torch.is_grad_enabled()
    assert not step.scores.requires_grad


def test_as_published_has_its_own_thresholds(trained: tuple[Dataset, Checkpoint]) -> None:
    for name, settings, above in (("triplet", {"max_violation": False}, 0.0), ("ntxent", {}, 0.01)):
        config = losses.configure(name, settings)
        rows = analyze(*trained, config, batch_size=16, as_published=True)
        steps = list(steps_of(*trained, config, None, 16))
        assert [tuple(row) for row in rows] == [COLUMNS] * 2
        for row, direction in zip(rows, ("i2t", "t2i"), strict=True):
            assert (row["direction"], row["negatives"], row["threshold"]) == (direction, "online", above)
            counts = [published(config, step)[direction]["count"] for step in steps]
            assert (row["count"], row["count_std"]) == (pytest.approx(np.mean(counts)), pytest.approx(np.std(counts)))
            assert row["batches"] == len(steps)
