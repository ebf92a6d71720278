"""Karpathy's JSON: which captions count where, where pictures lie, and what is wrong with a file."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miner.artifacts.errors import BadInput
from tests.trainer import formats_written as tiny
from trainer import data

FLICKR8K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "flickr8k"


def write(folder: Path, images: list[dict[str, Any]]) -> Path:
    (folder / "dataset_x.json").write_text(json.dumps({"images": images, "dataset": "x"}))
    (folder / "images").mkdir(exist_ok=True)
    for image in images:
        path = folder / "images" / str(image.get("filepath", "")) / str(image.get("filename", "none"))
        if ".." not in path.parts:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tiny.png(path.name))
    return folder / "dataset_x.json"


def image(name: str, split: str, captions: int, **fields: Any) -> dict[str, Any]:
    sentences = [{"raw": f"{name} {row}. ", "tokens": [name, str(row)]} for row in range(captions)]
    return {"filename": f"{name}.png", "split": split, "sentences": sentences, **fields}


def load(path: Path, split: str, **settings: Any) -> data.Dataset:
    small = {"annotations": path, "image_size": tiny.SIDE, "decode_workers": 0}
    return data.load(data.configure("karpathy", {**small, **settings}), split)  # type: ignore[arg-type]


def test_captions_beyond_the_fifth_are_trained_on_but_not_evaluated(tmp_path: Path) -> None:
    path = write(tmp_path, [image("a", "train", 7), image("b", "val", 6), image("c", "test", 7), image("d", "test", 2)])
    assert load(path, "train").pairs.texts == tuple(f"a {row}." for row in range(7))
    assert load(path, "train").pairs.text_ids == tuple(f"a.png#{row}" for row in range(7))
    assert load(path, "dev").pairs.texts == tuple(f"b {row}." for row in range(5))
    test = load(path, "test").pairs
    assert np.bincount(test.image_rows).tolist() == [5, 2]
    assert load(path, "test", eval_captions=None).pairs.num_texts == 9
    assert load(path, "test", eval_captions=1).pairs.texts == ("c 0.", "d 0.")
    assert load(path, "train", text="tokens").pairs.texts[1] == "a 1"


def test_restval_is_trained_on_unless_it_is_not_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, [image("a", "restval", 2), image("b", "train", 1), image("c", "restval", 1)])
    assert load(path, "train").pairs.image_ids == ("a.png", "b.png", "c.png")
    assert load(path, "train", restval=False).pairs.image_ids == ("b.png",)


def test_ids_and_places_of_pictures(tmp_path: Path) -> None:
    entries = [
        image("a", "train", 1, filepath="val2014", imgid=5, cocoid=391895),
        image("b", "train", 1, filepath="", imgid=6, cocoid=2),
        image("c", "train", 1, filepath="gone", imgid=7, cocoid=3),
    ]
    path = write(tmp_path, entries)
    (tmp_path / "images" / "gone" / "c.png").rename(tmp_path / "images" / "c.png")
    for field, ids in (
        ("filename", ("a.png", "b.png", "c.png")),
        ("imgid", ("5", "6", "7")),
        ("cocoid", ("391895", "2", "3")),
    ):
        found = load(path, "train", image_id=field)
        assert found.pairs.image_ids == ids
        wanted = np.stack([tiny.pixels(name) for name in "abc"])
        assert np.array_equal(found.images[np.arange(3)], wanted)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").rename(tmp_path / "elsewhere" / "pictures")
    assert len(load(path, "train", images=tmp_path / "elsewhere" / "pictures").images) == 3
    with pytest.raises(BadInput, match=r"images: no such folder; set images to the folder"):
        load(path, "train")


def test_excluded_images_are_left_out_with_their_captions(tmp_path: Path) -> None:
    path = write(tmp_path, [image("a", "train", 2), image("b", "train", 3), image("c", "test", 1)])
    (tmp_path / "bad.txt").write_text("a.png\tOSError: truncated\n\nnobody.png\n")
    found = load(path, "train", exclude=tmp_path / "bad.txt")
    assert found.pairs.image_ids == ("b.png",)
    assert found.pairs.num_texts == 3
    unknown = f"1 of 2 ids in {tmp_path / 'bad.txt'} are not in the set."
    assert found.notes == ("train: 1 image(s) left out by the exclude file.", unknown)
    assert load(path, "test", exclude=tmp_path / "bad.txt").notes == (unknown,)
    with pytest.raises(BadInput, match="it must list an image id per line"):
        load(path, "train", exclude=tmp_path / "nowhere.txt")


def without(key: str) -> Callable[[list[dict[str, Any]]], object]:
    return lambda images: images[1].pop(key)


def changed(**fields: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda images: images[1].update(fields)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without("split"), r"images\[1\]: no field 'split' \(found: filename, sentences"),
        (without("filename"), "no field 'filename'"),
        (without("sentences"), "no field 'sentences'"),
        (changed(sentences=["a dog"]), "sentences must be a list of objects"),
        (changed(sentences=[{"raw": 3}]), r"images\[1\]: the caption 3 is no string"),
        (changed(filename=None), "filename is 'None'; it must be a string or a whole number"),
        (changed(sentences=[{"tokens": []}]), "no field 'raw'"),
        (changed(split="training set"), r"split 'training set'; it must be one of train, restval, val, dev, test"),
        (changed(filename="a.png"), "filename 'a.png' occurs more than once"),
        (changed(filename="../a.png"), "does not stay inside that folder, and is refused"),
        (changed(filepath="/etc"), "does not stay inside that folder, and is refused"),
        (changed(sentences=[{"raw": "x", "sentid": 3}, {"raw": "y", "sentid": 3}]), "a sentid occurs twice among 3, 3"),
        (changed(sentences=[{"raw": "x", "sentid": 1}]), "text id '1' has two captions"),
        (changed(filename="missing.png"), r"1 of 2 pictures cannot be read.*missing\.png: No such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, spoil: Callable[[list[dict[str, Any]]], object], sentence: str) -> None:
    images = [image("a", "train", 1), image("b", "train", 2)]
    images[0]["sentences"][0]["sentid"] = 1
    path = write(tmp_path, images)
    spoil(images)
    path.write_text(json.dumps({"images": images}))
    with pytest.raises(BadInput, match=sentence):
        load(path, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": {}}', '{"images": [3]}'])
def test_a_file_that_is_something_else_is_said(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, [image("a", "train", 1)])
    path.write_text(text)
    with pytest.raises(BadInput, match=r'not JSON|no list "images"'):
        load(path, "train")
    with pytest.raises(BadInput, match="no such file") as gone:
        load(tmp_path / "nowhere.json", "train")
    assert "not JSON" not in str(gone.value)


def test_a_split_without_images_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, [image("a", "train", 3)])
    with pytest.raises(BadInput, match=r"no pair in split 'dev' \(pairs found: train 3, dev 0, test 0\)"):
        load(path, "dev")


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the Flickr8k pictures are not beside the checkout")
def test_flickr8k(tmp_path: Path) -> None:
    """A few real pictures and captions, written as Karpathy's file has them."""
    names = (FLICKR8K / "ids.txt").read_text().split()
    captions = (FLICKR8K / "captions.txt").read_text().splitlines()
    images = []
    (tmp_path / "images").mkdir()
    with tarfile.open(FLICKR8K / "images96.tar.gz") as tar:
        for member, row in zip((one for one in tar if one.isfile()), range(12), strict=False):
            number = int(Path(member.name).stem)
            stored = tar.extractfile(member)
            assert stored is not None
            (tmp_path / "images" / names[number]).write_bytes(stored.read())
            sentences = [{"raw": text} for text in captions[5 * number : 5 * number + 5]]
            split = ("train", "val", "test")[row % 3]
            images.append({"filename": names[number], "split": split, "sentences": sentences})
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    found = load(tmp_path / "dataset_flickr8k.json", "test", image_size=96)
    assert (found.pairs.num_images, found.pairs.num_texts) == (4, 20)
    for row, name in enumerate(found.pairs.image_ids):
        with Image.open(tmp_path / "images" / name) as picture:
            wanted = np.asarray(picture.convert("RGB"))
        assert np.array_equal(found.images[np.array([row])][0], wanted)


