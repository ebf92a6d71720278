"""`pipelines submit`: the loop as a job of a standing Ray cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.completion import places

if TYPE_CHECKING:
    from miner.artifacts.store import Store
    from pipelines.ray_jobs import Cluster
    from pipelines.settings import Settings

__all__ = ["submit"]

_KNOWN = (2, 3, 4, 5, 75)  # exit codes of `pipelines run` that say what was wrong


@click.command()
@click.argument("run_file", type=LocalPath(dir_okay=False))
@click.option(
    "--run-dir",
    shell_complete=places,
    required=True,
    help="Where the run lives: a folder that this machine and the cluster see under the same path, or s3://BUCKET/PREFIX.",
)
@click.option(
    "--address", default="http://127.0.0.1:8265", show_default=True, help="The Ray dashboard, where jobs are submitted."
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the log, and tell how it ended.")
@click.option("--every", type=click.FloatRange(min=0.1), default=2, show_default=True, help="Seconds between looks.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable outcome; the log goes to stderr.")
@click.pass_context
def submit(
    ctx: click.Context, run_file: Path, run_dir: str, address: str, wait: bool, every: float, as_json: bool
) -> None:
    """Run RUN_FILE as a job of a standing Ray cluster, through the Ray Jobs API.

    \b
    Examples:
      export RAY_AUTH_TOKEN=...                       the cluster's token (or RAY_AUTH_TOKEN_PATH, a file)
      ssh -L 8265:127.0.0.1:8265 head-node            where the dashboard listens on loopback
      pipelines submit /shared/run.toml --run-dir /shared/runs/nightly
      pipelines submit /shared/run.toml --run-dir /shared/runs/nightly --no-wait --json

    A job for this run folder that is already there is followed, not doubled: the same command looks again later, and
    Ctrl-C ends the looking alone. Success is what the manifests in the run folder say, never the job's status: Ray
    calls a job that was stopped no failure.

    \b
    Exit codes: 0 every stage is committed; 75 it was stopped or lost, the same command goes on;
    2, 3, 4, 5 as `pipelines run` ended there; 1 it crashed: the log says where.
    """
    from miner.artifacts.errors import BadInput
    from miner.artifacts.locations import open_store
    from miner.artifacts.store import LocalStore
    from pipelines.places import whole
    from pipelines.ray_jobs import Cluster
    from pipelines.schedules import run_command
    from pipelines.settings import Settings

    run_file = run_file.resolve()
    run_dir = whole(run_dir)
    settings = Settings.load(run_file)
    store = open_store(run_dir)
    if isinstance(store, LocalStore) and not store.root.parent.is_dir():
        raise BadInput(
            f"{store.root.parent}: no such folder here; mount what the cluster writes to under the same path, for what "
            "succeeded is read from the run folder."
        )
    cluster = Cluster.open(address)
    job, new = cluster.submit(run_command(str(run_file), run_dir, address="auto"), run_dir)
    click.echo(f"job {job}: " + ("submitted" if new else "already there for this run folder; following it"), err=True)
    if not wait:
        about = {"job": job, "new": new, "address": address, "run_dir": run_dir}
        click.echo(json.dumps(about, indent=1) if as_json else f"{job}\nthe same command follows it.")
        return
    try:
        _follow(cluster, job, every, as_json)
    except KeyboardInterrupt:
        click.echo(f"\njob {job} goes on; the same command follows it.", err=True)
        ctx.exit(75)
    outcome = _outcome(cluster.job(job), settings, store)
    if as_json:
        click.echo(json.dumps({"job": job, "run_dir": run_dir, **outcome}, indent=1))
    click.echo(("" if outcome["succeeded"] else "error: ") + outcome["why"], err=as_json or not outcome["succeeded"])
    ctx.exit(outcome["exit_code"])


def _follow(cluster: Cluster, job: str, every: float, as_json: bool) -> None:
    """Show the log until the job has ended."""
    shown = 0
    while True:
        ended = cluster.job(job)["status"] in ("STOPPED", "SUCCEEDED", "FAILED")
        log = cluster.log(job)
        if len(log) < shown:  # another node answers for it now
            shown = 0
        click.echo(log[shown:], nl=False, err=as_json)
        shown = len(log)
        if ended:
            return
        time.sleep(every)


def _described(settings: Settings) -> Any:
    """The data as it is now; None where it is not to be had from here, as the cluster alone may have it."""
    from miner.artifacts.errors import BadInput
    from pipelines import loop

    try:
        return loop.describe(settings)
    except BadInput:
        return None


def _outcome(job: dict[str, Any], settings: Settings, store: Store) -> dict[str, Any]:
    """What the run folder says, and only then what Ray says."""
    from miner.artifacts.errors import BadInput, DamagedArtifact
    from pipelines import loop

    status, code = job["status"], job.get("driver_exit_code")
    about = {"status": status, "driver_exit_code": code, "stages": None, "done": None}
    try:
        data = saved = loop.saved_data(store)
        # A driver that succeeded has looked at the data itself; after another the folder might be that of older data.
        if data is not None and status != "SUCCEEDED":
            data = _described(settings)
        steps = loop.steps_of(settings, data, store) if data is not None else []
    except (BadInput, DamagedArtifact) as wrong:
        return {**about, "succeeded": False, "exit_code": wrong.exit_code, "why": str(wrong)}
    done = sum(step.state == "done" for step in steps)
    about |= {"stages": len(steps), "done": done}
    if steps and done == len(steps):
        why = f"{store.url}: all {done} stages are committed" + (f" ({status})." if status != "SUCCEEDED" else ".")
        return {**about, "succeeded": True, "exit_code": 0, "why": why}
    far = f"nothing is committed in {store.url}"
    if steps:
        far = f"{done} of {len(steps)} stages are committed in {store.url}"
    elif saved is not None:
        far = f"what is committed in {store.url} is not known without the data, which is not here"
    if status == "SUCCEEDED":
        code = 3
        why = (
            f"the job succeeded, but {far} as seen from here: the cluster writes to another folder under this path, or "
            "has another run file; mount what it writes to under the same path."
        )
    elif code in _KNOWN:
        why = f"`pipelines run` ended with exit code {code}: see the log above; {far}."
    elif status == "STOPPED" or code is None or code < 0 or code > 128:
        code = 75
        why = f"the job was {'stopped' if status == 'STOPPED' else 'lost'} ({far}); the same command goes on."
    else:
        code = 1
        why = f"`pipelines run` crashed with exit code {job.get('driver_exit_code')}: see the log above; {far}."
    return {**about, "succeeded": False, "exit_code": code, "why": why}
