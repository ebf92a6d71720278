"""`pipelines`: plan, run and look at the loop. Heavy imports wait inside the commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner import __version__
from miner.artifacts import completion
from miner.artifacts.command import CommandGroup, LocalPath
from pipelines.commands.doctor import doctor
from pipelines.commands.gc import gc
from pipelines.commands.init import init
from pipelines.commands.report import report
from pipelines.commands.schedule import schedule
from pipelines.commands.serve import serve
from pipelines.commands.submit import submit
from pipelines.commands.verify import verify

if TYPE_CHECKING:
    from miner.artifacts.store import Store
    from pipelines.plan import Step
    from pipelines.settings import Settings
    from pipelines.stop import Stop
    from pipelines.trackers import About

__all__ = ["main"]

_EXAMPLES = """
\b
Examples:
  pipelines run --demo --run-dir runs/demo      the bundled emoji set, several rounds, in minutes
  pipelines init photos/                        write run.toml for data of yours
  pipelines plan run.toml                       what would run, what is reused and why
  pipelines run run.toml --executor inline      no cluster: everything in this process
  pipelines run run.toml --address 10.0.0.1:6379
  pipelines status runs/demo
  pipelines serve runs/demo                     the page, saving verdicts on negatives
  pipelines run run.toml --run-dir s3://bucket/runs/nightly
  pipelines submit run.toml --run-dir /shared/run --address http://127.0.0.1:8265
  pipelines schedule slurm run.toml --run-dir /shared/run --at "0 2 * * *"
