"""`miner.mine` on arrays: the same bytes as the command, whatever holds them, and a sentence for what is wrong."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from click.testing import CliRunner

import miner
from miner.artifacts.pairs import Pairs
from miner.cli import main


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(*arguments: object) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def asked(problem, **more):
    """The arguments that say of `problem` what its folder says."""
    pairs = problem.pairs
    return {
        "images": problem.images,
        "texts": problem.texts,
        "pairs": np.stack([pairs.image_rows, pairs.text_rows], axis=1),
        "image_ids": list(pairs.image_ids),
        "text_ids": list(pairs.text_ids),
        **more,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "f4"}, {"k": 7}),
        ({"dtype": "f2"}, {"k": 5, "metric": "cosine", "direction": "t2i"}),
        ({"dtype": "f8"}, {"k": 5, "direction": "i2t"}),
        ({"dtype": "f4"}, {"k": 3, "direction": "i2i"}),
        ({"grid": True}, {"k": 4, "rules": ["relative-margin:margin=0.2", "hub-cap:most=30"]}),
        ({}, {"k": 4, "rules": ["default"], "num_candidates": 12, "max_candidates": 24, "direction": "t2t"}),
    ],
)
def test_the_same_bytes_as_the_command(problem, tmp_path, options, said):
    given = problem(**options)
    if options.get("dtype") == "f8":
        given = type(given)(given.pairs, np.asfortranarray(given.images), given.texts)
    folder = given.write(tmp_path / "vectors")
    flags = [
        each
        for key, value in said.items()
        for one in (value if key == "rules" else [value])
        for each in (f"--{'rule' if key == 'rules' else key.replace('_', '-')}", one)
    ]
    command("mine", folder, "--out", tmp_path / "command", *flags)
    found = miner.mine(**asked(given, **said))
    assert found.save(tmp_path / "arrays") == tmp_path / "arrays"
    assert files(tmp_path / "arrays") == files(tmp_path / "command")
    found.save(tmp_path / "arrays")  # nothing is left to do
    assert files(tmp_path / "arrays") == files(tmp_path / "command")
    other = miner.mine(**asked(given, **{**said, "k": 2, "rules": ()}))
    if "max_candidates" not in said:
        with pytest.raises(miner.BadInput, match="nothing is overwritten"):
            other.save(tmp_path / "arrays")


def test_rows_ids_and_scores_are_those_of_the_oracle(problem, oracle):
    given = problem()
    found = miner.mine(**asked(given), k=7)
    assert list(found) == ["i2t", "t2i"]
    for direction, table in found.items():
        names = given.pairs.text_ids if direction == "i2t" else given.pairs.image_ids
        for row, (rows, scores, lowest) in oracle(given, direction, 7).items():
            assert table.rows[row].tolist() == rows
            assert table.ids[row].tolist() == [names[each] for each in rows]
            assert table.scores[row].tolist() == scores
            assert table.lowest_positive[row] == np.float32(lowest)
    whole = found.to_pandas()
    assert whole.columns.tolist() == ["direction", "anchor_id", "rank", "negative_id", "score", "lowest_positive"]
    assert len(whole) == 7 * (len(given.images) + len(given.texts))
    first = whole[(whole.direction == "t2i") & (whole["rank"] == 0)].set_index("anchor_id").negative_id
    table = found["t2i"]
    assert first.to_dict() == dict(zip(table.anchor_ids, table.ids[:, 0], strict=True))
    assert "i2t: 40 anchors x 7 negatives, 0 shortfalls" in repr(found)
    with pytest.raises(KeyError, match="what was mined is i2t, t2i"):
        found["i2i"]


def test_who_has_fewer_than_k_has_nothing_there(problem):
    given = problem(images=6)
    found = miner.mine(**asked(given), k=6, direction="t2i")["t2i"]
    missing = found.rows < 0
    assert missing.any()
    assert (np.isnan(found.scores) == missing).all()
    assert all(name is None for name in found.ids[missing])
    assert found.shortfalls().num_rows == (found.num_negatives < 6).sum() == len(given.texts)


def test_pairs_in_every_form(problem):
    given = problem(images=12)
    pairs = given.pairs
    links = np.stack([pairs.image_rows, pairs.text_rows], axis=1)
    whole = {"images": given.images, "texts": given.texts, "k": 3, "direction": "i2t"}
    want = miner.mine(**whole, pairs=links)["i2t"].rows
    columns = {"image_id": links[:, 0], "text_id": links[:, 1]}
    text = {name: [str(each) for each in column] for name, column in columns.items()}
    forms = [links.astype(np.uint16), links.tolist(), [tuple(map(str, link)) for link in links.tolist()], columns]
    forms += [pd.DataFrame(columns), pd.DataFrame(text).assign(more=1), polars.DataFrame(text), pa.table(text)]
    for form in forms:
        assert (miner.mine(**whole, pairs=form)["i2t"].rows == want).all()
    named = {"image_ids": np.array(list(pairs.image_ids)), "text_ids": pd.Series(list(pairs.text_ids))}
    by_name = pd.DataFrame({"image_id": pairs.image_ids.arrow.take(pairs.image_rows), "text_id":
                            pairs.text_ids.arrow.take(pairs.text_rows)})  # fmt: skip
    for form in (by_name, pairs):
        assert set(miner.mine(**whole, **named, pairs=form)["i2t"].ids[0]) == set(
            miner.mine(**whole, **named, pairs=links)["i2t"].ids[0]
        )
    equal = miner.mine(given.images, given.images[::-1] + 1, k=3, direction="i2t")["i2t"]
    assert not (equal.rows == np.arange(12)[:, None]).any()


def test_a_tensor_is_taken_as_it_is(problem):
    import torch

    given = problem(images=8)
    tensors = {name: torch.from_numpy(getattr(given, name)).requires_grad_() for name in ("images", "texts")}
    plain = miner.mine(**asked(given), k=3)
    assert (miner.mine(**asked(given, **tensors), k=3)["i2t"].rows == plain["i2t"].rows).all()
    with pytest.raises(miner.BadInput, match=re.escape("images: a tensor of torch.bfloat16")):
        miner.mine(**asked(given, images=tensors["images"].bfloat16()), k=3)


ROWS = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"images": ROWS[0]}, r"images: shape \(4,\); give \(rows, dim\)"),
        ({"images": ROWS.astype(int)}, "images: dtype int64"),
        ({"images": ROWS[:0]}, r"images: shape \(0, 4\)"),
        ({"images": [[1.0, 2.0], [3.0]]}, "images: no array can be made of it"),
        ({"images": [["a", "b"]] * 4}, "images: dtype <U1"),
        ({"texts": ROWS[:, :3].copy() + 1}, "images have dim 4 and texts dim 3"),
        ({"texts": np.where(ROWS == 0, np.nan, ROWS)}, "texts: row 0 .* holds NaN"),
        ({"images": ROWS * 0}, "images: row 0 .* holds only zeros"),
        ({"texts": np.vstack([ROWS, ROWS])}, "4 images cannot belong to 8 texts"),
        ({"pairs": [[0, 1, 2]]}, r"pairs: shape \(1, 3\)"),
        ({"pairs": np.ones((4, 2))}, "float64 are no row numbers"),
        ({"pairs": [(0, 0), (1, 1), (2, 2), (3, 9)]}, "a pair names text row 9; there are 4 texts"),
        ({"pairs": [(0, 0), (1, 1), (2, 2)]}, r"1 image\(s\) without a positive, first '3'"),
        ({"pairs": [("0", "0"), ("x", "1")]}, "unknown image id"),
        ({"pairs": {"image": [0], "text_id": [0]}}, "no column 'image_id' among image, text_id"),
        ({"pairs": {"image_id": [0, None], "text_id": [0, 1]}}, "pairs, image_id: entry 1 is None"),
        ({"pairs": {"image_id": [0], "text_id": [0, 1]}}, "1 image ids and 2 text ids"),
        ({"pairs": {"image_id": 3, "text_id": [0, 1]}}, "3 is no list of ids"),
        ({"pairs": "pairs.csv"}, r"pairs: shape \(\)"),
        ({"image_ids": ["a", "b"]}, "2 ids for 4 images"),
        ({"image_ids": ["a", "a", "b", "c"]}, "image id 'a' occurs more than once"),
        ({"k": 5}, "k = 5 is larger than the gallery of 4 texts"),
        ({"k": 0}, "k = 0; give a whole number"),
        ({"k": 2.5}, "k = 2.5; give a whole number"),
        ({"direction": "i2x"}, "direction = 'i2x'"),
        ({"metric": "l2"}, "metric = 'l2'"),
        ({"rules": "relative-margn"}, "Did you mean 'relative-margin'"),
        ({"rules": ["same-text"]}, "give `captions`, one per row of texts"),
        ({"rules": ["same-text"], "captions": ["a"]}, "1 captions for 4 texts"),
        ({"captions": list("abcd")}, "`captions` are for rules that look at texts"),
        ({"max_candidates": 9}, "bounds how deep rules are searched for"),
        ({"memory": "lots"}, "'lots' is not a size"),
    ],
)
def test_a_sentence_for_what_is_wrong(wrong, sentence):
    with pytest.raises(miner.BadInput, match=sentence):
        miner.mine(**{"images": ROWS, "texts": ROWS, "k": 2, **wrong})


def test_rules_look_at_captions(problem, tmp_path):
    given = problem()
    folder = given.write(tmp_path / "vectors")
    captions = [f"the same {row % 3}" for row in range(len(given.texts))]
    pd.DataFrame({"id": list(given.pairs.text_ids), "text": captions}).to_csv(tmp_path / "captions.csv", index=False)
    command(
        "mine", folder, "--k", 5, "--rule", "same-text", "--texts", tmp_path / "captions.csv", "--out", tmp_path / "a"
    )
    miner.mine(**asked(given, k=5, rules="same-text", captions=captions)).save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_progress_when_it_is_wanted_alone(problem, capfd):
    given = problem(images=8)
    miner.mine(**asked(given), k=3, rules="default")
    assert capfd.readouterr() == ("", "")
    miner.mine(**asked(given), k=3, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "i2t and t2i: " in err


def test_nothing_is_left_behind(problem, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = miner.mine(**asked(problem(images=8)), k=3)
    assert list(tmp_path.iterdir())
    found["i2t"].rows.sum()
    del found
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(miner.BadInput):
        miner.mine(ROWS, ROWS, k=9)
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_import_is_light():
    code = "import miner, sys; heavy = {'torch', 'faiss', 'ray', 'numpy', 'pyarrow'} & set(sys.modules); print(heavy)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    assert "mine" in dir(miner)
    with pytest.raises(AttributeError, match="has no attribute 'dig'"):
        miner.dig  # noqa: B018  (looked up, on purpose)


def test_pairs_of_other_ids_are_refused():
    pairs = Pairs.from_ids(list("abcd"), list("abcd"), zip("abcd", "abcd", strict=True))
    with pytest.raises(miner.BadInput, match="their ids are not those of the vectors"):
        miner.mine(ROWS, ROWS, pairs, k=2)
