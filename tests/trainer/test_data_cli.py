"""`trainer data check`: what it says of every format, what it finds wrong, and training on a folder of one's own."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from miner.artifacts.errors import DamagedArtifact
from tests.trainer import formats_written as tiny
from trainer import data
from trainer.cli import main


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def check(*arguments: object, code: int = 0) -> dict[str, Any]:
    found = json.loads(run("data", "check", *arguments, "--json", code=code).stdout)
    assert isinstance(found, dict)
    return found


def findings(report: dict[str, Any], severity: str) -> str:
    return "\n".join(one["sentence"] for one in report["findings"] if one["severity"] == severity)


def photos(folder: Path, captions: dict[str, list[tuple[str, str]]], content: dict[str, bytes] | None = None) -> str:
    """A folder: image -> [(caption, split)]; the content of a picture is its first letter's unless given."""
    (folder / "images").mkdir(parents=True)
    lines = ["image,caption,split"]
    for image, own in captions.items():
        (folder / "images" / image).write_bytes((content or {}).get(image, tiny.png(image)))
        lines += [f'{image},"{caption}",{split}' for caption, split in own]
    (folder / "captions.csv").write_text("\n".join(lines))
    return f"folder:folder={folder},image_size={tiny.SIDE},decode_workers=0"


@pytest.mark.parametrize("name", tiny.FORMATS)
def test_every_format_is_described_alike(name: str, tmp_path: Path) -> None:
    written = tiny.FORMATS[name]
    path = getattr(data.spoken(str(written.write(tmp_path))), written.key)
    small = f",image_size={tiny.SIDE},decode_workers=0" if written.pictures else ""
    report = check(f"{name}:{written.key}={path}{small}")
    assert report["format"] == name
    for split, images in tiny.SET.items():
        found, pairs = report["splits"][split], tiny.expected(split)
        assert (found["images"], found["pairs"]) == (pairs.num_images, pairs.num_pairs)
        assert found["captions"] == (pairs.num_texts if written.with_ids else pairs.num_pairs)
        counts = [len(captions) for captions in images.values()]
        assert found["captions_per_image"] == {str(count): counts.count(count) for count in sorted(set(counts))}
        assert found["shape"] == ([8, 8, 3] if written.pictures else [3, 5])
        assert found["dtype"] == ("uint8" if written.pictures else "float32")
        assert found["broken"] == {}
    shared = {"1": 4, "2": 1} if written.with_ids else {"1": 6}
    assert report["splits"]["train"]["images_per_caption"] == shared
    # The words, counted by hand: train has 15 kinds, dev says "dogs more dogs an eel", of which none is known.
    assert report["vocabulary"] == 15
    assert report["splits"]["dev"]["out_of_vocabulary"] == 1
    assert report["splits"]["train"]["out_of_vocabulary"] == 0
    assert report["splits"]["test"]["words_per_caption"] == {"1": 3, "2": 2}
    assert findings(report, "error") == ""
    assert "too few to rank" in findings(report, "warning")
    text = run("data", "check", f"{name}:{written.key}={path}{small}").stdout
    assert "train" in text
    assert "0 error(s), 2 warning(s)" in text


def test_what_occurs_twice_is_found(tmp_path: Path) -> None:
    spec = photos(
        tmp_path,
        {
            "a.png": [("the same", "train"), ("The  same", "train"), ("another", "train")],
            "b.png": [("the same", "train"), ("...", "train")],
            "c.png": [("c", "train")],
            "d.png": [("c", "val"), ("word " * 65, "val")],
            "e.png": [("another", "test")],
        },
        {"c.png": tiny.png("a.png"), "e.png": tiny.png("b.png"), "d.png": tiny.png("a.png")},
    )
    report = check(spec)
    train = report["splits"]["train"]
    assert (train["duplicate_captions"], train["duplicate_images"]) == (2, 1)
    warnings, notes = findings(report, "warning"), findings(report, "note")
    assert "train: 1 caption(s) repeat another of the same image (first 'a.png#1')" in warnings
    assert "train: 1 caption(s) hold no word (first 'b.png#1')" in warnings
    assert "train: 1 image(s) look the same as another one (first 'c.png')" in warnings
    assert "dev: 1 image(s) are in train as well (first 'd.png')" in warnings
    assert "test: 1 image(s) are in train as well (first 'e.png')" in warnings
    assert "train: 1 caption(s) say the same as one of another image (first 'b.png#0')" in notes
    assert "dev: 1 caption(s) are in train as well (first 'c')" in notes
    assert "test: 1 caption(s) are in train as well (first 'another')" in notes
    assert "dev: 1 caption(s) have more than 64 words" in notes
    assert findings(report, "error") == ""
    run("data", "check", spec, "--strict", code=3)
    assert check(spec, "--min-count", "3")["vocabulary"] == 2


