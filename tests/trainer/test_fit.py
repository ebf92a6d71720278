"""Training: it learns, uses the tables, resumes bit by bit, averages weights, and says when it collapses."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from trainer import collapse, losses, models
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset
from trainer.encode import encode_rows
from trainer.evaluate import metrics
from trainer.scoring import Inputs, gather, score
from trainer.similarities import Similarities
from trainer.training import WARM, EpochLog, FitConfig, fit, learning_rate

MODEL = models.configure("vsepp", {"dim": 16, "word_dim": 8})
QUICK = FitConfig(epochs=3, batch_size=16, lr=5e-3, warmup_epochs=1, threads=1, ema_decay=0.9, lr_schedule="cosine")


def train(dataset: Dataset, loss: str = "triplet", config: FitConfig = QUICK, **given: Any) -> Checkpoint:
    return fit(dataset, MODEL, losses.configure(loss), config, **given)


def rsum(checkpoint: Checkpoint, dataset: Dataset) -> float:
    pairs, model = dataset.pairs, checkpoint.model()
    images = encode_rows(model, dataset, "image", np.arange(pairs.num_images))
    return metrics(images, encode_rows(model, dataset, "text", np.arange(pairs.num_texts)), pairs)["rsum"]


def test_training_learns_the_training_set(dataset: Dataset) -> None:
    logs: list[EpochLog] = []
    trained = train(dataset, config=QUICK.model_copy(update={"epochs": 40}), progress=logs.append)
    assert rsum(trained, dataset) > 400 > rsum(train(dataset), dataset)
    assert [log.epoch for log in logs] == list(range(40))
    assert [log.warm_up for log in logs] == [True] + [False] * 39
    for log in logs:
        assert log.loss == pytest.approx(sum(log.parts.values()))
        assert log.offline_hardness is None
        assert log.seconds > 0
        assert log.pairs % 16 == 0
        assert log.device == "cpu (1 threads), float32"
    assert logs[-1].hardness < logs[1].hardness


def test_automatic_warm_up_ends_when_most_positives_are_above_the_hardest_negative(dataset: Dataset) -> None:
    logs: list[EpochLog] = []
    config = QUICK.model_copy(update={"epochs": 12, "warmup_epochs": "auto", "lr_schedule": "constant"})
    whole = train(dataset, config=config, progress=logs.append)
    lasted = sum(log.warm_up for log in logs)
    assert 2 <= lasted <= 10
    for before, log in itertools.pairwise(logs):
        assert log.warm_up == (before.warm_up and before.wrong_share >= WARM)

    # A round knows how far the one before came, also from a checkpoint on disk.
    cold = train(dataset, config=config.model_copy(update={"epochs": lasted - 1, "total_epochs": 12}))
    warm = train(dataset, config=config.model_copy(update={"epochs": lasted, "total_epochs": 12}))
    assert (cold.warm, warm.warm) == (False, True)
    ended: list[EpochLog] = []
    config = config.model_copy(update={"epochs": 12 - lasted, "total_epochs": 12})
    assert train(dataset, config=config, start=warm, first_epoch=lasted, progress=ended.append).fingerprint == (
        whole.fingerprint
    )
    assert not any(log.warm_up for log in ended)
    ended.clear()
    train(dataset, config=config, start=cold, first_epoch=lasted - 1, progress=ended.append)
    assert [log.warm_up for log in ended][:2] == [True, False]


@pytest.mark.parametrize("form", ["OffTri", "OffQuin", "AdapOffQuin"])
def test_tables_add_the_offline_terms_after_warm_up(dataset: Dataset, toys: SimpleNamespace, form: str) -> None:
    logs: list[EpochLog] = []
    config = losses.configure("aoq", {"form": form})
    fit(dataset, MODEL, config, QUICK, tables=toys.tables(dataset.pairs), progress=logs.append)
    offline = {"offline_text", "offline_image"} | ({"negatives", "partners"} if form != "OffTri" else set())
    assert set(logs[0].parts) == {"online_text", "online_image"}
    assert logs[0].offline_hardness is None
    for log in logs[1:]:
        assert set(log.parts) == {"online_text", "online_image"} | offline
        assert log.offline_hardness is not None


def test_online_epochs_train_as_if_there_were_no_table(dataset: Dataset, toys: SimpleNamespace) -> None:
    logs: list[EpochLog] = []
    config = QUICK.model_copy(update={"online_epochs": 2})
    tables = toys.tables(dataset.pairs)
    fit(dataset, MODEL, losses.configure("aoq"), config, tables=tables, progress=logs.append)
    assert [log.offline_hardness is None for log in logs] == [True, True, False]
    first = QUICK.model_copy(update={"epochs": 2, "total_epochs": 3, "online_epochs": 2})
    mined = fit(dataset, MODEL, losses.configure("aoq"), first, tables=tables)
    assert same(mined, train(dataset, "aoq", first))


def test_passing_over_the_whole_table_is_refused(dataset: Dataset, toys: SimpleNamespace) -> None:
    with pytest.raises(BadInput, match=r"skip_v = 8 passes over the whole t2i table, which holds 8"):
        fit(dataset, MODEL, losses.configure("aoq", {"skip_v": 8}), QUICK, tables=toys.tables(dataset.pairs))


def test_aoq_without_tables_trains_as_the_triplet(dataset: Dataset) -> None:
    assert same(train(dataset, "aoq"), train(dataset, "triplet"))


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.weights.keys() == other.weights.keys()
        and one.state.keys() == other.state.keys()
        and all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
        and all(torch.equal(one.state[name], other.state[name]) for name in one.state)
        and (one.epoch, one.updates) == (other.epoch, other.updates)
    )


class Killed(Exception):
    """Stands for a kill."""


def kill_after(epoch: int) -> Any:
    def progress(log: EpochLog) -> None:
        if log.epoch == epoch:
            raise Killed

    return progress


@pytest.mark.parametrize("loss", ["triplet", "aoq"])
def test_a_killed_training_ends_with_the_same_bits(
    dataset: Dataset, toys: SimpleNamespace, tmp_path: Path, loss: str
) -> None:
    tables = toys.tables(dataset.pairs) if loss == "aoq" else None
    whole = train(dataset, loss, tables=tables)
    for epoch in (0, 1, 2):
        scratch = tmp_path / str(epoch)
        with pytest.raises(Killed):
            train(dataset, loss, tables=tables, scratch=scratch, progress=kill_after(epoch))
        torch.manual_seed(99)  # whatever happened in between
        logs: list[EpochLog] = []
        resumed = train(dataset, loss, tables=tables, scratch=scratch, progress=logs.append)
        assert [(log.epoch, log.resumed) for log in logs] == [(e, e <= epoch) for e in range(3)]
        assert same(whole, resumed)


def test_a_picture_model_with_dropout_and_shifts_resumes_too(toys: SimpleNamespace, tmp_path: Path) -> None:
    pairs = toys.pairs()
    pictures = np.random.default_rng(0).integers(0, 256, (pairs.num_images, 16, 16, 3)).astype(np.uint8)
    dataset = Dataset(pairs, pictures, "pictures", "train")
    model = models.configure("cnn_gru", {"dim": 16, "channels": (8, 16), "word_dim": 8, "hidden": 8, "dropout": 0.3})
    loss, tables = losses.configure("aoq"), toys.tables(pairs)
    whole = fit(dataset, model, loss, QUICK, tables=tables)
    with pytest.raises(Killed):
        fit(dataset, model, loss, QUICK, tables=tables, scratch=tmp_path, progress=kill_after(1))
    assert same(whole, fit(dataset, model, loss, QUICK, tables=tables, scratch=tmp_path))


def test_a_damaged_epoch_file_is_passed_over_with_a_notice(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(dataset)
    for spoil in ("flip", "cut", "json"):
        scratch = tmp_path / spoil
        with pytest.raises(Killed):
            train(dataset, scratch=scratch, progress=kill_after(1))
        newest = scratch / "epoch-0001.safetensors"
        data = bytearray(newest.read_bytes())
        if spoil == "flip":
            data[len(data) // 2] ^= 4
            newest.write_bytes(data)
        elif spoil == "cut":
            newest.write_bytes(data[:100])
        else:
            newest.with_suffix(".json").write_text("{")
        logs: list[EpochLog] = []
        with caplog.at_level(logging.WARNING):
            assert same(whole, train(dataset, scratch=scratch, progress=logs.append))
        assert "epoch-0001.json is damaged" in caplog.text
        assert [log.resumed for log in logs] == [True, False, False]
        caplog.clear()


def test_epoch_files_of_another_training_are_not_used(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(dataset, scratch=tmp_path)
    other = QUICK.model_copy(update={"lr": 1e-3})
    with caplog.at_level(logging.WARNING):
        assert same(train(dataset, config=other), train(dataset, config=other, scratch=tmp_path))
    assert "another training" in caplog.text
    assert len(list(tmp_path.glob("epoch-*.json"))) == 2


def test_rounds_go_on_where_the_last_one_ended(dataset: Dataset) -> None:
    """Two calls of 2 epochs with one schedule are one call of 4: epochs, schedule, moments and average carry over."""
    whole = train(dataset, config=QUICK.model_copy(update={"epochs": 4, "total_epochs": 4}))
    half = QUICK.model_copy(update={"epochs": 2, "total_epochs": 4})
    first = train(dataset, config=half)
    assert same(whole, train(dataset, config=half, start=first, first_epoch=2))


def test_the_average_is_what_is_evaluated(dataset: Dataset) -> None:
    averaged = train(dataset)
    assert all(not torch.equal(averaged.weights[n], averaged.state[f"raw/{n}"]) for n in averaged.weights)
    plain = train(dataset, config=QUICK.model_copy(update={"ema_decay": 0.0}))
    assert all(torch.equal(plain.weights[n], plain.state[f"raw/{n}"]) for n in plain.weights)
    assert all(torch.equal(plain.state[n], averaged.state[n]) for n in plain.state)


def test_the_seed_decides(dataset: Dataset) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = train(dataset)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(one, train(dataset))
    assert not same(one, train(dataset, config=QUICK.model_copy(update={"seed": 1})))


def test_every_item_of_a_step_is_encoded_once(dataset: Dataset, toys: SimpleNamespace) -> None:
    """The scores of a step are those of the whole score matrix, and no row goes through the encoder twice."""
    from trainer import sampling

    torch.manual_seed(0)
    from trainer.text import Vocabulary

    pairs = dataset.pairs
    model = models.build(MODEL, Vocabulary.build(pairs.texts), dataset.image_shape).eval()
    drawn = sampling.draw(pairs, toys.tables(pairs), pool_text=300, pool_image=60, ranks="untied", seed=0, epoch=0)
    batch = np.arange(24)
    inputs = Inputs.of(dataset, model)
    counts = {"image": 0, "text": 0}
    images_of, texts_of = model.encode_images, model.encode_texts
    model.encode_images = lambda rows: counts.update(image=counts["image"] + len(rows)) or images_of(rows)  # type: ignore
    model.encode_texts = lambda t, n: counts.update(text=counts["text"] + len(t)) or texts_of(t, n)  # type: ignore
    step = score(model, gather(inputs, batch, drawn.take(batch)), torch.device("cpu"), torch.float32)
    everything = encode_rows_of(model, dataset, images_of, texts_of)
    found, offline = step.similarities, step.similarities.offline
    assert offline is not None
    i, t = pairs.image_rows[batch], pairs.text_rows[batch]
    np.testing.assert_allclose(found.scores.detach(), everything[np.ix_(i, t)], atol=1e-6)
    assert np.array_equal(found.valid.numpy(), ~pairs.belong(i, t))
    d = drawn.take(batch)
    expected = {
        "text": (i, d.text, d.text >= 0),
        "image": (d.image, t, d.image >= 0),
        "negatives": (d.image, d.text, (d.image >= 0) & (d.text >= 0)),
        "partners": (d.partner_image, d.partner_text, (d.image >= 0) & (d.text >= 0)),
    }
    for name, (rows, columns, there) in expected.items():
        values = getattr(offline, name).detach().numpy()
        np.testing.assert_allclose(values[there], everything[rows[there], columns[there]], atol=1e-6)
    both = (d.image >= 0) & (d.text >= 0)
    links = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
    assert offline.true_negatives.numpy()[both].tolist() == [
        (a, b) in links for a, b in zip(d.image[both].tolist(), d.text[both].tolist(), strict=True)
    ]
    assert offline.true_partners.numpy()[both].tolist() == [
        (a, b) in links for a, b in zip(d.partner_image[both].tolist(), d.partner_text[both].tolist(), strict=True)
    ]
    own_images = set(i.tolist()) | set(d.image.tolist()) | set(d.partner_image.tolist())
    assert counts["image"] == len(own_images - {-1})
    own_texts = set(t.tolist()) | set(d.text.tolist()) | set(d.partner_text.tolist())
    assert counts["text"] == len(own_texts - {-1})


def encode_rows_of(model: Any, dataset: Dataset, images_of: Any, texts_of: Any) -> np.ndarray:
    tokens, lengths = model.tokenizer.encode(dataset.pairs.texts)
    with torch.no_grad():
        images = images_of(torch.from_numpy(np.asarray(dataset.images)))
        return (images @ texts_of(torch.from_numpy(tokens), torch.from_numpy(lengths)).T).numpy()


def test_bfloat16_trains(dataset: Dataset) -> None:
    logs: list[EpochLog] = []
    train(dataset, config=QUICK.model_copy(update={"precision": "bfloat16"}), progress=logs.append)
    assert all(np.isfinite(log.loss) for log in logs)
    assert logs[0].device.endswith("bfloat16")


def test_the_learning_rate_follows_global_epochs() -> None:
    step = FitConfig(lr=1.0, lr_schedule="step", lr_step=3)
    assert [learning_rate(step, epoch, 6) for epoch in (0, 2.9, 3, 5)] == [1, 1, 0.1, 0.1]
    cosine = FitConfig(lr=1.0, lr_schedule="cosine")
    assert [round(learning_rate(cosine, epoch, 10), 3) for epoch in (0, 5, 10, 12)] == [1, 0.5, 0, 0]
    assert learning_rate(FitConfig(lr=0.5), 7, 10) == 0.5


def test_a_collapsed_model_is_said() -> None:
    point = torch.nn.functional.normalize(torch.ones(16, 8), dim=1)
    spread = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    valid = ~torch.eye(16, dtype=torch.bool)
    for embeddings, expected in ((point, True), (spread, False)):
        observed = collapse.observe(Similarities(embeddings @ embeddings.T, valid), embeddings, embeddings)
        warning = collapse.collapsed(dict(zip(collapse.OBSERVED, observed.tolist(), strict=True)), has_warm_up=True)
        assert (warning is not None) == expected
    assert dict(zip(collapse.OBSERVED, observed.tolist(), strict=True))["std"] == pytest.approx(1, abs=0.1)


def test_a_model_that_is_trained_to_collapse_warns(dataset: Dataset) -> None:
    """Pictures that are all the same cannot be told apart: the embeddings meet in one point."""
    same_images = replace(dataset, images=np.ones((dataset.pairs.num_images, 12), np.float32))
    logs: list[EpochLog] = []
    config = QUICK.model_copy(update={"epochs": 30, "warmup_epochs": 0, "lr": 1e-2, "lr_schedule": "constant"})
    train(same_images, config=config, progress=logs.append)
    assert logs[-1].warning is not None
    assert "collapsed" in logs[-1].warning


def test_what_does_not_fit_is_refused(dataset: Dataset, toys: SimpleNamespace) -> None:
    tables = toys.tables(dataset.pairs)
    with pytest.raises(BadInput, match="uses no offline negatives"):
        train(dataset, tables=tables)
    with pytest.raises(BadInput, match="t2i table is missing"):
        train(dataset, "aoq", tables={"i2t": tables["i2t"]})
    with pytest.raises(BadInput, match="of other model settings"):
        fit(dataset, models.configure("vsepp", {"dim": 4}), losses.configure("triplet"), QUICK, start=train(dataset))
    with pytest.raises(BadInput, match="images of shape"):
        train(toys.dataset(dim=5), start=train(dataset))
    with pytest.raises(BadInput, match="no captions"):
        train(replace(dataset, pairs=replace(dataset.pairs, texts=())))
    broken = np.asarray(dataset.images).copy()
    broken[0] = np.nan
    with pytest.raises(BadInput, match="no longer a finite number"):
        train(replace(dataset, images=broken))
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="no GPU"):
            train(dataset, config=QUICK.model_copy(update={"device": "cuda"}))


def test_epoch_logs_survive_json(dataset: Dataset, tmp_path: Path) -> None:
    logs: list[EpochLog] = []
    train(dataset, scratch=tmp_path, progress=logs.append)
    kept = json.loads((tmp_path / "epoch-0002.json").read_text())["logs"]
    assert [EpochLog(**log) for log in kept] == logs


def test_fewer_pairs_than_a_batch(toys: SimpleNamespace) -> None:
    small = toys.dataset(3)
    logs: list[EpochLog] = []
    train(small, "aoq", tables=toys.tables(small.pairs, k=2), progress=logs.append)
    assert logs[-1].pairs == small.pairs.num_pairs
