"""What SCAN and BFAN both promise: every pair scores as if it were alone, whatever stands beside it; memory has bounds;
they train, with offline negatives too."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from tests.trainer import attention_oracle as oracle
from trainer import losses, models
from trainer.data import Dataset
from trainer.models import Elements
from trainer.models._cross import CrossAttention
from trainer.scoring import Inputs
from trainer.text import Vocabulary
from trainer.training import EpochLog, FitConfig, fit

VOCABULARY = Vocabulary.build(["red cat", "blue dog", "a very long caption of many many words"])
CASES: list[tuple[str, dict[str, Any]]] = [
    ("scan", {"attention": "t2i"}),
    ("scan", {"attention": "i2t"}),
    ("scan", {"attention": "both"}),
    ("bfan", {"focal": "equal"}),
    ("bfan", {"focal": "prob"}),
]
every_case = pytest.mark.parametrize(("name", "settings"), CASES)
both_models = pytest.mark.parametrize("name", ["scan", "bfan"])


def built(name: str, settings: dict[str, Any], image_shape: tuple[int, ...] = (4, 9)) -> Any:
    torch.manual_seed(0)
    found = models.build(models.configure(name, {"dim": 8, "word_dim": 5, **settings}), VOCABULARY, image_shape)
    assert isinstance(found, CrossAttention)
    return found


def elements(lengths: list[int], seed: int, dim: int = 8, dtype: torch.dtype = torch.float32) -> Elements:
    """Unit vectors that point a little the same way, as a model's do; no two items alike; padding is not zero."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), dim, generator=random, dtype=torch.float64)
    return Elements(normalize(values + 0.4, dim=2).to(dtype), torch.tensor(lengths))


IMAGES, TEXTS = elements([4, 1, 7, 7, 3], 0), elements([5, 9, 1, 3, 3, 2], 1)


def as_double(found: Elements) -> Elements:
    return Elements(found.values.double(), found.lengths)