def twelve(split: str) -> dict[str, list[tuple[str, str]]]:
    return {f"{letter}{split}.png": [(f"{letter} {split}", split)] for letter in "abcdefghijkl"}


def test_broken_pictures_are_listed_excluded_and_gone(tmp_path: Path) -> None:
    content = {
        f"{letter}{split}.png": tiny.png(letter) for split in ("train", "val", "test") for letter in "abcdefghijkl"
    }
    content |= {"atrain.png": b"broken", "btest.png": tiny.png("x")[:-30]}
    spec = photos(tmp_path / "set", {**twelve("train"), **twelve("val"), **twelve("test")}, content)
    (tmp_path / "set" / "images" / "cval.png").unlink()
    exclude = tmp_path / "broken.txt"
    report = check(spec, "--write-exclude", exclude, code=3)
    assert set(report["splits"]["train"]["broken"]) == {"atrain.png"}
    assert "No such file" in report["splits"]["dev"]["broken"]["cval.png"]
    assert "train: 1 of 12 images cannot be used (atrain.png: not a picture of" in findings(report, "error")
    assert [line.partition("\t")[0] for line in exclude.read_text().splitlines()] == [
        "atrain.png",
        "cval.png",
        "btest.png",
    ]
    # Fewer than asked for: a warning.
    assert "12 images cannot be used" in findings(check(f"{spec},max_broken=0.1"), "warning")
    report = check(f"{spec},exclude={exclude}")
    assert [found["images"] for found in report["splits"].values()] == [11, 11, 11]
    assert "left out by the exclude file" in findings(report, "note")
    # What was excluded stays so.
    (tmp_path / "set" / "images" / "dtrain.png").write_bytes(b"")
    run("data", "check", f"{spec},exclude={exclude}", "--write-exclude", exclude, code=3)
    assert len(exclude.read_text().splitlines()) == 4
    assert "nothing is wrong" not in run("data", "check", f"{spec},exclude={exclude}").stdout


