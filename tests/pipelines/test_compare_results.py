"""What a comparison file may say, and what a comparison says at the end: figures of members, intervals, tables."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft, canonical_json
from miner.artifacts.store import LocalStore
from pipelines import loop
from pipelines.compare.comparison import DEMO, Comparison, Member
from pipelines.compare.plot import plot_comparison
from pipelines.compare.results import Interval, interval, member_rows, summarize, table
from pipelines.plan import Step
from pipelines.stages import Stage, Work
from tests.pipelines.test_compare import LABELS, OBJECTIVES, compare, comparison_file

TRIPLET = '[[objective]]\nname = "triplet"\n'


@pytest.fixture
def file(tmp_path: Path, folder: Path) -> Path:
    return comparison_file(tmp_path / "four.toml", folder, OBJECTIVES, compare={"seeds": 2})


def test_objectives_have_labels_and_losses(folder: Path, tmp_path: Path) -> None:
    given = [{"name": "triplet"}, {"name": "goal", "triplet": "nca"}, {"name": "sct", "label": "mine"}]
    found = Comparison.load(comparison_file(tmp_path / "c.toml", folder, given), ["ntxent:tau=0.05"])
    assert list(found.objectives) == ["triplet", "goal, triplet nca", "mine", "ntxent:tau=0.05"]
    assert found.objectives["goal, triplet nca"].triplet == "nca"
    assert found.objectives["ntxent:tau=0.05"].tau == 0.05
    assert (found.compare.seeds, found.compare.steps_per_epoch) == (3, None)


def test_members_differ_in_loss_and_seed_alone(file: Path) -> None:
    members = Comparison.load(file).members(num_pairs=200)
    assert [(m.seed, m.label) for m in members] == [(seed, label) for seed in (3, 4) for label in LABELS]
    for member in members:
        assert (member.settings.run.seed, member.settings.fit_config(0).seed) == (member.seed, member.seed)
        assert member.settings.analyze.rounds == "last"
        sections = member.settings.dump()
        assert sections["fit"] == {**members[0].settings.fit, "steps_per_epoch": 200 // 32}
        assert sections["model"] == members[0].settings.dump()["model"]


def test_the_budget_of_updates(folder: Path, tmp_path: Path) -> None:
    def steps(**sections: dict[str, Any]) -> Any:
        path = comparison_file(tmp_path / "c.toml", folder, OBJECTIVES[:1], **sections)
        return Comparison.load(path).members(num_pairs=20)[0].settings.fit["steps_per_epoch"]

    assert steps() == 1, "a set smaller than a batch is one step"
    assert steps(compare={"steps_per_epoch": 9}) == 9
    assert Comparison.load(tmp_path / "c.toml").base.analyze.rounds == "none"


def test_the_demo_file() -> None:
    found = Comparison.load(DEMO)
    assert len(found.objectives) >= 12
    assert found.compare.seeds >= 3
    assert len(found.members(5000)) == len(found.objectives) * found.compare.seeds
    assert found.base.run.rounds >= 1
    assert {loss.needs_tables for loss in found.objectives.values()} == {True, False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no [[objective]]", "--objective"]),
        (TRIPLET.replace("triplet", "tripelt"), ["[[objective]]", "'tripelt'", "'triplet'"]),
        (TRIPLET + "marginn = 1\n", ["[[objective]]", "'marginn'", "'margin'"]),
        (TRIPLET + 'margin = "wide"\n', ["margin", "wide"]),
        ('[[objective]]\nlabel = "x"\n', ["name is missing", "smoothap"]),
        ("[[objective]]\nname = 3\n", ["name = 3", "smoothap"]),
        (TRIPLET + "label = 3\n", ["label = 3"]),
        (TRIPLET + 'label = " "\n', ["label = ' '"]),
        (TRIPLET + 'label = "two\\nlines"\n', ["label", "one line"]),
        (TRIPLET + TRIPLET, ["two objectives", "'triplet'", "label"]),
        ("objective = 3\n", ["objective = 3", "[[objective]]"]),
        ('objective = ["triplet"]\n', ["['triplet']", "[[objective]]"]),
        ('[objective]\nname = "triplet"\n', ["[[objective]]"]),
        (TRIPLET.replace("objective", "objectives"), ["[objectives]", "did you mean [[objective]]"]),
        (TRIPLET + '[loss]\nname = "aoq"\n', ["[loss]", "[[objective]]"]),
        (TRIPLET + "[modell]\n", ["[modell]", "did you mean [model]"]),
        (TRIPLET + "[nothing]\n", ["[nothing]", "known: compare"]),
        (TRIPLET + "[fit]\nbatchsize = 3\n", ["[fit]", "batchsize", "batch_size"]),
        (TRIPLET + "[fit]\nsteps_per_epoch = 3\n", ["fit.steps_per_epoch", "[compare]"]),
        (TRIPLET + "[compare]\nseed = 3\n", ["[compare]", "'seeds'"]),
        (TRIPLET + "[compare]\nseeds = 0\n", ["[compare]", "seeds = 0"]),
        (TRIPLET + "[compare]\nsteps_per_epoch = 0\n", ["[compare]", "steps_per_epoch = 0"]),
        (TRIPLET.replace("triplet", "aoq") + "[run]\nrounds = 0\n", ["'aoq'", "run.rounds = 0"]),
        ("compare = 3\n" + TRIPLET, ["compare = 3", "[compare]"]),
        (TRIPLET + "[[compare]]\nseeds = 3\n", ["as a section, [compare]"]),
        ("[run\n", ["not valid TOML"]),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "c.toml").write_text(text)
    result = compare(tmp_path / "c.toml", "--plan", "--out", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert len(result.output.splitlines()) == 1
    for word in [f"{tmp_path}/c.toml", *words]:
        assert word in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--objective", "nothing"], 3, ["--objective", "'nothing'", "smoothap"]),
        (["--objective", "triplet:marg=1"], 3, ["--objective", "'marg'", "'margin'"]),
        (["--objective", "ntxent:tau"], 3, ["'tau' is not KEY=VALUE"]),
        (["--objective", "ntxent:label=x"], 3, ["'label' is not a setting"]),
        (["--objective", "ntxent", "--objective", "ntxent"], 3, ["'ntxent' already"]),
        (["--only", "tripel"], 3, ["'tripel'", "'NT-Xent off'"]),
        (["--seeds", "0"], 2, ["--seeds"]),
        (["--workers", "2"], 2, ["inline", "--executor ray"]),
        (["--executor", "inline", "--address", "1.2.3.4:5"], 2, ["--executor inline"]),
        (["--demo"], 2, ["FILE or --demo"]),
    ],
)
def test_wrong_options(file: Path, tmp_path: Path, options: list[str], code: int, words: list[str]) -> None:
    result = compare(file, "--plan", "--out", tmp_path / "out", *options)
    assert result.exit_code == code, result.output
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    assert compare().exit_code == 2
    with pytest.raises(BadInput, match=r"none\.toml: there is no such file"):
        Comparison.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\x93\xff")
    with pytest.raises(BadInput, match="not valid TOML"):
        Comparison.load(tmp_path / "bytes.toml")
    elsewhere = comparison_file(tmp_path / "c.toml", folder / "nowhere", OBJECTIVES)
    assert "nowhere" in compare(elsewhere, "--plan").output
    big = comparison_file(tmp_path / "c.toml", folder, OBJECTIVES, mine={"k": 100000})
    result = compare(big, "--plan", "--out", tmp_path / "out")
    assert (result.exit_code, "larger than the gallery" in result.output) == (3, True)


def test_an_interval_over_seeds() -> None:
    # By hand: mean 7/3, s = sqrt((16 + 1 + 25) / 9 / 2), t(2 degrees, 97.5%) = 4.303.
    found = interval([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half == pytest.approx(4.303 * math.sqrt(42 / 18) / math.sqrt(3))
    assert str(found) == "2.3 ± 3.8"
    assert interval([5.0, 5.0]) == Interval(5.0, 0.0)
    assert str(interval([5.0])) == "5.0", "one seed has no interval"


@pytest.mark.parametrize(
    ("seeds", "quantile"), [(2, 12.706), (3, 4.303), (11, 2.228), (12, 2.201), (15, 2.145), (30, 2.045), (121, 1.980)]
)
def test_quantiles_of_students_t(seeds: int, quantile: float) -> None:
    values = [float(i) for i in range(seeds)]
    found = interval(values).half * math.sqrt(seeds) / statistics.stdev(values)
    assert found == pytest.approx(quantile, abs=1e-3)


class Made:
    """Members that somebody finished, made by hand: artifacts, and the lines of a log."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(root)
        self.members: list[Member] = []
        self.every: list[list[Step]] = []

    def step(self, round: int, work: Work, kind: str, files: dict[str, Any], meta: dict[str, Any]) -> Step:
        stage = Stage(round, work, "", kind, (), {})
        draft_step = Step(stage, "missing", "", {"number": len(self.members), "round": round})
        draft = Draft(self.store, draft_step.prefix, kind, dict(draft_step.inputs or {}))
        records = {name: draft.add(name, canonical_json(content)) for name, content in files.items()}
        made = draft.commit(records, meta)
        return dataclasses.replace(draft_step, state="done", manifest=made.manifest)

    def log(self, step: Step, event: str, **about: Any) -> Step:
        with open(self.store.root / loop.LOG, "a") as log:
            log.write(json.dumps({"prefix": step.prefix, "event": event, **about}) + "\n")
        return step

    def fit(self, round: int, epochs: list[tuple[int, float, dict[str, float], bool]]) -> Step:
        """`epochs`: (steps, seconds, observed, warm up) of each, numbered through the rounds."""
        numbered = list(enumerate(epochs, start=10 * round))
        history = [
            {"epoch": e, "steps": n, "warning": None, "warm_up": warm} | seen for e, (n, _, seen, warm) in numbered
        ]
        step = self.step(round, "fit", "checkpoint", {"history.json": {"epochs": history}}, {})
        for epoch, (steps, seconds, _, _) in numbered:
            self.log(step, "epoch", epoch=epoch, steps=steps, seconds=seconds)
        return self.log(step, "done", seconds=1e6)

    def evaluation(self, round: int, rsum: float) -> Step:
        figures = {"rsum": rsum, "i2t_r1": rsum / 10, "t2i_r1": rsum / 20}
        return self.step(round, "evaluate", "metrics", {}, {"metrics": {"dev": {"rsum": rsum - 1}, "test": figures}})

    def counts(self, round: int, rows: list[tuple[str, str, float, float | None, float]]) -> Step:
        """`rows`: (direction, negatives, threshold, of_chance, share) of each."""
        names = ("direction", "negatives", "threshold", "of_chance", "share")
        content = {"counts.json": {"rows": [dict(zip(names, row, strict=True)) for row in rows]}}
        return self.step(round, "analyze", "counts", content, {})

    def member(self, label: str, seed: int, steps: list[Step]) -> None:
        self.members.append(Member(label, seed, cast(Any, None)))
        self.every.append(steps)

    def rows(self) -> list[dict[str, Any]]:
        return member_rows(self.members, self.every, self.store)