"""


@click.group(cls=CommandGroup, help="Run the mining loop: encode, index, mine, fit, evaluate, again.\n" + _EXAMPLES)
@click.version_option(__version__, prog_name="quintain")
def main() -> None:
    pass


def _run_options(command: Any) -> Any:
    options = [
        click.argument("run_file", type=LocalPath(dir_okay=False), required=False),
        click.option("--demo", is_flag=True, help="Use the demo's settings on the bundled emoji set."),
        click.option("--run-dir", metavar="PLACE", shell_complete=completion.places,
                     help="Where the run lives: a folder, s3://bucket/prefix or gs://bucket/prefix.  [default: "
                          "runs/<name of the run file>]"),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Overrides [executor] kind."),
        click.option("--workers", type=click.IntRange(min=1), help="Overrides [executor] workers."),
        click.option("--address", help="Overrides [executor] address: a Ray cluster to join."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_run_options
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def plan(run_file: Path | None, as_json: bool, **options: Any) -> None:
    """Show what `run` would do, stage by stage: what is reused and why, disk and memory. Starts nothing.

    \b
    Examples:
      pipelines plan run.toml
      pipelines plan run.toml --run-dir s3://bucket/runs/nightly --json
      pipelines plan --demo
    """
    from pipelines.evidence import stop_of
    from pipelines.loop import describe, steps_of
    from pipelines.tables import plan_table

    settings, store = _settings(run_file, **options)
    steps = steps_of(settings, describe(settings), store)
    stop = stop_of(settings, steps, store)
    if as_json:
        _say_json(run_dir=store.url, **_standing(steps, stop))
        return
    click.echo(plan_table(steps))
    _say_stop(stop)


@main.command()
@_run_options
@click.option("--log-json", metavar="PATH|-", help="Append one JSON line per event to a file, or to stderr with -.")
def run(run_file: Path | None, log_json: str | None, **options: Any) -> None:
    """Do everything that is not done yet.

    \b
    Examples:
      pipelines run run.toml
      pipelines run run.toml --run-dir /shared/runs/nightly --address auto
      pipelines run run.toml --executor inline --log-json events.jsonl
      pipelines run --demo --run-dir runs/demo

    Resumes by default: after a kill, the same command goes on where it stopped; when all is done it does nothing.
    A rule of [stop] may end it early. Ends with a table of the rounds, a page, PLACE/report.html, and the best round's
    checkpoint, PLACE/best.
    """
    from miner.artifacts.pairs import PAIRS, open_pairs
    from pipelines import loop
    from pipelines.best import BEST, export_best
    from pipelines.evidence import stop_of
    from pipelines.executors import observers_of, open_executor
    from pipelines.interrupts import interrupted
    from pipelines.jobs import artifact_at
    from pipelines.places import guarded, only_writer
    from pipelines.progress import open_progress
    from pipelines.report import PAGE
    from pipelines.summary import round_views
    from pipelines.tables import summary_table
    from pipelines.trackers import Event
    from pipelines.trackers._watch import open_watch

    settings, store = _settings(run_file, **options)
    logs = _log_json(log_json)
    with interrupted(), only_writer(store) as check, ExitStack() as ends:
        store = guarded(store, check)
        progress = open_progress()
        ends.callback(progress.close)
        executors = ends.enter_context(ExitStack())  # closed after the watch, which tells Ray's metrics too
        watch = ends.enter_context(open_watch(settings.watch, _about(settings, store), progress.say, logs))
        data = loop.describe(settings)
        loop.prepare(settings, data, store)
        steps = loop.steps_of(settings, data, store)
        todo = sum(step.state != "done" for step in steps)
        progress.say(f"{store.url}: {len(steps) - todo} stages reused, {todo} to run")
        if todo:
            executor = open_executor(settings.executor, progress)
            executors.callback(executor.close)
            for name, connect in observers_of(settings.executor):
                watch.add(name, connect)
            watch.tell(Event("run_start", store.url, time.time(), message=f"{todo} stages to run"))
            steps = loop.run(settings, data, store, executor, progress, check, watch)
        page = artifact_at(store, steps[-1].prefix).read(PAGE)
        check()
        loop.keep(store, PAGE, page)
        export_best(steps, store, check)
        stop = stop_of(settings, steps, store)
        if todo:
            watch.tell(Event("run_done", store.url, time.time(), message=str(stop or "")))
    click.echo(summary_table(round_views(steps, store, open_pairs(artifact_at(store, PAIRS)))))
    _say_stop(stop)
    click.echo(f"\npage: {store.url}/{PAGE}\nbest: {store.url}/{BEST}")


@main.command()
@click.argument("run_dir", shell_complete=completion.places)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(run_dir: str, as_json: bool) -> None:
    """Show how far the run in RUN_DIR is: a folder, s3://bucket/prefix or gs://bucket/prefix.

    \b
    Examples:
      pipelines status runs/run
      pipelines status s3://bucket/runs/nightly --json

    Reads what is stored there alone: works while it runs, and with no cluster up.
    """
    from miner.artifacts.errors import BadInput
    from miner.artifacts.pairs import PAIRS, open_pairs
    from pipelines import loop
    from pipelines.evidence import stop_of
    from pipelines.jobs import artifact_at
    from pipelines.places import place
    from pipelines.summary import round_views
    from pipelines.tables import plan_table, summary_table

    store = place(run_dir)
    settings = loop.saved_settings(store)
    data = loop.saved_data(store)
    if data is None:
        raise BadInput(f"{store.url}: the training pairs of this run are missing; `pipelines run` writes them again.")
    steps = loop.steps_of(settings, data, store)
    views = round_views(steps, store, open_pairs(artifact_at(store, PAIRS)))
    stop = stop_of(settings, steps, store)
    if as_json:
        rounds = [
            {
                "round": v.round,
                "best": v.best,
                "metrics": v.metrics,
                "hardness": v.hardness,
                "overlap": v.overlap,
                "recall": dict(v.recall),
                "stale_steps": v.stale_steps,
                "seconds": v.seconds,
                "contributing": v.contributing,
            }
            for v in views
        ]
        _say_json(run_dir=store.url, **_standing(steps, stop), rounds=rounds)
        return
    click.echo(plan_table(steps))
    if views:
        click.echo("\n" + summary_table(views))
    _say_stop(stop)


for _command in (init, report, serve, verify, gc, doctor, submit, schedule, completion.command("pipelines", main)):
    main.add_command(_command)


def _about(settings: Settings, store: Store) -> About:
    """What trackers hear of a run before anything happens."""
    from miner.artifacts.store import LocalStore
    from pipelines.report.overview import flatten
    from pipelines.trackers import About

    folder = store.root if isinstance(store, LocalStore) else None
    return About(store.url, folder, dict(flatten(settings.dump())))


def _log_json(path: str | None) -> list[tuple[str, Any]]:
    from pipelines.trackers.json_lines import Config

    if path is None:
        return []
    if "://" in path:
        raise click.UsageError(f"--log-json {path}: give a file of this machine, or - for stderr.")
    return [("json_lines", Config(path=path if path == "-" else str(Path(path).resolve())))]


def _standing(steps: Sequence[Step], stop: Stop | None) -> dict[str, Any]:
    """What `plan` and `status` tell machines alike."""
    stages = [
        {
            "stage": step.stage.name,
            "state": step.state,
            "why": step.why,
            "tasks": step.stage.parts if step.stage.unit == "shard" else 1,
            "disk": step.stage.disk,
            "memory": step.stage.memory,
        }
        for step in steps
    ]
    return {"stages": stages, "stopped": asdict(stop) if stop is not None else None}


def _say_json(**found: Any) -> None:
    json.dump(found, sys.stdout, indent=1)
    click.echo()


def _say_stop(stop: Stop | None) -> None:
    if stop is not None:
        click.echo(f"\n{stop}")


def _settings(
    run_file: Path | None,
    demo: bool,
    run_dir: str | None,
    executor: str | None,
    workers: int | None,
    address: str | None,
) -> tuple[Settings, Store]:
    import os

    # Two OpenMP runtimes (torch's, faiss') share this process: threads that spin while they wait starve each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipelines.places import place
    from pipelines.settings import DEMO, Settings

    if (run_file is None) != demo:
        raise click.UsageError("give either a RUN_FILE (`pipelines init DATA` writes one) or --demo.")
    path = run_file or DEMO
    settings = Settings.load(path)
    if executor == "inline" and (workers or address):
        raise click.UsageError("--workers and --address belong to Ray; leave them out with --executor inline.")
    given = {"kind": executor, "workers": workers, "address": address}
    changed = settings.executor.model_copy(update={key: value for key, value in given.items() if value is not None})
    return settings.with_executor(changed, str(path)), place(run_dir if run_dir is not None else f"runs/{path.stem}")