def test_missing_captions_are_left_out_and_said(tmp_path: Path) -> None:
    """The first captions that are there count, and a picture without any is left out."""
    images = [image("a", "test", 4), image("b", "test", 0), image("c", "test", 2), image("d", "train", 1)]
    images[0]["sentences"][1]["raw"] = None
    images[2]["sentences"][0]["raw"] = " "
    found = load(write(tmp_path, images), "test", eval_captions=2)
    assert found.pairs.image_ids == ("a.png", "c.png")
    assert found.pairs.texts == ("a 0.", "a 2.", "c 1.")
    assert np.array_equal(found.images[np.arange(2)], np.stack([tiny.pixels("a"), tiny.pixels("c")]))
    assert found.notes == (
        "test: 3 missing or empty caption(s) left out, and with them 1 image(s) that have no other; first "
        f"{tmp_path / 'dataset_x.json'}, images[0].",
    )
    assert load(tmp_path / "dataset_x.json", "train").notes == ()


def test_several_files_have_to_be_told_apart(tmp_path: Path) -> None:
    write(tmp_path, [image("a", "train", 1)])
    (tmp_path / "dataset_y.json").write_text((tmp_path / "dataset_x.json").read_text())
    with pytest.raises(BadInput, match=r"several Karpathy splits here, dataset_x\.json, dataset_y\.json; say which"):
        data.spoken(str(tmp_path))