def test_the_row_of_a_member(tmp_path: Path) -> None:
    made = Made(tmp_path)
    # What counts is what was observed, not what was warned of by whatever version trained it.
    collapsed = {"hardness": -0.001, "std": 0.05, "mean_negative": 0.99, "wrong_share": 0.5}
    fine = collapsed | {"std": 0.25}
    shares: list[tuple[str, str, float, float | None, float]] = [
        ("i2t", "online", 0.0, None, 9.0),
        ("i2t", "online", 0.01, None, 0.5),
        ("i2t", "online", 0.01, 2.0, 7.0),
        ("i2t", "offline", 0.01, None, 0.25),
        ("t2i", "online", 0.01, None, 0.75),
        ("both", "c_1", 0.01, None, 3.0),
    ]
    steps = [
        made.fit(0, [(10, 100.0, collapsed, True), (10, 100.0, fine, False)]),
        made.evaluation(0, 100.0),
        made.counts(0, [("i2t", "online", 0.01, None, 99.0)]),
        made.log(made.step(1, "encode", "embeddings", {}, {}), "done", seconds=1.5),
        made.log(made.step(1, "mine", "negatives", {}, {}), "done", seconds=2.5),
        made.fit(1, [(10, 100.0, fine, True), (30, 9.0, collapsed, False), (10, 1.0, fine, False)]),
        made.evaluation(1, 200.0),
        made.counts(1, shares),
    ]
    made.member("one", 4, steps)
    made.member("unfinished", 4, [dataclasses.replace(steps[0], manifest=None), *steps[1:]])
    with open(tmp_path / loop.LOG, "a") as log:
        log.write('{"event": "epoch", "steps": 1, "seco')
    rsums = {"dev_rsum": 199.0, "test_rsum": 200.0, "test_i2t_r1": 20.0, "test_t2i_r1": 10.0}
    timed = {"ms_per_step": pytest.approx(1000 * 10 / 40), "mining_seconds": 4.0, "updates": 70, "collapses": 2}
    counted = {"i2t_online": 0.5, "i2t_offline": 0.25, "t2i_online": 0.75}
    assert made.rows() == [{"objective": "one", "seed": 4} | rsums | timed | counted]
    (tmp_path / loop.LOG).unlink()
    assert made.rows()[0]["ms_per_step"] is None, "a folder that came without its log has no times"


