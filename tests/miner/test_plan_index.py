"""What mining through an index and choosing by rules will take: the stages, sums, sizes as they then are, refusals."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from miner import filters
from miner.artifacts.errors import BadInput
from miner.cli import main
from miner.index import SearchSettings
from miner.index.factory import Config, estimate
from miner.plan import Choosing, check_fits, plan
from miner.plan_index import Through, plan_through

BOTH = ("i2t", "t2i")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def planned(problem, string: str, k: int = 5, directions=BOTH, given=None, rules=None, **how):
    through = Through(Config(string), given or SearchSettings(), None if given else 0.9, 20, how.pop("there", False))
    vectors = {"image": problem.images, "text": problem.texts}
    choosing = None if rules is None else Choosing(filters.chosen(rules), 3, directions)
    indexes = {"image": through, "text": through}
    return plan_through(vectors, problem.pairs, directions, k, indexes, choosing=choosing, **how)


def names(found) -> list[str]:
    return [stage.name for stage in found.stages][1:]


@pytest.mark.parametrize("string", ["IVF8,SQ8", "IVF8_HNSW4,Flat", "PCA8,IVF4,Flat", "HNSW8", "Flat", "PQ4x4fs"])
def test_a_plan_adds_up(problem, string):
    given = problem(images=120)
    found = planned(given, string)
    tune = [] if string == "Flat" else ["tune"]
    expected = ["build index of texts", "build index of images"]
    expected += [f"{what} {direction}" for direction in BOTH for what in [*tune, "search"]]
    assert names(found) == [*expected, "write i2t", "write t2i"]
    assert all(stage.seconds > 0 for stage in found.stages)
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert found.memory == max(stage.memory for stage in found.stages)
    assert found.disk == sum(stage.disk for stage in found.stages)
    untimed = planned(given, string, timed=False)
    assert [(s.name, s.memory, s.disk) for s in untimed.stages] == [(s.name, s.memory, s.disk) for s in found.stages]
    assert untimed.seconds is None
    there = planned(given, string, there=True, timed=False)
    assert names(there) == names(found)[2:]
    effort = {"nprobe": 2} if "IVF" in string else {"ef_search": 30} if "HNSW" in string else {"k_factor": 3}
    if string != "Flat":
        said = planned(given, string, given=SearchSettings(**effort), timed=False)
        assert "measure i2t" in names(said)
        assert " ".join(f"{name}={value}" for name, value in effort.items()) in said.notes[0]
        assert "tuning may choose others" not in said.notes[0]
        assert "tuning may choose others" in found.notes[0]


@pytest.mark.parametrize(
    ("string", "nprobe"), [("IVF16,SQ8", 3), ("IVF64_HNSW8,SQ8", 40), ("HNSW8", None), ("SQ8", None)]
)
def test_time_is_that_of_the_sample_scaled_up(problem, monkeypatch, string, nprobe):
    """With a clock on which everything takes a second."""
    given = problem(images=500)
    monkeypatch.setattr("miner.plan._PAIRS", 300)
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    lists = {"IVF16,SQ8": 16, "IVF64_HNSW8,SQ8": 64}.get(string, 0)
    settings = SearchSettings(nprobe=nprobe, ef_search=20 if string == "HNSW8" else None)
    found = {s.name: s.seconds for s in planned(given, string, given=settings, directions=("i2t",)).stages}
    monkeypatch.undo()
    used = given.pairs.image_rows[:300], given.pairs.text_rows[:300]
    anchors, few, all_texts = len(np.unique(used[0])), len(np.unique(used[1])), len(given.texts)
    compare = 1 / (few * min(few, 1024))
    fewer_lists = few // 39
    assert (fewer_lists, few < all_texts) == (7, True)
    visited = all_texts * nprobe / lists if lists else all_texts
    seen = few
    if lists:
        probed = min(fewer_lists, max(1, round(fewer_lists * visited / few)))
        seen = few * probed / fewer_lists
    more = 0 if string == "HNSW8" else max(0, visited / seen - 1)
    each = lists * compare + (1 + more) / min(256, anchors)
    assert found["search i2t"] == pytest.approx(500 * each)
    assert found["measure i2t"] == pytest.approx(20 * (compare * all_texts + each))
    centres = compare * lists * (10 * all_texts + all_texts)  # all are trained on, as they are so few
    grown = math.log(all_texts) / math.log(few) if string == "HNSW8" else 1
    building = centres + all_texts / few + grown * all_texts / few
    assert found["build index of texts"] == pytest.approx(building)


def test_how_long_opq_trains_is_not_foretold(problem):
    found = planned(problem(images=400), "OPQ4_8,IVF4,PQ4x4fs")
    assert {stage.name for stage in found.stages if stage.seconds is None} == {
        "build index of texts",
        "build index of images",
    }
    assert found.seconds is None


def test_sizes_are_those_that_are_then_written(problem, tmp_path):
    given = problem(images=400, dim=32)
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF16,SQ8", "--out", tmp_path / "index")
    rules = ["--rule", "range-min:skip=3", "--num-candidates", 40]
    told = json.loads(run("plan", folder, "--k", 20, "--factory", "IVF16,SQ8", *rules, "--json"))
    disk = {stage["name"]: stage["disk"] for stage in told["stages"]}
    memory = {stage["name"]: stage["memory"] for stage in told["stages"]}
    for side in ("image", "text"):
        assert disk[f"build index of {side}s"] == pytest.approx(
            (tmp_path / "index" / side / "index.bin").stat().st_size, rel=0.05
        )
    run("mine", folder, "--k", 20, "--index", tmp_path / "index", "--nprobe", 16, *rules, "--out", tmp_path / "mined")
    for direction in BOTH:
        kept = sum(path.stat().st_size for path in (tmp_path / "mined" / "candidates" / direction).glob("*.npy"))
        assert disk[f"keep candidates {direction}"] == pytest.approx(kept, rel=0.01)
        tables = sum(path.stat().st_size for path in (tmp_path / "mined" / direction).glob("*.parquet"))
        assert 0.3 * tables < disk[f"choose {direction} by rules"] < 3 * tables
        gallery = given.texts if direction == "i2t" else given.images
        index = estimate(Config("IVF16,SQ8"), *gallery.shape).search
        assert memory[f"search {direction}"] > index
        assert memory[f"tune {direction}"] > memory[f"search {direction}"]


def test_rules_are_stages_of_their_own(problem):
    given = problem(images=100)
    vectors = {"image": given.images, "text": given.texts}

    def exact(rules, directions=BOTH, **how):
        choosing = Choosing(filters.chosen(rules), 3, directions)
        return plan(vectors, given.pairs, BOTH, 6, 2**30, choosing=choosing, **how)

    found = exact(["default"])
    assert names(found) == [
        "search i2t and t2i", "keep candidates i2t", "keep candidates t2i",
        "choose i2t by rules", "choose t2i by rules",
    ]  # fmt: skip
    assert all(stage.seconds > 0 for stage in found.stages)
    assert names(planned(given, "IVF8,SQ8", rules=["default"], timed=False))[-2:] == names(found)[-2:]
    assert names(exact(["agreement:within=3"], ["t2i"], timed=False))[-1:] == ["choose t2i by rules"]
    for outside in (["same-text"], ["agreement:within=3"], ["default", "same-image"]):
        unknown = exact(outside)
        assert [stage.name for stage in unknown.stages if stage.seconds is None] == names(found)[-2:]
    # The cap holds all candidates in memory.
    many = Choosing(filters.chosen(["hub-cap:most=9"]), 3, BOTH)
    few = Choosing(filters.chosen(["max-score:score=1"]), 3, BOTH)
    memory = [
        {s.name: s.memory for s in plan(vectors, given.pairs, BOTH, 30, 2**30, choosing=each, timed=False).stages}
        for each in (many, few)
    ]
    written = 40 * 3  # bytes of an anchor, of the table that is written meanwhile
    difference = memory[0]["choose t2i by rules"] - memory[1]["choose t2i by rules"]
    assert difference == len(given.texts) * (20 * 30 - written)


def test_what_cannot_fit_is_refused(problem, tmp_path, monkeypatch):
    given = problem(images=200)
    folder = given.write(tmp_path / "vectors")
    found = planned(given, "IVF8,SQ8", timed=False)
    with pytest.raises(
        BadInput, match=r"give an index with smaller codes .*, a smaller --k or one direction at a time"
    ):
        check_fits(found, tmp_path, -(2**40))
    run("build-index", folder, "--factory", "IVF8,SQ8", "--out", tmp_path / "index")
    monkeypatch.setattr("miner.memory.available", lambda: -(2**40))  # less than what this process holds already
    through = ["--index", tmp_path / "index", "--nprobe", 2]
    for command in (
        ["mine", folder, "--k", 5, *through, "--out", tmp_path / "a"],
        ["mine", folder, "--k", 5, *through, "--rule", "default", "--out", tmp_path / "a"],
        ["plan", folder, "--k", 5, *through, "--out", tmp_path / "a"],
        ["plan", folder, "--k", 5, "--factory", "IVF8,SQ8", "--out", tmp_path / "a"],
    ):
        said = run(*command, code=3)
        assert re.search(r"take about \S+ MiB of memory, and there are .*; give an index with smaller codes", said)
        assert "Traceback" not in said
    assert not (tmp_path / "a" / "i2t").exists()


def test_the_command(problem, tmp_path: Path):
    folder = problem(images=200).write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF8,SQ8", "--out", tmp_path / "index")
    before = sorted(tmp_path.rglob("*"))
    shown = run("plan", folder, "--k", 5, "--index", tmp_path / "index", "--recall", 0.9, "--rule", "default")
    for word in ("tune i2t", "search t2i", "choose i2t by rules", "IVF8,SQ8 at nprobe=8 k_factor=2; tuning may choose"):
        assert word in shown
    assert "build index" not in shown
    assert "scores, at once" not in shown
    cosine = run("plan", folder, "--k", 5, "--metric", "cosine", "--factory", "IVF8,SQ8", "--direction", "t2t")
    assert "build index of texts" in cosine
    assert "images" not in cosine
    assert "search i2t" in run("plan", folder, "--k", 5, "--factory", "auto")
    assert sorted(tmp_path.rglob("*")) == before

    def refused(*arguments: object) -> str:
        said = run("plan", folder, "--k", 5, *arguments, code=3)
        assert said.strip().splitlines()[-1].startswith("error: ")
        return said

    index = ["--index", tmp_path / "index"]
    assert "give one of them" in refused(*index, "--factory", "Flat")
    assert "give one of them" in refused("--factory", "IVF8,SQ8", "--recall", 0.9, "--nprobe", 3)
    assert "this search is exact" in refused("--recall", 0.9)
    assert "this search is exact" in refused("--factory", "auto", "--recall-sample", 9)
    assert "IVF8,SQ8 has no ef_search; it takes nprobe, k_factor" in refused(*index, "--ef-search", 9)
    assert "nprobe = 9; IVF8,SQ8 on the cpu takes 1 to 8" in refused("--factory", "IVF8,SQ8", "--nprobe", 9)
    assert "4096 lists are trained on at least 4,096 vectors" in refused("--factory", "IVF4096,SQ8")
    assert "fewer than the 5 negatives wanted" in refused("--num-candidates", 4)
    assert "Did you mean" in refused("--rule", "relativ-margin")
    assert "another metric than asked for now" in refused(*index, "--metric", "cosine")
    assert "is not a size" in refused(*index, "--memory", "much")


def test_few_items_are_enough_to_try_on(problem, tmp_path):
    """One pair, and all items one pair's."""
    rows = np.arange(3)
    made = type(problem())
    from miner.artifacts.ids import Ids
    from miner.artifacts.pairs import Pairs

    ids = Ids(("a", "b", "c"))
    rng = np.random.default_rng(0)
    for links in ((rows, rows), (np.zeros(3, np.int64), rows)):
        pairs = Pairs(Ids(ids[: links[0].max() + 1]), ids, *links)
        given = made(
            pairs, rng.normal(size=(len(pairs.image_ids), 4)).astype("f4"), rng.normal(size=(3, 4)).astype("f4")
        )
        for string in ("Flat", "IVF1,Flat", "HNSW4"):
            found = planned(given, string, k=1, directions=("i2t",), rules=["default"])
            assert found.seconds > 0
