"""`miner filter` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from miner.artifacts.candidates import CANDIDATES, write_candidates
from miner.artifacts.command import CommandGroup
from miner.artifacts.lock import hold
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import sides
from miner.artifacts.store import LocalStore
from miner.commands.filter import filter_candidates
from miner.filters import DEFAULT
from miner.folder import open_folder
from miner.index import build
from miner.nearest import mine
from tests.miner.filters_oracle import expected, ranking


@click.group(cls=CommandGroup)
def main() -> None:
    """As `miner` does it."""


main.add_command(filter_candidates)


def run(*arguments):
    return CliRunner().invoke(main, ["filter", *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def search(folder: Path, out: Path, num: int, directions=("i2t", "t2i"), metric: str = "ip") -> Path:
    """Candidates as `miner mine` keeps them."""
    opened = open_folder(folder)
    for direction in directions:
        vectors, gallery = (opened.vectors(side, metric) for side in sides(direction))
        blocks = mine(vectors, build("flat", gallery), gallery, opened.pairs, direction, num)
        about = {"vectors": opened.fingerprints, "metric": metric, "index": "flat", "round": None, "checkpoint": None}
        draft = Draft(LocalStore(out), direction, CANDIDATES, {"num": num})
        for _ in write_candidates(draft, blocks, opened.pairs, direction, num, about):
            pass
    return out


@pytest.fixture
def setting(problem, tmp_path):
    given = problem(seed=1)
    folder = given.write(tmp_path / "vectors")
    return given, folder, search(folder, tmp_path / "candidates", 12)


def test_filter_equals_the_oracle_and_is_done_the_second_time(setting, oracle, tmp_path):
    given, folder, candidates = setting
    said = ("--rule", "range-min:skip=2", "--rule", "max_score:score=3", "--k", 5)
    first = run(folder, "--candidates", candidates, *said, "--out", tmp_path / "t", "--max-candidates", 200)
    assert first.exit_code == 0, first.output
    drops = [lambda a, g, rank, s, low: rank < 2, lambda a, g, rank, s, low: s > 3]
    for direction in ("i2t", "t2i"):
        size = len(given.vectors(direction)[1])
        depths = [12, 48, min(192, size)] if size > 48 else [12, size]
        wanted = expected(ranking(given, oracle, direction), drops, 5, depths)
        table = NegativeTable.open(tmp_path / "t" / direction, given.pairs)
        for row, one in wanted.items():
            assert table.negatives[row][: len(one.negatives)].tolist() == [g for g, _ in one.negatives]
        frame = pd.read_parquet(tmp_path / "t" / direction / "dropped.parquet")
        assert len(frame) == sum(len(one.dropped) for one in wanted.values())
        by_score = sum(each[3] == 1 for one in wanted.values() for each in one.dropped)
        assert f"{by_score:,} candidates (" in first.output
    assert "dropped by range-min" in first.output
    assert "dropped by max-score" in first.output
    assert "anchors were searched 48 deep" in first.output
    assert "dropped.parquet" in first.output
    assert f"miner export {tmp_path / 't' / 'i2t'} --pairs {folder / 'pairs.csv'}" in first.output
    before = files(tmp_path / "t")
    again = run(folder, "--candidates", candidates, *said, "--out", tmp_path / "t", "--max-candidates", 200)
    assert again.exit_code == 0
    assert again.output.count("already done") == 2
    assert "dropped by range-min" in again.output
    other = run(folder, "--candidates", candidates, "--k", 5, "--out", tmp_path / "t")
    assert other.exit_code == 3
    assert "nothing is overwritten" in other.output
    assert files(tmp_path / "t") == before
    threads = run(
        folder, "--candidates", candidates, *said, "--out", tmp_path / "u", "--max-candidates", 200, "--threads", 3
    )
    assert threads.exit_code == 0
    assert files(tmp_path / "u") == before


def test_the_default_rule_cosine_and_one_direction(problem, tmp_path):
    given = problem(seed=2)
    folder = given.write(tmp_path / "vectors")
    candidates = search(folder, tmp_path / "candidates", 12, directions=("t2i",), metric="cosine")
    result = run(folder, "--candidates", candidates, "--rule", "default", "--k", 4, "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    assert "dropped by look-alike" in result.output
    table = NegativeTable.open(tmp_path / "t" / "t2i", given.pairs)
    assert table.provenance["metric"] == "cosine"
    assert np.nanmax(np.abs(table.scores)) <= 1
    missing = run(folder, "--candidates", candidates, "--direction", "i2t", "--k", 4, "--out", tmp_path / "u")
    assert missing.exit_code == 3
    assert "no candidates of i2t, only of t2i" in missing.output
    one_way = run(folder, "--candidates", candidates, "--rule", "agreement", "--k", 4, "--out", tmp_path / "v")
    assert one_way.exit_code == 3
    assert "search both directions" in one_way.output


def test_without_deeper_searches_what_is_missing_is_listed(setting, tmp_path):
    given, folder, candidates = setting
    result = run(
        folder,
        "--candidates",
        candidates,
        "--rule",
        "range-min:skip=10",
        "--k",
        5,
        "--no-deepen",
        "--out",
        tmp_path / "t",
    )
    assert result.exit_code == 0, result.output
    short = pd.read_parquet(tmp_path / "t" / "i2t" / "shortfalls.parquet")
    assert len(short) == len(given.images)
    assert set(short.found) == {2}
    sentence = f"searched 12 of {len(given.texts)} texts: 10 dropped by range-min; nothing to search deeper in"
    assert set(short.reason) == {sentence}
    assert "anchors were searched" not in result.output


def test_texts_and_pictures(setting, tmp_path):
    given, folder, candidates = setting
    (tmp_path / "pictures").mkdir()
    lines = ["id,path"]
    for row, name in enumerate(given.pairs.image_ids):
        shade = 6 * (row // 2)  # two of each
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / "pictures" / f"{row}.png")
        lines.append(f"{name},pictures/{row}.png")
    images = tmp_path / "images.csv"
    images.write_text("\n".join(lines) + "\n")
    texts = tmp_path / "texts.csv"
    texts.write_text(
        "text_id,text\n" + "".join(f"{t},caption {row % 9}\n" for row, t in enumerate(given.pairs.text_ids))
    )
    rules = ("--rule", "same-text", "--rule", "same-image", "--k", 3, "--images", images)
    common = (folder, "--candidates", candidates, *rules)
    result = run(*common, "--texts", texts, "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    for direction in ("i2t", "t2i"):
        frame = pd.read_parquet(tmp_path / "t" / direction / "dropped.parquet")
        assert set(frame.rule) == {"same-text", "same-image"}
        for one in frame.itertuples():
            image, text = (one.anchor_id, one.negative_id) if direction == "i2t" else (one.negative_id, one.anchor_id)
            if one.rule == "same-image":
                own = given.pairs.positives("text")
                row = given.pairs.text_ids.rows([text])[0]
                theirs = own[1][own[0][row] : own[0][row + 1]]
                assert given.pairs.image_ids.rows([image])[0] // 2 in (theirs // 2).tolist()
    texts.write_text(texts.read_text().replace("caption 3", "caption 4"))
    changed = run(*common, "--texts", texts, "--out", tmp_path / "t")
    assert changed.exit_code == 3
    assert "made from other inputs" in changed.output
    Image.new("RGB", (8, 8), "white").save(tmp_path / "pictures" / "0.png")
    without = run(*common, "--out", tmp_path / "u")
    assert without.exit_code == 3
    assert "with --texts" in without.output
    (tmp_path / "pictures" / "3.png").unlink()
    gone = run(*common, "--texts", texts, "--out", tmp_path / "v")
    assert gone.exit_code == 3
    assert "3.png: no such picture" in gone.output
    captions = tmp_path / "captions.csv"
    captions.write_text("image_id,text\n" + "".join(f"{i},words\n" for i in given.pairs.image_ids))
    wrong = run(
        folder,
        "--candidates",
        candidates,
        "--rule",
        "same-image",
        "--images",
        captions,
        "--k",
        3,
        "--out",
        tmp_path / "w",
    )
    assert wrong.exit_code == 3
    assert "rules need its path" in wrong.output


def test_changed_vectors_and_damaged_candidates_are_refused(setting, tmp_path):
    _, folder, candidates = setting
    texts = np.load(folder / "texts.npy")
    np.save(folder / "texts.npy", texts * np.float32(1.5))
    changed = run(folder, "--candidates", candidates, "--k", 3, "--out", tmp_path / "t")
    assert changed.exit_code == 3
    assert "not those in which the candidates" in changed.output
    np.save(folder / "texts.npy", texts)
    scores = candidates / "i2t" / "scores.npy"
    data = bytearray(scores.read_bytes())
    data[-3] ^= 1
    scores.write_bytes(bytes(data))
    damaged = run(folder, "--candidates", candidates, "--k", 3, "--out", tmp_path / "t")
    assert damaged.exit_code == 4
    assert "scores.npy is not the file that was committed" in damaged.output
    assert list((tmp_path / "t").iterdir()) == []


def test_what_is_wrong_is_said_in_a_sentence(setting, tmp_path):
    given, folder, candidates = setting
    out = ("--out", tmp_path / "t")
    for arguments, code, sentence in (
        ((folder, "--candidates", tmp_path, *out), 3, "no candidates here"),
        ((folder, "--candidates", candidates, "--rule", "hub_kap:most=3", *out), 3, "Did you mean 'hub-cap'"),
        ((folder, "--candidates", candidates, "--k", 1000, *out), 3, "ask for 1 to"),
        ((folder, "--candidates", candidates, "--k", 0, *out), 2, "0 is not in the range"),
        ((folder, "--candidates", candidates, "--max-candidates", 3, *out), 3, "give no fewer"),
        ((tmp_path / "nowhere", "--candidates", candidates, *out), 3, "no such folder"),
        ((folder, "--candidates", candidates), 2, "--out"),
    ):
        result = run(*arguments)
        assert (result.exit_code, sentence in result.output) == (code, True), result.output
        assert "Traceback" not in result.output
    (tmp_path / "t").mkdir(exist_ok=True)
    with hold(tmp_path / "t"):
        assert run(folder, "--candidates", candidates, "--k", 3, *out).exit_code == 5
    pairs = folder / "pairs.csv"
    pairs.write_text(pairs.read_text() + f"{given.pairs.image_ids[0]},{given.pairs.text_ids[-1]}\n")
    other = run(folder, "--candidates", candidates, "--k", 3, *out)
    assert other.exit_code == 3
    assert "searched for other pairs" in other.output


def test_help_lists_the_rules_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from miner.commands.filter import filter_candidates\n"
        "filter_candidates.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'faiss', 'ray', 'numpy', 'pyarrow', 'pydantic', 'PIL', 'miner.filters'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    shown = " ".join(result.stdout.split())
    sides_said = "[side=either|image|text, default either]"
    assert f"`default` is {' '.join(DEFAULT)}, " in shown
    for said in ("relative-margin", "[margin=MARGIN, default 0.05]", "hub-cap", "[most=MOST]", sides_said):
        assert said in shown, said
