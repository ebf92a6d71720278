"""cron, Slurm and Airflow: what they are given is executed, with stand-ins for the programs that it starts."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.schedule_stubs import HOSTILE, Stubs, invoked, parsed, rendered

RUN = ("/data/run.toml", "/data/runs/nightly")


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path / "stubs")


def cron_reads(text: str, *, strips_backslashes: bool) -> tuple[dict[str, str], str, str, str]:
    """(environment, times, command, standard input) of a crontab with one line, as cron's own source does it.

    Both dialects: Vixie cron takes `\\\\` for one backslash, cronie and Debian's leave it.
    """
    environment: dict[str, str] = {}
    jobs = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if match := re.fullmatch(r"([A-Z_]+)=(\S*)", line):
            environment[match[1]] = match[2]
        else:
            jobs.append(line)
    (job,) = jobs
    *times, rest = job.split(maxsplit=5)
    command, escaped = "", False
    for at, c in enumerate(rest):
        if escaped:
            command = command[:-1] + c if c == "%" or (strips_backslashes and c == "\\") else command + c
            escaped = False
        elif c == "%":
            return environment, " ".join(times), command, rest[at + 1 :].replace("%", "\n")
        else:
            command, escaped = command + c, c == "\\"
    return environment, " ".join(times), command, ""


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock (util-linux) is not installed")
@pytest.mark.parametrize("strips_backslashes", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_line_of_cron_runs_what_was_said(stubs: Stubs, tmp_path: Path, name: str, strips_backslashes: bool) -> None:
    stubs.add("pipelines")
    run_file, run_dir = f"/data/{name}.toml", f"/data/{name}"
    text = rendered("cron", run_file, run_dir, "--name", "nightly", at="5 2 * * sun")
    environment, times, command, given = cron_reads(text, strips_backslashes=strips_backslashes)
    assert (times, given, environment["SHELL"]) == ("5 2 * * 0", "", "/bin/bash")
    work = tmp_path / "work"
    work.mkdir()
    told = {key: value for key, value in environment.items() if key != "PATH"}
    ended = stubs.bash(command, work, **told)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    (call,) = stubs.called("pipelines")
    assert call["argv"] == ["run", run_file, "--run-dir", run_dir]
    assert call["env"]["RAY_AUTH_MODE"] == "token"
    assert call["env"]["RAY_AUTH_TOKEN"] == "secret-of-the-test"
    assert call["env"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not list(work.iterdir())


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock (util-linux) is not installed")
def test_cron_starts_one_at_a_time_and_says_how_it_ended(stubs: Stubs, tmp_path: Path) -> None:
    *_, command, _ = cron_reads(rendered("cron", *RUN), strips_backslashes=False)
    stubs.add("pipelines", code=3)
    assert (
        stubs.bash(command, tmp_path).stdout == "quintain quintain: exit code 3, see ~/.config/quintain/quintain.log\n"
    )
    folder = stubs.home / ".config" / "quintain"
    held = subprocess.Popen(
        ["flock", str(folder / "quintain.lock"), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert held.stdin is not None
    assert held.stdout is not None
    held.stdin.write(b"held\n")
    held.stdin.flush()
    assert held.stdout.readline() == b"held\n"
    assert "exit code 75" in stubs.bash(command, tmp_path).stdout
    held.stdin.close()
    held.wait(10)
    held.stdout.close()
    assert len(stubs.called("pipelines")) == 1
    (folder / "env").unlink()
    assert "exit code 1" in stubs.bash(command, tmp_path).stdout
    assert len(stubs.called("pipelines")) == 1


def test_a_line_that_cron_would_cut_is_refused() -> None:
    result = invoked("cron", "/data/run.toml", "/data/" + "long/" * 200)
    assert result.exit_code == 3
    assert "cron reads 998" in result.stderr


# srun and ray as a job of one node sees them: srun starts its command, symmetric-run starts what comes after `--`.
_SRUN = "sys.exit(subprocess.run(sys.argv[1 + next(i for i, a in enumerate(sys.argv[1:]) if a[0] != '-'):]).returncode)"
_RAY = "sys.exit(subprocess.run(sys.argv[sys.argv.index('--') + 1:]).returncode)"
_SCONTROL = "print('node7\\nnode8') if sys.argv[1] == 'show' else None"
SLURM = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}


def slurm_stubs(stubs: Stubs, *, code: int = 0, then: str = "") -> None:
    stubs.add("srun", then=_SRUN)
    stubs.add("ray", then=_RAY)
    stubs.add("scontrol", then=_SCONTROL)
    stubs.add("pipelines", code=code, then=then)


def ended(stubs: Stubs, script: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    path = cwd / "job.sbatch"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    environment = stubs.environment(**SLURM, **more)
    return subprocess.run(["bash", str(path)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_batch_script_runs_what_was_said(stubs: Stubs, tmp_path: Path, name: str) -> None:
    slurm_stubs(stubs)
    work = tmp_path / "work"
    work.mkdir()
    found = ended(stubs, rendered("slurm", f"/data/{name}.toml", f"/data/{name}"), work)
    assert found.returncode == 0, found.stderr
    (call,) = stubs.called("pipelines")
    read = parsed(["pipelines", *call["argv"]])
    assert (str(read["run_file"]), str(read["run_dir"])) == (f"/data/{name}.toml", f"/data/{name}")
    assert (read["executor"], read["address"]) == ("ray", "node7:23456")
    assert call["env"]["RAY_AUTH_MODE"] == "token"
    assert call["env"]["RAY_AUTH_TOKEN"] == "secret-of-the-test"
    assert [path.name for path in work.iterdir()] == ["job.sbatch"]


def test_ray_takes_the_options_of_the_batch_script(stubs: Stubs, tmp_path: Path) -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    slurm_stubs(stubs)
    ended(stubs, rendered("slurm", *RUN, "--workers", "2", "--cpus", "6", "--gpus", "1"), tmp_path)
    (call,) = stubs.called("ray")
    assert call["argv"][0] == "symmetric-run"
    split = call["argv"].index("--")
    own = symmetric_run.make_context("symmetric-run", call["argv"][1:split], resilient_parsing=True).params
    assert (own["address"], own["min_nodes"]) == ("node7:23456", 2)
    rest = list(own["ray_args_and_entrypoint"])
    assert not {"--head", "--node-ip-address", "--port", "--block"} & {word.partition("=")[0] for word in rest}
    head = start.make_context("start", ["--head", "--node-ip-address=10.0.0.7", "--port=23456", *rest]).params
    assert (head["num_cpus"], head["num_gpus"], head["dashboard_host"]) == (6, 1, "127.0.0.1")
    assert head["disable_usage_stats"]
    # What only a head takes would end the other nodes.
    other = start.make_context("start", ["--address", "node7:23456", "--block", *rest]).params
    assert other["include_dashboard"] is None


def test_what_slurm_is_asked_for() -> None:
    text = rendered("slurm", *RUN, "--name", "aoq", "--workers", "3", "--cpus", "6", "--gpus", "2", "--memory", "64G")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert asked.pop("signal") == "B:USR1@120"
    assert {"requeue", "exclusive"} <= set(asked)
    assert (asked["nodes"], asked["cpus-per-task"], asked["gpus-per-node"], asked["mem"]) == ("3", "6", "2", "64G")
    assert (asked["dependency"], asked["ntasks-per-node"], asked["job-name"]) == ("singleton", "1", "aoq")
    # Slurm reads no option after the first command.
    assert "#SBATCH" not in text[text.index("\nset -euo") :]
    assert "gpus-per-node" not in rendered("slurm", *RUN)
    (line,) = re.findall(r"^# +(0 2 \* \* \* sbatch .*)$", text, re.MULTILINE)
    assert line.endswith('"$HOME/aoq.sbatch"')


@pytest.mark.parametrize(("code", "restarts", "requeued"), [(0, "0", 0), (3, "0", 0), (75, "0", 1), (75, "20", 0)])
def test_the_batch_job_queues_again_where_that_can_help(
    stubs: Stubs, tmp_path: Path, code: int, restarts: str, requeued: int
) -> None:
    slurm_stubs(stubs, code=code)
    assert ended(stubs, rendered("slurm", *RUN), tmp_path, SLURM_RESTART_COUNT=restarts).returncode == code
    assert [call["argv"] for call in stubs.called("scontrol")[1:]] == [["requeue", "123456"]] * requeued


@pytest.mark.parametrize("code", [0, 1])
def test_a_batch_job_whose_cluster_does_not_start_is_no_success(stubs: Stubs, tmp_path: Path, code: int) -> None:
    """`ray symmetric-run` ends with 0 where `ray start` failed, with 1 where the other nodes did not come."""
    slurm_stubs(stubs)
    stubs.add("ray", code=code)
    assert ended(stubs, rendered("slurm", *RUN), tmp_path, SLURM_RESTART_COUNT="0").returncode == 75
    assert not stubs.called("pipelines")
    assert [call["argv"] for call in stubs.called("scontrol")[1:]] == [["requeue", "123456"]]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_a_preempted_batch_job_ends_what_it_started(
    stubs: Stubs, tmp_path: Path, number: signal.Signals, requeued: int
) -> None:
    slurm_stubs(stubs)
    # As srun does, hand the signal on; here to a run that would take a minute.
    stubs.add(
        "srun", then="signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint('up', flush=True)\ntime.sleep(60)"
    )
    path = tmp_path / "job.sbatch"
    path.write_text(rendered("slurm", *RUN))
    job = subprocess.Popen(
        ["bash", str(path)], env=stubs.environment(**SLURM), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    job.send_signal(number)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == 75, said
    assert [call["argv"][0] for call in stubs.called("scontrol")] == ["show"] + ["requeue"] * requeued
    (call,) = stubs.called("srun")
    with pytest.raises(ProcessLookupError):
        os.kill(call["pid"], 0)


def test_the_batch_script_wants_a_token(stubs: Stubs, tmp_path: Path) -> None:
    slurm_stubs(stubs)
    (stubs.home / ".config" / "quintain" / "env").write_text("")
    found = ended(stubs, rendered("slurm", *RUN), tmp_path)
    assert found.returncode != 0
    assert "RAY_AUTH_TOKEN" in found.stderr
    assert not stubs.called("srun")


# Where each has its errors: 3.2 and later all in the SDK, 3.1 but one of them, 3.0 none (and no such module).
AIRFLOWS: dict[str, tuple[str, ...] | None] = {
    "3.2": ("AirflowException", "AirflowFailException"),
    "3.1": ("AirflowException",),
    "3.0": None,
}


@pytest.fixture(params=AIRFLOWS)
def airflow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Airflow as far as a DAG of one task sees it: decorators that keep what they are told."""
    seen: dict[str, Any] = {}

    def dag(**about: Any) -> Any:
        seen["dag"] = about
        return lambda made: made

    def task(**about: Any) -> Any:
        seen["task"] = about

        def keep(function: Any) -> Any:
            seen["run"] = function
            return lambda: None

        return keep

    sdk, exceptions = types.ModuleType("airflow.sdk"), types.ModuleType("airflow.sdk.exceptions")
    older = types.ModuleType("airflow.exceptions")
    vars(sdk).update(dag=dag, task=task)
    error = type("AirflowException", (Exception,), {})
    failed = type("AirflowFailException", (error,), {})
    errors, own = {"AirflowException": error, "AirflowFailException": failed}, AIRFLOWS[request.param]
    vars(exceptions).update({name: errors[name] for name in own or ()})
    vars(older).update(errors)
    for module in (types.ModuleType("airflow"), sdk, exceptions, older):
        monkeypatch.setitem(sys.modules, module.__name__, module if module is not exceptions or own else None)
    return seen


