"""WebDataset shards against tarfile: how samples are put together, which shards are whose, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from tests.trainer import formats_written as tiny
from trainer import data
from trainer.data._shards import expanded, samples

KINDS = ("png", "txt")


def load(path: Path, split: str = "train", **settings: Any) -> data.Dataset:
    small = {"path": path, "image_size": tiny.SIDE, "decode_workers": 0}
    return data.load(data.configure("webdataset", {**small, **settings}), split)  # type: ignore[arg-type]


def shard(path: Path, members: dict[str, bytes | str], form: int = tarfile.DEFAULT_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            tiny.add(tar, name, content.encode() if isinstance(content, str) else content)
    return path


def texts(dataset: data.Dataset) -> dict[str, list[str]]:
    pairs = dataset.pairs
    offsets, rows = pairs.positives("image")
    return {
        image_id: [pairs.texts[text] for text in rows[offsets[row] : offsets[row + 1]]]
        for row, image_id in enumerate(pairs.image_ids)
    }


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, form: int) -> None:
    """Long names, folders, capitals, members of a sample apart from each other, and what is none."""
    members: dict[str, bytes | str] = {
        "x/000.JPG": b"picture 0",
        "x/001.jpg": b"picture 1",
        "x/001.seg.png": b"mask",
        "x/001.txt": "one",
        "x/000.txt": "nought",
        f"{'long' * 22}/002.jpg": b"picture 2",
        "./003.jpg": b"picture 3",
        ".hidden": b"",
        "README": b"",
    }
    path = shard(tmp_path / "s.tar", members, form)
    found = {sample.key: sample.members for sample in samples(path)}
    assert list(found) == ["x/000", "x/001", f"{'long' * 22}/002", "./003"]
    content = path.read_bytes()
    for name, wanted in members.items():
        key, _, extension = name.rpartition("/")[2].partition(".")
        folder = name[: len(name) - len(name.rpartition("/")[2])]
        if key and extension:
            start, size = found[folder + key][extension.lower()]
            assert content[start : start + size] == (wanted.encode() if isinstance(wanted, str) else wanted)


def test_captions_of_a_text_file_or_of_json(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {
        "a.png": tiny.png("a"), "a.txt": "one \n\ntwo\r\n", "a.json": '{"caption": "not this"}',
        "b.png": tiny.png("b"), "b.json": '{"caption": "of json"}',
        "c.png": tiny.png("c"), "c.txt": "not this", "c.json": '{"captions": ["first", "second"], "text_ids": [7, 8]}',
        "d.png": tiny.png("d"), "d.json": '{"text": "by another name"}',
        "e.png": tiny.png("e"), "e.txt": "\n",
        "f.txt": "without a picture",
    }  # fmt: skip
    shard(tmp_path / "train.tar", members)
    found = load(tmp_path)
    assert texts(found) == {"a": ["one", "two"], "b": ["of json"], "c": ["first", "second"], "d": ["by another name"]}
    assert found.pairs.text_ids == ("a#0", "a#1", "b#0", "7", "8", "d#0")
    assert found.notes == (
        "train: 1 missing or empty caption(s) left out, and with them 1 image(s) that have no other; first "
        f"{tmp_path / 'train.tar'}, e.",
        f"{tmp_path}: 1 sample(s) without a picture are left out.",
    )
    assert texts(load(tmp_path, caption_per_line=False))["a"] == ["one   two"]
    assert np.array_equal(found.images[np.arange(4)], np.stack([tiny.pixels(name) for name in "abcd"]))


def test_an_image_in_two_samples_is_one_image(tmp_path: Path) -> None:
    about = {"image_id": "same", "caption": "first"}
    members = {"a.png": tiny.png("a"), "a.json": json.dumps(about), "b.png": tiny.png("b")}
    shard(tmp_path / "train.tar", {**members, "b.json": json.dumps({**about, "caption": "second"})})
    found = load(tmp_path)
    assert texts(found) == {"same": ["first", "second"]}
    assert np.array_equal(found.images[np.array([0])][0], tiny.pixels("a"))


def test_shards_of_a_split(tmp_path: Path) -> None:
    def write(name: str, *images: str) -> None:
        shard(
            tmp_path / name, {key: value for i in images for key, value in ((f"{i}.png", tiny.png(i)), (f"{i}.txt", i))}
        )

    write("train-000.tar", "a")
    write("train-001.tar", "b", "c")
    write("val-000.tar", "d")
    write("test/0.tar", "e")
    write("part-7.tar", "f")
    for split, ids in (("train", "abc"), ("dev", "d"), ("test", "e")):
        assert "".join(load(tmp_path, split).pairs.image_ids) == ids
    for pattern, ids in (
        ("train-{000..001}.tar", "abc"),
        ("train-{001,000}.tar", "bca"),
        ("{part,train}-*.tar", "fabc"),
        ("part-{6..7}.tar", "no such shard"),
        ("nothing*.tar", "no shard for train .nothing"),
        ("/train.tar", "is absolute"),
    ):
        if len(ids) < 5:
            assert "".join(load(tmp_path, train=pattern).pairs.image_ids) == ids
        else:
            with pytest.raises(BadInput, match=ids):
                load(tmp_path, train=pattern)
    every = {split: load(tmp_path, split, split_by="hash") for split in ("train",)}
    assert "80% train" in every["train"].notes[0]
    with pytest.raises(BadInput, match="one shard, which has to be split: set split_by = 'hash'"):
        load(tmp_path / "part-7.tar")
    assert data.spoken(str(tmp_path / "part-7.tar")).path == tmp_path / "part-7.tar"


def test_braces() -> None:
    assert list(expanded("{a,b}-{08..10}.tar")) == [f"{x}-{y}.tar" for x in "ab" for y in ("08", "09", "10")]
    assert list(expanded("plain")) == ["plain"]


def test_the_split_of_a_sample_may_stand_in_its_json(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for name, split in (("a", "train"), ("b", "validation"), ("c", "test"), ("d", "restval")):
        members |= {f"{name}.png": tiny.png(name), f"{name}.json": json.dumps({"caption": name, "split": split})}
    path = shard(tmp_path / "all.tar", members)
    for where in (path, tmp_path):
        for split, ids in (("train", "ad"), ("dev", "b"), ("test", "c")):
            assert "".join(load(where, split, split_by="json").pairs.image_ids) == ids
    shard(path, {**members, "e.png": tiny.png("e"), "e.txt": "e"})
    with pytest.raises(BadInput, match=r"all\.tar, e\.json: split None; it must be one of"):
        load(path, split_by="json")


def test_keys_that_begin_anew_in_every_shard(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        shard(tmp_path / f"train-{number}.tar", {"0.png": tiny.png(name), "0.txt": name})
    with pytest.raises(BadInput, match=r"train-1\.tar: the key '0' is in .*train-0\.tar as well; set ids = 'shard'"):
        load(tmp_path)
    assert texts(load(tmp_path, ids="shard")) == {"train-0/0": ["a"], "train-1/0": ["b"]}


def test_a_member_that_is_called_like_a_path_is_only_an_id(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", {"../../x.png": tiny.png("a"), "../../x.txt": "caption"})
    assert texts(load(tmp_path)) == {"../../x": ["caption"]}
    assert not list(tmp_path.parent.parent.glob("x.*"))


def test_damaged_shards_are_said(tmp_path: Path) -> None:
    path = shard(tmp_path / "train.tar", {"a.png": tiny.png("a"), "a.txt": "a", "b.png": tiny.png("b"), "b.txt": "b"})
    whole = path.read_bytes()
    ending = whole.rstrip(b"\0")
    for cut, sentence in (
        (gzip.compress(whole), "not a readable tar file"),
        (b"not a tar", "not a readable tar file"),
        (ending[:700], "not a readable tar file|cut short"),
        (whole[: -(-len(ending) // 512) * 512], "cut short"),
    ):
        path.write_bytes(cut)
        with pytest.raises(BadInput, match=sentence):
            load(tmp_path)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.png": b"", "a.jpg": b"", "a.txt": "x"}, r"a: more than one picture \(jpg, png\)"),
        ({"a.png": b"", "a.PNG": b"", "a.txt": "x"}, "is there twice"),
        ({"a.png": b"", "a.json": "{"}, r"a\.json: not JSON"),
        ({"a.png": b"", "a.json": '{"captions": "x"}'}, "captions must be a list"),
        ({"a.png": b"", "a.json": '{"captions": ["x"], "text_ids": [1, 2]}'}, "text_ids, if given, one as long"),
        ({"a.png": b"", "a.txt": b"\xff"}, r"a\.txt: not UTF-8"),
        ({"a.png": b"broken", "a.txt": "x"}, "1 of 1 pictures cannot be read"),
    ],
)
def test_wrong_samples_are_said(tmp_path: Path, members: dict[str, bytes | str], sentence: str) -> None:
    shard(tmp_path / "train.tar", members)
    with pytest.raises(BadInput, match=sentence):
        load(tmp_path).images[np.array([0])]


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with webdataset.ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=2, verbose=0) as sink:
        for image, captions in tiny.SET["train"].items():
            lines = "\n".join(text for _, text in captions)
            sink.write({"__key__": image.removesuffix(".png"), "png": tiny.png(image), "txt": lines})
    found = load(tmp_path)
    assert texts(found) == {i.removesuffix(".png"): [text for _, text in own] for i, own in tiny.SET["train"].items()}
    assert np.array_equal(found.images[np.arange(3)], np.stack([tiny.pixels(name) for name in "abc"]))


def test_a_large_picture_is_read_whole(tmp_path: Path) -> None:
    file = io.BytesIO()
    array = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(array).save(file, "PNG")
    shard(tmp_path / "train.tar", {"a.png": file.getvalue(), "a.txt": "noise"})
    assert np.array_equal(load(tmp_path, image_size=200).images[np.array([0])][0], array)


def test_nothing_is_lost_behind_what_looks_like_the_end(tmp_path: Path) -> None:
    members = {"a.png": tiny.png("a"), "a.txt": "a", "b.png": tiny.png("b"), "b.txt": "b"}
    first = shard(tmp_path / "train.tar", members).read_bytes()
    with tarfile.open(tmp_path / "train.tar") as tar:
        headers = [member.offset for member in tar]
    second = shard(tmp_path / "other.tar", {"c.png": tiny.png("c"), "c.txt": "c"}).read_bytes()
    damaged = bytearray(first)
    damaged[headers[2] + 3] ^= 1  # a byte of a name, which the header's checksum no longer fits
    gone = first[: headers[2]] + b"\0" * tarfile.BLOCKSIZE + first[headers[2] + tarfile.BLOCKSIZE :]
    for content in (bytes(damaged), gone, first + second):
        (tmp_path / "train.tar").write_bytes(content)
        with pytest.raises(BadInput, match=r"train\.tar: something follows its end at byte \d+: .*write or download"):
            load(tmp_path)
    (tmp_path / "train.tar").write_bytes(first + b"\0" * 5000)
    assert texts(load(tmp_path)) == {"a": ["a"], "b": ["b"]}


def test_a_key_to_leave_out_says_which_picture(tmp_path: Path) -> None:
    """Keys that begin anew in every split: one of train must not take the picture of dev with it."""
    for name, images in (("train/0", "ab"), ("val/0", "cde")):
        members = {f"{at}.{kind}": tiny.png(i) if kind == "png" else i for at, i in enumerate(images) for kind in KINDS}
        (tmp_path / name).parent.mkdir()
        shard(tmp_path / f"{name}.tar", members)
    (tmp_path / "bad.txt").write_text("1\n")
    with pytest.raises(
        BadInput, match=r"bad\.txt: the key '1' is in shards of dev and in .*train.0\.tar.*ids = 'shard'"
    ):
        load(tmp_path, "dev", exclude=tmp_path / "bad.txt")
    (tmp_path / "bad.txt").write_text("2\n")
    assert texts(load(tmp_path, "dev", exclude=tmp_path / "bad.txt")) == {"0": ["c"], "1": ["d"]}
    (tmp_path / "bad.txt").write_text("train/0/1\n")
    settings = {"exclude": tmp_path / "bad.txt", "ids": "shard"}
    assert texts(load(tmp_path, "dev", **settings)) == {"val/0/0": ["c"], "val/0/1": ["d"], "val/0/2": ["e"]}
    assert texts(load(tmp_path, "train", **settings)) == {"train/0/0": ["a"]}


def test_captions_of_json_that_are_missing_or_no_text(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {
        "a.png": tiny.png("a"), "a.json": '{"captions": ["one", null, "two"], "text_ids": [1, 2, 3], "image_id": null}',
        "b.png": tiny.png("b"), "b.json": '{"captions": []}',
        "c.png": tiny.png("c"), "c.json": '{"caption": null}',
    }  # fmt: skip
    shard(tmp_path / "train.tar", members)
    found = load(tmp_path)
    assert (texts(found), found.pairs.text_ids) == ({"a": ["one", "two"]}, ("1", "3"))
    assert found.notes[0].startswith("train: 3 missing or empty caption(s) left out, and with them 2 image(s)")
    shard(tmp_path / "train.tar", {**members, "c.json": '{"caption": 7}'})
    with pytest.raises(BadInput, match=r"train\.tar, c: the caption 7 is no string"):
        load(tmp_path)


def test_counts_of_splits_that_were_not_read_are_not_given(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", {"a.txt": "a"})
    with pytest.raises(BadInput, match=r"no pair in split 'train'\. Set split_by"):
        load(tmp_path)
