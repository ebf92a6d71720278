"""The folder of precomputed vectors: what is read, and one sentence for whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from trainer import data


def load(folder: Path, split: str = "train") -> data.Dataset:
    return data.load(data.configure("vectors", {"folder": folder}), split)  # type: ignore[arg-type]


def test_rows_follow_the_ids(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    whole, pairs = np.load(folder / "images.npy"), toys.pairs(40)
    seen = 0
    for split in ("train", "dev", "test"):
        d = load(folder, split)
        seen += d.pairs.num_images
        for row, image_id in enumerate(d.pairs.image_ids):
            assert np.array_equal(d.images[np.array([row])][0], whole[pairs.image_ids.index(image_id)])
        expected = {
            (pairs.image_ids[i], pairs.text_ids[t])
            for i, t in zip(pairs.image_rows, pairs.text_rows, strict=True)
            if pairs.image_ids[i] in d.pairs.image_ids
        }
        found = zip(d.pairs.image_rows, d.pairs.text_rows, strict=True)
        assert {(d.pairs.image_ids[i], d.pairs.text_ids[t]) for i, t in found} == expected
    assert seen == 40
    assert load(folder).image_shape == (12,)


def test_without_an_id_file_ids_are_row_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.ones((3, 4), np.float32))
    (tmp_path / "pairs.csv").write_text('image_id,text_id,text,split\n2,a,"one, two",train\n0,b,three,train\n')
    d = load(tmp_path)
    assert d.pairs.image_ids == ("2", "0")
    assert d.pairs.texts == ("one, two", "three")


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "images.npy", array)


HEAD = "image_id,text_id,text,split\n"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "images.npy").unlink(), r"images\.npy: no such file"),
        (lambda folder: (folder / "pairs.csv").unlink(), r"pairs\.csv: no such file"),
        (save(np.ones((40, 12))), "dtype float64"),
        (save(np.ones(40, np.float32)), r"shape \(40,\)"),
        (save(np.ones((39, 12), np.float32)), "40 ids for 39 vectors"),
        (write("images.npy", "not numpy"), "not a .npy file"),
        (write("image_ids.txt", "x\n" * 40), "'x' occurs more than once"),
        (write("pairs.csv", "image_id,text\n"), "no column text_id, split"),
        (write("pairs.csv", HEAD + "i0,a,cat,train\nnobody,b,cat,train\n"), "line 3: unknown image id 'nobody'"),
        (write("pairs.csv", HEAD + "i0,a,cat,training\n"), "split 'training'"),
        (
            write("pairs.csv", HEAD + "i0,a,cat,test\n"),
            r"no pair in split 'train' \(pairs found: train 0, dev 0, test 1",
        ),
        (write("pairs.csv", HEAD + "i0,a,cat,train\ni1,a,dog,train\n"), "'a' has two captions"),
        (write("pairs.csv", HEAD + "i0,a\n"), "fewer columns"),
        (
            lambda folder: (folder / "pairs.csv").write_bytes(b"image_id,text_id,text,split\ni0,a,\xff,train\n"),
            "not UTF-8",
        ),
    ],
)
def test_what_is_wrong_is_said(
    toys: SimpleNamespace, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    spoil(folder)
    with pytest.raises(BadInput, match=sentence):
        load(folder)


def test_vectors_of_both_sides_are_miners(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    np.save(folder / "texts.npy", np.ones((40, 12), np.float32))
    (folder / "pairs.csv").write_text("image_id,text_id\ni0,a\n")
    with pytest.raises(BadInput, match=r"no column text, split .* miner mine .*/v --out"):
        load(folder)


def test_nan_is_found_when_it_is_read(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    array = np.load(folder / "images.npy")
    array[5, 3] = np.nan
    np.save(folder / "images.npy", array)
    d = load(folder)
    with pytest.raises(BadInput, match="row 5 holds NaN"):
        d.images[np.arange(d.pairs.num_images)]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 an archive"])
def test_a_file_that_is_no_array_is_said(toys: SimpleNamespace, tmp_path: Path, content: bytes) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    (folder / "images.npy").write_bytes(content)
    with pytest.raises(BadInput, match=r"not a \.npy file"):
        data.load(data.configure("vectors", {"folder": folder}), "train")


def test_a_zero_vector_is_said_when_it_is_read(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    vectors = np.load(folder / "images.npy")
    vectors[:] = 0
    np.save(folder / "images.npy", vectors)
    with pytest.raises(BadInput, match="only zeros"):
        _ = data.load(data.configure("vectors", {"folder": folder}), "train").fingerprint


def test_an_unbalanced_quotation_mark_swallows_no_line(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = toys.write_vectors(tmp_path / "v")
    (folder / "pairs.csv").write_text(
        "image_id,text_id,split,text\n" + 'i0,a,train,"a cat\n' + "i1,b,train,a dog\n" + 'i2,c,train,fish"\n'
    )
    with pytest.raises(BadInput, match="line 4: the cell in the column 'text' goes over 3 lines"):
        load(folder)