def row(label: str, seed: int, rsum: float, **more: Any) -> dict[str, Any]:
    figures = {"test_rsum": rsum, "dev_rsum": rsum, "test_i2t_r1": 1.0, "test_t2i_r1": 2.0}
    counted = {"i2t_online": 1.0, "t2i_online": 2.0, "updates": 7, "collapses": 0}
    timed = {"ms_per_step": 10.0, "mining_seconds": 0.0}
    return {"objective": label, "seed": seed} | figures | timed | counted | more


ODD = "a $\\frac{$ | b"
ROWS = [
    row("base", 0, 100.0),
    row(ODD, 0, 103.0, i2t_offline=0.5, t2i_offline=0.25, collapses=1, mining_seconds=1.0),
    row("base", 1, 110.0, ms_per_step=20.0),
    row(ODD, 1, 115.0, i2t_offline=1.0, t2i_offline=0.25, ms_per_step=None, collapses=2, mining_seconds=2.0),
    row("base", 2, 120.0, ms_per_step=30.0),
    row(ODD, 2, 121.0, i2t_offline=1.5, t2i_offline=0.25),
]


def test_differences_are_paired_by_seed() -> None:
    # The same rows in any order: seeds decide what is compared with what.
    for rows in (ROWS, [ROWS[i] for i in (0, 5, 4, 1, 2, 3)]):
        base, other = summarize(rows)
        assert base.against is None
        assert other.against == interval([3.0, 5.0, 1.0])
        assert other.against.half < other.rsum.half, "pairing takes out what the seeds have in common"
    missing = summarize([ROWS[0], ROWS[1], ROWS[3]])[1]
    assert missing.against == interval([3.0])
    assert summarize([ROWS[0], ROWS[3]])[1].against is None


