"""`trainer evaluate`: protocols, ensembles, judged positives, what it prints and writes; a sentence per mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from miner.artifacts.lock import hold
from miner.artifacts.manifest import open_artifact
from trainer import data, judgements
from trainer.checkpoint import CHECKPOINT, Checkpoint
from trainer.cli import main
from trainer.data import Dataset
from trainer.evaluate import EXTENDED, METRICS, Mean, Scores, metrics_of, scores_of
from trainer.metrics_table import latex_row
from trainer.protocols import measure


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def folder(toys: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with 12 test images, two models of other dims and vocabularies, and judged positives."""
    root = tmp_path_factory.mktemp("evaluate")
    vectors = toys.write_vectors(root / "data", 60)
    for name, dim, min_count in (("a", 16, 1), ("b_2", 24, 6)):
        (root / "small.toml").write_text(
            f"[model]\ndim = {dim}\nword_dim = 8\n[fit]\nepochs = 6\nbatch_size = 16\nlr = 5e-3\nthreads = 1\n"
            f"min_count = {min_count}\nseed = {dim}\n"
        )
        run("fit", "--data", vectors, "--settings", root / "small.toml", "--out", root / name)
    pairs = dataset(root).pairs
    more = [(pairs.image_ids[image], pairs.text_ids[text]) for image in range(8) for text in (image, 3 * image)]
    (root / "more.csv").write_text("image_id,text_id\n" + "".join(f"{image},{text}\n" for image, text in more))
    return root


def dataset(folder: Path) -> Dataset:
    return data.load(data.configure("vectors", {"folder": folder / "data"}), "test")


def scores(folder: Path, name: str) -> Scores:
    return scores_of(Checkpoint.load(folder / name).model(), dataset(folder))


def base(folder: Path, *names: str) -> list[object]:
    models = [word for name in names for word in ("--checkpoint", folder / name)]
    return ["evaluate", "--data", folder / "data", *models]


def test_the_table_is_what_was_measured(folder: Path) -> None:
    pairs = dataset(folder).pairs
    measured = metrics_of(scores(folder, "a"), pairs)
    shown = run(*base(folder, "a")).output.splitlines()
    assert shown[0] == f"data test: {pairs.num_images} images, {pairs.num_texts} texts"
    for line, direction in zip(shown[1:3], ("i2t", "t2i"), strict=True):
        names = ("r1", "r5", "r10", "median_rank", "mean_rank")
        found = [float(figure) for figure in re.findall(r"(?<!@)\b\d+(?:\.\d+)?\b", line)]
        assert found == pytest.approx([measured[f"{direction}_{name}"] for name in names], abs=0.051)
    assert shown[3:] == [f"  rsum {measured['rsum']:.1f}"]


def test_an_ensemble_is_the_mean_of_its_models(folder: Path) -> None:
    pairs = dataset(folder).pairs
    models = [Checkpoint.load(folder / name) for name in ("a", "b_2")]
    assert models[0].tokenizer.to_json() != models[1].tokenizer.to_json()
    found = json.loads(run(*base(folder, "a", "b_2"), "--json").stdout)["metrics"]
    assert found == metrics_of(Mean([scores(folder, "a"), scores(folder, "b_2")]), pairs)
    alone = [json.loads(run(*base(folder, name), "--json").stdout)["metrics"] for name in ("a", "b_2")]
    assert alone == [metrics_of(scores(folder, name), pairs) for name in ("a", "b_2")]
    assert found not in alone
    assert ", ensemble of 2 models\n" in run(*base(folder, "a", "b_2")).output


