"""What all schedulers share: times, names, paths and options, and one command that is a valid `pipelines run`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner

from miner.artifacts.errors import BadInput
from pipelines import schedules
from pipelines.cli import main
from pipelines.commands.schedule import schedule
from pipelines.schedules import Job, job_of
from pipelines.schedules._expression import Expression
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.schedule_stubs import HOSTILE, KINDS, NEEDS, invoked, parsed, rendered

COMMON = ("/data/run.toml", "/data/runs/nightly")


def test_every_scheduler_keeps_the_contract() -> None:
    assert tuple(schedules.names()) == KINDS
    kind = next(parameter for parameter in schedule.params if parameter.name == "kind")
    assert tuple(kind.type.choices) == KINDS
    flags = {parameter.name for parameter in schedule.params}
    shown = CliRunner().invoke(main, ["schedule", "--help"]).output
    for name in KINDS:
        chosen = schedules.scheduler(name)
        assert chosen.SUFFIX.startswith(".")
        assert chosen.PLACE in ("machine", "container")
        assert set(schedules.options(chosen)) <= flags
        assert f"\n  {name} " in shown
        assert (chosen.__doc__ or "").split()[0] in shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_shows_no_secret_and_turns_the_token_on(kind: str) -> None:
    text = rendered(kind, *COMMON)
    assert "RAY_AUTH_MODE" in text
    assert "RAY_AUTH_TOKEN" in text
    assert "token" in text
    assert "RAY_USAGE_STATS_ENABLED" in text
    assert "Secrets" in text
    assert "Change" in text
    for line in text.splitlines():
        assert len(line) < 130 or line.startswith("0 2 "), line
    # Nothing of this process's own environment gets into the text.
    assert text == rendered(kind, *COMMON)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_command_is_a_run_that_click_reads_back(kind: str, name: str) -> None:
    options = ["--workers", "3", "--address", "10.0.0.1:6379"] if kind in ("cron", "airflow") else []
    result = invoked(kind, f"/data/{name}.toml", f"/data/runs/{name}", "--json", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["kind"] == kind
    read = parsed(told["command"])
    assert str(read["run_file"]) == f"/data/{name}.toml"
    assert str(read["run_dir"]) == f"/data/runs/{name}"
    assert read["executor"] == ("ray" if options or kind not in ("cron", "airflow") else None)
    assert read["workers"] == (3 if options else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_folder_may_be_a_bucket(kind: str) -> None:
    assert "s3://bucket/runs/a" in rendered(kind, "/data/run.toml", "s3://bucket/runs/a")


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/runs", "s3://", "https://host/runs", "s3://b/r?token=x"])
def test_a_url_with_a_secret_or_of_another_kind_is_refused(url: str) -> None:
    result = invoked("kubernetes", "/data/run.toml", url)
    assert result.exit_code == 3
    assert "s3://BUCKET/PREFIX" in result.stderr


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("0 2 * * *", "0 2 * * *"),
        ("  */15   0-6/2 1,15 jan-MAR,12 Mon-Fri ", "*/15 0-6/2 1,15 1-3,12 1-5"),
        ("@daily", "0 0 * * *"),
        ("@Weekly", "0 0 * * 0"),
        ("59 23 31 12 sun", "59 23 31 12 0"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 31 2 1", "0 0 31 2 1"),  # or on Mondays
    ],
)
def test_times_come_out_in_numbers(said: str, text: str) -> None:
    assert str(Expression.parse(said)) == text
    assert str(Expression.parse(text)) == text


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("60 2 * * *", "minute"),
        ("a 2 * * *", "minute"),
        ("5/15 2 * * *", "minute"),
        ("*-5 2 * * *", "minute"),
        ("*/0 2 * * *", "minute"),
        ("*/99 2 * * *", "minute"),
        ("1,,2 2 * * *", "minute"),
        ("² 2 * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 6-2 * * *", "hour"),
        ("0 -1 * * *", "hour"),
        ("0 2 0 * *", "day of month"),
        ("0 2 L * *", "day of month"),
        ("0 2 ? * *", "day of month"),
        ("0 2 30 2 *", "day of month"),
        ("0 2 31 4,6 *", "day of month"),
        ("0 2 * 13 *", "month"),
        ("0 2 * foo *", "month"),
        ("0 2 * * 7", "day of week"),
        ("0 2 * * mon#1", "day of week"),
        ("0 2 * *", "five fields"),
        ("0 0 2 * * *", "five fields"),
        ("", "five fields"),
        ("@reboot", "five fields"),
        ("0 2 * * *\n* * * * * rm", "five fields"),
    ],
)
def test_a_wrong_time_is_refused_by_its_field(said: str, field: str) -> None:
    result = invoked("kubernetes", *COMMON, at=said)
    assert result.exit_code == 3
    assert f"the {field}" in result.stderr or field in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_values_are_those_of_a_slow_reading() -> None:
    """Every minute-of-week field in turn against a reading that tries each number."""
    for first, last, step in product(range(0, 24, 5), range(0, 24, 5), (1, 2, 7)):
        if last < first:
            continue
        slow = tuple(hour for hour in range(24) if first <= hour <= last and (hour - first) % step == 0)
        assert Expression.parse(f"0 {first}-{last}/{step} * * *").values[1] == slow


@pytest.mark.parametrize("name", ["Quintain", "q_n", "-q", "q-", "1q", "", "q" * 37, "q.n", "q\n", "ü", "q;rm", "q/.."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_name_is_refused(kind: str, name: str) -> None:
    result = invoked(kind, *COMMON, "--name", name)
    assert result.exit_code == 3
    assert "--name" in result.stderr
    assert "lower case" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--namespace", "Team_A"], "--namespace"),
        (["--memory", "lots"], "--memory"),
        (["--memory", "500M"], "--memory"),
        (["--volume", "data"], "--volume"),
        (["--volume", "Claim:/data"], "--volume"),
        (["--volume", "claim:/"], "--volume"),
        (["--volume", "claim:/mnt"], "not below /mnt"),
        (["--image", "a b"], "--image"),
        (["--image", "x:1\nprivileged: true"], "--image"),
        (["--address", "10.0.0.1:6379"], "--address is no option of kubernetes, but of airflow, cron"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence(options: list[str], said: str) -> None:
    result = invoked("kubernetes", *COMMON, *options)
    assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1), result.stderr
    assert said.partition("\n")[0] in result.stderr


@pytest.mark.parametrize("kind", ["kubernetes", "raycronjob"])
@pytest.mark.parametrize(
    ("run_file", "run_dir"),
    [
        ("run.toml", "/data/r"), ("/data/run.toml", "r"), ("/data/../etc/x", "/data/r"), ("s3://b/run.toml", "/data/r"),
        ("/data/run.toml", "s3://b/a b"), ("/else/run.toml", "/data/r"), ("/data/run.toml", "/database/r"),
    ],
)  # fmt: skip
def test_a_place_that_a_pod_cannot_see_is_refused(kind: str, run_file: str, run_dir: str) -> None:
    result = invoked(kind, run_file, run_dir)
    assert result.exit_code == 3
    assert "RUN_FILE" in result.stderr or "--run-dir" in result.stderr


@pytest.mark.parametrize("path", ["/data/\udcff", "/data/a\0b", "relative", "/data/../x"])
def test_a_path_that_no_command_line_holds_is_refused(path: str) -> None:
    with pytest.raises(BadInput, match=r"--run-dir"):
        job_of("machine", name="q", at="0 2 * * *", run_file="/run.toml", run_dir=path)


def test_a_dashboard_is_no_address_of_a_cluster() -> None:
    result = invoked("cron", *COMMON, "--address", "http://10.0.0.1:8265")
    assert result.exit_code == 3
    assert "6379" in result.stderr


@pytest.mark.parametrize("kind", ["cron", "airflow"])
def test_an_address_of_a_cluster_has_a_port(kind: str) -> None:
    result = invoked(kind, *COMMON, "--address", "10.0.0.1")
    assert result.exit_code == 3
    assert "give HOST:PORT" in result.stderr


def test_an_image_is_needed_for_a_pod() -> None:
    result = CliRunner().invoke(
        main, ["schedule", "kubernetes", COMMON[0], "--run-dir", COMMON[1], "--at", "0 2 * * *"]
    )
    assert result.exit_code == 3
    assert "--image" in result.stderr


def test_relative_paths_are_made_absolute_for_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = json.loads(invoked("cron", "run.toml", "runs/a", "--json").stdout)
    assert told["command"] == ["pipelines", "run", f"{tmp_path}/run.toml", "--run-dir", f"{tmp_path}/runs/a"]


def test_a_run_file_that_is_here_is_looked_into(folder: Path, tmp_path: Path) -> None:
    good = write_toml(tmp_path / "good.toml", raw_settings(folder))
    result = invoked("cron", str(good), "/data/runs/a")
    assert (result.exit_code, result.stderr) == (0, "")
    bad = write_toml(tmp_path / "bad.toml", raw_settings(folder, mine={"kk": 3}))
    result = invoked("slurm", str(bad), "/data/runs/a")
    assert result.exit_code == 3
    assert "'kk' is not a setting" in result.stderr
    assert "not on this machine" in invoked("cron", str(tmp_path / "none.toml"), "/data/runs/a").stderr


def test_a_folder_is_no_run_file(tmp_path: Path) -> None:
    result = invoked("cron", str(tmp_path), "/data/runs/a")
    assert result.exit_code == 3
    assert f"{tmp_path}: this is a folder; give the run file" in result.stderr


@pytest.mark.parametrize("kind", ["cron", "kubernetes"])
def test_a_run_folder_without_a_name_is_not_the_current_one(kind: str) -> None:
    result = invoked(kind, COMMON[0], "", *(["--image", "a/b:1"] if kind == "kubernetes" else []))
    assert result.exit_code == 3
    assert "--run-dir '' is empty" in result.stderr


def test_out_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "nightly.sbatch"
    assert invoked("slurm", *COMMON, "--out", str(out)).exit_code == 0
    assert out.read_text() == rendered("slurm", *COMMON)
    again = invoked("slurm", *COMMON, "--out", str(out))
    assert again.exit_code == 3
    assert "--force" in again.stderr
    assert invoked("slurm", *COMMON, "--out", str(out), "--force", "--workers", "4").exit_code == 0
    assert "--nodes=4" in out.read_text()
    assert invoked("slurm", *COMMON, "--out", str(tmp_path / "x.yaml")).exit_code == 3


@pytest.mark.parametrize("kind", ["cron", "slurm"])
def test_shellcheck_has_nothing_to_say(kind: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    text = rendered(kind, *COMMON)
    if kind == "cron":  # the command of its line
        text = "#!/bin/bash\n" + text.splitlines()[-1].split(maxsplit=5)[5] + "\n"
    (tmp_path / "script").write_text(text)
    found = subprocess.run(
        ["shellcheck", "--exclude=SC1091,SC2329,SC2015", str(tmp_path / "script")], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("command", ["schedule", "submit"])
def test_help_teaches_and_is_light(command: str) -> None:
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        f"try: main(['{command}', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'jinja2', 'yaml', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "Examples:" in shown


def test_needs_are_needs() -> None:
    assert set(NEEDS) == {name for name in KINDS if "image" in schedules.options(schedules.scheduler(name))}
    assert Job("q", Expression.parse("@daily"), "/r", "/d").run() == ["pipelines", "run", "/r", "--run-dir", "/d"]
