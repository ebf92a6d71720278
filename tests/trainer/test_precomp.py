"""The precomp format against numpy.load and plain loops: every layout of rows, captions and ids, and what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from tests.trainer import formats_written as tiny
from trainer import data
from trainer.data._npy import Npy, Rows

ROWS = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)


def write(folder: Path, rows: np.ndarray, captions: int, ids: list[str] | None = None, stem: str = "train") -> None:
    np.save(folder / f"{stem}_ims.npy", rows)
    (folder / f"{stem}_caps.txt").write_text("".join(f"caption {row}\n" for row in range(captions)))
    if ids is not None:
        (folder / f"{stem}_ids.txt").write_text("\n".join(ids) + "\n")


def load(folder: Path, split: str = "train", **settings: object) -> data.Dataset:
    return data.load(data.configure("precomp", {"folder": folder, **settings}), split)  # type: ignore[arg-type]


def found(dataset: data.Dataset) -> dict[str, tuple[bytes, list[tuple[str, str]]]]:
    """Image id -> (vectors, [(text id, caption), ...])."""
    pairs = dataset.pairs
    images = dataset.images[np.arange(pairs.num_images)]
    return {
        image_id: (
            images[row].tobytes(),
            [
                (pairs.text_ids[t], pairs.texts[t])
                for i, t in zip(pairs.image_rows, pairs.text_rows, strict=True)
                if i == row
            ],
        )
        for row, image_id in enumerate(pairs.image_ids)
    }


def captions(*rows: int, ids: str = "{}") -> list[tuple[str, str]]:
    return [(ids.format(row), f"caption {row}") for row in rows]


def test_blocks_of_captions(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:3], 6)
    assert found(load(tmp_path)) == {str(i): (ROWS[i].tobytes(), captions(2 * i, 2 * i + 1)) for i in range(3)}


def test_one_row_per_caption_is_kept_once_per_image(tmp_path: Path) -> None:
    write(tmp_path, np.repeat(ROWS, 3, axis=0), 18)
    wanted = {str(i): (ROWS[i].tobytes(), captions(3 * i, 3 * i + 1, 3 * i + 2)) for i in range(6)}
    assert found(load(tmp_path)) == wanted
    assert found(load(tmp_path, captions_per_image=3)) == wanted


def test_one_caption_per_image(tmp_path: Path) -> None:
    write(tmp_path, ROWS, 6)
    assert found(load(tmp_path)) == {str(i): (ROWS[i].tobytes(), captions(i)) for i in range(6)}


def test_ids_of_images(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:2], 4, ["left", "right"])
    assert list(found(load(tmp_path)).items()) == [
        ("left", (ROWS[0].tobytes(), captions(0, 1))),
        ("right", (ROWS[1].tobytes(), captions(2, 3))),
    ]
    write(tmp_path, np.repeat(ROWS[:2], 2, axis=0), 4, ["left", "right"])
    assert found(load(tmp_path))["right"] == (ROWS[1].tobytes(), captions(2, 3))


def test_ids_of_captions(tmp_path: Path) -> None:
    names = ["w", "x", "y", "z"]
    wanted = (ROWS[1].tobytes(), [("y", "caption 2"), ("z", "caption 3")])
    write(tmp_path, ROWS[:2], 4, names)
    assert found(load(tmp_path))["1"] == wanted
    write(tmp_path, np.repeat(ROWS[:2], 2, axis=0), 4, names)
    assert found(load(tmp_path, captions_per_image=2))["1"] == wanted
    # Without being told otherwise, an id for every row is an image for every row, even of equal ones.
    assert found(load(tmp_path)) == {name: (ROWS[row // 2].tobytes(), captions(row)) for row, name in enumerate(names)}
    write(tmp_path, ROWS[[0, 0, 1, 2]], 4, names)
    assert load(tmp_path).pairs.image_ids == tuple(names)


def test_a_text_id_on_several_lines_is_one_caption_of_several_images(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:3], 5, ["a", "a", "b", "c", "c"])
    (tmp_path / "train_caps.txt").write_text("one\ntwo\ntwo\nthree\none\n")
    (tmp_path / "train_text_ids.txt").write_text("t1\nt2\nt2\nt3\nt1\n")
    pairs = load(tmp_path).pairs
    assert (pairs.text_ids, pairs.texts) == (("t1", "t2", "t3"), ("one", "two", "three"))
    found = {(pairs.image_ids[i], pairs.text_ids[t]) for i, t in zip(pairs.image_rows, pairs.text_rows, strict=True)}
    assert found == {("a", "t1"), ("a", "t2"), ("b", "t2"), ("c", "t3"), ("c", "t1")}
    # The first two images alone, as dev may be cut, have no t3.
    for path in sorted(tmp_path.glob("train_*")):
        path.rename(tmp_path / path.name.replace("train", "dev"))
    assert load(tmp_path, "dev", dev_images=2).pairs.text_ids == ("t1", "t2")
    (tmp_path / "dev_text_ids.txt").write_text("t1\nt2\nt3\nt3\nt1\n")
    with pytest.raises(BadInput, match=r"dev_text_ids\.txt: text id 't3' has two captions, 'two' and 'three'"):
        load(tmp_path, "dev")
    (tmp_path / "dev_text_ids.txt").write_text("t1\nt2\n")
    with pytest.raises(BadInput, match=r"dev_text_ids\.txt: 2 ids for 5 captions; give one per caption"):
        load(tmp_path, "dev")


def test_a_line_ends_where_the_published_readers_end_it(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:2], 2)
    (tmp_path / "train_caps.txt").write_bytes("a dog\rruns\x85\u2028fast\r\na cat\r\n".encode())
    assert load(tmp_path).pairs.texts == ("a dog\rruns\x85\u2028fast", "a cat")


@pytest.mark.parametrize(("blank", "sentence"), [(1, "the last line is empty"), (3, "the last 3 lines are empty")])
def test_empty_lines_at_the_end_are_said(tmp_path: Path, blank: int, sentence: str) -> None:
    write(tmp_path, ROWS[:5], 10)
    with open(tmp_path / "train_caps.txt", "a") as file:
        file.write("\n" * blank)
    with pytest.raises(BadInput, match=rf"5 rows for {10 + blank} captions \({sentence}"):
        load(tmp_path)


@pytest.mark.parametrize("per_caption", [False, True])
def test_unequal_captions_are_grouped_by_the_ids_of_their_images(tmp_path: Path, per_caption: bool) -> None:
    owners = ["b", "b", "b", "a", "c", "a"]
    first = {"b": 0, "a": 3, "c": 4}
    rows = ROWS if per_caption else ROWS[:3]
    write(tmp_path, rows, 6, owners)
    dataset = load(tmp_path)
    assert dataset.pairs.image_ids == ("b", "a", "c")
    for place, (image, start) in enumerate(first.items()):
        row = rows[start] if per_caption else rows[place]
        own = [caption for caption, owner in enumerate(owners) if owner == image]
        assert found(dataset)[image] == (row.tobytes(), captions(*own))


def test_the_dev_split_may_be_cut_and_the_test_split_chosen(tmp_path: Path) -> None:
    write(tmp_path, ROWS, 12, stem="dev")
    write(tmp_path, ROWS[:2], 4, stem="test")
    write(tmp_path, ROWS[:5], 10, stem="testall")
    whole, cut = found(load(tmp_path, "dev")), found(load(tmp_path, "dev", dev_images=4))
    assert list(cut.items()) == list(whole.items())[:4]
    assert found(load(tmp_path, "dev", dev_images=1000)) == whole
    assert load(tmp_path, "test").pairs.num_images == 2
    assert load(tmp_path, "test", test="testall", dev_images=1).pairs.num_images == 5


def test_vectors_of_one_row_and_half_precision(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:, 0].astype(np.float16), 12)
    dataset = load(tmp_path)
    assert (dataset.image_shape, dataset.images.dtype) == ((4,), np.dtype(np.float16))
    assert np.array_equal(dataset.images[np.arange(6)], ROWS[:, 0].astype(np.float16))


@pytest.mark.parametrize(
    ("rows", "count", "ids", "settings", "sentence"),
    [
        (ROWS[:4], 6, None, {}, "4 rows for 6 captions"),
        (ROWS[:4], 6, None, {}, r"train_ids\.txt with one line per caption that names its image"),
        (ROWS[:4], 3, None, {}, "4 rows for 3 captions"),
        (ROWS[:3], 6, None, {"captions_per_image": 3}, "3 rows for 6 captions, captions_per_image = 3"),
        (ROWS, 6, None, {"captions_per_image": 2}, "6 rows for 6 captions, captions_per_image = 2"),
        (np.repeat(ROWS, [2, 3, 1, 2, 2, 2], axis=0), 12, None, {}, "nor every row repeated as often"),
        (ROWS[:3], 6, ["a", "b"], {}, "2 ids for 3 images and 6 captions"),
        (ROWS[:3], 6, ["a", "a", "b", "b", "a", "a"], {}, "3 rows, but train_ids.txt names 2 images in 6 captions"),
        (ROWS[:3], 6, ["a", "a", "b"], {}, "image id 'a' occurs more than once"),
        (ROWS.astype(np.float64), 6, None, {}, "dtype float64"),
        (np.asfortranarray(ROWS), 6, None, {}, "column by column"),
        (ROWS[:, 0, 0], 6, None, {}, r"shape \(6,\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(
    tmp_path: Path, rows: np.ndarray, count: int, ids: list[str] | None, settings: dict[str, int], sentence: str
) -> None:
    write(tmp_path, rows, count, ids)
    with pytest.raises(BadInput, match=sentence):
        load(tmp_path, **settings)


def test_missing_files_are_said(tmp_path: Path) -> None:
    write(tmp_path, ROWS, 6)
    with pytest.raises(
        data.NoSplit, match=r"dev_ims\.npy: no such file for the split 'dev' \(train_ims\.npy is there\)"
    ):
        load(tmp_path, "dev")
    (tmp_path / "dev_caps.txt").write_text("a caption without its image\n")
    with pytest.raises(BadInput, match="no such file for the split 'dev'") as half:
        load(tmp_path, "dev")
    assert not isinstance(half.value, data.NoSplit)
    (tmp_path / "train_caps.txt").unlink()
    with pytest.raises(BadInput, match=r"train_caps\.txt: no such file; it must hold one caption per line"):
        load(tmp_path)
    (tmp_path / "train_caps.txt").write_bytes(b"caf\xe9\n" * 6)
    with pytest.raises(BadInput, match=r"train_caps\.txt: not UTF-8 text \(.* at byte 3\)"):
        load(tmp_path)


def test_rows_are_read_in_any_order_and_checked(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    array = rng.normal(size=(50, 2, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    file = Npy.open(tmp_path / "x.npy")
    for _ in range(30):
        rows = rng.integers(0, 50, rng.integers(0, 40))
        assert np.array_equal(file.read(rows), array[rows])
    subset = rng.permutation(50)[:20]
    assert np.array_equal(Rows(file, subset)[np.array([3, 3, 19])], array[subset[[3, 3, 19]]])
    # Huge and tiny numbers, whose squares leave float32, are fine; so is a region of zeros.
    array[4] *= 1e30
    array[5] *= 1e-30
    array[6, 0] = 0
    np.save(tmp_path / "x.npy", array)
    assert np.array_equal(Rows(file, np.arange(50))[np.arange(50)], array)
    for wrong, sentence in (
        (np.nan, "row 7 holds NaN or infinity"),
        (-np.inf, "row 7 holds NaN"),
        (0, "row 7 holds only"),
    ):
        array[7] = wrong
        np.save(tmp_path / "x.npy", array)
        assert len(Rows(file, np.arange(50))[np.array([6, 8])]) == 2
        with pytest.raises(BadInput, match=sentence):
            Rows(file, np.arange(50)[::-1])[np.arange(50)]


def test_a_file_cut_while_it_is_used_is_said(tmp_path: Path) -> None:
    write(tmp_path, ROWS, 6)
    dataset = load(tmp_path)
    os.truncate(tmp_path / "train_ims.npy", 128 + 3 * ROWS[0].nbytes + 5)
    assert len(dataset.images[np.array([2])]) == 1
    with pytest.raises(BadInput, match="cut since it was opened"):
        dataset.images[np.array([3])]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc, which is not here"
)
def test_what_was_read_does_not_stay_resident(tmp_path: Path) -> None:
    """96 MiB are read, 1 MiB at a time, by a process that may grow by 24 MiB: a memory map would keep them all."""
    rows = np.ones((96, 2**18), np.float32) * np.arange(1, 97, dtype=np.float32)[:, None]
    write(tmp_path, rows, 96, [str(row) for row in range(96)])
    del rows
    probe = f"""
import numpy as np
from pathlib import Path
from trainer import data
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
d = data.load(data.spoken({str(tmp_path)!r}), "train")
d.images[np.array([0])]
before = peak()
for row in np.random.default_rng(0).permutation(96):
    assert d.images[np.array([row])][0, 0] == row + 1
assert peak() - before < 24 * 1024, peak() - before
d.fingerprint
assert peak() - before < 96 * 1024, peak() - before
"""
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_captions_keep_what_is_in_a_line(tmp_path: Path) -> None:
    tiny.write_precomp(tmp_path)
    texts = load(tmp_path).pairs.texts
    assert texts[2] == "déjà vu"
    assert texts[5] == "line\u2028separator, inside"
