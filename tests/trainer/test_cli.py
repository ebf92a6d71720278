"""The commands: the loop by hand end to end, repetition, a real kill, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result

from miner.artifacts.embeddings import EMBEDDINGS, Embeddings
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, write_negatives
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.artifacts.store import LocalStore
from trainer import data
from trainer.cli import main

SMALL = ["--epochs", "2", "--batch-size", "16", "--threads", "1", "--lr", "5e-3"]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def settings(folder: Path) -> Path:
    path = folder / "small.toml"
    path.write_text("[model]\ndim = 16\nword_dim = 8\n[fit]\nema_decay = 0.9\nepochs = 7\nwarmup_epochs = 1\n")
    return path


def mine(vectors: Path, out: Path, k: int = 5) -> Path:
    """Negatives by brute force, written as `miner mine` writes them: of pairs that are ids alone."""
    opened = {side: Embeddings.open(open_artifact(vectors / side, EMBEDDINGS)) for side in ("image", "text")}
    lines = (vectors / "pairs.csv").read_text().splitlines()
    assert lines[0] == "image_id,text_id"
    links = [tuple(line.split(",")) for line in lines[1:]]
    pairs = Pairs.from_ids(opened["image"].ids, opened["text"].ids, links)  # type: ignore[arg-type]
    scores = opened["image"].array() @ opened["text"].array().T
    belong = pairs.belong(np.arange(pairs.num_images), np.arange(pairs.num_texts))
    directions: tuple[Direction, Direction] = ("i2t", "t2i")
    for direction in directions:
        s, own = (scores, belong) if direction == "i2t" else (scores.T, belong.T)
        order = pairs.order(sides(direction)[0])
        best = np.argsort(np.where(own, np.inf, -s), axis=1)[:, :k]
        block = NegativeBlock(
            order,
            best[order].astype(np.int32),
            np.take_along_axis(s, best, 1)[order].astype(np.float32),
            np.where(own, s, np.inf).min(1)[order].astype(np.float32),
        )
        draft = Draft(LocalStore(out), direction, NEGATIVES, {"direction": direction})
        write_negatives(draft, [block], pairs, direction, k, {"round": None})
    return out


@pytest.fixture
def vectors(toys: SimpleNamespace, tmp_path: Path) -> Path:
    folder: Path = toys.write_vectors(tmp_path / "data", 60)
    return folder


def test_a_round_by_hand(vectors: Path, tmp_path: Path) -> None:
    toml = settings(tmp_path)
    first = run("fit", "--data", vectors, "--settings", toml, *SMALL, "--out", tmp_path / "m0")
    assert "epoch   1" in first.output
    assert "epoch   2" not in first.output  # the flag wins over the file
    run("encode", "--data", vectors, "--checkpoint", tmp_path / "m0", "--out", tmp_path / "v", "--shard-rows", "10")
    pairs = data.load(data.configure("vectors", {"folder": vectors}), "train").pairs
    for side, ids in (("image", pairs.image_ids), ("text", pairs.text_ids)):
        embeddings = Embeddings.open(open_artifact(tmp_path / "v" / side, EMBEDDINGS))
        assert (embeddings.ids, embeddings.dim, embeddings.side) == (ids, 16, side)
    negatives = mine(tmp_path / "v", tmp_path / "n")
    for form in ("OffTri", "OffQuin", "AdapOffQuin"):
        found = run(
            "fit",
            "--data",
            vectors,
            "--settings",
            toml,
            *SMALL,
            "--quintuplet",
            "--form",
            form,
            "--negatives",
            negatives,
            "--start",
            tmp_path / "m0",
            "--out",
            tmp_path / form,
        )
        assert "epoch   3" in found.output
        assert "offline" in found.output
    shown = run(
        "evaluate", "--data", vectors, "--checkpoint", tmp_path / "OffTri", "--split", "dev", "--out", tmp_path / "e"
    )
    measured = json.loads((tmp_path / "e" / "metrics.json").read_text())["metrics"]
    assert f"rsum {measured['rsum']:.1f}" in shown.output


def test_a_second_call_does_nothing_and_another_one_is_refused(vectors: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--data", vectors, "--settings", settings(tmp_path), *SMALL, "--out", tmp_path / "m"]
    run(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    assert set(before) == {"history.json", "manifest.json", "model.json", "state.safetensors", "weights.safetensors"}
    assert "already done" in run(*arguments).output
    assert "other inputs" in run(*arguments, "--seed", "1", code=3).output
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}


def test_a_fit_that_was_killed_ends_with_the_same_bytes(vectors: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        arguments = ["fit", "--data", vectors, "--settings", settings(tmp_path), *SMALL, "--epochs", 40, "--out", out]
        return [sys.executable, "-u", "-m", "trainer.cli", *map(str, arguments)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch   5"):
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again = subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, text=True, env=environment)
    assert "done before" in again.stdout
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_the_emoji_set_is_there(tmp_path: Path) -> None:
    """The bundled data, by name: an untrained model of the right shape is enough to evaluate."""
    from trainer import models
    from trainer.checkpoint import CHECKPOINT, Checkpoint
    from trainer.text import Vocabulary

    dataset = data.load(data.configure("emoji"), "train")
    config = models.configure("cnn_gru", {"dim": 8, "channels": (8,), "word_dim": 4, "hidden": 4})
    model = models.build(config, Vocabulary.build(dataset.pairs.texts), dataset.image_shape)
    checkpoint = Checkpoint(config, model.tokenizer, dataset.image_shape, dict(model.state_dict()), {}, 0, 0)
    checkpoint.commit(Draft(LocalStore(tmp_path / "m"), ".", CHECKPOINT, {}))
    shown = run("evaluate", "--data", "emoji", "--checkpoint", tmp_path / "m").output
    test = data.load(data.configure("emoji"), "test").pairs
    assert f"emoji test: {test.num_images} images, {test.num_texts} texts" in shown
    assert "R@10" in shown


def test_tables_of_other_pairs_are_refused(vectors: Path, toys: SimpleNamespace, tmp_path: Path) -> None:
    toml = settings(tmp_path)
    other = toys.write_vectors(tmp_path / "other", 30)
    run("fit", "--data", other, "--settings", toml, *SMALL, "--out", tmp_path / "m")
    run("encode", "--data", other, "--checkpoint", tmp_path / "m", "--out", tmp_path / "v")
    negatives = mine(tmp_path / "v", tmp_path / "n")
    base = [
        "fit",
        "--data",
        vectors,
        "--settings",
        toml,
        *SMALL,
        "--quintuplet",
        "--out",
        tmp_path / "q",
        "--negatives",
    ]
    assert "other pairs" in run(*base, negatives, code=3).output
    assert "no such folder" in run(*base, tmp_path / "nowhere", code=3).output
    assert "no negatives artifact here" in (said := run(*base, tmp_path, code=3).output)
    assert "`miner mine --out` wrote" in said
    table = negatives / "i2t" / "negatives.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    base[2] = str(other)
    # It was `miner mine` that made them: the same command again would find nothing.
    said = run(*base, negatives, code=4).output
    assert "Delete the folder" in said
    assert "run the command that made it again" in said


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--data", "nowhere"], 3, "no such folder"),
        (["--data", "emoji", "--quintuplet"], 2, "--quintuplet needs --negatives"),
        (["--data", "emoji", "--form", "OffTri"], 2, "--form belongs to --quintuplet"),
        (["--data", "emoji", "--fold", "5"], 2, "Invalid value for '--fold'"),
        (["--data", "emoji", "--model", "cnn_gro"], 3, "Did you mean 'cnn_gru'?"),
        (["--data", "emoji", "--model", "vsepp"], 3, "take the model cnn_gru"),
        (["--data", "emoji", "--lr", "-1"], 3, "lr = -1.0: Input should be greater than 0"),
        (["--data", "emoji", "--start", "nowhere"], 3, "no checkpoint artifact here"),
        (["--data", "emoji", "--loss", "ntxent:offline=softmax"], 2, "the loss ntxent needs --negatives"),
        (["--data", "emoji", "--loss", "aoq", "--quintuplet"], 2, "--quintuplet is --loss aoq; give one of the two."),
        (["--data", "emoji", "--loss", "ntxent", "--negatives", "n"], 2, "--negatives belongs to --quintuplet, or to"),
        (["--data", "emoji", "--loss", "ntxent", "--form", "OffTri"], 2, "--form belongs to --quintuplet"),
        (["--data", "emoji", "--loss", "ntxnet"], 3, "Did you mean 'ntxent'?"),
        (["--data", "emoji", "--loss", "ntxent:tau"], 3, "'tau' is not KEY=VALUE; write NAME:KEY=VALUE,KEY=VALUE."),
        (["--data", "emoji", "--loss", "goal:pair=line"], 3, "pair = 'line': Input should be 'con', 'lin'"),
        (["--data", "emoji", "--loss", "goal:pare=lin"], 3, "did you mean 'pair'?"),
    ],
)
def test_bad_input_gets_a_sentence(tmp_path: Path, arguments: list[str], code: int, sentence: str) -> None:
    result = run("fit", *arguments, "--out", tmp_path / "m", code=code)
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "m" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[fit]\nlearning_rate = 1\n", "'learning_rate' is not a setting"),
        ("[fit]\nlr_shedule = 'step'\n", "did you mean 'lr_schedule'?"),
        ("[fitt]\n", "'fitt' is not a section"),
        ("[model]\ndims = 5\n", "did you mean 'dim'?"),
        ("[fit\n", "not valid TOML"),
        ("[loss]\nname = 'gaol'\n", "Did you mean 'goal'?"),
        ("[loss]\nname = 3\n", "'3' is not one of the losses"),
        ("[loss]\nname = 'goal'\npairs = 'lin'\n", "did you mean 'pair'?"),
        ("[model]\nname = 'vsep'\n", "Did you mean 'vsepp'?"),
        ("[model]\nname = true\n", "'True' is not one of the models"),
        ("[model]\nname = 'cnn_gru'\n", "take the model vsepp"),
    ],
)
def test_a_wrong_settings_file_gets_a_sentence(tmp_path: Path, vectors: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert sentence in run("fit", "--data", vectors, "--settings", path, "--out", tmp_path / "m", code=3).output


def test_a_checkpoint_of_other_images_is_refused(vectors: Path, tmp_path: Path) -> None:
    run("fit", "--data", vectors, "--settings", settings(tmp_path), *SMALL, "--out", tmp_path / "m")
    for command in (["evaluate"], ["encode", "--out", str(tmp_path / "v")]):
        shown = run(*command, "--data", "emoji", "--checkpoint", tmp_path / "m", code=3).output
        assert "images of shape (12,)" in shown
    shown = run("evaluate", "--data", vectors, "--fold", 1, "--checkpoint", tmp_path / "m", code=3).output
    assert "belongs to the emoji set" in shown


def test_a_folder_that_cannot_be_written_gets_a_sentence(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shown = run("fit", "--data", vectors, *SMALL, "--out", tmp_path / "file" / "m", code=3).output
    assert shown.startswith("error: ") or "\nerror: " in shown


@pytest.mark.parametrize("command", [[], ["fit"], ["encode"], ["evaluate"], ["analyze"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    probe = (
        "import sys\nfrom click.testing import CliRunner\nfrom trainer.cli import main\n"
        f"result = CliRunner().invoke(main, {[*command, '--help']!r})\n"
        "assert result.exit_code == 0 and 'trainer fit' in result.output or 'Examples' in result.output\n"
        "print([name for name in ('torch', 'faiss', 'ray', 'numpy', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
