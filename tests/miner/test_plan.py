"""What a search will take: sums that add up, a refusal where it cannot fit, and a command that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from miner.artifacts.errors import BadInput, Retryable
from miner.cli import main
from miner.plan import Plan, Stage, check_fits, plan


def planned(problem, k, memory=2**30, directions=("i2t", "t2i"), **how) -> Plan:
    return plan({"image": problem.images, "text": problem.texts}, problem.pairs, directions, k, memory, **how)


def test_a_plan_adds_up(problem):
    given = problem(images=50)
    found = planned(given, 5)
    assert [stage.name for stage in found.stages][1:] == ["search i2t and t2i", "write i2t", "write t2i"]
    assert found.scores == 50 * given.pairs.num_texts
    assert found.seconds is not None
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert all(stage.seconds > 0 for stage in found.stages)
    assert found.memory == max(stage.memory for stage in found.stages)
    assert found.disk == sum(stage.disk for stage in found.stages)
    assert planned(given, 5, timed=False).seconds is None
    deeper = planned(given, 40)
    assert deeper.disk > 5 * found.disk
    assert deeper.memory > found.memory
    within = planned(given, 5, directions=("t2t", "i2t"))
    assert within.scores == 50 * given.pairs.num_texts + given.pairs.num_texts**2
    assert len(within.grids) == 2


def test_what_cannot_fit_is_refused(tmp_path):
    small = Plan((Stage("search", 1.0, 2**20, 2**10), Stage("write", 1.0, 2**21, 2**10)), (), 1)
    check_fits(small, tmp_path / "not" / "yet", 2**22)
    with pytest.raises(BadInput, match=r"take about 2.0 MiB of memory, and there are 1.0 MiB"):
        check_fits(small, tmp_path, 2**20)
    with pytest.raises(Retryable, match=r"would write about 1024.0 TiB, but .* are free there"):
        check_fits(Plan((Stage("search", None, 1, 2**50),), (), 1), tmp_path, 2**20)


def test_the_command(problem, tmp_path: Path):
    folder = problem().write(tmp_path / "vectors")

    def run(*arguments: object):
        return CliRunner().invoke(main, ["plan", str(folder), *map(str, arguments)])

    shown = run("--k", 5)
    assert shown.exit_code == 0, shown.output
    assert "search i2t and t2i" in shown.output
    assert "scores, at once" in shown.output
    found = json.loads(run("--k", 5, "--direction", "t2t", "--json").output)
    assert [stage["name"] for stage in found["stages"]][1:] == ["search t2t", "write t2t"]
    assert found["seconds"] > 0
    assert run("--k", 5000).exit_code == 3
    assert run("--memory", "much").exit_code == 3
    assert not list(tmp_path.glob("**/manifest.json"))
