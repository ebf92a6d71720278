"""Parquet, Arrow and what Hugging Face saves: every way to store an image, a caption, an id and a split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from miner.artifacts.errors import BadInput
from tests.trainer import formats_written as tiny
from trainer import data
from trainer.data._arrow import Cells
from trainer.data._places import Places

NAMES = list("abcdefg")
SMALL = {"image_size": tiny.SIDE, "decode_workers": 0}


def load(path: Path, split: str = "train", **settings: Any) -> data.Dataset:
    return data.load(data.configure("parquet", {"path": path, **SMALL, **settings}), split)  # type: ignore[arg-type]


def stream(table: pa.Table, path: Path, rows: int = 3, **options: Any) -> None:
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)


def ipc_file(table: pa.Table, path: Path, rows: int = 3, **options: Any) -> None:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)


FILES: dict[str, tuple[str, Callable[[pa.Table, Path], None], type]] = {
    "parquet": ("x.parquet", lambda table, path: pq.write_table(table, path, row_group_size=3), Cells),
    "arrow file": ("x.arrow", ipc_file, Places),
    "arrow stream": ("x.arrow", stream, Places),
    "feather": ("x.feather", lambda table, path: pyarrow.feather.write_feather(table, path, chunksize=3), Cells),
    "plain feather": (
        "x.feather",
        lambda table, path: pyarrow.feather.write_feather(table, path, "uncompressed", chunksize=3),
        Places,
    ),
    "packed file": ("x.arrow", lambda table, path: ipc_file(table, path, compression="zstd"), Cells),
}  # fmt: skip
PICTURES: dict[str, Callable[[], pa.Array]] = {
    "binary": lambda: pa.array([tiny.png(name) for name in NAMES]),
    "large_binary": lambda: pa.array([tiny.png(name) for name in NAMES], pa.large_binary()),
    "binary_view": lambda: pa.array([tiny.png(name) for name in NAMES], pa.binary_view()),
    "struct": lambda: pa.array([{"bytes": tiny.png(name), "path": f"{name}.png"} for name in NAMES]),
    "struct, some on disk": lambda: pa.array(
        [{"bytes": tiny.png(name) if name in "aceg" else None, "path": f"{name}.png"} for name in NAMES]
    ),
    "path": lambda: pa.array([f"{name}.png" for name in NAMES]),
    "path in a dictionary": lambda: pa.array([f"{name}.png" for name in NAMES]).dictionary_encode(),
}
VECTORS: dict[str, tuple[pa.DataType, Callable[[str], np.ndarray]]] = {
    "float32": (pa.list_(pa.float32(), tiny.DIM), lambda name: tiny.vector(name, 1)),
    "float16": (pa.list_(pa.float16(), tiny.DIM), lambda name: tiny.vector(name, 1).astype(np.float16)),
    "float64": (pa.list_(pa.float64(), tiny.DIM), lambda name: tiny.vector(name, 1)),
    "list": (pa.list_(pa.float32()), lambda name: tiny.vector(name, 1)),
    "large list": (pa.large_list(pa.float64()), lambda name: tiny.vector(name, 1)),
    "regions": (pa.list_(pa.list_(pa.float32(), tiny.DIM), tiny.REGIONS), lambda name: tiny.vector(name, 2)),
}


def table_of(image: pa.Array, **columns: Any) -> pa.Table:
    return pa.table({"image": image, "text": [f"caption {name}" for name in NAMES], "split": ["train"] * 7, **columns})


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("form", FILES)
def test_pictures_in_every_form(form: str, kind: str, tmp_path: Path) -> None:
    name, write, _ = FILES[form]
    for letter in NAMES:
        (tmp_path / f"{letter}.png").write_bytes(tiny.png(letter))
    write(table_of(PICTURES[kind]()), tmp_path / name)
    found = load(tmp_path / name)
    assert found.pairs.texts == tuple(f"caption {name}" for name in NAMES)
    wanted = np.stack([tiny.pixels(name) for name in NAMES])
    assert found.pairs.image_ids == (tuple(f"{name}.png" for name in NAMES) if "path" in kind else tuple("0123456"))
    for rows in (np.arange(7), np.array([6, 0, 3, 3])):
        assert np.array_equal(found.images[rows], wanted[rows])


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("form", FILES)
def test_vectors_in_every_form(form: str, kind: str, tmp_path: Path) -> None:
    name, write, _ = FILES[form]
    stored, of = VECTORS[kind]
    write(table_of(pa.array([of(letter).tolist() for letter in NAMES], stored)), tmp_path / name)
    found, wanted = load(tmp_path / name), np.stack([of(letter) for letter in NAMES])
    assert (found.images.shape, found.images.dtype) == (wanted.shape, wanted.dtype)
    for rows in (np.arange(7), np.array([6, 0, 3, 3]), np.array([], dtype=np.int64)):
        assert np.array_equal(found.images[rows], wanted[rows])


@pytest.mark.parametrize("form", FILES)
def test_images_are_not_held_where_the_file_holds_them(form: str, tmp_path: Path) -> None:
    name, write, kind = FILES[form]
    write(table_of(PICTURES["binary"]()), tmp_path / name)
    pictures: Any = load(tmp_path / name).images
    assert isinstance(pictures.images, kind)


def test_a_bounded_number_of_groups_is_kept(tmp_path: Path) -> None:
    pq.write_table(table_of(PICTURES["binary"]()), tmp_path / "x.parquet", row_group_size=1)
    rows = np.arange(7)
    cells = Cells([tmp_path / "x.parquet"], "image", rows * 0, rows, rows * 0, None, 2 * len(tiny.png("a")) + 100)
    for _ in range(2):
        assert cells.fetch(rows) == [tiny.png(name) for name in NAMES]
        assert list(cells._kept) == [(0, 5), (0, 6)]
    assert cells.fetch(np.array([5, 0])) == [tiny.png("f"), tiny.png("a")]
    assert list(cells._kept) == [(0, 5), (0, 0)] or list(cells._kept) == [(0, 0), (0, 5)]
    assert load(tmp_path / "x.parquet").notes == ()


def many_to_many(folder: Path) -> list[dict[str, str]]:
    rows = tiny.rows()
    for image in {row[0] for row in rows}:
        (folder / image).write_bytes(tiny.png(image))
    return [dict(zip(("image", "text_id", "text", "split"), row, strict=True)) for row in rows]


def test_rows_of_one_text_are_one_text(tmp_path: Path) -> None:
    """Paths as ids, text ids that repeat, splits by the file's name, the folder's name, a column of another name."""
    rows = many_to_many(tmp_path)
    whole = pa.Table.from_pylist(rows)
    pq.write_table(whole, tmp_path / "all.parquet")
    (tmp_path / "named").mkdir()
    (tmp_path / "below").mkdir()
    for name in ("train", "val", "test"):
        part = whole.filter(pa.compute.equal(whole["split"], name)).drop_columns(["split"])
        pq.write_table(part.slice(0, 2), tmp_path / "named" / f"{name}-00000-of-00002.parquet")
        pq.write_table(part.slice(2), tmp_path / "named" / f"{name}-00001-of-00002.parquet")
        (tmp_path / "below" / name).mkdir()
        stream(part, tmp_path / "below" / name / "0.arrow", 1)
    pq.write_table(whole.rename_columns(["image", "text_id", "text", "part"]), tmp_path / "other.parquet")
    for split in ("train", "dev", "test"):
        for found in (
            load(tmp_path / "all.parquet", split),
            load(tmp_path / "named", split, images=tmp_path),
            load(tmp_path / "below", split, images=tmp_path),
            data.load(data.configure("parquet", {"path": tmp_path / "other.parquet", "split": "part", **SMALL}), split),
        ):
            assert found.pairs.fingerprint == tiny.expected(split).fingerprint
            wanted = np.stack([tiny.pixels(image) for image in tiny.SET[split]])
            assert np.array_equal(found.images[np.arange(len(wanted))], wanted)


def test_splits_of_other_names(tmp_path: Path) -> None:
    rows = many_to_many(tmp_path)
    with_restval = [{**row, "split": "restval" if row["split"] == "val" else row["split"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(with_restval), tmp_path / "coco.parquet")
    assert load(tmp_path / "coco.parquet", "train").pairs.num_images == 5  # as COCO's is meant
    for row in rows:
        row["split"] = {"train": "reserve", "val": "minival", "test": "train"}[row["split"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    path = tmp_path / "x.parquet"
    assert load(path, "train").pairs.image_ids == ("f.png", "g.png")
    assert load(path, "train").notes == (f"{path}: split minival (3), reserve (6) left out.",)
    assert load(path, "dev", dev="minival").pairs.image_ids == ("d.png", "e.png")
    assert load(path, "train", train="reserve+train").pairs.num_images == 5
    assert load(path, "train", train="reserve").pairs.num_images == 3
    with pytest.raises(
        BadInput, match=r"no pair in split 'dev' .*Left out: minival \(3\), reserve \(6\)\. Set train, dev or"
    ):
        load(path, "dev")


def test_a_split_by_hash(tmp_path: Path) -> None:
    count = 400
    images = [{"bytes": b"", "path": None}] * count
    ids = [f"photo {row}" for row in range(count)]
    table = pa.table({"image": images, "caption": [[f"{row}", "x"] for row in range(count)], "image_id": ids})
    stream(table, tmp_path / "x.arrow")
    with pytest.raises(BadInput, match=r"nothing says which rows are train, dev and test.*split_by = 'hash'"):
        load(tmp_path / "x.arrow")
    splits = {
        split: load(tmp_path / "x.arrow", split, split_by="hash", max_broken=1) for split in ("train", "dev", "test")
    }  # fmt: skip
    found = [set(dataset.pairs.image_ids) for dataset in splits.values()]
    assert set().union(*found) == set(ids)
    assert sum(map(len, found)) == count
    assert 290 < len(found[0]) < 350
    assert all("80% train" in dataset.notes[0] for dataset in splits.values())
    # Known answers: where an image goes must never change.
    assert [next(name for name, one in zip(splits, found, strict=True) if i in one) for i in ids[:8]] == [
        "train", "dev", "train", "train", "test", "train", "train", "dev",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "settings", "sentence"),
    [
        ({"text": ["x"]}, {}, r"no column image or img .*\(columns: text\); set image to the name"),
        ({"image": ["a"], "alt": ["x"]}, {}, "no column text or texts"),
        ({"image": ["a"], "text": ["x"], "caption": ["y"]}, {}, "columns text and caption could be the text; set text"),
        ({"image": ["a"], "text": ["x"]}, {"text": "alt"}, r"text = 'alt' is not a column \(columns: image, text\)"),
        ({"image": [3], "text": ["x"]}, {}, "column 'image' is of type int64"),
        ({"image": [["a"]], "text": ["x"]}, {}, "column 'image' is of type list"),
        ({"image": ["a"], "text": [3]}, {}, "column 'text' is of type int64; captions must be strings"),
        ({"image": ["a"], "text": ["x"]}, {}, "nothing says which rows are train"),
        ({"image": ["a"], "text": ["x"]}, {"split_by": "column"}, "split_by = 'column', but there is no column split"),
        ({"image": ["a"], "text": [None], "split": ["train"]}, {"text": "text"}, "type null"),
        ({"image": ["a"], "text": [[""]], "split": ["train"]}, {}, "no pair in .* 1 image.s. that have no other"),
        ({"image": ["a"], "text": ["x"], "text_id": [["1", "2"]], "split": ["train"]}, {}, "2 text ids for 1 captions"),
        ({"image": ["a"] * 2, "text": ["x", "y"], "text_id": ["1"] * 2, "split": ["train"] * 2}, {}, "text id '1' has"),
        ({"image": ["../a"], "text": ["x"], "split": ["train"]}, {}, "is refused"),
        ({"image": ["a"], "text": ["x"], "split": ["train"]}, {}, "1 of 1 pictures cannot be read.*No such file"),
        ({"image": [b"x"], "text": ["x"], "split": ["test"]}, {}, "no pair in split 'train' .*test 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(BadInput, match=sentence):
        load(tmp_path / "x.parquet", **settings)


def test_vectors_that_do_not_fit_are_said(tmp_path: Path) -> None:
    for form in (pq.write_table, ipc_file):
        for values, sentence in (
            ([[1.0, 2], [3.0]], "a vector of 1 numbers, but the first has shape"),
            ([[1.0, 2], None], "there is no image; every image needs a vector"),
            ([[1.0, 2], [0.0, 0]], "only zeros"),
            ([[1.0, 2], [0.0, float("nan")]], "holds NaN"),
        ):
            form(pa.table({"image": values, "text": ["a", "b"], "split": ["train"] * 2}), tmp_path / "x.parquet")
            found = load(tmp_path / "x.parquet")
            assert found.images[np.array([0])].tolist() == [[1, 2]]
            with pytest.raises(BadInput, match=sentence):
                found.images[np.arange(2)]


def test_a_set_of_vectors_whose_first_is_missing_is_said(tmp_path: Path) -> None:
    ipc_file(pa.table({"image": [None, [1.0]], "text": ["a", "b"], "split": ["train"] * 2}), tmp_path / "x.arrow")
    with pytest.raises(BadInput, match="there is no image; every image needs a vector"):
        load(tmp_path / "x.arrow")


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1 and more PAR1", b"ARROW1\0\0 short", b"what is this?", b"FEA1...."]
)
def test_a_damaged_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(BadInput, match=r"not a readable Parquet or Arrow file|Feather version 1"):
        load(tmp_path / "x.parquet")


def test_a_packed_stream_is_refused(tmp_path: Path) -> None:
    stream(table_of(PICTURES["binary"]()), tmp_path / "x.arrow", compression="zstd")
    with pytest.raises(BadInput, match=r"a compressed Arrow stream.*write it without compression, or as a file"):
        load(tmp_path / "x.arrow")


def test_files_with_other_columns_are_said(tmp_path: Path) -> None:
    pq.write_table(table_of(PICTURES["binary"]()), tmp_path / "a.parquet")
    pq.write_table(table_of(PICTURES["binary"]()).drop_columns(["split"]), tmp_path / "b.parquet")
    with pytest.raises(BadInput, match=r"b\.parquet: no column split, which the first file has"):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no file \.parquet, \.arrow"):
        load(tmp_path / "empty")


def hf(folder: Path, split: str = "train", **settings: Any) -> data.Dataset:
    return data.load(data.configure("hf", {"folder": folder, **SMALL, **settings}), split)  # type: ignore[arg-type]


def test_what_the_library_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    from PIL import Image

    datasets.disable_progress_bars()
    strings = datasets.Sequence(datasets.Value("string"))
    features = datasets.Features({"image": datasets.Image(), "caption": strings, "sentids": strings})
    splits = {}
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        rows = [
            {
                "image": Image.fromarray(tiny.pixels(image)),
                "caption": [text for _, text in captions],
                "sentids": [text_id for text_id, _ in captions],
            }
            for image, captions in tiny.SET[split].items()
        ]
        splits[name] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "dict", num_shards={"train": 2, "validation": 1, "test": 1})
    # A selection in another order, which the library keeps as row numbers until it saves.
    shuffled = datasets.concatenate_datasets(list(splits.values())).select([6, 0, 3])
    shuffled.add_column("split", ["test", "train", "train"]).save_to_disk(tmp_path / "single")
    for split, images in tiny.SET.items():
        found = hf(tmp_path / "dict", split)
        assert found.pairs.texts == tiny.expected(split).texts
        assert np.array_equal(found.images[np.arange(len(images))], np.stack([tiny.pixels(image) for image in images]))
    found = hf(tmp_path / "single")
    assert np.array_equal(found.images[np.arange(2)], np.stack([tiny.pixels("a"), tiny.pixels("d")]))
    assert found.pairs.text_ids == ("1", "2", "3", "6", "7")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("dataset_dict.json", "{", "not JSON"),
        ("dataset_dict.json", '{"splits": 3}', "no list of splits"),
        ("dataset_dict.json", '{"splits": []}', "holds no file"),
        ("dataset_dict.json", '{"splits": ["../x"]}', "is refused"),
        ("dataset_dict.json", '{"splits": ["gone"]}', r"state\.json: no such file"),
        ("train/state.json", '{"_data_files": [{"filename": "/etc/passwd"}]}', "is refused"),
        (
            "train/state.json",
            '{"_data_files": [{"filename": "gone.arrow"}]}',
            r"gone\.arrow: no such file, which state",
        ),
        ("train/state.json", '{"_data_files": [], "_indices_data_files": [{}]}', "saved by an old version"),
    ],
)
def test_a_wrong_saved_set_is_said(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    tiny.write_hf(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=sentence):
        hf(tmp_path)


def test_a_saved_set_without_a_dev_split_says_what_to_do(tmp_path: Path) -> None:
    tiny.write_hf(tmp_path)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert hf(tmp_path).pairs.num_images == 3
    with pytest.raises(BadInput, match=r"no pair in split 'dev'.*Set train, dev or test to what the data call it"):
        hf(tmp_path, "dev")
    assert hf(tmp_path, "dev", dev="test", test="none").pairs.image_ids == ("f.png", "g.png")


def test_ids_are_of_one_picture_over_all_splits(tmp_path: Path) -> None:
    """Where every split's files are read alone, rows and names beside a file begin anew in each."""
    for folder, images in (("train", "ab"), ("val", "cde")):
        (tmp_path / "bytes" / folder).mkdir(parents=True)
        (tmp_path / "paths" / folder).mkdir(parents=True)
        stored = [tiny.png(name) for name in images]
        stream(pa.table({"image": stored, "text": list(images)}), tmp_path / "bytes" / folder / "0.arrow")
        for row, content in enumerate(stored):
            (tmp_path / "paths" / folder / f"{row}.png").write_bytes(content)
        names = [f"{row}.png" for row in range(len(images))]
        stream(pa.table({"image": names, "text": list(images)}), tmp_path / "paths" / folder / "0.arrow")
    for form, row in (("bytes", "0.arrow/1"), ("paths", "1.png")):
        (tmp_path / "bad.txt").write_text(f"train/{row}\n")
        kept = {split: load(tmp_path / form, split, exclude=tmp_path / "bad.txt") for split in ("train", "dev")}
        assert [found.pairs.texts for found in kept.values()] == [("a",), ("c", "d", "e")]
        assert kept["dev"].pairs.image_ids[1] == f"val/{row}"
        assert np.array_equal(kept["dev"].images[np.array([1])][0], tiny.pixels("d"))