def unusual() -> dict[str, bytes]:
    """A file of every kind that is read, but not as it lies there; one is of two kinds, one is broken besides."""
    from PIL import Image

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    pixels = np.random.default_rng(0).integers(0, 255, (tiny.SIDE, tiny.SIDE, 4), dtype=np.uint8)
    plain, seen_through = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    turned, upright = Image.Exif(), Image.Exif()
    turned[0x0112], upright[0x0112] = 6, 1
    moving = {"save_all": True, "append_images": [plain.rotate(90)]}
    # Pillow reads a damaged PNG when it is asked the second time; so nothing may ask before.
    flipped = bytearray(saved(plain.rotate(60), "PNG"))
    flipped[len(flipped) // 2] ^= 0x55
    ink = saved(plain.convert("CMYK"), "JPEG", exif=turned)
    return {
        "ink.jpg": ink,
        "lost.jpg": ink[: len(ink) // 2],
        "flipped.png": bytes(flipped),
        "turned.jpg": saved(plain.rotate(180), "JPEG", exif=turned),
        "upright.jpg": saved(plain.rotate(270), "JPEG", exif=upright),
        "moving.gif": saved(plain, "GIF", **moving),
        "still.gif": saved(plain.rotate(45), "GIF"),
        "moving.webp": saved(plain.rotate(30), "WEBP", lossless=True, **moving),
        "through.png": saved(seen_through, "PNG"),
        "wide.png": saved(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
    }


def test_unusual_pictures_are_counted(tmp_path: Path) -> None:
    files = unusual()
    captions = {name: [(f"a caption of {name}", "train")] for name in files} | twelve("dev") | twelve("test")
    for workers in (0, 2):
        spec = photos(tmp_path / str(workers), captions, files).replace("workers=0", f"workers={workers}")
        report = check(spec, code=3)
        assert sorted(report["splits"]["train"]["broken"]) == ["flipped.png", "lost.jpg"]
        wanted = {
            "CMYK": 1, "animated": 2, "of more than 8 bits": 1, "turned by EXIF": 2, "with an alpha channel": 1,
        }  # fmt: skip
        assert report["splits"]["train"]["handled"] == wanted
        assert report["splits"]["dev"]["handled"] == {}
    told = "train: pictures that are read, though unusual: 1 CMYK, 2 animated, 1 of more than 8 bits, 2 turned by EXIF"
    assert told in run("data", "check", spec, code=3).stdout


def test_the_report_is_printed_and_nothing_of_anybodys_overwritten(tmp_path: Path) -> None:
    spec = photos(tmp_path / "set", {**twelve("train"), **twelve("val"), **twelve("test")}, {"atrain.png": b"broken"})
    table = tmp_path / "set" / "captions.csv"
    before = table.read_bytes()
    refused = run("data", "check", spec, "--write-exclude", table, code=3)
    assert "captions.csv: there already, and would be overwritten" in refused.output
    assert "images read" not in refused.output
    assert table.read_bytes() == before
    nowhere = run("data", "check", spec, "--write-exclude", tmp_path / "nowhere" / "x.txt", code=3)
    assert "nowhere: no such folder" in nowhere.output
    assert "of 12 images" not in nowhere.output
    # A place that turns out not to be writable, here a folder under the temporary name, costs the list alone.
    (tmp_path / f"x.txt.{os.getpid()}.part").mkdir()
    shown = CliRunner().invoke(main, ["data", "check", spec, "--write-exclude", str(tmp_path / "x.txt")])
    assert shown.exit_code not in (0, 1)
    assert "1 of 12 images cannot be used" in shown.stdout
    assert not (tmp_path / "x.txt").exists()


def test_damaged_features_are_said(toys: SimpleNamespace, tmp_path: Path) -> None:
    """What `trainer encode --backbone` wrote is checked against its manifest; a folder of anybody's own has none."""
    (tmp_path / "network_of_check.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Conv2d(3, 6, 4, stride=4)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        spec = photos(tmp_path / "set", {**twelve("train"), **twelve("val"), **twelve("test")})
        features = tmp_path / "features"
        run("encode", "--data", spec, "--backbone", "network_of_check:build", "--out", features)
    finally:
        sys.path.remove(str(tmp_path))
    assert findings(check(features), "error") == ""
    vectors = bytearray((features / "test_ims.npy").read_bytes())
    vectors[-1] ^= 1
    (features / "test_ims.npy").write_bytes(vectors)
    assert "test_ims.npy is not the file that was committed" in findings(check(features, code=3), "error")
    for name in ("dev_caps.txt", "dev_ids.txt", "dev_text_ids.txt"):
        content = (features / name).read_bytes()
        (features / name).write_bytes(content.replace(b"a", b"z", 1))
        with pytest.raises(DamagedArtifact, match=f"{name} is not the file"):
            data.load(data.spoken(str(features)), "dev")
        assert f"dev: {features}/{name} is not" in findings(check(features, code=3), "error")
        (features / name).write_bytes(content)
    assert data.load(data.spoken(str(features)), "dev").pairs.num_images == 12
    (features / "manifest.json").write_text('{"of": "somebody else"}')
    assert findings(check(features), "error") == ""


def test_what_is_wrong_with_the_whole_set_is_said_once(tmp_path: Path) -> None:
    spec = photos(tmp_path / "set", twelve("train"))
    (tmp_path / "set" / "captions.csv").write_text("one,two\na,b\n")
    report = check(spec, code=3)
    assert len(report["findings"]) == 1
    assert not report["findings"][0]["sentence"].startswith("train")


def test_vectors_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    tiny.write_vectors(tmp_path)
    array = np.load(tmp_path / "images.npy")
    array[1], array[2, 0, 0] = 0, np.nan
    np.save(tmp_path / "images.npy", array)
    report = check(tmp_path, code=3)
    assert set(report["splits"]["train"]["broken"]) == {"b.png", "c.png"}
    assert "holds only zeros" in report["splits"]["train"]["broken"]["b.png"]
    assert "2 of 3 images cannot be used" in findings(report, "error")
    shown = run("data", "check", tmp_path, "--write-exclude", tmp_path / "x", code=3).output
    assert "this format has no setting exclude" in shown


def test_a_split_that_cannot_be_read_is_one_finding_among_others(tmp_path: Path) -> None:
    tiny.write_precomp(tmp_path)
    (tmp_path / "dev_caps.txt").unlink()
    np.save(tmp_path / "test_ims.npy", np.ones((2, 4), np.float32))
    report = check(tmp_path, code=3)
    assert set(report["splits"]) == {"train", "test"}
    assert "dev: " in findings(report, "error")
    assert "dev_caps.txt: no such file" in findings(report, "error")
    assert "the splits have different images: train [3, 5] float32; test [4] float32" in findings(
        report, "error"
    ).replace("(", "[").replace(",)", "]").replace(")", "]")
    assert "nothing is wrong" not in run("data", "check", tmp_path, code=3).stdout


def test_what_is_not_data_gets_a_sentence(tmp_path: Path) -> None:
    assert "no such folder or file" in run("data", "check", "nowhere", code=3).output
    assert "no known data here" in run("data", "check", tmp_path, code=3).output
    assert (
        "--fold 2 belongs to the emoji set"
        in run("data", "check", tiny.write_precomp(tmp_path), "--fold", 2, code=3).output
    )
    assert check("emoji", "--fold", 1)["splits"]["test"] != check("emoji")["splits"]["test"]


def test_a_folder_of_pictures_is_trained_on(tmp_path: Path) -> None:
    """Fit, encode and evaluate, with a broken picture that is told at the end."""
    spec = photos(tmp_path / "set", {**twelve("train"), **twelve("val"), **twelve("test")})
    (tmp_path / "set" / "images" / "atest.png").write_bytes(b"broken")
    toml = tmp_path / "small.toml"
    toml.write_text(
        "[model]\nname = 'cnn_gru'\ndim = 8\nchannels = [8]\nword_dim = 4\nhidden = 4\n[fit]\nepochs = 1\nthreads = 1\n"
    )
    run("fit", "--data", spec, "--settings", toml, "--batch-size", 4, "--out", tmp_path / "m")
    shown = run("evaluate", "--data", f"{spec},max_broken=0.1", "--checkpoint", tmp_path / "m")
    assert "1 of 12 pictures could not be read, and a grey one stood for each; first 'atest.png'" in shown.output
    assert "12 images, 12 texts" in shown.output
    again = run(
        "fit", "--data", f"{spec},max_broken=0.5", "--settings", toml, "--batch-size", 4, "--out", tmp_path / "m"
    )
    assert "already done" in again.output
    assert "max_broken" in run("evaluate", "--data", spec, "--checkpoint", tmp_path / "m", code=3).output


def test_notes_are_said(tmp_path: Path, toys: SimpleNamespace) -> None:
    spec = photos(tmp_path / "set", {f"{number}.png": [(f"number {number}", "")] for number in range(10, 40)})
    toml = tmp_path / "small.toml"
    toml.write_text(
        "[model]\nname = 'cnn_gru'\ndim = 8\nchannels = [8]\nword_dim = 4\nhidden = 4\n[fit]\nepochs = 1\nthreads = 1\n"
    )
    shown = run("fit", "--data", spec, "--settings", toml, "--batch-size", 4, "--out", tmp_path / "m").output
    assert "note: " in shown
    assert "split by a hash of the image's id" in shown


def test_the_formats_and_their_settings_are_listed() -> None:
    listed = dict(line.split(maxsplit=1) for line in run("data", "formats").stdout.splitlines())
    assert list(listed) == data.formats()
    shown = " ".join(run("data", "check", "--help").stdout.split())
    for name, said in listed.items():
        module = importlib.import_module(f"trainer.data.{name}")
        assert said == (module.__doc__ or "").splitlines()[0]
        assert f" {name} {said.split()[0]}" in shown
        alone = run("data", "formats", name).stdout
        assert (module.__doc__ or "").splitlines()[-1] in alone
        for key, setting in module.Config.model_fields.items():
            line = next(line for line in alone.splitlines() if line.split()[:1] == [key] and line.startswith("  "))
            wanted = "must be given" if setting.is_required() else f"[default: {setting.get_default()}]"
            assert line.endswith(wanted)
    assert "image_mode" in run("data", "formats", "karpathy").stdout.partition("Settings")[2]
    assert "Did you mean 'karpathy'?" in run("data", "formats", "karpaty", code=3).output


@pytest.mark.parametrize("command", [["data"], ["data", "check"], ["data", "formats"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    probe = (
        "import sys\nfrom click.testing import CliRunner\nfrom trainer.cli import main\n"
        f"result = CliRunner().invoke(main, {[*command, '--help']!r})\n"
        "assert result.exit_code == 0 and 'Examples' in result.output\n"
        "print([name for name in ('torch', 'PIL', 'numpy', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
