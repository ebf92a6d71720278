"""`pipelines init`: a run file that works unchanged, for every data format."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.trainer.formats_written import FORMATS, write_folder, write_precomp, write_vectors

MODELS = {"vectors": "vse_inf", "precomp": "vse_inf"}


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", [*FORMATS, "emoji"])
def test_every_format_gives_a_run_file_that_plans(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data = "emoji"
    if name in FORMATS:
        data = FORMATS[name].write(Path("data") if Path("data").mkdir() is None else Path())
    done = run("init", data)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "next: pipelines plan run.toml, then: pipelines run run.toml"
    text = Path("run.toml").read_text()
    written = tomllib.loads(text)
    assert written["data"]["format"] == name
    assert written["model"]["name"] == MODELS.get(name, "cnn_gru")
    assert str(tmp_path) not in text  # the folder can be moved
    for line in text.splitlines():
        assert len(line) <= 120
    blocks = text.split("\n\n")[1:]
    assert all(block.startswith("# ") and "\n[" in block for block in blocks), "a comment before every section"
    planned = run("plan", "run.toml")
    assert planned.exit_code == 0, planned.output
    assert "r3/fit" in planned.output


def test_small_batches_are_composed_from_the_tables_where_that_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, images in (("few", 980), ("more", 1400)):
        folder = Path(name)
        folder.mkdir()
        np.save(folder / "images.npy", np.random.default_rng(0).standard_normal((images, 4), np.float32))
        (folder / "image_ids.txt").write_text("".join(f"i{row}\n" for row in range(images)))
        rows = [
            f"i{row},t{row}-{caption},word{row} word{caption},{split}\n"
            for row, split in enumerate(["test"] * 10 + ["dev"] * 10 + ["train"] * (images - 20))
            for caption in range(4 + row % 3)  # unequal positives
        ]
        (folder / "pairs.csv").write_text("image_id,text_id,text,split\n" + "".join(rows))
        assert run("init", folder, "--out", f"{name}.toml").exit_code == 0
    few, more = (tomllib.loads(Path(f"{name}.toml").read_text()) for name in ("few", "more"))
    assert (few["fit"]["batch_size"], few["run"]["first_epochs"], few["loss"]["h_t"]) == (128, 20, 30)
    assert "neighbourhood" not in few["fit"]
    fit = more["fit"]
    assert (fit["batch_size"], fit["neighbourhood"], fit["min_count"], more["run"]["first_epochs"]) == (16, 16, 4, 4)
    assert (more["loss"]["h_t"], more["loss"]["h_v"], more["mine"]["k"]) == (69, 14, 69)  # of 6,900 texts
    assert run("plan", "more.toml").exit_code == 0
    assert run("init", "more", "--model", "scan:attention=t2i", "--out", "scan.toml").exit_code == 0
    scan = tomllib.loads(Path("scan.toml").read_text())
    assert (scan["mine"]["k"], scan["fit"]["neighbourhood"]) == ({"i2t": 69, "t2i": 14}, 16)


def test_a_run_file_runs_unchanged_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    folder = write_vectors(tmp_path / "data")
    np.save(folder / "images.npy", np.load(folder / "images.npy")[:, 0])  # one vector per image
    out = tmp_path / "here" / "mine.toml"
    out.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("init", "data", "--out", "here/mine.toml").exit_code == 0
    written = tomllib.loads(out.read_text())
    assert (written["model"]["name"], written["executor"]["kind"]) == ("vsepp", "inline")
    assert (written["mine"]["k"], written["loss"]["h_v"]) == (3, 2)
    assert run("plan", "here/mine.toml").exit_code == 0
    monkeypatch.chdir(tmp_path / "here")
    done = run("run", "mine.toml", "--run-dir", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "report.html").exists()
    before = out.read_bytes()
    again = run("init", folder, "--out", out)
    assert (again.exit_code, out.read_bytes()) == (3, before)
    assert "nothing is overwritten" in again.output


def test_a_model_that_was_asked_for_gets_settings_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_vectors(Path("data"))
    assert run("init", "data", "--model", "scan:attention=i2t,dim=16").exit_code == 0
    written = tomllib.loads(Path("run.toml").read_text())
    assert written["model"] == {"name": "scan", "attention": "i2t", "dim": 16}
    assert written["mine"]["k"] == {"i2t": 3, "t2i": 2}
    assert (written["loss"]["h_t"], written["loss"]["h_v"]) == (3, 2)
    done = run("run", "run.toml")
    assert done.exit_code == 0, done.output


def test_a_pretrained_model_is_adapted_and_not_trained_anew(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="the extra 'pretrained' is not installed")
    from tests.trainer.pretrained_models import SIDE, clip, siglip

    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_folder(Path("data"))
    clip(Path("models/tiny"))
    Path("runs").mkdir()
    assert run("init", "data", "--model", "clip:path=models/tiny", "--out", "first.toml").exit_code == 0
    written = tomllib.loads(Path("first.toml").read_text())
    assert written["model"] == {"name": "clip", "path": "models/tiny", "tuning": "lora"}
    assert written["fit"]["lr"] <= 1e-4
    assert (written["data"]["image_size"], written["run"]["first_epochs"]) == (SIDE, 1)
    assert "image_mode" not in written["data"]
    siglip(Path("models/squeezed"))
    assert run("init", "data", "--model", "clip:path=models/squeezed", "--out", "squeezed.toml").exit_code == 0
    assert tomllib.loads(Path("squeezed.toml").read_text())["data"]["image_mode"] == "squeeze"
    asked = run("init", "data", "--model", "clip:path=models/tiny,tuning=full", "--out", "runs/second.toml")
    assert asked.exit_code == 0, asked.output
    model = tomllib.loads(Path("runs/second.toml").read_text())["model"]
    assert model == {"name": "clip", "path": str(Path("models/tiny").resolve()), "tuning": "full"}
    assert tomllib.loads(Path("runs/second.toml").read_text())["fit"]["lr"] < written["fit"]["lr"]
    for file in ("first.toml", "runs/second.toml"):
        planned = run("plan", file)
        assert planned.exit_code == 0, planned.output


def test_only_paths_are_rewritten_and_tables_are_toml(tmp_path, monkeypatch):
    """A folder may be called as a setting's value; settings of a model of the user's are its own affair."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "t2i", "out", "weights"):
        Path(folder).mkdir()
    write_vectors(Path("data"))
    assert run("init", "data", "--model", "scan:attention=t2i", "--out", "out/scan.toml").exit_code == 0
    assert tomllib.loads(Path("out/scan.toml").read_text())["model"]["attention"] == "t2i"
    Path("towers.py").write_text(TOWERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = 'settings={weights="weights","c.d"=2,a=[{b=1}]}'
    made = run("init", "data", "--model", f"{OWN},{settings}", "--out", "out/own.toml")
    assert made.exit_code == 0, made.output
    written = tomllib.loads(Path("out/own.toml").read_text())["model"]["settings"]
    assert written == {"weights": "weights", "a": [{"b": 1}], "c.d": 2}


OWN = "custom:factory=towers:build,dim=16,cross_attention=true"
TOWERS = """
from trainer.models.scan import Config, build as scan


def build(tokenizer, image_shape, **settings):
    return scan(Config(dim=16, word_dim=8), tokenizer, image_shape)
"""


def test_a_cross_attention_model_of_ones_own_is_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_vectors(Path("data"))
    Path("towers.py").write_text(TOWERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = run("init", "data", "--model", OWN)
    assert made.exit_code == 0, made.output
    planned = run("plan", "run.toml")
    assert planned.exit_code == 0, planned.output
    assert "r1/mine-t2i" in planned.output


def test_a_model_that_does_not_suit_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_vectors(Path("data"))
    sentences = {
        "scam": "Did you mean 'scan'",
        "scan:attenion=i2t": "did you mean 'attention'",
        "cnn_gru": "these images are",
        "clip": "path is missing",
        "": "is not one of the models",
        ":dim=4": "is not one of the models",
    }
    for model, sentence in sentences.items():
        wrong = run("init", "data", "--model", model)
        assert (wrong.exit_code, sentence in wrong.output) == (3, True), wrong.output
        assert not Path("run.toml").exists()


def test_what_was_said_of_the_data_is_kept(tmp_path):
    (tmp_path / "data").mkdir()
    folder = write_folder(tmp_path / "data")
    out = tmp_path / "run.toml"
    assert run("init", f"folder:folder={folder},image_size=8,max_broken=0.5", "--out", out).exit_code == 0
    assert tomllib.loads(out.read_text())["data"] == {
        "format": "folder", "folder": "data", "image_size": 8, "max_broken": 0.5,
    }  # fmt: skip


def test_wrong_data_gets_the_sentence_of_data_check(tmp_path):
    out = tmp_path / "run.toml"
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir()
    folder = write_precomp(tmp_path / "data")
    np.save(folder / "test_ims.npy", np.load(folder / "test_ims.npy")[:, :2])
    sentences = {
        tmp_path / "empty": "no known data here",
        tmp_path / "nowhere": "no such folder or file",
        "folder:fodler=x": "did you mean 'folder'",
        folder: "the splits have different images",
    }
    for data, sentence in sentences.items():
        wrong = run("init", data, "--out", out)
        assert (wrong.exit_code, sentence in wrong.output) == (3, True), wrong.output
        assert not out.exists()
    (folder / "dev_ims.npy").unlink()
    wrong = run("init", folder, "--out", out)
    assert (wrong.exit_code, "dev_ims.npy" in wrong.output) == (3, True), wrong.output
    missing = run("plan", tmp_path / "never.toml")
    assert (missing.exit_code, "pipelines init DATA" in missing.output) == (3, True)
    nowhere = run("init", "--out", tmp_path / "none" / "run.toml")
    assert (nowhere.exit_code, "no such folder to write" in nowhere.output) == (3, True)
