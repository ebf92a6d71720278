"""A folder of pictures and captions, as people have it: every form of captions and splits, and what is wrong."""

from __future__ import annotations

import contextlib
import os
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
    assert found.notes == (
        f"{tmp_path}: 1 line(s) with neither a caption nor a split are left out.",
        f"train: 1 missing or empty caption(s) left out; first {tmp_path / 'captions.csv'}, line 3.",
    )


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
        (write("captions.csv", HEAD + "a.png,cat,test\n"), {}, r"'train' \(pairs found: .*test 1\)\. Say in a column"),
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


def test_an_unbalanced_quotation_mark_swallows_no_line(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png", "2.png")
    for content, sentence in (
        (
            '0.png,"a cat,train\n1.png,a dog,train\n',
            "from line 2 on is not readable as CSV .* is a quotation mark unbalanced",
        ),
        (
            '0.png,"a cat,train\n1.png,"a dog",train\n',
            "from line 2 on is not readable as CSV .*every mark in it doubled",
        ),
        ('0.png,"a" cat,train\n', "from line 2 on is not readable"),
    ):
        (tmp_path / "captions.csv").write_text(HEAD + content)
        with pytest.raises(BadInput, match=sentence):
            load(tmp_path)
    # Two marks that make a whole cell of the lines between them.
    for end in ("\n", "\r\n"):
        content = end.join(["split,image,caption", 'train,0.png,"a cat', "train,1.png,a dog", 'train,2.png,fish"', ""])
        (tmp_path / "captions.csv").write_bytes(content.encode())
        with pytest.raises(BadInput, match="'caption' goes over 3 lines; is a quotation mark unbalanced"):
            load(tmp_path)
    # Where nobody quotes, a mark is part of the caption.
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "x.token").write_text('0.png#0\t"a cat\n0.png#1\ta dog\n1.png#0\tfish"\n')
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.txt").write_text("0.png\n1.png\n" if split == "train" else "")
    assert load(tmp_path).pairs.texts == ('"a cat', "a dog", 'fish"')


def test_a_picture_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text(HEAD + "a.png,cat,train\n")
    with pytest.raises(BadInput, match=r"a\.png: not a regular file"):
        load(tmp_path)


def test_a_picture_in_no_list_takes_no_split_of_another(tmp_path: Path) -> None:
    names = ["a/0.png", "b/0.png", "b/1.png", "c/2.png", "c/3.png"]
    pictures(tmp_path, *names)
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in names))
    for split, listed in (("train", "a/0.png\n1\n"), ("dev", "c/2\n"), ("test", "0\n3.png\n")):
        (tmp_path / f"{split}.txt").write_text(listed)
    assert load(tmp_path).pairs.image_ids == ("a/0.png", "b/1.png")
    assert load(tmp_path, "dev").pairs.image_ids == ("c/2.png",)
    with pytest.raises(BadInput, match="no pair in split 'test'"):
        load(tmp_path, "test")
    assert load(tmp_path).notes == (f"{tmp_path}: 2 picture(s) in none of the lists are left out.",)


def test_folders_named_after_splits(tmp_path: Path) -> None:
    for name in ("train/a", "train/x/b", "val/c", "test/d", "e"):
        pictures(tmp_path, f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"of {name}\n")
    for split, ids in (("train", ("train/a.png", "train/x/b.png")), ("dev", ("val/c.png",)), ("test", ("test/d.png",))):
        found = load(tmp_path, split)
        assert found.pairs.image_ids == ids
        assert found.notes == (f"{tmp_path}: 1 picture(s) in no split's folder are left out.",)
        assert load(tmp_path, split, split_by="folders").pairs.fingerprint == found.pairs.fingerprint
    assert "80% train" in load(tmp_path, split_by="hash").notes[0]


def test_an_empty_text_beside_a_picture_is_said(tmp_path: Path) -> None:
    pictures(tmp_path, "train/a.png", "train/b.png")
    for name, content in (("a", "one\n\ntwo\n"), ("b", "\n")):
        (tmp_path / "train" / f"{name}.txt").write_text(content)
    found = load(tmp_path)
    assert texts(found) == [("train/a.png", ["one", "two"])]
    assert found.notes == (
        "train: 1 missing or empty caption(s) left out, and with them 1 image(s) that have no other; first "
        f"{tmp_path / 'train' / 'b.txt'}, line 1.",
    )
