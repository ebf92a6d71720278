"""Items encoded in chunks, by one process or several: the gradient is that of the whole step encoded at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.test_models import RANDOM, SETTINGS, config_of, dataset_of, factory  # noqa: F401  # a fixture
from trainer import losses, models, sampling
from trainer.checkpoint import Checkpoint
from trainer.chunks import WHOLE, Division, auxiliary_loss
from trainer.data import Dataset
from trainer.models import Encoder
from trainer.processes import Processes
from trainer.scoring import Gathered, Inputs, Step, gather, score
from trainer.text import Vocabulary
from trainer.training import EpochLog, FitConfig, fit

CPU = torch.device("cpu")
STATISTICS = ("vse_inf", "vsrn")  # an item's embedding depends on its batch
LOSSES: dict[str, dict[str, Any]] = {
    "triplet": {}, "aoq": {"form": "AdapOffQuin"}, "ntxent": {"offline": "softmax"}, "goal": {}, "smoothap": {},
}  # fmt: skip
QUICK = FitConfig(epochs=2, batch_size=16, lr=5e-3, warmup_epochs=0, threads=1, ema_decay=0.9)


def made(name: str, dataset: Dataset, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    config = config_of(name, **{**RANDOM.get(name, {}), **settings})
    return models.build(config, Vocabulary.build(dataset.pairs.texts), dataset.image_shape).train()


def step_of(
    model: Encoder, dataset: Dataset, tables: Any, loss: Any, division: Division
) -> tuple[Step, Gathered, torch.Tensor]:
    pairs, inputs = dataset.pairs, Inputs.of(dataset, model)
    batch = np.random.default_rng(3).permutation(pairs.num_pairs)[:22]
    drawn = None
    if loss.needs_tables:
        every = sampling.draw(pairs, tables, pool_text=8, pool_image=8, ranks="untied", seed=0, epoch=0)
        drawn = every.take(batch)
    gathered = gather(inputs, batch, drawn, loss.batch_by, division=division)
    step = score(model, gathered, CPU, torch.float32, seed=5)
    value = torch.stack(list(losses.parts(loss, step.similarities).values())).sum()
    if model.has_auxiliary_loss:
        value = value + auxiliary_loss(model, gathered, CPU, torch.float32)
    return step, gathered, value


def gradients(model: Encoder) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert any(values.abs().max() > 1e-4 for values in expected.values())
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= 1e-6 + 1e-5 * values.abs().max(), name


@pytest.mark.parametrize(("loss", "chunk_size"), [*((loss, 5) for loss in LOSSES), ("aoq", 1), ("aoq", 64)])
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in STATISTICS])
def test_the_gradient_is_that_of_the_whole_step(toys: SimpleNamespace, name: str, loss: str, chunk_size: int) -> None:
    dataset = dataset_of(name, toys)
    model, config = made(name, dataset), losses.configure(loss, LOSSES[loss])
    tables = toys.tables(dataset.pairs)
    step, _, value = step_of(model, dataset, tables, config, WHOLE)
    step.backward(value)
    expected = gradients(model)
    model.zero_grad()
    again, gathered, chunked = step_of(model, dataset, tables, config, Division(chunk_size))
    again.backward(chunked)
    assert len(gathered.image_chunks) == -(-gathered.num_images // chunk_size)
    torch.testing.assert_close(chunked, value)
    torch.testing.assert_close(again.similarities.scores, step.similarities.scores)
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("name", STATISTICS)
def test_batch_statistics_are_a_chunks_and_move_once(toys: SimpleNamespace, name: str) -> None:
    """The same as encoding each chunk once, keeping everything."""
    dataset = dataset_of(name, toys)
    loss = losses.configure("triplet")
    model = made(name, dataset)
    step, gathered, value = step_of(model, dataset, None, loss, Division(6))
    step.backward(value)
    found, statistics = gradients(model), {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    assert statistics

    model = made(name, dataset)
    encode = {"image": lambda rows: model.encode_images(gathered.images[rows])}
    encode["text"] = lambda rows: model.encode_texts(gathered.tokens[rows], gathered.lengths[rows])
    vectors = []
    for side, chunks in (("image", gathered.image_chunks), ("text", gathered.text_chunks)):
        assert max(len(chunk.rows) for chunk in chunks) <= 6
        out = [encode[side](torch.from_numpy(chunk.rows)) for chunk in chunks]
        order = np.argsort(np.concatenate([chunk.places for chunk in chunks]))
        vectors.append(torch.cat(out)[torch.from_numpy(order)])
    images, texts = vectors[0][gathered.image_places[0]], vectors[1][gathered.text_places[0]]
    similarities = type(step.similarities)(images @ texts.T, gathered.valid)
    expected = torch.stack(list(losses.parts(loss, similarities).values())).sum()
    running = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    assert any(
        (running[name] - value).abs().max() > 1e-4
        for name, value in made(name, dataset).named_buffers()
        if "running" in name
    )
    if not model.has_auxiliary_loss:  # whose second encoding of the images is for the statistics to see
        for key, values in running.items():
            torch.testing.assert_close(statistics[key], values)
    else:
        expected = expected + auxiliary_loss(model, gathered, CPU, torch.float32)
    expected.backward()
    torch.testing.assert_close(value.detach(), expected.detach())
    assert_same(found, gradients(model))


def test_a_chunk_is_encoded_again_with_the_same_random_numbers(toys: SimpleNamespace) -> None:
    dataset = dataset_of("vse_inf", toys)
    torch.manual_seed(0)
    settings = {"drop_regions": 0.4, "edit_words": 0.5}
    model = made("vse_inf", dataset, **settings)
    outputs: dict[str, list[torch.Tensor]] = {"image": [], "text": []}

    def spy(side: str, encode: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def encoded(*inputs: torch.Tensor) -> torch.Tensor:
            found = encode(*inputs)
            outputs[side].append(found.detach().clone())
            return found

        return encoded

    model.encode_images = spy("image", model.encode_images)  # type: ignore[method-assign]  # to see what it gives
    model.encode_texts = spy("text", model.encode_texts)  # type: ignore[method-assign]
    step, gathered, value = step_of(model, dataset, None, losses.configure("triplet"), Division(7))
    step.backward(value)
    for side, chunks in (("image", gathered.image_chunks), ("text", gathered.text_chunks)):
        first, second = outputs[side][: len(chunks)], outputs[side][len(chunks) :]
        assert len(first) == len(second) == len(chunks) > 1
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
    # Chunks draw numbers of their own.
    shapes = {tuple(each.shape) for each in outputs["image"]}
    assert len(shapes) <= 2


@pytest.mark.parametrize(("count", "chunk_size", "size"), [(23, 5, 1), (23, 5, 3), (7, 0, 3), (2, 0, 4), (64, 8, 2)])
def test_every_item_is_in_one_chunk_of_one_process(count: int, chunk_size: int, size: int) -> None:
    lengths = np.random.default_rng(0).integers(2, 30, count)
    seen: list[int] = []
    loads = []
    for rank in range(size):
        read, chunks = Division(chunk_size, Processes(rank, size)).of(lengths)
        assert np.array_equal(read, np.sort(np.concatenate([chunk.places for chunk in chunks] or [read])))
        for chunk in chunks:
            assert np.array_equal(read[chunk.rows], chunk.places)
            assert 0 < len(chunk.places) <= (chunk_size or count)
            seen += chunk.places.tolist()
        loads.append(len(read))
    assert sorted(seen) == list(range(count))
    assert max(loads) - min(loads) <= max(1, -(-count // max(chunk_size * size, count)) * size)
    numbers = [c.number for rank in range(size) for c in Division(chunk_size, Processes(rank, size)).of(lengths)[1]]
    assert len(set(numbers)) == len(numbers)


def test_chunks_of_texts_are_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(2, 30, 100)
    _, chunks = Division(10).of(lengths)
    spans = [(lengths[chunk.places].min(), lengths[chunk.places].max()) for chunk in chunks]
    assert all(one[1] <= other[0] for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False))


@pytest.mark.parametrize("loss", ["triplet", "aoq"])
def test_training_in_chunks_is_training(dataset: Dataset, toys: SimpleNamespace, tmp_path: Path, loss: str) -> None:
    """The same weights as without, to rounding; and after a kill the same bits."""
    model, config = models.configure("vsepp", {"dim": 16, "word_dim": 8}), losses.configure(loss)
    given = {"tables": toys.tables(dataset.pairs)} if config.needs_tables else {}
    chunked = QUICK.model_copy(update={"chunk_size": 5})
    whole, parts = (fit(dataset, model, config, how, **given) for how in (QUICK, chunked))
    for name, values in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], values, rtol=1e-3, atol=1e-5)

    class Killed(Exception):
        pass

    def die(log: EpochLog) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(dataset, model, config, chunked, scratch=tmp_path, progress=die, **given)
    logs: list[EpochLog] = []
    resumed = fit(dataset, model, config, chunked, scratch=tmp_path, progress=logs.append, **given)
    assert [log.resumed for log in logs] == [True, False]
    assert resumed.fingerprint == parts.fingerprint


TRAIN = [
    "--epochs", "2", "--batch-size", "24", "--lr", "5e-3", "--model", "vsepp:dim=16,word_dim=8", "--threads", "1",
]  # fmt: skip


def settings(folder: Path, chunk_size: int) -> Path:
    path = folder / "settings.toml"
    path.write_text(f"[fit]\nchunk_size = {chunk_size}\n")
    return path


def command(out: Path, processes: int, *more: str) -> list[str]:
    """`trainer fit` by hand, or as torchrun starts it."""
    launch = ["--standalone", "--nproc-per-node", str(processes), "--no-python"]
    start = [sys.executable, "-m", "torch.distributed.run", *launch] if processes > 1 else []
    return [*start, str(Path(sys.executable).parent / "trainer"), "fit", *TRAIN, "--out", str(out), *more]


def trained(out: Path, processes: int, *more: str, code: int = 0) -> tuple[Checkpoint | None, str]:
    done = subprocess.run(command(out, processes, *more), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return (Checkpoint.load(out) if code == 0 else None), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("processes", "chunk_size"), [(2, 7), pytest.param(3, 0, marks=pytest.mark.heavy)], ids=["2 in chunks", "3"]
)
def test_processes_train_what_one_trains(
    toys: SimpleNamespace, tmp_path: Path, processes: int, chunk_size: int
) -> None:
    folder = toys.write_vectors(tmp_path / "data")
    given = ["--data", str(folder), "--settings", str(settings(tmp_path, chunk_size))]
    one, _ = trained(tmp_path / "one", 1, *given)
    several, said = trained(tmp_path / "several", processes, *given)
    assert one is not None
    assert several is not None
    assert said.count("checkpoint:") == 1
    for name, values in one.state.items():
        torch.testing.assert_close(several.state[name], values, rtol=1e-3, atol=1e-5)
    assert one.updates == several.updates


@pytest.mark.heavy
def test_killed_processes_go_on_and_finished_ones_do_nothing(toys: SimpleNamespace, tmp_path: Path) -> None:
    given = ["--data", str(toys.write_vectors(tmp_path / "data")), "--settings", str(settings(tmp_path, 7))]
    whole, _ = trained(tmp_path / "whole", 2, *given)
    with subprocess.Popen(
        command(tmp_path / "out", 2, *given), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("epoch   0"):
                os.killpg(running.pid, signal.SIGKILL)
                break
    resumed, said = trained(tmp_path / "out", 2, *given)
    assert "done before" in said
    assert resumed is not None
    assert whole is not None
    assert resumed.fingerprint == whole.fingerprint
    _, said = trained(tmp_path / "out", 2, *given)
    assert said.count("already done") == 1


@pytest.mark.heavy
def test_a_loss_of_the_models_own_is_not_shared_out(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "data")
    model = "vsrn:dim=16,word_dim=6,relations=1,caption_loss=0.1,caption_hidden=5"
    _, said = trained(tmp_path / "out", 2, "--data", str(folder), "--model", model, code=1)
    assert "has a loss of its own" in said
    assert not (tmp_path / "out" / "manifest.json").exists()