@pytest.mark.parametrize("name", HOSTILE)
def test_the_task_of_airflow_runs_what_was_said(
    airflow: dict[str, Any], stubs: Stubs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stubs.add("pipelines")
    source = rendered("airflow", f"/data/{name}.toml", f"/data/{name}", at="0 2 * * mon")
    ast.parse(source)
    exec(compile(source, "quintain.py", "exec"), {"__name__": "quintain"})
    about = airflow["dag"]
    assert (about["schedule"], about["catchup"], about["max_active_runs"]) == ("0 2 * * 1", False, 1)
    assert (about["dag_id"], airflow["task"]["retries"]) == ("quintain", 3)
    for key, value in stubs.environment(RAY_AUTH_TOKEN="secret-of-the-test").items():
        monkeypatch.setenv(key, value)
    airflow["run"]()
    (call,) = stubs.called("pipelines")
    assert call["argv"] == ["run", f"/data/{name}.toml", "--run-dir", f"/data/{name}"]
    assert call["env"]["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("code", "raised"),
    [(75, "AirflowException"), (1, "AirflowException"), *((code, "AirflowFailException") for code in (2, 3, 4, 5))],
)
def test_airflow_tries_again_only_when_that_can_help(
    airflow: dict[str, Any], stubs: Stubs, monkeypatch: pytest.MonkeyPatch, code: int, raised: str
) -> None:
    stubs.add("pipelines", code=code)
    exec(compile(rendered("airflow", *RUN), "quintain.py", "exec"), {"__name__": "quintain"})
    for key, value in stubs.environment(RAY_AUTH_TOKEN_PATH="/secrets/token").items():
        monkeypatch.setenv(key, value)
    with pytest.raises(Exception, match=f"exit code {code}") as failed:
        airflow["run"]()
    assert type(failed.value).__name__ == raised


def test_airflow_wants_a_token(airflow: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    exec(compile(rendered("airflow", *RUN), "quintain.py", "exec"), {"__name__": "quintain"})
    for key in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(Exception, match="RAY_AUTH_TOKEN"):
        airflow["run"]()