def test_folds_and_judged_positives(folder: Path) -> None:
    pairs = dataset(folder).pairs
    judged = judgements.read(judgements.configure("pairs", {"path": folder / "more.csv"}), pairs)
    positives = ["--positives", f"pairs:{folder / 'more.csv'}"]
    asked = [*base(folder, "a"), "--protocol", "folds", "--fold-images", 4, *positives]
    found = json.loads(run(*asked, "--json").stdout)["metrics"]
    assert found == measure(scores(folder, "a"), pairs, judged, 4)
    assert set(found) == {*METRICS, *EXTENDED}
    shown = run(*asked).output
    added = judged.changes(pairs)[0]
    assert f"{pairs.num_texts} texts, mean over 3 folds of 4 images\n" in shown
    assert f": {added} more positives, 0 fewer; 12 images, {pairs.num_texts} texts judged\n" in shown
    assert f"  image to text  mAP@R {found['i2t_map_at_r']:5.1f}  R-precision" in shown
    full = json.loads(run(*base(folder, "a"), *positives, "--json").stdout)["metrics"]
    assert full == measure(scores(folder, "a"), pairs, judged)
    assert full["rsum"] < found["rsum"]


def test_json_says_what_the_figures_are_of(folder: Path) -> None:
    pairs = dataset(folder).pairs
    print_of = lambda *more: json.loads(run(*base(folder, "a"), *more, "--json").stdout)["of"]  # noqa: E731
    prints = {name: open_artifact(folder / name, CHECKPOINT).manifest.fingerprint for name in ("a", "b_2")}
    full = {
        "data": {"name": "data", "split": "test", "images": 12, "texts": pairs.num_texts},
        "protocol": {"name": "full", "fold_images": None, "folds": None},
        "positives": None,
        "models": [{"name": "vsepp", "checkpoint": prints["a"]}],
    }
    assert print_of() == full
    assert print_of("--checkpoint", folder / "b_2")["models"] == [
        {"name": "vsepp", "checkpoint": prints[name]} for name in ("a", "b_2")
    ]
    folds = print_of("--protocol", "folds", "--fold-images", 4)
    assert folds == {**full, "protocol": {"name": "folds", "fold_images": 4, "folds": 3}}
    judged = judgements.read(judgements.configure("pairs", {"path": folder / "more.csv"}), pairs)
    found = print_of("--positives", f"pairs:{folder / 'more.csv'}")
    added = judged.changes(pairs)[0]
    counts = {"added": added, "refuted": 0, "images": 12, "texts": pairs.num_texts}
    assert found == {**full, "positives": {"name": judged.name, **counts}}
    shown = run(*base(folder, "a"), "--positives", f"pairs:{folder / 'more.csv'}")
    assert "more.csv: 16 of 16 lines are about data test." in shown.stderr


def test_a_place_that_cannot_be_written_costs_no_figures(folder: Path, tmp_path: Path) -> None:
    """It is found before anything is encoded; what happens later comes after the figures."""
    (tmp_path / "file").write_text("")
    refused = run(*base(folder, "a"), "--out", tmp_path / "file" / "e", code=3)
    assert "rsum" not in refused.output
    with hold(tmp_path / "held"):
        assert "another command is writing" in run(*base(folder, "a"), "--out", tmp_path / "held", code=5).output
    # A folder in the place of metrics.json stops the commit alone.
    (tmp_path / "late" / "metrics.json").mkdir(parents=True)
    late = CliRunner().invoke(main, [str(word) for word in [*base(folder, "a"), "--out", tmp_path / "late"]])
    assert late.exit_code == 3
    assert "rsum" in late.stdout
    assert not (tmp_path / "late" / "manifest.json").exists()


def test_a_latex_row(folder: Path) -> None:
    measured = metrics_of(scores(folder, "a"), dataset(folder).pairs)
    row = run(*base(folder, "a"), "--latex", "--name", "VSE++ & 50%_x").stdout
    assert row.startswith(r"VSE++ \& 50\%\_x & ")
    cells = row.rstrip("\n").removesuffix(r" \\").split(" & ")[1:]
    assert cells == [f"{measured[name]:.1f}" for name in METRICS[:7]]
    assert run(*base(folder, "b_2", "a"), "--latex").stdout.startswith(r"b\_2 + a & ")
    more = run(*base(folder, "a"), "--latex", "--positives", f"pairs:{folder / 'more.csv'}").stdout
    assert more.count(" & ") == 7 + len(EXTENDED)
    assert latex_row("\\a^{~}", measured).startswith(r"\textbackslash{}a\textasciicircum{}\{\textasciitilde{}\} & ")


