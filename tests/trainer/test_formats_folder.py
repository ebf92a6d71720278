"""A folder of pictures and captions, as people have it: every form of captions and splits, and what is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from tests.trainer import formats_written as tiny
from trainer import data
from trainer.data._links import by_hash


def load(folder: Path, split: str = "train", **settings: Any) -> data.Dataset:
    small = {"folder": folder, "image_size": tiny.SIDE, "decode_workers": 0}
    return data.load(data.configure("folder", {**small, **settings}), split)  # type: ignore[arg-type]


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tiny.png(Path(name).name))


def texts(dataset: data.Dataset) -> list[tuple[str, list[str]]]:
    pairs = dataset.pairs
    offsets, rows = pairs.positives("image")
    return [
        (image_id, [pairs.texts[text] for text in rows[offsets[row] : offsets[row + 1]]])
        for row, image_id in enumerate(pairs.image_ids)
    ]


WANTED = [("a.jpg", ['a "red" one, round', "again"]), ("b.jpg", ["blue | green"]), ("c.jpg", ["sea"])]
CSV = 'a.jpg,"a ""red"" one, round"\na.jpg,again\nb.jpg,blue | green\nc.jpg, sea \n'
BARS = 'image_name| comment_number| comment\na.jpg| 0| a "red" one, round\na.jpg| 1| again\nc.jpg| 0| sea\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", "image,caption\n" + CSV),
        ("captions.csv", "\ufefffile_name,text\r\n" + CSV.replace("\n", "\r\n")),
        ("metadata.csv", "file_name,text\n" + CSV),
        ("captions.csv", "caption,number,image\n" + "again,0,a.jpg\n"),
        ("captions.tsv", "image\tcaption\n" + CSV.replace("jpg,", "jpg\t")),
        ("Flickr8k.token.txt", 'a.jpg#0\ta "red" one, round\na.jpg#1\tagain\nb.jpg#0\tblue | green\nc.jpg#0\tsea\n'),
        ("captions.token", 'a.jpg\ta "red" one, round\na.jpg\tagain\nb.jpg\tblue | green\nc.jpg\tsea\n'),
        ("results.csv", BARS),
    ],
)  # fmt: skip
def test_captions_in_every_form(tmp_path: Path, name: str, content: str) -> None:
    pictures(tmp_path / "Images", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / name).write_text(content, "utf-8", newline="")
    for split, ids in (("train", "abc"), ("dev", ""), ("test", "")):
        (tmp_path / f"{split}.txt").write_text("".join(f"{one}.jpg\n" for one in ids))
    config = data.spoken(str(tmp_path))
    assert data.name_of(config) == "folder"
    found = texts(load(tmp_path))
    if name == "results.csv":  # nobody's bar can be part of a caption there
        assert found == [WANTED[0], WANTED[2]]
    elif "number" in content:
        assert found == [("a.jpg", ["again"])]
    else:
        assert found == WANTED
        assert load(tmp_path).pairs.text_ids == ("a.jpg#0", "a.jpg#1", "b.jpg#0", "c.jpg#0")
        wanted = np.stack([tiny.pixels(one) for one in "abc"])
        assert np.array_equal(load(tmp_path).images[np.arange(3)], wanted)


def test_a_text_beside_every_picture(tmp_path: Path) -> None:
    pictures(tmp_path, "x/a.JPG", "x/b.png", "y/a.png", "lonely.png")
    for name, content in (("x/a", "one\n\n two "), ("x/b", "three\n"), ("y/a", "four"), ("nobody", "five")):
        (tmp_path / f"{name}.txt").write_text(content)
    assert data.name_of(data.spoken(str(tmp_path))) == "folder"
    found = [pair for split in ("train", "dev", "test") for pair in split_of(tmp_path, split)]
    assert sorted(found) == [("x/a.JPG", ["one", "two"]), ("x/b.png", ["three"]), ("y/a.png", ["four"])]


def split_of(folder: Path, split: str) -> list[tuple[str, list[str]]]:
    with contextlib.suppress(BadInput):  # an empty split
        return texts(load(folder, split))
    return []


def test_without_a_split_a_hash_decides_and_says_so(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(60)]
    pictures(tmp_path, *names)
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{name},x\n{name},y\n" for name in names))
    for split in ("train", "dev", "test"):
        found = load(tmp_path, split)
        assert found.notes == (f"{tmp_path}: split by a hash of the image's id: 80% train, 10% dev, 10% test.",)
        assert found.pairs.image_ids == tuple(name for name in names if by_hash(name) == split)


def test_a_column_wins_over_lists_and_lists_over_a_hash(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    lines = ["a.png,1,train", "b.png,2,val", "c.png,3,test", "d.png,4,train"]
    for split, ids in (("trainImages", "cd"), ("devImages", "b"), ("testImages", "a")):
        (tmp_path / f"Flickr_8k.{split}.txt").write_text("".join(f"{one}.png\n" for one in ids))
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + "\n".join(lines))
    assert load(tmp_path).pairs.image_ids == ("a.png", "d.png")
    assert load(tmp_path, "dev").pairs.image_ids == ("b.png",)
    assert load(tmp_path, split_by="lists").pairs.image_ids == ("c.png", "d.png")
    assert load(tmp_path, split_by="hash").notes[0].endswith("10% test.")
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{line[:7]}\n" for line in lines))
    assert load(tmp_path).pairs.image_ids == ("c.png", "d.png")
    with pytest.raises(BadInput, match="no column split"):
        load(tmp_path, split_by="column")
    # Flickr30k's lists leave out the extension; pictures in no list are left out, and that is said.
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("c\n")
    assert load(tmp_path).pairs.image_ids == ("c.png",)
    assert load(tmp_path).notes == (f"{tmp_path}: 1 picture(s) in none of the lists are left out.",)


def test_pictures_and_captions_elsewhere(tmp_path: Path) -> None:
    pictures(tmp_path / "photos" / "deep", "a.png")
    (tmp_path / "text.csv").write_text("image,caption,split\ndeep/a.png,a,train\n")
    found = load(tmp_path, captions="text.csv", images="photos")
    assert found.pairs.image_ids == ("deep/a.png",)
    assert np.array_equal(found.images[np.array([0])][0], tiny.pixels("a"))
    (tmp_path / "other").mkdir()
    assert load(tmp_path / "other", captions="../text.csv", images=str(tmp_path / "photos")).pairs.num_images == 1


def test_lines_without_a_caption_are_left_out_and_said(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,one,train\na.png, ,train\na.png\n")
    found = load(tmp_path)
    assert found.pairs.texts == ("one",)
    assert found.notes == (f"2 line(s) without a caption are left out; first {tmp_path / 'captions.csv'}, line 3.",)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


HEAD = "image,caption,split\n"


@pytest.mark.parametrize(
    ("spoil", "settings", "sentence"),
    [
        (write("captions.csv", ""), {}, "the first line is ''; it must name the columns image,caption"),
        (write("captions.csv", "a.png,a cat\n"), {}, "the first line is 'a.png,a cat'"),
        (write("captions.csv", HEAD), {}, "no captions found"),
        (write("captions.csv", HEAD + ",cat,train\n"), {}, "line 2: no picture is named in the column 'image'"),
        (write("captions.csv", HEAD + "a.png,a cat, black,train\n"), {}, "line 2: more columns than the first"),
        (write("captions.csv", HEAD + "a.png,cat,trian\n"), {}, "line 2: split 'trian'; it must be one of"),
        (write("captions.csv", HEAD + "a.png,cat,test\n"), {}, r"no pair in split 'train' \(pairs found: .*test 1\)"),
        (write("captions.csv", HEAD + "../a.png,cat,train\n"), {}, "is refused"),
        (write("captions.csv", HEAD + "z.png,cat,train\n"), {}, "1 of 1 pictures cannot be read"),
        (write("captions.csv", HEAD.encode() + b"a.png,\xff,train\n"), {}, "not UTF-8"),
        (write("captions.csv", "image,caption,text_id\na.png,x,1\na.png,y,1\n"), {"split_by": "hash"}, "two captions"),
        (write("c.token", "a.png#0\tcat\na.png\n"), {"captions": "c.token"}, "line 2: 'a.png' is not name#"),
        (write("train.txt", "a.png\n"), {"split_by": "lists"}, r"no list of pictures for dev \(dev.txt or val.txt"),
        (lambda folder: (folder / "captions.csv").unlink(), {}, "no captions found; write captions.csv"),
        (lambda folder: None, {"captions": "gone.csv"}, r"gone\.csv: no such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    tmp_path: Path, spoil: Callable[[Path], object], settings: dict[str, str], sentence: str
) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text(HEAD + "a.png,cat,train\n")
    spoil(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        load(tmp_path, **settings)


def test_a_picture_in_two_lists_is_said(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,cat\n")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.txt").write_text("a.png\n" if split != "val" else "")
    with pytest.raises(BadInput, match=r"test\.txt: 'a\.png' is in the list for train as well"):
        load(tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        load(tmp_path / "nowhere")