@every_case
def test_scores_are_those_of_a_loop(name: str, settings: dict[str, Any]) -> None:
    model = built(name, settings)
    expected = oracle.matrix(model.config, as_double(IMAGES), as_double(TEXTS))
    torch.testing.assert_close(model.scores(as_double(IMAGES), as_double(TEXTS)), expected)
    found = model.scores(IMAGES, TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.02  # they differ at all


@every_case
def test_gradients_are_those_of_a_loop(name: str, settings: dict[str, Any]) -> None:
    model = built(name, settings)
    weights = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def gradients(score: Any, dtype: torch.dtype) -> list[Tensor]:
        sides = [Elements(side.values.to(dtype, copy=True).requires_grad_(), side.lengths) for side in (IMAGES, TEXTS)]
        (score(*sides) * weights).sum().backward()
        return [side.values.grad.double() for side in sides]

    wanted = gradients(lambda *sides: oracle.matrix(model.config, *sides), torch.float64)
    torch.testing.assert_close(gradients(model.scores, torch.float64), wanted)
    torch.testing.assert_close(gradients(model.scores, torch.float32), wanted, atol=1e-4, rtol=1e-4)


@every_case
@pytest.mark.parametrize("filled", [0.0, 3e18, -1e38])
def test_padding_of_any_content_changes_no_bit(name: str, settings: dict[str, Any], filled: float) -> None:
    model = built(name, settings)
    wanted = [model.scores(IMAGES, TEXTS), model.pair_scores(*(side.take(torch.arange(5)) for side in (IMAGES, TEXTS)))]
    sides = []
    for side in (IMAGES, TEXTS):
        values = side.values.masked_fill(~side.mask[:, :, None], filled)
        longer = torch.nn.functional.pad(values, (0, 0, 0, 3), value=filled)
        sides.append(Elements(longer.requires_grad_(), side.lengths))
    found = [model.scores(*sides), model.pair_scores(*(side.take(torch.arange(5)) for side in sides))]
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    (found[0].sum() + found[1].sum()).backward()
    for side in sides:
        assert side.values.grad.isfinite().all()
        assert (side.values.grad.masked_select(~side.mask[:, :, None]) == 0).all()


@every_case
def test_given_pairs_score_as_in_the_matrix(name: str, settings: dict[str, Any]) -> None:
    model = built(name, settings)
    whole = model.scores(IMAGES, TEXTS)
    i, t = torch.tensor([0, 3, 3, 2, 1, 4, 0]), torch.tensor([5, 1, 1, 2, 0, 3, 4])
    torch.testing.assert_close(model.pair_scores(IMAGES.take(i), TEXTS.take(t)), whole[i, t], atol=1e-6, rtol=0)
    for image in range(5):
        for text in range(6):
            one = model.scores(IMAGES.take(torch.tensor([image])), TEXTS.take(torch.tensor([text])))
            torch.testing.assert_close(one[0, 0], whole[image, text], atol=1e-6, rtol=0)
    none = torch.zeros(0, dtype=torch.int64)
    assert model.pair_scores(IMAGES.take(none), TEXTS.take(none)).shape == (0,)
    assert model.scores(IMAGES, TEXTS.take(none)).shape == (5, 0)
    assert model.scores(IMAGES.take(none), TEXTS).shape == (0, 6)


def many(dtype: torch.dtype) -> list[tuple[str, list[Elements]]]:
    """40 x 48 pairs, and 900 pairs, of up to 18 regions and 12 words: some 200,000 products each."""
    random = np.random.default_rng(0)
    sides = [elements(random.integers(1, most, n).tolist(), n, dtype=dtype) for most, n in ((19, 40), (13, 48))]
    pairs = [side.take(torch.from_numpy(random.integers(0, len(side), 900))) for side in sides]
    return [("scores", sides), ("pair_scores", pairs)]


@every_case
def test_blocks_and_recomputing_change_nothing(name: str, settings: dict[str, Any]) -> None:
    def run(memory_mib: int, score: str, sides: list[Elements]) -> list[Tensor]:
        leaves = [Elements(side.values.clone().requires_grad_(), side.lengths) for side in sides]
        found = getattr(built(name, {**settings, "memory_mib": memory_mib}), score)(*leaves)
        random = torch.Generator().manual_seed(0)
        (found * torch.randn(found.shape, generator=random, dtype=found.dtype)).sum().backward()
        return [found.detach(), *(side.values.grad for side in leaves if side.values.grad is not None)]

    for score, sides in many(torch.float64):
        whole, blocks = run(100_000, score, sides), run(1, score, sides)
        torch.testing.assert_close(blocks, whole)
        assert all(torch.equal(one, other) for one, other in zip(blocks, run(1, score, sides), strict=True))
        with torch.inference_mode():
            found = getattr(built(name, {**settings, "memory_mib": 1}), score)(*sides)
            torch.testing.assert_close(found, whole[0])


@every_case
def test_what_is_kept_for_the_gradient_stays_within_bounds(name: str, settings: dict[str, Any]) -> None:
    for score, sides in many(torch.float32):
        leaves = [Elements(side.values.clone().requires_grad_(), side.lengths) for side in sides]
        elements_kept = 3 * sum(side.values.nbytes for side in sides)  # as given, in order, with zeros
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        sizes = []
        for memory_mib in (1, 2, 4, 8, 16, 1000):
            model = built(name, {**settings, "memory_mib": memory_mib})
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                found = getattr(model, score)(*leaves)
            sizes.append(sum(kept.values()) - elements_kept)
            assert sizes[-1] <= memory_mib << 20
            del found
        assert sizes[0] < 100_000 < 2_000_000 < sizes[-1]  # computed twice, and not


@every_case
def test_one_region_and_equal_regions(name: str, settings: dict[str, Any]) -> None:
    """Nothing to choose from: every word attends to that one vector."""
    model = built(name, settings)
    vector = normalize(torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(5)), dim=2)
    for regions in (1, 4):
        images = Elements(vector.expand(3, regions, 8).clone().requires_grad_(), torch.full((3,), regions))
        found = model.scores(images, TEXTS)
        expected = oracle.matrix(model.config, as_double(images), as_double(TEXTS))
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
        found.sum().backward()
        assert images.values.grad.isfinite().all()


