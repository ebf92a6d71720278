"""`trainer encode`: which options go together, and pictures to features to a trained model, over a real kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from miner.artifacts.pairs import Pairs
from tests.trainer.pretrained_models import pictures
from trainer import data
from trainer.cli import main

NETWORK = """
import os
import signal

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.left = int(os.environ.get("KILLED_AFTER", "0"))

    def forward(self, images):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.conv(images)


def build():
    return Network()
"""


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "network_of_test.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    return "network_of_test:build"


@pytest.fixture
def photos(tmp_path: Path, toys: SimpleNamespace) -> Path:
    """A folder of 22 pictures with 1 to 4 captions each, 16 of them train, the others test."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    pairs: Pairs = toys.pairs(22)
    lines = ["image\tcaption\tsplit"]
    for image, picture in zip(pairs.image_ids, pictures(22, 20, 16), strict=True):
        Image.fromarray(picture).save(folder / "images" / f"{image}.png")
    for image, text in zip(pairs.image_rows, pairs.text_rows, strict=True):
        split = "train" if image < 16 else "test"
        lines.append(f"{pairs.image_ids[image]}.png\t{pairs.texts[text]}\t{split}")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    return folder


def spec(photos: Path) -> str:
    return f"folder:folder={photos},image_size=16,decode_workers=0"


def test_pictures_to_features_to_a_model(photos: Path, network: str, tmp_path: Path) -> None:
    made = run("encode", "--data", spec(photos), "--backbone", network, "--regions", 2, "--out", tmp_path / "features")
    assert "train: features of 16 images" in made.output
    assert "warning: no features of the split dev" in made.output
    assert not (tmp_path / "features" / "dev_ims.npy").exists()
    for split in ("train", "test"):
        before, after = (data.load(data.spoken(where), split) for where in (spec(photos), str(tmp_path / "features")))  # type: ignore
        assert after.image_shape == (4, 6)
        for one, two in ((before.pairs, after.pairs), (after.pairs, before.pairs)):
            texts = [(one.image_ids[i], one.texts[t]) for i, t in zip(one.image_rows, one.text_rows, strict=True)]
            assert set(texts) <= {
                (two.image_ids[i], two.texts[t]) for i, t in zip(two.image_rows, two.text_rows, strict=True)
            }
    small = ["--model", "vsepp:dim=8,word_dim=4", "--epochs", 1, "--batch-size", 8, "--threads", 1]
    run("fit", "--data", tmp_path / "features", *small, "--out", tmp_path / "model")
    run("encode", "--data", tmp_path / "features", "--checkpoint", tmp_path / "model", "--out", tmp_path / "vectors")
    assert (tmp_path / "vectors" / "image" / "manifest.json").is_file()
    again = run("encode", "--data", spec(photos), "--backbone", network, "--regions", 2, "--out", tmp_path / "features")
    assert "already done" in again.output
    refused = run("encode", "--data", spec(photos), "--backbone", network, "--out", tmp_path / "features", code=3)
    assert "made from other inputs is here already" in refused.output


def test_one_split_half_precision_another_size(photos: Path, network: str, tmp_path: Path) -> None:
    settings = ["--pool", "map", "--dtype", "float16", "--image-size", 8, "--batch-size", 5, "--split", "test"]
    run("encode", "--data", spec(photos), "--backbone", network, *settings, "--out", tmp_path / "features")
    found = np.load(tmp_path / "features" / "test_ims.npy")
    assert (found.shape, found.dtype) == ((6, 4, 6), np.float16)
    assert not (tmp_path / "features" / "train_ims.npy").exists()
    run("encode", "--data", spec(photos), "--backbone", network, "--split", "dev", "--out", tmp_path / "dev", code=3)


def test_a_killed_process_leaves_nothing_that_counts(photos: Path, network: str, tmp_path: Path) -> None:
    """SIGKILL in the test split: the training split's shard is kept, the rest is made, and the bytes are the same."""
    arguments = ["encode", "--data", spec(photos), "--backbone", network, "--batch-size", "4", "--out"]
    run(*arguments, tmp_path / "whole")
    command = [sys.executable, "-c", "from trainer.cli import main; main()", *arguments, str(tmp_path / "killed")]
    environment = {**os.environ, "KILLED_AFTER": "8", "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    died = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / "killed" / "manifest.json").exists()
    assert [path.name for path in (tmp_path / "killed" / ".parts").glob("*.done")] == ["train-part-00000.npy.done"]
    resumed = run(*arguments, tmp_path / "killed")
    assert "train: 16 of 16 images" in resumed.output
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of --checkpoint"),
        (["--checkpoint", "a", "--backbone", "b"], "give one of --checkpoint"),
        (["--checkpoint", "a", "--regions", "3"], "--regions belongs to --backbone"),
        (["--checkpoint", "a", "--image-size", "8"], "--image-size belongs to --backbone"),
        (["--backbone", "b", "--shard-rows", "8"], "--shard-rows belongs to --checkpoint"),
        (["--backbone", "b", "--regions", "3", "--pool", "cls"], "leave --pool out"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    found = run("encode", "--data", "emoji", "--out", tmp_path / "out", *arguments, code=2)
    assert sentence in found.output
    assert not (tmp_path / "out").exists()


def test_vectors_are_no_pictures(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "vectors")
    found = run("encode", "--data", folder, "--backbone", "efficientnet-lite0", "--out", tmp_path / "out", code=3)
    assert "vectors already" in found.output
    assert not (tmp_path / "out").exists()