def test_what_is_written_depends_on_all_that_was_asked(folder: Path, tmp_path: Path) -> None:
    positives = ["--positives", f"pairs:{folder / 'more.csv'}"]
    asked = [*base(folder, "a"), *positives, "--out", tmp_path / "e"]
    found = run(*asked, "--json")
    assert json.loads(found.stdout) == json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert f"{tmp_path / 'e' / 'metrics.json'}" in found.stderr
    before = (tmp_path / "e" / "manifest.json").read_bytes()
    assert json.loads(before)["meta"] == json.loads(found.stdout)
    again = run(*asked).stdout
    assert again.startswith(run(*asked[:-2]).stdout)
    assert again.endswith(f"{tmp_path / 'e' / 'metrics.json'}\n")
    other = tmp_path / "other.csv"
    other.write_text("".join((folder / "more.csv").read_text().splitlines(keepends=True)[:7]))
    for change in (
        [*base(folder, "b_2"), *positives],
        [*base(folder, "a", "b_2"), *positives],
        base(folder, "a"),
        [*base(folder, "a"), "--positives", f"pairs:{other}"],
        [*base(folder, "a"), *positives, "--protocol", "folds", "--fold-images", 4],
        [*base(folder, "a"), "--split", "train"],
    ):
        assert "other inputs" in run(*change, "--out", tmp_path / "e", code=3).output
    assert (tmp_path / "e" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--json", "--latex"], 2, "--json and --latex print different things"),
        (["--name", "x"], 2, "--name belongs to --latex"),
        (["--fold-images", "4"], 2, "--fold-images belongs to --protocol folds"),
        (["--protocol", "fold"], 2, "'full', 'folds'"),
        (["--protocol", "folds"], 3, "12 images are not a whole number of folds of 1000"),
        (["--protocol", "folds", "--fold-images", "12"], 3, "12 images are one fold"),
        (["--positives", "ecc"], 3, "Did you mean 'eccv'?"),
        (["--positives", "pairs"], 3, "path"),
        (["--positives", "pairs:nowhere.csv"], 3, "nowhere.csv: no such file"),
        (["--positives", "pairs:a.csv,b.csv"], 3, "'b.csv' is not KEY=VALUE"),
        (["--positives", "cxc:a.csv,max=2"], 3, "'max' is not a setting"),
        (["--positives", "cxc:a.csv"], 3, "is not COCO's number of one image"),
    ],
)
def test_bad_input_gets_a_sentence(folder: Path, arguments: list[str], code: int, sentence: str) -> None:
    assert sentence in run(*base(folder, "a"), *arguments, code=code).output


def test_wrong_checkpoints_get_a_sentence(folder: Path, toys: SimpleNamespace, tmp_path: Path) -> None:
    assert "Missing option '--checkpoint'" in run(*base(folder), code=2).output
    assert "the same model twice" in run(*base(folder, "a", "a"), code=3).output
    said = run(*base(folder, "a", "nowhere"), code=3).output
    assert "no checkpoint artifact here" in said
    assert "`trainer fit --out` wrote, or best/ in a run's folder" in said
    other = toys.write_vectors(tmp_path / "wide", 60, 13)
    run("fit", "--data", other, "--epochs", 1, "--out", tmp_path / "wide-model", "--settings", folder / "small.toml")
    asked = [*base(folder, "a"), "--checkpoint", tmp_path / "wide-model"]
    assert "takes images of shape (13,), but those of data are (12,)" in run(*asked, code=3).output


def test_long_work_is_told_on_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = run(*base(folder, "a", "b_2"))
    assert "of 12 images" not in quick.stderr
    monkeypatch.setattr("trainer.commands._progress._EVERY", 0.0)
    long = run(*base(folder, "a", "b_2"))
    assert long.stderr.count("test: 12 of 12 images") == 2
    assert long.stderr.count(f"of {dataset(folder).pairs.num_texts} texts") == 2
    assert long.stdout == quick.stdout
