"""`miner diff`: every figure against loops over the rows of both tables, and tables that hardly fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from miner import rows
from miner.artifacts.candidates import CANDIDATES
from miner.artifacts.command import CommandGroup
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, write_negatives
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.artifacts.store import LocalStore
from miner.commands.diff import diff

P = 0.9


def run(*arguments: object):
    group = CommandGroup("miner", commands=[diff])
    return CliRunner().invoke(group, ["diff", *map(str, arguments)])


def told(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Anchors lie across pieces and row groups."""
    monkeypatch.setattr(rows, "_AT_ONCE", 29)


def mined(
    folder: Path, pairs: Pairs, direction: Direction, k: int, seed: int, repeat: float = 0.0, **provenance: Any
) -> Path:
    """A made-up table: `repeat` is the share of an anchor's negatives taken from a list that depends on no seed.

    Some anchors have fewer than k, one has none.
    """
    anchors, gallery = sides(direction)
    order, others = pairs.order(anchors), np.arange(len(pairs.ids(gallery)))
    offsets, positives = pairs.positives(anchors)
    rng = np.random.default_rng(seed)
    negatives = np.full((len(order), k), -1, dtype=np.int32)
    for at, row in enumerate(order.tolist()):
        free = np.setdiff1d(others, positives[offsets[row] : offsets[row + 1]])
        fixed = np.random.default_rng(1000 + row).permutation(free)[: round(repeat * k)]
        drawn = rng.permutation(np.setdiff1d(free, fixed))[: k - len(fixed)]
        wanted = {3: 2, 5: 0}.get(at, k)
        negatives[at, :wanted] = rng.permutation(np.concatenate([fixed, drawn]))[:wanted]
    scores = -np.sort(-rng.normal(size=negatives.shape).astype("f4"), axis=1)
    scores[negatives < 0] = np.nan
    lowest = rng.normal(size=len(order)).astype("f4")
    block = NegativeBlock(order, negatives, scores, lowest, dict.fromkeys(order.tolist(), "made so"))
    write_negatives(
        Draft(LocalStore(folder), direction, NEGATIVES, {"seed": seed}), [block], pairs, direction, k, provenance
    )
    return folder / direction


def by_anchor(table: Path, k: int) -> dict[str, list[dict[str, Any]]]:
    """The first k rows of every anchor."""
    path = table / "negatives.parquet" if table.is_dir() else table
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pd.read_parquet(path).to_dict("records"):
        if row["rank"] < k:
            found.setdefault(row["anchor_id"], []).append(row)
    return found


def rank_biased(old: list[str], new: list[str]) -> float:
    """Agreement at every depth of the shorter list, weighted by P^(depth - 1), over what two equal lists get."""
    depth = min(len(old), len(new))
    weights = [P ** (d - 1) for d in range(1, depth + 1)]
    agreed = [len(set(old[:d]) & set(new[:d])) / d for d in range(1, depth + 1)]
    return sum(w * a for w, a in zip(weights, agreed, strict=True)) / sum(weights)


