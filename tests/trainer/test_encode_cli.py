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
import transformers
from click.testing import CliRunner, Result
from PIL import Image

from miner.artifacts.pairs import Pairs
from tests.trainer.pretrained_models import clip, pictures, siglip
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
            texts = [
                (one.image_ids[i], one.text_ids[t], one.texts[t])
                for i, t in zip(one.image_rows, one.text_rows, strict=True)
            ]
            assert set(texts) <= {
                (two.image_ids[i], two.text_ids[t], two.texts[t])
                for i, t in zip(two.image_rows, two.text_rows, strict=True)
            }
    small = ["--model", "vsepp:dim=8,word_dim=4", "--epochs", 1, "--batch-size", 8, "--threads", 1]
    run("fit", "--data", tmp_path / "features", *small, "--out", tmp_path / "model")
    run("encode", "--data", tmp_path / "features", "--checkpoint", tmp_path / "model", "--out", tmp_path / "vectors")
    assert (tmp_path / "vectors" / "image" / "manifest.json").is_file()
    again = run("encode", "--data", spec(photos), "--backbone", network, "--regions", 2, "--out", tmp_path / "features")
    assert "already done" in again.output
    refused = run("encode", "--data", spec(photos), "--backbone", network, "--out", tmp_path / "features", code=3)
    assert "made from other inputs is here already" in refused.output


def test_only_a_split_that_is_not_there_is_left_out(photos: Path, network: str, tmp_path: Path) -> None:
    """Not one that is wrong, and never train."""
    table = photos / "captions.tsv"
    whole = table.read_text()
    asked = ["encode", "--backbone", network, "--out", tmp_path / "features", "--data"]
    table.write_text(whole.replace("\ttrain", "\tval"))
    found = run(*asked, spec(photos), code=3)
    assert "no pair in split 'train'" in found.output
    assert found.output.count("pairs found") == 1
    table.write_text(whole)
    # Of test not one picture is there, of dev not even a line.
    for line in whole.splitlines():
        if line.endswith("\ttest"):
            (photos / "images" / line.partition("\t")[0]).unlink(missing_ok=True)
    assert "6 of 6 pictures cannot be read" in run(*asked, spec(photos), code=3).output
    assert not (tmp_path / "features").exists()


def test_pictures_are_read_at_the_size_the_backbone_wants(photos: Path, network: str, tmp_path: Path) -> None:
    """Unless --data says a size; the pictures on disk are 16 high, 20 wide."""
    base = f"folder:folder={photos},decode_workers=0"
    asked = ["--backbone", network, "--pool", "map", "--image-size"]
    made = run("encode", "--data", base, *asked, 12, "--out", tmp_path / "own")
    assert made.stderr.count("note: pictures are read with image_size=12, which the backbone wants\n") == 1
    assert made.stderr.count("no features of the split dev") == 1
    same = run("encode", "--data", f"{base},image_size=12", *asked, 12, "--out", tmp_path / "said")
    assert "image_size=12" not in same.stderr
    for split in ("train", "test"):
        found = [(tmp_path / name / f"{split}_ims.npy").read_bytes() for name in ("own", "said")]
        assert found[0] == found[1]
    enlarged = run("encode", "--data", f"{base},image_size=8", *asked, 12, "--out", tmp_path / "enlarged")
    assert "warning: the data gives 8 pixels, the backbone wants 12: set image_size=12 in --data\n" in enlarged.stderr
    assert (
        "warning: the data"
        not in run("encode", "--data", f"{base},image_size=16", *asked, 12, "--out", tmp_path / "s").stderr
    )


def test_a_processor_that_crops_gets_what_it_crops_from(photos: Path, tmp_path: Path) -> None:
    """The shorter side is scaled to 20 and 16 are cut out: from pictures of 16, it would be a part of them enlarged."""
    for number, path in enumerate(sorted((photos / "images").iterdir())):
        Image.fromarray(pictures(1, 60, 80, number)[0]).save(path)
    clip(tmp_path / "clip")
    transformers.CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "clip"
    )
    base = f"folder:folder={photos},decode_workers=0"
    asked = ["--backbone", tmp_path / "clip", "--split", "test", "--out"]
    assert "image_size=20" in run("encode", "--data", base, *asked, tmp_path / "own").stderr
    run("encode", "--data", f"{base},image_size=20", *asked, tmp_path / "said")
    warned = run("encode", "--data", f"{base},image_size=16", *asked, tmp_path / "cut").stderr
    assert "the data gives 16 pixels, the backbone wants 20" in warned
    found = [np.load(tmp_path / name / "test_ims.npy") for name in ("own", "said", "cut")]
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_the_nearest_backbone_is_named(photos: Path, tmp_path: Path) -> None:
    found = run("encode", "--data", spec(photos), "--backbone", "efficientnet-lite", "--out", tmp_path / "o", code=3)
    assert "Did you mean 'efficientnet-lite0'?" in found.output


def test_notes_are_said_once(photos: Path, network: str, tmp_path: Path) -> None:
    data_spec = f"folder:folder={photos},decode_workers=0,split_by=hash,image_size=16"
    made = run("encode", "--data", data_spec, "--backbone", network, "--out", tmp_path / "features")
    assert made.stderr.count("split by a hash of the image's id") == 1
    assert made.stderr.count("note: ") == 1


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


def test_photos_are_read_as_the_model_was_trained(photos: Path, tmp_path: Path) -> None:
    """Of its size, and squeezed if it was: by fit, and by what uses the checkpoint; unless --data says otherwise."""
    siglip(tmp_path / "siglip")
    base = f"folder:folder={photos},decode_workers=0"
    wanted = "image_size=16, image_mode=squeeze, which the model wants"
    model = ["--model", f"clip:path={tmp_path / 'siglip'}", "--epochs", 1, "--batch-size", 8, "--threads", 1]
    assert wanted in run("fit", "--data", base, *model, "--out", tmp_path / "own").stderr
    said = run("fit", "--data", f"{base},image_size=24,image_mode=crop", *model, "--out", tmp_path / "said")
    assert "note: pictures" not in said.stderr
    for name, note in (("own", wanted), ("said", "image_size=24, image_mode=squeeze")):
        found = run("evaluate", "--data", base, "--checkpoint", tmp_path / name, "--json")
        assert note in found.stderr
    vectors = run(
        "encode", "--data", base, "--checkpoint", tmp_path / "own", "--split", "test", "--out", tmp_path / "v"
    )
    assert wanted in vectors.stderr
    features = run("encode", "--data", base, "--backbone", tmp_path / "siglip", "--out", tmp_path / "features")
    assert "image_size=16, image_mode=squeeze, which the backbone wants" in features.stderr
