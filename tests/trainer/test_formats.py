"""Every data format: the same set in each gives the same pairs and images; how a format is named and recognised."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from tests.trainer import formats_written as tiny
from trainer import data, registry
from trainer.data import Dataset

SMALL = {"image_size": tiny.SIDE, "decode_workers": 0}


def opened(name: str, folder: Path) -> data.Any:
    written = tiny.FORMATS[name]
    folder.mkdir()
    config = data.spoken(str(written.write(folder)))
    return config.model_copy(update=SMALL) if written.pictures else config


def pairs_of(dataset: Dataset) -> list[tuple[bytes, str]]:
    """(image, caption) of every pair, the image as bytes."""
    pairs = dataset.pairs
    images = dataset.images[pairs.image_rows]
    return sorted((image.tobytes(), pairs.texts[row]) for image, row in zip(images, pairs.text_rows, strict=True))


def test_every_format_is_written_here() -> None:
    assert sorted([*tiny.FORMATS, "emoji"]) == data.formats()


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("name", tiny.FORMATS)
def test_the_same_set_in_every_format_is_the_same(name: str, split: str, tmp_path: Path) -> None:
    dataset = data.load(opened(name, tmp_path / "set"), split)  # type: ignore[arg-type]
    wanted, written = tiny.expected(split), tiny.FORMATS[name]
    of = tiny.pixels if written.pictures else tiny.vector
    slow = [(of(image).tobytes(), text) for image, own in tiny.SET[split].items() for _, text in own]
    assert pairs_of(dataset) == sorted(slow)
    assert dataset.pairs.image_ids == wanted.image_ids
    assert (dataset.split, len(dataset.images)) == (split, wanted.num_images)
    if written.with_ids:
        assert dataset.pairs.fingerprint == wanted.fingerprint
    stacked = np.stack([of(image) for image in tiny.SET[split]])
    assert dataset.images.shape == stacked.shape
    assert dataset.images.dtype == stacked.dtype
    for rows in ([0], [1, 0], [0, 0, 1, 0], list(range(wanted.num_images))[::-1]):
        found = dataset.images[np.array(rows)]
        assert np.array_equal(found, stacked[rows])
        assert found.flags.writeable
    assert dataset.images[np.array([], dtype=np.int64)].shape == (0, *stacked.shape[1:])
    assert dataset.broken == {}


@pytest.mark.parametrize("name", tiny.FORMATS)
def test_a_fingerprint_is_of_pairs_and_images(name: str, tmp_path: Path) -> None:
    config = opened(name, tmp_path / "set")
    before = {split: data.load(config, split).fingerprint for split in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert len(set(before.values())) == 3
    moved = (tmp_path / "set").rename(tmp_path / "moved")
    again = config.model_copy(
        update={key: moved / value.name if value.suffix else moved for key, value in config if isinstance(value, Path)}
    )
    assert data.load(again, "train").fingerprint == before["train"]
    for path in moved.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        at = content.find(b"IDAT") if tiny.FORMATS[name].pictures else 128
        if content and (path.suffix in (".npy", ".png", ".parquet", ".arrow", ".tar")) and at > 0:
            path.write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :])
    # Nothing of it is decoded, so that no format may refuse what is changed.
    assert data.load(again, "train").fingerprint != before["train"]


def test_a_fingerprint_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = opened("precomp", tmp_path / "set")
    before = data.load(config, "train").fingerprint
    monkeypatch.setattr(data, "_BLOCK", 1)
    assert [rows.tolist() for rows in data.blocks(data.load(config, "train").images)] == [[0], [1], [2]]
    assert data.load(config, "train").fingerprint == before


@pytest.mark.parametrize("name", data.formats())
def test_every_format_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry.module("trainer.data", name)
    assert module.Config.model_config["frozen"]
    assert module.Config.model_config["extra"] == "forbid"
    if name == "emoji":
        assert data.spoken("emoji") == data.configure("emoji")
        return
    written = tiny.FORMATS[name]
    (tmp_path / "set").mkdir()
    path = written.write(tmp_path / "set")
    config = data.spoken(str(path))
    assert data.name_of(config) == name
    assert data.name_of(data.spoken(f"{name}:{written.key}={getattr(config, written.key)}")) == name
    assert (tmp_path / "set") in (getattr(config, written.key), getattr(config, written.key).parent)
    # Told by its own hook, and by no other.
    assert [other for other in tiny.FORMATS if registry.module("trainer.data", other).recognise(path)] == [name]
    (tmp_path / "empty").mkdir()
    assert module.recognise(tmp_path / "empty") is None
    assert module.recognise(tmp_path / "nowhere") is None
    with pytest.raises(BadInput, match="no known data here") as unknown:
        data.spoken(str(tmp_path / "empty"))
    assert module.SIGNS in str(unknown.value)
    # A relative path is meant from where the settings are written.
    monkeypatch.chdir("/")
    relative = module.Config(**{written.key: os.path.relpath(getattr(config, written.key), tmp_path)})
    assert data.resolved(relative, tmp_path) == config.model_copy(
        update={written.key: getattr(config, written.key).resolve()}
    )
    assert data.load(data.resolved(relative, tmp_path), "test").pairs.num_images == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nowhere", "no such folder or file; give `emoji`, a path, or FORMAT:KEY=VALUE"),
        ("precompp:folder=x", "Did you mean 'precomp'?"),
        ("some/where:folder=x", "no such folder or file"),
        ("precomp:folder", "'folder' is not KEY=VALUE"),
        ("precomp:folder=a,folder=b", "folder is set twice"),
        ("precomp", "folder"),
        ("karpathy:annotation=a.json", "did you mean 'annotations'?"),
        ("karpathy:annotations=a.json,image_size=0", "image_size = 0"),
    ],
)
def test_a_wrong_spec_gets_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BadInput) as wrong:
        data.spoken(text)
    assert sentence in str(wrong.value)


def test_values_of_a_spec_are_what_they_look_like() -> None:
    config = data.spoken("karpathy:annotations=2024,images=true,image_size=96,restval=false,eval_captions=3")
    assert (config.annotations, config.images) == (Path("2024"), Path("true"))
    assert (config.image_size, config.restval, config.eval_captions) == (96, False, 3)
    found = data.spoken("webdataset:path=a b,train=train-{000..002,x}.tar,test=7")
    assert (found.path, found.train, found.test) == (Path("a b"), "train-{000..002,x}.tar", "7")
    assert data.spoken('precomp:folder="with, comma"').folder == Path("with, comma")


@pytest.mark.parametrize("name", ["1.10", "1_000", "0x10", "2024-01-01", "1e3", "true", "[a]"])
def test_paths_and_names_stay_as_they_are_written(name: str) -> None:
    assert data.spoken(f"folder:folder={name},captions={name}").folder == Path(name)
    assert data.spoken(f"folder:folder=x,captions={name}").captions == name


def test_a_home_folder_is_meant_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = data.spoken("folder:folder=~/x,exclude=~/bad.txt,images=~/photos,captions=a~b.csv")
    assert (config.folder, config.exclude) == (tmp_path / "x", tmp_path / "bad.txt")
    assert (config.images, config.captions) == (str(tmp_path / "photos"), "a~b.csv")
    (tmp_path / "x").mkdir()
    tiny.write_precomp(tmp_path / "x")
    assert data.spoken("~/x").folder == tmp_path / "x"
    with pytest.raises(BadInput, match="no such folder or file"):
        data.spoken("~nobody-of-that-name/x")


def test_a_folder_of_two_formats_has_to_be_told_apart(tmp_path: Path) -> None:
    tiny.write_vectors(tmp_path)
    tiny.write_precomp(tmp_path)
    with pytest.raises(BadInput, match=r"could be read as precomp and as vectors; say which: precomp:folder=.* or "):
        data.spoken(str(tmp_path))
    assert data.load(data.spoken(f"precomp:folder={tmp_path}"), "test").pairs.num_images == 2


def test_a_path_may_be_called_like_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vectors").mkdir()
    tiny.write_precomp(tmp_path / "vectors")
    monkeypatch.chdir(tmp_path)
    assert data.name_of(data.spoken("vectors")) == "precomp"
    assert data.load(data.spoken("vectors"), "dev").name == "vectors"