def test_a_summary_of_an_objective() -> None:
    base, other = summarize(ROWS)
    assert (base.label, base.rsum, base.milliseconds, base.updates) == ("base", interval([100, 110, 120]), 20.0, 7)
    assert (base.online, base.offline, base.collapsed, base.mining_seconds) == ({"i2t": 1.0, "t2i": 2.0}, {}, 0, 0.0)
    assert (other.offline, other.milliseconds) == ({"i2t": 1.0, "t2i": 0.25}, 10.0)
    assert (other.mining_seconds, other.collapsed, other.seeds) == (1.0, 2, 3)
    assert summarize([]) == []
    late = summarize([ROWS[3], ROWS[0]], [ROWS[0]["objective"], ROWS[3]["objective"]])
    assert [found.label for found in late] == [ROWS[0]["objective"], ROWS[3]["objective"]]
    assert late[0].against is None


def test_the_table() -> None:
    lines = table(summarize(ROWS)).splitlines()
    assert "against the first" in lines[0]
    cells = [line.split("  ") for line in lines]
    assert [[c.strip() for c in line if c.strip()] for line in (cells[2], cells[3])] == [
        ["base", "110.0 ± 24.8", "-", "1.0 ± 0.0", "2.0 ± 0.0", "110.0 ± 24.8", "20.0", "-", "1.00", "2.00", "0 of 3"],
        [
            *(ODD, "113.0 ± 22.8", "+3.0 ± 5.0", "1.0 ± 0.0", "2.0 ± 0.0", "113.0 ± 22.8", "10.0", "1.0"),
            *("1.00 + 1.00", "2.00 + 0.25", "2 of 3"),
        ],
    ]
    one = table(summarize([row("base", 0, 100.0), row("worse", 0, 97.5, ms_per_step=None)]))
    assert "±" not in one
    assert one.splitlines()[3].split()[:3] == ["worse", "97.5", "-2.5"]
    assert one.splitlines()[3].split()[6] == "-"


def test_the_table_in_markdown() -> None:
    lines = table(summarize(ROWS), markdown=True).splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 10
    assert lines[2].startswith("| base | 110.0 ± 24.8 | - |")
    assert lines[3].startswith("| a $\\frac{$ \\| b | 113.0 ± 22.8 | +3.0 ± 5.0 |")
    assert "| 1.00 + 1.00 | 2.00 + 0.25 | 2 of 3 |" in lines[3]
    assert {line.replace("\\|", "").count("|") for line in lines} == {12}


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [row("base", 0, 1.0, ms_per_step=None), row("$x", 0, 2.0)]])
def test_the_picture(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_comparison(summarize(rows), rows, tmp_path / "p.png", "title")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert (pixels != 255).any(2).mean() > 0.01
