"""`trainer compare`, lent to the trainer's command line by an entry point: comparing means running loops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts import completion
from miner.artifacts.command import LocalPath
from trainer.commands import LOSSES

if TYPE_CHECKING:
    from pipelines.compare.comparison import Comparison

__all__ = ["compare"]


@click.command()
@click.argument("file", type=LocalPath(dir_okay=False), required=False)
@click.option("--demo", is_flag=True, help="Fifteen objectives on the bundled emoji set.")
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    shell_complete=LOSSES,
    help="One more objective; repeat.",
)
@click.option("--only", multiple=True, metavar="LABEL", help="Of the file's objectives take these; repeat.")
@click.option("--seeds", type=click.IntRange(min=1), help="Overrides [compare] seeds.")
@click.option(
    "--out",
    metavar="PLACE",
    shell_complete=completion.places,
    help="Where members and results go: a folder, s3://bucket/prefix or gs://bucket/prefix.  [default: runs/<name of "
    "the file>]",
)
@click.option("--executor", type=click.Choice(["ray", "inline"]), help="Overrides [executor] kind.")
@click.option("--workers", type=click.IntRange(min=1), help="Overrides [executor] workers.")
@click.option("--address", help="Overrides [executor] address: a Ray cluster to join.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would run, and stop.")
def compare(
    file: Path | None,
    demo: bool,
    objectives: tuple[str, ...],
    only: tuple[str, ...],
    seeds: int | None,
    out: str | None,
    executor: str | None,
    workers: int | None,
    address: str | None,
    plan_only: bool,
) -> None:
    """Train the same model under several objectives: same data, seeds and updates; which is best, and why?

    \b
    Examples:
        trainer compare --demo --out runs/compare
        trainer compare compare.toml --seeds 5 --workers 8
        trainer compare compare.toml --out s3://bucket/compare --address auto
        trainer compare compare.toml --only triplet --objective ntxent:tau=0.05

    A comparison file is a run file with [compare] and any number of [[objective]] (label, name and settings of a loss)
    instead of [loss]. The same command after an interruption goes on; objectives and seeds added later reuse the rest.

    Writes results.csv and results.parquet (one row per objective and seed), results.md and results.png: test rsum with
    95% intervals over seeds, the difference to the first objective paired by seed, milliseconds per step, negatives
    that contribute to the gradient, collapse events.
    """
    import os

    from miner.artifacts.errors import BadInput
    from pipelines import loop
    from pipelines.compare.comparison import DEMO
    from pipelines.compare.schedule import Outcome, Plans, run_members
    from pipelines.executors import open_executor
    from pipelines.interrupts import interrupted
    from pipelines.places import guarded, only_writer, place
    from pipelines.progress import open_progress

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (file is None) != demo:
        raise click.UsageError("give either a comparison FILE or --demo.")
    path = file or DEMO
    given = {"kind": executor, "workers": workers, "address": address}
    comparison = _comparison(path, objectives, only, seeds, given)
    if comparison.base.executor.kind == "inline" and (workers or address):
        where = "--executor inline" if executor else f'kind = "inline" in {path}, or add --executor ray'
        raise click.UsageError(f"--workers and --address belong to Ray; leave them out with {where}.")
    store = place(out if out is not None else f"runs/{'compare-demo' if demo else path.stem}")
    data = loop.describe(comparison.base)
    members = comparison.members(data.num_pairs)
    plans = Plans(members, data, store)
    if plan_only:
        _show_plan(plans)
        return
    with interrupted(), only_writer(store) as check:
        store = plans.store = guarded(store, check)
        progress = open_progress()
        try:
            loop.prepare_data(comparison.base, data, store)
            outcome = Outcome(plans.steps())
            if any(step.state != "done" for steps in outcome.steps for step in steps):
                opened = open_executor(comparison.base.executor, progress, many=True)
                try:
                    outcome = run_members(plans, opened, progress, check)
                finally:
                    opened.close()
        finally:
            progress.close()
        check()
        _write(comparison, plans, outcome.steps)
    if outcome.failed:
        number, reason = next(iter(outcome.failed.items()))
        others = len(outcome.failed) < len(members)
        raise BadInput(
            f"{len(outcome.failed)} of {len(members)} members cannot be trained, first {members[number].name}: {reason}"
            + (f" The others are done and are the results in {store.url}." if others else "")
        )


def _comparison(
    path: Path, objectives: tuple[str, ...], only: tuple[str, ...], seeds: int | None, executor: dict[str, Any]
) -> Comparison:
    from dataclasses import replace

    from miner.artifacts.errors import BadInput
    from pipelines.compare.comparison import Comparison

    found = Comparison.load(path, objectives)
    unknown = sorted({*only} - {*found.objectives})
    if unknown:
        known = ", ".join(repr(label) for label in found.objectives)
        raise BadInput(f"{path}: no objective is called {unknown[0]!r}; there are {known}.")
    if only:
        kept = {*only, *objectives}
        found = replace(found, objectives={label: loss for label, loss in found.objectives.items() if label in kept})
    if seeds is not None:
        found = replace(found, compare=found.compare.model_copy(update={"seeds": seeds}))
    changed = {key: value for key, value in executor.items() if value is not None}
    return found.with_executor(found.base.executor.model_copy(update=changed))


def _show_plan(plans: Any) -> None:
    from miner.artifacts.command import align
    from pipelines.tables import size

    lines = [["objective", "seed", "stages done", "to do"]]
    todo: dict[tuple[str, str], Any] = {}
    for member, steps in zip(plans.members, plans.steps(), strict=True):
        missing = [step for step in steps if step.state != "done"]
        # A waiting stage has no key yet; two members may turn out to share it.
        todo |= {(member.name, step.stage.name): step.stage for step in missing}
        lines.append([member.label, str(member.seed), str(len(steps) - len(missing)), str(len(missing))])
    click.echo(align(lines))
    disk = size(sum(stage.disk for stage in todo.values()))
    click.echo(f"\n{len(plans.members)} members, at most {len(todo)} stages to run, at most {disk} of disk.")


def _write(comparison: Comparison, plans: Any, every: list[list[Any]]) -> None:
    import tempfile

    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from pipelines.compare.plot import plot_comparison
    from pipelines.compare.results import NOTE, member_rows, summarize, table
    from pipelines.loop import keep

    rows = member_rows(plans.members, every, plans.store)
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = pa.table({name: [row.get(name) for row in rows] for name in names})
    summaries = summarize(rows, list(comparison.objectives))
    run = comparison.base.run
    title = (
        f"{type(comparison.base.data).__module__.rpartition('.')[2]}: {_count(len(summaries), 'objective')} x "
        f"{_count(comparison.compare.seeds, 'seed')}, {_count(run.total_epochs, 'epoch')}, "
        f"{_count(rows[0]['updates'], 'update')} each"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pyarrow.csv.write_csv(columns, root / "results.csv")
        pq.write_table(columns, root / "results.parquet")
        (root / "results.md").write_text(f"{title}\n\n{table(summaries, markdown=True)}\n\n{NOTE}\n")
        plot_comparison(summaries, rows, root / "results.png", title)
        files = {path.name: path.read_bytes() for path in sorted(root.iterdir())}
    for name, data in files.items():
        keep(plans.store, name, data)
    click.echo(f"{title}\n\n{table(summaries)}\n\n{NOTE}\n\n{plans.store.url}: {', '.join(files)}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