@every_case
def test_scores_are_float32_within_autocast(name: str, settings: dict[str, Any]) -> None:
    model = built(name, settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [model.scores(IMAGES, TEXTS), model.pair_scores(IMAGES, TEXTS.take(torch.arange(5)))]
        regions = model.image_elements(torch.rand(2, 4, 9))
    assert torch.equal(inside[0], model.scores(IMAGES, TEXTS))
    assert torch.equal(inside[1], model.pair_scores(IMAGES, TEXTS.take(torch.arange(5))))
    assert regions.values.dtype == torch.float32


@both_models
def test_elements_are_unit_vectors_of_the_data(name: str) -> None:
    model = built(name, {}).eval()
    images = torch.rand(3, 4, 9, generator=torch.Generator().manual_seed(1)).half()
    found = model.image_elements(images)
    assert found.lengths.tolist() == [4, 4, 4]
    expected = images[1, 2].float() @ model.region_head.weight.T + model.region_head.bias
    torch.testing.assert_close(found.values[1, 2], expected / expected.norm())
    tokens, lengths = map(torch.from_numpy, VOCABULARY.encode(["red cat", "a very long caption of many many words"]))
    words = model.text_elements(tokens, lengths)
    assert words.lengths.tolist() == lengths.tolist() == [4, 10]
    torch.testing.assert_close(words.values.norm(dim=2)[words.mask], torch.ones(14))
    embedded = model.words.embedding(tokens[0, :4])[None]
    states, _ = model.words.gru(embedded)
    torch.testing.assert_close(words.values[0, :4], normalize((states[0, :, :8] + states[0, :, 8:]) / 2, dim=1))


@both_models
def test_lengths_may_be_left_as_they_are(name: str) -> None:
    model = built(name, {"image_norm": False, "text_norm": False, "bidirectional": False}).eval()
    images = torch.rand(3, 4, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.image_elements(images).values, model.region_head(images))
    tokens, lengths = map(torch.from_numpy, VOCABULARY.encode(["red cat", "a very long caption of many many words"]))
    words = model.text_elements(tokens, lengths)
    torch.testing.assert_close(words.values, model.words.gru(model.words.embedding(tokens))[0])
    found = model.scores(model.image_elements(images), words)
    sides = [as_double(model.image_elements(images)), as_double(words)]
    torch.testing.assert_close(found.double(), oracle.matrix(model.config, *sides), atol=1e-5, rtol=0)


@both_models
def test_a_vector_is_one_region(name: str) -> None:
    model = built(name, {}, (9,))
    images = torch.rand(3, 9, generator=torch.Generator().manual_seed(1))
    found, wanted = model.image_elements(images), model.image_elements(images[:, None])
    assert torch.equal(found.values, wanted.values)
    assert found.values.shape == (3, 1, 8)
    with pytest.raises(BadInput, match="take the model"):
        built(name, {}, (8, 8, 3))


# ---- training ----

QUICK = FitConfig(epochs=3, batch_size=16, lr=5e-3, warmup_epochs=1, threads=1, ema_decay=0.9)
TOWERS = {"dim": 12, "word_dim": 8}


def regions(toys: SimpleNamespace, num_images: int = 30) -> Dataset:
    pairs = toys.pairs(num_images)
    vectors = np.random.default_rng(1).normal(size=(num_images, 3, 6)).astype(np.float32)
    return Dataset(pairs, vectors, "toy", "train")


@both_models
def test_training_learns_the_training_set(toys: SimpleNamespace, name: str) -> None:
    dataset = regions(toys)
    config = QUICK.model_copy(update={"epochs": 40, "ema_decay": 0.0, "lr": 2e-2})
    logs: list[EpochLog] = []
    trained = fit(dataset, models.configure(name, TOWERS), losses.configure("triplet"), config, progress=logs.append)
    assert logs[-1].wrong_share < 0.3 < logs[1].wrong_share
    model = trained.model().eval()
    assert isinstance(model, CrossAttention)
    inputs, rows = Inputs.of(dataset, model), dataset.pairs
    texts = model.text_elements(*inputs.texts(np.arange(rows.num_texts)))
    with torch.inference_mode():
        scores = model.scores(model.image_elements(inputs.images(np.arange(rows.num_images))), texts)
    best = scores.argmax(0).numpy()
    assert rows.belong(best, np.arange(rows.num_texts)).diagonal().mean() > 0.8


@both_models
@pytest.mark.parametrize("loss", ["triplet", "aoq", "ntxent", "smoothap"])
def test_every_kind_of_loss_trains_it(toys: SimpleNamespace, name: str, loss: str) -> None:
    dataset = regions(toys)
    tables = toys.tables(dataset.pairs) if loss == "aoq" else None
    config, logs = QUICK.model_copy(update={"epochs": 8, "lr": 1e-2, "warmup_epochs": 0}), []
    settings = models.configure(name, TOWERS)
    fit(dataset, settings, losses.configure(loss), config, tables=tables, progress=logs.append)
    assert logs[-1].hardness < logs[0].hardness
    assert 0 < logs[-1].loss < logs[0].loss
    for log in logs:
        assert log.std > 0
        assert log.warning is None
        assert (log.offline_hardness is not None) == (loss == "aoq")


@both_models
def test_training_warns_of_a_collapse(toys: SimpleNamespace, name: str) -> None:
    """Pictures that are all the same cannot be told apart."""
    dataset = regions(toys)
    dataset = replace(dataset, images=np.ones_like(np.asarray(dataset.images)))
    config = QUICK.model_copy(update={"epochs": 20, "warmup_epochs": 0, "lr": 1e-2})
    logs: list[EpochLog] = []
    fit(dataset, models.configure(name, TOWERS), losses.configure("triplet"), config, progress=logs.append)
    assert logs[-1].warning is not None