def slow(old: Path, new: Path, k: int) -> dict[str, Any]:
    before, after = by_anchor(old, k), by_anchor(new, k)
    both = [anchor for anchor in after if anchor in before]
    overlap, biased, shifts, of_anchor, same = [], [], [], [], 0
    hard = {"old": [], "new": []}
    for anchor in both:
        one, two = before[anchor], after[anchor]
        was = {row["negative_id"]: row["score"] for row in one}
        is_ = {row["negative_id"]: row["score"] for row in two}
        overlap.append(len(was.keys() & is_.keys()) / len(two))
        biased.append(rank_biased([r["negative_id"] for r in one], [r["negative_id"] for r in two]))
        here = [float(is_[name]) - float(was[name]) for name in is_ if name in was]
        shifts += here
        of_anchor += [sum(here) / len(here)] if here else []
        same += one[0]["negative_id"] == two[0]["negative_id"]
        for name, listed in (("old", one), ("new", two)):
            hard[name] += [float(row["score"]) - float(row["lowest_positive"]) for row in listed]
    return {
        "k": k,
        "anchors": len(both),
        "overlap": np.mean(overlap),
        "overlap_quantiles": {f"{q:g}": np.quantile(overlap, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "overlap_tenths": [sum(min(int(o * 10 + 1e-9), 9) == tenth for o in overlap) for tenth in range(10)],
        "rank_biased_overlap": np.mean(biased),
        "same_hardest": same / len(both),
        "score_shift": np.mean(shifts) if shifts else 0.0,
        "score_shift_quantiles": {f"{q:g}": np.quantile(of_anchor, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
        if of_anchor
        else {},
        "hardness_old": np.mean(hard["old"]),
        "hardness_new": np.mean(hard["new"]),
        "share_above_lowest_positive_old": np.mean(np.array(hard["old"]) > 0),
        "share_above_lowest_positive_new": np.mean(np.array(hard["new"]) > 0),
        "only_in_old": len(before.keys() - after.keys()),
        "only_in_new": len(after.keys() - before.keys()),
    }


def agree(said: dict[str, Any], truth: dict[str, Any]) -> None:
    for name, value in truth.items():
        assert said[name] == pytest.approx(value, abs=2e-6), name


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("repeat", [0.0, 0.5, 0.9, 1.0])
def test_every_figure_equals_a_slow_loop(problem, tmp_path, direction, repeat):
    pairs = problem().pairs
    old = mined(tmp_path / "old", pairs, direction, 10, seed=1, repeat=repeat)
    new = mined(tmp_path / "new", pairs, direction, 10, seed=2, repeat=repeat)
    for k in (10, 3, 1):
        said = told(old, new, "--k", k)["directions"][direction]
        agree(said, slow(old, new, k))
    said = told(old, new)["directions"][direction]
    agree(said, slow(old, new, 10))
    assert said["changes"] == ("little" if said["overlap"] >= 0.8 else "much" if said["overlap"] < 0.5 else "some")
    assert f"{said['overlap']:.0%} of the negatives are the same as before" in said["reason"]


def test_the_same_table_twice(problem, tmp_path):
    pairs = problem().pairs
    table = mined(tmp_path / "t", pairs, "i2t", 6, seed=1)
    said = told(table, table)["directions"]["i2t"]
    assert (said["overlap"], said["rank_biased_overlap"], said["same_hardest"], said["score_shift"]) == (1, 1, 1, 0)
    assert said["changes"] == "little"
    assert said["notes"] == ["these are the same table"]
    text = run(table, table)
    assert "little change: 100% of the negatives are the same as before, with equal scores" in text.output
    assert "90-100% 100.0% " + 40 * "#" in text.output


def test_anchors_in_another_order_and_in_one_alone(problem, tmp_path):
    pairs = problem().pairs
    old = mined(tmp_path / "old", pairs, "t2i", 8, seed=1, repeat=0.5)
    new = mined(tmp_path / "new", pairs, "t2i", 8, seed=2, repeat=0.5)
    rng = np.random.default_rng(0)
    frame = pd.read_parquet(new / "negatives.parquet")
    names = rng.permutation(frame.anchor_id.unique())
    parts = [frame[frame.anchor_id == name] for name in names[:-7]] + [
        frame[frame.anchor_id == names[0]].assign(anchor_id=f"other {n}") for n in range(4)
    ]
    shuffled = tmp_path / "shuffled.parquet"
    pd.concat(parts).to_parquet(shuffled, row_group_size=50)
    for first, second in ((old, shuffled), (shuffled, old)):
        said = told(first, second)["directions"]["t2i"]
        agree(said, slow(first, second, 8))
        assert any("not a committed table" in note for note in said["notes"])
        assert {said["only_in_old"], said["only_in_new"]} == {7, 4}
        listed = said["examples_only_in_old"] if first == shuffled else said["examples_only_in_new"]
        assert len(listed) == 3
        assert set(listed) < {f"other {n}" for n in range(4)}
    assert "4 anchor(s) have negatives in NEW alone, first 'other " in run(old, shuffled).output


def test_different_k_pairs_metric_and_model(problem, tmp_path):
    pairs, others = problem().pairs, problem(seed=3).pairs
    old = mined(tmp_path / "old", pairs, "i2t", 9, seed=1, repeat=0.5, metric="ip", checkpoint="a")
    rules = {"rules": [{"rule": "max_score", "score": 0.5}]}
    new = mined(tmp_path / "new", others, "i2t", 5, seed=2, repeat=0.5, metric="scan", checkpoint="a", filter=rules)
    said = told(old, new)["directions"]["i2t"]
    agree(said, slow(old, new, 5))
    notes = " ".join(said["notes"])
    assert "OLD holds 9 negatives per anchor, NEW 5: the 5 hardest are compared" in notes
    assert "different pairs" in notes
    assert "scores are ip before and scan now" in notes
    assert "same model" in notes
    assert "chosen by different rules" in notes
    result = run(old, new, "--k", 6)
    assert (result.exit_code, "holds 5 negatives per anchor, but --k 6" in result.output) == (3, True)
    assert "ask for at most 5" in result.output
    asked = told(old, new, "--k", 5)["directions"]["i2t"]
    assert not any("hardest are compared" in note for note in asked["notes"])


def test_folders_of_both_directions_and_of_a_round(problem, tmp_path):
    pairs = problem().pairs
    for seed in (1, 2):
        for direction in ("i2t", "t2i"):
            mined(tmp_path / f"{seed}", pairs, direction, 6, seed=seed, repeat=0.5)
            made = mined(tmp_path / "made", pairs, direction, 6, seed=seed, repeat=0.5)
            made.rename(_place(tmp_path, seed, direction))
    both = told(tmp_path / "1", tmp_path / "2")
    assert list(both["directions"]) == ["i2t", "t2i"]
    assert both["notes"] == []
    rounds = told(tmp_path / "round1", tmp_path / "round2")
    assert rounds["directions"] == both["directions"]
    one = told(tmp_path / "1" / "i2t", tmp_path / "2")
    assert list(one["directions"]) == ["i2t"]
    assert one["notes"] == [f"t2i is in {tmp_path / '2'} alone and was left out"]
    crossed = run(tmp_path / "1" / "i2t", tmp_path / "2" / "t2i")
    assert (crossed.exit_code, "give two tables of one direction" in crossed.output) == (3, True)
    second = _place(tmp_path, 1, "i2t").with_name("fedc")
    mined(tmp_path / "made", pairs, "i2t", 4, seed=9).rename(second)
    twice = run(tmp_path / "round1", tmp_path / "round2")
    assert (twice.exit_code, "2 tables of i2t" in twice.output) == (3, True)


def _place(folder: Path, seed: int, direction: str) -> Path:
    place = folder / f"round{seed}" / f"mine-{direction}" / "abcd"
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def test_bare_files_of_unknown_direction(problem, tmp_path):
    pairs = problem().pairs
    files = []
    for seed in (1, 2):
        table = mined(tmp_path / f"{seed}", pairs, "t2i", 6, seed=seed)
        files.append(tmp_path / f"{seed}.parquet")
        pd.read_parquet(table / "negatives.parquet").to_parquet(files[-1])
    assert list(told(*files)["directions"]) == [""]
    assert "direction unknown: " in run(*files).output
    agree(told(*files)["directions"][""], slow(*files, 6))
    assert list(told(files[0], tmp_path / "2" / "t2i")["directions"]) == ["t2i"]
    assert list(told(tmp_path / "2" / "t2i", files[0])["directions"]) == ["t2i"]


def test_easy_negatives_are_said(problem, tmp_path):
    pairs = problem().pairs
    old = mined(tmp_path / "1", pairs, "i2t", 6, seed=1)
    frame = pd.read_parquet(old / "negatives.parquet").assign(lowest_positive=np.float32(9))
    frame["score"] *= np.float32(1.1)
    frame.to_parquet(tmp_path / "easy.parquet")
    said = told(old, tmp_path / "easy.parquet")["directions"]["i2t"]
    assert said["share_above_lowest_positive_new"] == 0
    assert "most are easy for this model already" in said["reason"]


def test_wrong_input_is_one_sentence(problem, tmp_path):
    pairs = problem().pairs
    table = mined(tmp_path / "1", pairs, "i2t", 6, seed=1)
    frame = pd.read_parquet(table / "negatives.parquet")
    frame.assign(anchor_id="x" + frame.anchor_id).to_parquet(tmp_path / "strangers.parquet")
    frame.drop(columns="rank").to_parquet(tmp_path / "columns.parquet")
    frame.iloc[:0].to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "notes.txt").write_text("no table")
    (tmp_path / "nothing").mkdir()
    Draft(LocalStore(tmp_path), "candidates", CANDIDATES, {}).commit({}, {})
    for other, sentence in (
        ("strangers.parquet", "no anchor is in both"),
        ("empty.parquet", "no anchor is in both"),
        ("columns.parquet", "no column rank"),
        ("notes.txt", "cannot be read as Parquet"),
        ("nothing", "manifest.json is missing"),
        ("nowhere", "no such file or folder"),
        ("candidates", "'candidates' artifact"),
    ):
        for pair in ([table, tmp_path / other], [tmp_path / other, table]):
            result = run(*pair)
            assert (result.exit_code, sentence in result.output) == (3, True), result.output
            assert result.output.strip().splitlines()[-1].startswith("error: ")
    assert run(table, table, "--k", 0).exit_code == 2
    assert run(table).exit_code == 2
    path = table / "negatives.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run(table, table).exit_code == 4
