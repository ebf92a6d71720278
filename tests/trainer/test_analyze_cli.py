"""`trainer analyze`: what it prints and writes, several checkpoints, tables and losses, and one sentence otherwise.

`--run` is tested beside the loop, in `tests/pipelines/test_rounds.py`.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainer.test_cli import SMALL, mine, run, settings
from trainer.analyze import COLUMNS, FIGURES, THRESHOLDS
from trainer.commands.analyze import LEGEND


class Made(NamedTuple):
    data: Path
    first: Path  # two checkpoints
    second: Path
    tables: Path


@pytest.fixture(scope="module")
def made(toys: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("analyze")
    found = Made(toys.write_vectors(base / "data", 60), base / "m0", base / "m1", base / "n")
    common = ["fit", "--data", found.data, "--settings", settings(base), *SMALL]
    run(*common, "--out", found.first)
    run(*common, "--start", found.first, "--out", found.second)
    run("encode", "--data", found.data, "--checkpoint", found.first, "--out", base / "v")
    mine(base / "v", found.tables)
    return found


def analyze(made: Made, *arguments: object, code: int = 0) -> str:
    size = [] if "--batch-size" in arguments else ["--batch-size", 16]
    shown = run("analyze", "--data", made.data, *size, *arguments, code=code).output
    assert "Traceback" not in shown
    return shown


def table_of(shown: str) -> list[list[str]]:
    """Cells of the printed table, head first."""
    lines = shown.splitlines()
    head = next(number for number, line in enumerate(lines) if "negatives  direction" in line)
    columns = [len(part) for part in lines[head + 1].split("  ")]
    rows = []
    for line in [lines[head], *lines[head + 2 : lines.index("", head)]]:
        at, cells = 0, []
        for width in columns:
            cells.append(line[at : at + width].strip())
            at += width + 2
        rows.append(cells)
    return rows


def rows_in(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_it_prints_a_table_and_writes_three_files(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "counts"
    losses = ["triplet:max_violation=false", "ntxent:tau=0.2"]
    shown = analyze(
        made, "--checkpoint", made.first, "--loss", losses[0], "--loss", losses[1], "--batches", 2, "--out", out
    )
    head, *lines = table_of(shown)
    figures = ["above", "queries", "count per query", "with any", "count of these", "weight", "nearer"]
    assert head == ["", "negatives", "direction", *figures]
    assert [line[:5] for line in lines] == [
        [loss, "online", direction, above, "2 x 16"] for loss in losses for direction in ("i2t", "t2i")
        for above in ("0", "0.01")
    ]  # fmt: skip
    assert LEGEND in shown
    assert f"{out}: counts.parquet, counts.csv, counts.png" in shown
    assert sorted(path.name for path in out.iterdir()) == ["counts.csv", "counts.parquet", "counts.png"]

    rows = rows_in(out / "counts.csv")
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * (len(THRESHOLDS) + 4)
    stored = pq.read_table(out / "counts.parquet").to_pylist()
    for row, whole in zip(rows, stored, strict=True):
        assert tuple(whole) == COLUMNS
        assert (row["label"], row["loss"]) == (whole["label"], whole["label"].partition(":")[0])
        assert (row["of_chance"] == "") == (whole["of_chance"] is None)
        for figure in FIGURES:
            assert float(row[figure]) == whole[figure]
    first = stored[0]
    printed = [f"{first['share']:.2f} ± {first['share_std']:.2f}", f"{1 - first['none'] / 16:.0%}"]
    printed += [f"{first['per_query']:.2f} ± {first['per_query_std']:.2f}", f"{first['weight']:.3f}", "0%"]
    assert lines[0][5:] == printed

    assert (out / "counts.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(out / "counts.png") as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_the_default_is_the_triplet_and_nothing_is_written(made: Made) -> None:
    before = sorted(made.data.parent.rglob("*"))
    lines = table_of(analyze(made, "--checkpoint", made.first))[1:]
    assert {line[0] for line in lines} == {"triplet"}
    assert sorted(made.data.parent.rglob("*")) == before


def test_checkpoints_and_tables_by_the_side(made: Made, tmp_path: Path) -> None:
    both = ["--checkpoint", made.first, "--checkpoint", made.second]
    tables = ["--negatives", made.tables] * 2
    lines = table_of(analyze(made, *both, *tables, "--loss", "aoq:form=OffQuin,h_t=3", "--out", tmp_path / "c"))[1:]
    assert list(dict.fromkeys(line[0] for line in lines)) == [str(made.first), str(made.second)]
    assert {(line[1], line[2]) for line in lines} == {
        ("online", "i2t"), ("offline", "i2t"), ("online", "t2i"), ("offline", "t2i"), ("c_1", "both"), ("c_2", "both"),
    }  # fmt: skip
    found = {(row["label"], row["direction"], row["negatives"]) for row in rows_in(tmp_path / "c" / "counts.csv")}
    assert len(found) == 2 * 6
    # Of one checkpoint with two tables, the tables are named; of two losses, the loss.
    twice = ["--checkpoint", made.first, "--checkpoint", made.first, *tables]
    lines = table_of(analyze(made, *twice, "--loss", "aoq", "--loss", "triplet", "--batches", 1))[1:]
    where = f"{made.first} with {made.tables}"
    assert {line[0] for line in lines} == {f"{where}, aoq", f"{where}, triplet"}


def test_thresholds_of_ones_own(made: Made, tmp_path: Path) -> None:
    asked = ["--threshold", 0.2, "--threshold", 0.05, "--threshold", 0.4, "--threshold", 0.2]
    shown = analyze(made, "--checkpoint", made.first, "--loss", "ntxent", *asked, "--out", tmp_path)
    lines = table_of(shown)[1:]
    assert [line[3] for line in lines] == ["0.05", "0.2", "0.4"] * 2
    assert {line[4] for line in lines} == {lines[0][4]}  # a threshold named twice doubles no batch
    table = pq.read_table(tmp_path / "counts.parquet")
    assert table.column("threshold").to_pylist() == [0.05, 0.2, 0.4] * 2
    assert str(table.schema.field("of_chance").type) == "double"
    with Image.open(tmp_path / "counts.png") as image:
        assert image.width > 500


def test_smoothap_counts_batches_of_images(made: Made) -> None:
    lines = table_of(analyze(made, "--checkpoint", made.first, "--loss", "smoothap", "--batches", 1))[1:]
    assert lines[0][4] == "1 x 16"
    assert [line[2] for line in lines] == ["i2t", "i2t", "t2i", "t2i"]


def test_as_published_says_what_it_counts(made: Made, tmp_path: Path) -> None:
    arguments = ["--checkpoint", made.first, "--loss", "triplet:max_violation=false", "--out", tmp_path]
    lines = table_of(analyze(made, *arguments, "--as-published"))[1:]
    assert [line[3] for line in lines] == ["0", "0"]
    assert {line[-1] for line in lines} == {"-"}  # the notebooks have no weights of triplets
    assert not (tmp_path / "counts.png").exists()
    published = {row["direction"]: row for row in rows_in(tmp_path / "counts.csv")}
    analyze(made, *arguments, "--threshold", 0)
    right = {row["direction"]: row for row in rows_in(tmp_path / "counts.csv")}
    assert math.isnan(float(published["i2t"]["weight"]))
    for direction in ("i2t", "t2i"):
        # The count is theirs too, but for captions of one image, which they take for negatives.
        assert float(published[direction]["count"]) >= float(right[direction]["count"])


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "give either --checkpoint (one or more) or --run."),
        (["--checkpoint", "{first}", "--run", "runs"], 2, "give either --checkpoint (one or more) or --run."),
        (["--run", "runs", "--negatives", "{tables}"], 2, "--run brings the tables of its rounds"),
        (
            ["--checkpoint", "{first}", "--checkpoint", "{second}", "--negatives", "{tables}", "--loss", "aoq"],
            2,
            "2 --checkpoint but 1 --negatives; give one for each.",
        ),
        (["--checkpoint", "{first}", "--negatives", "{tables}"], 2, "no --loss given here uses offline negatives"),
        (["--checkpoint", "{first}", "--as-published", "--threshold", "0.1"], 2, "leave --threshold out."),
        (["--checkpoint", "{first}", "--threshold", "-1"], 2, "Invalid value for '--threshold'"),
        (["--checkpoint", "{first}", "--batch-size", "1"], 2, "Invalid value for '--batch-size'"),
        (["--checkpoint", "{first}", "--loss", "tripled"], 3, "Did you mean 'triplet'?"),
        (["--checkpoint", "{first}", "--loss", "ntxent:tau"], 3, "'tau' is not KEY=VALUE; write NAME:KEY=VALUE"),
        (["--checkpoint", "{first}", "--loss", "ntxent:taus=1"], 3, "did you mean 'tau'?"),
        (["--checkpoint", "{first}", "--loss", "ntxent:tau=0"], 3, "tau = 0: Input should be greater than 0"),
        (["--checkpoint", "{first}", "--loss", "aoq"], 3, "give those that `miner mine` wrote (--negatives)"),
        (["--checkpoint", "{first}", "--loss", "sct", "--as-published"], 3, "not sct; leave --as-published out"),
        (["--checkpoint", "{first}", "--batch-size", "900"], 3, "do not fill one batch of 900; give a smaller batch"),
        (["--checkpoint", "{data}"], 3, "no checkpoint artifact here"),
        (["--checkpoint", "nowhere"], 3, "no checkpoint artifact here"),
        (["--checkpoint", "{first}", "--loss", "aoq", "--negatives", "nowhere"], 3, "no such folder"),
        (["--checkpoint", "{first}", "--loss", "aoq", "--negatives", "{tables}", "--split", "dev"], 3, "other pairs"),
        (["--checkpoint", "{first}", "--fold", "1"], 3, "belongs to the emoji set"),
        (["--run", "{data}"], 3, "no run here"),
        (["--run", "nowhere"], 3, "no run here"),
    ],
)
def test_wrong_usage_gets_a_sentence(
    made: Made, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    filled = [argument.format(**{name: str(path) for name, path in made._asdict().items()}) for argument in arguments]
    shown = analyze(made, *filled, "--out", tmp_path / "c", code=code)
    assert sentence in shown
    last = shown.strip().splitlines()[-1]
    assert last.startswith("Error: " if code == 2 else "error: ")
    assert sentence in last
    assert not (tmp_path / "c").exists()


def test_other_pictures_are_refused(made: Made) -> None:
    shown = run("analyze", "--data", "emoji", "--checkpoint", made.first, code=3).output
    assert "images of shape (12,)" in shown
