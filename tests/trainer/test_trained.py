"""`trainer.fit` in a program: the checkpoint of the command, arrays in every form, a sentence for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import miner
import trainer
from tests.trainer.formats_written import write_precomp, write_vectors
from trainer.cli import main
from trainer.data import load, spoken

SMALL = {"epochs": 2, "batch_size": 4, "threads": 1}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(*arguments: object) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def given(seed: int = 0, shape: tuple[int, ...] = (6,)) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Images, captions, pairs: one or two captions each, one of two images."""
    rng = np.random.default_rng(seed)
    owners = [0, 0, 1, 2, 2, 3, 4, 5]
    captions = [f"word{row} thing" for row in range(len(owners))]
    pairs = np.array([*zip(owners, range(len(owners)), strict=True), (5, 0)])
    return rng.normal(size=(6, *shape)).astype(np.float32), captions, pairs


@pytest.mark.parametrize("model", [None, "vsepp:dim=8,word_dim=8"])
def test_a_path_gives_the_checkpoint_of_the_command(tmp_path, model):
    (tmp_path / "data").mkdir()
    folder = (write_vectors if model is None else write_precomp)(tmp_path / "data")
    flags = ["--epochs", 2, "--batch-size", 4, "--threads", 1, *(["--model", model] if model else [])]
    command("fit", "--data", folder, "--out", tmp_path / "command", *flags)
    trained = trainer.fit(folder, model=model, **SMALL)
    trained.save(tmp_path / "saved")
    assert files(tmp_path / "saved") == files(tmp_path / "command")
    again = trainer.Trained.load(tmp_path / "command")
    again.save(tmp_path / "saved")
    assert again.history == trained.history
    assert len(again.history) == 2
    dataset = load(spoken(str(folder)), "train")
    assert (again.encode_images(dataset) == trained.encode_images(dataset.images[np.arange(len(dataset.images))])).all()
    assert (again.encode_texts(dataset) == trained.encode_texts(list(dataset.pairs.texts))).all()
    assert 0 <= trained.evaluate(folder, split="dev")["rsum"] <= 600


def test_mining_and_training_in_turns(tmp_path):
    images, captions, pairs = given()
    model = trainer.fit(images, captions, pairs, model={"name": "vsepp", "dim": 8}, **SMALL)
    vectors = model.encode_images(images), model.encode_texts(captions)
    assert [each.shape for each in vectors] == [(6, 8), (8, 8)]
    np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, rtol=1e-5)
    found = miner.mine(*vectors, pairs, k=3)
    there = trainer.fit(images, captions, pairs, tables=found, start=model, **SMALL)
    assert (there.checkpoint.epoch, len(there.history)) == (4, 2)
    stored = trainer.fit(images, captions, pairs, tables=found.save(tmp_path / "n"), start=model.save(tmp_path / "c"),
                         **SMALL)  # fmt: skip
    assert files(there.save(tmp_path / "a")) == files(stored.save(tmp_path / "b"))
    assert "word_dim" not in repr(there)
    assert "vsepp" in repr(there)


@pytest.mark.parametrize(("shape", "model"), [((4,), "vsepp"), ((3, 4), "vse_inf"), ((16, 16, 3), "cnn_gru")])
def test_the_model_that_suits_the_images(shape, model):
    images, captions, pairs = given(shape=shape)
    if len(shape) == 3:
        images = (images * 50).clip(0, 255).astype(np.uint8)
    trained = trainer.fit(torch.from_numpy(images), captions, pairs, epochs=1, batch_size=4, threads=1)
    assert repr(trained).startswith(f"<{model}, 1 epochs, images {shape}")
    assert trained.encode_images(torch.from_numpy(images)).shape[0] == 6


def test_one_line_per_epoch_when_it_is_wanted(capsys):
    images, captions, pairs = given()
    trainer.fit(images, captions, pairs, **SMALL)
    assert capsys.readouterr() == ("", "")
    trainer.fit(images, captions, pairs, progress=True, **SMALL)
    assert capsys.readouterr().out.count("epoch ") == 2


IMAGES, CAPTIONS, PAIRS = given()


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        ((IMAGES,), {}, "give their captions too"),
        ((IMAGES, CAPTIONS), {}, "6 images cannot belong to 8 texts"),
        ((IMAGES, [*CAPTIONS[:-1], 7], PAIRS), {}, "texts: entry 7 is 7"),
        ((IMAGES, [], PAIRS), {}, "texts: none were given"),
        ((IMAGES[:, 0], CAPTIONS, PAIRS), {}, r"images: shape \(6,\)"),
        ((IMAGES.astype(int), CAPTIONS, PAIRS), {}, "images: dtype int64"),
        ((np.where(IMAGES > 1, np.nan, IMAGES), CAPTIONS, PAIRS), {}, "holds NaN or infinity"),
        ((np.zeros((6, 4, 4, 3)), CAPTIONS, PAIRS), {}, "pictures are .* uint8"),
        (("nowhere/",), {}, "no such folder or file"),
        (("emoji", CAPTIONS), {}, "brings its own texts and pairs"),
        ((IMAGES, CAPTIONS, PAIRS), {"model": "vsep"}, "Did you mean 'vsepp'"),
        ((IMAGES, CAPTIONS, PAIRS), {"model": {"dim": 3}}, "a dict needs the key name"),
        ((IMAGES, CAPTIONS, PAIRS), {"loss": "aoq"}, "give tables, what miner.mine returns"),
        ((IMAGES, CAPTIONS, PAIRS), {"loss": "ntxent:tua=1"}, "did you mean 'tau'"),
        ((IMAGES, CAPTIONS, PAIRS), {"epoch": 3}, "'epoch' is not a setting; did you mean 'epochs'"),
        ((IMAGES, CAPTIONS, PAIRS), {"tables": 3}, "tables: give what miner.mine returned"),
        ((IMAGES, CAPTIONS, PAIRS), {"tables": {"i2t": 3}}, "no t2i among them"),
        ((IMAGES, CAPTIONS, PAIRS), {"start": "nowhere"}, "no checkpoint artifact here"),
    ],
)
def test_a_sentence_for_what_is_wrong(arguments, settings, sentence):
    with pytest.raises(trainer.BadInput, match=sentence):
        trainer.fit(*arguments, **settings)


def test_a_model_refuses_other_images():
    images, captions, pairs = given()
    model = trainer.fit(images, captions, pairs, **{**SMALL, "epochs": 1})
    with pytest.raises(trainer.BadInput, match=r"takes images of shape \(6,\), but these are \(5,\)"):
        model.encode_images(images[:, :5])
    with pytest.raises(trainer.BadInput, match=r"takes images of shape \(6,\)"):
        model.evaluate(images[:, :5], captions, pairs)
    other = miner.mine(np.eye(6), np.eye(6), k=2)
    with pytest.raises(trainer.BadInput, match="mine the pairs you train on"):
        trainer.fit(images, captions, pairs, tables=other)


def test_import_is_light():
    code = "import trainer, sys; print({'torch', 'numpy', 'pydantic', 'click'} & set(sys.modules), dir(trainer))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert said.startswith("set() ")
    assert "'fit'" in said