def test_missing_captions_are_left_out_and_said(tmp_path: Path) -> None:
    """Also of the row that holds the picture of the next ones, and of lists with their ids."""
    columns = {
        "image_id": ["x", "x", "y", "z"],
        "image": [tiny.png("a"), None, tiny.png("b"), tiny.png("c")],
        "text": [None, "of x", "", "of z"],
        "split": ["train"] * 4,
    }
    for form in (pq.write_table, ipc_file):
        form(pa.table(columns), tmp_path / "x.parquet")
        found = load(tmp_path / "x.parquet")
        assert (found.pairs.image_ids, found.pairs.texts) == (("x", "z"), ("of x", "of z"))
        assert np.array_equal(found.images[np.arange(2)], np.stack([tiny.pixels("a"), tiny.pixels("c")]))
        assert found.notes == (
            "train: 2 missing or empty caption(s) left out, and with them 1 image(s) that have no other; first "
            f"{tmp_path / 'x.parquet'}, row 0.",
        )
    listed = {**columns, "text": [["1", None], [], ["3"], None], "text_id": [["p", "q"], [], ["r"], []]}
    pq.write_table(pa.table(listed), tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").pairs.text_ids == ("p", "r")
    pq.write_table(pa.table({**listed, "text_id": [["p", "q"], [], [None], []]}), tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").pairs.text_ids == ("p", "y#0")


def test_ids_to_leave_out_that_are_not_there_are_said(tmp_path: Path) -> None:
    pq.write_table(table_of(PICTURES["binary"](), image_id=NAMES), tmp_path / "x.parquet")
    (tmp_path / "bad.txt").write_text("a\nA\nnobody\n")
    assert load(tmp_path / "x.parquet", exclude=tmp_path / "bad.txt").notes == (
        "train: 1 image(s) left out by the exclude file.",
        f"2 of 3 ids in {tmp_path / 'bad.txt'} are not in the set.",
    )


def test_counts_of_files_that_were_not_read_are_not_given(tmp_path: Path) -> None:
    pq.write_table(table_of(PICTURES["binary"]()).drop_columns(["split"]), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=r"no pair in split 'dev'\. Set train, dev or test"):
        load(tmp_path, "dev")


def test_a_file_of_a_saved_set_that_is_missing_is_not_called_json(tmp_path: Path) -> None:
    tiny.write_hf(tmp_path)
    (tmp_path / "train" / "state.json").unlink()
    with pytest.raises(BadInput, match=r"state\.json: no such file") as gone:
        hf(tmp_path)
    assert "not JSON" not in str(gone.value)
