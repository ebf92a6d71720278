"""`trainer analyze`: count the samples that contribute to a loss's gradient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import PLACE, align
from trainer.commands import DATA, FOLD, FOLDER, LOSSES, SPLIT, check_fits, open_dataset

if TYPE_CHECKING:
    from miner.artifacts.place import Place
    from trainer.data import Dataset
    from trainer.plugins import Round

SHOWN = (0.0, 0.01)
LEGEND = """
above            a negative counts when its weight is above this; weights are in the unit of the loss
queries          batches x queries of each
count per query  negatives that count, over all queries; mean ± standard deviation over batches
with any         share of the queries that have any
count of these   negatives that count, over the queries that have any
weight           weights of the negatives that count, summed per query
nearer           share of the negatives that count which the loss pulls nearer instead of pushing away"""


@click.command()
@DATA
@FOLD
@click.option(
    "--checkpoint", "checkpoints", multiple=True, type=PLACE, help="What `trainer fit` wrote; repeat it for rounds."
)
@click.option(
    "--negatives",
    "tables",
    multiple=True,
    type=PLACE,
    help="Tables of offline negatives to count with each checkpoint; as many as checkpoints.",
)
@click.option("--run", "run_place", type=PLACE, help="Where a run lives: all its finished rounds, with their tables.")
@click.option(
    "--loss",
    "loss_names",
    shell_complete=LOSSES,
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="Objective to count; repeat it to compare. [default: triplet]",
)
@click.option("--split", type=SPLIT, default="train", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--batches", type=click.IntRange(min=1), help="Count that many batches. [default: one epoch]")
@click.option("--threshold", "thresholds", multiple=True, type=click.FloatRange(min=0), help="[default: a sweep]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--as-published", is_flag=True, help="The arithmetic of the paper's notebooks, with its two slips.")
@click.option("--out", type=FOLDER, help="Folder for counts.parquet, counts.csv and counts.png. [default: print alone]")
def analyze(
    data: str,
    fold: int,
    checkpoints: tuple[Place, ...],
    tables: tuple[Place, ...],
    run_place: Place | None,
    loss_names: tuple[str, ...],
    split: str,
    batch_size: int,
    batches: int | None,
    thresholds: tuple[float, ...],
    seed: int,
    as_published: bool,
    out: Path | None,
) -> None:
    """Count which negatives still contribute to the gradient of a loss: per query, both directions, online and offline.

    \b
    Examples:
        trainer analyze --data emoji --checkpoint runs/model0 --loss triplet --loss ntxent --out runs/counts
        trainer analyze --data emoji --run runs/demo --loss aoq:h_t=30,h_v=15
        trainer analyze --data emoji --checkpoint runs/model0 --loss ntxent --as-published

    Counts come from the true gradient of the loss (autograd); a negative counts when its weight is above the threshold.
    Weights are in the loss's own unit: a triplet's hinge has weight 1, a softmax its probability. When hardly any
    negative contributes, the loss has little left to learn from its batches: mine harder ones.
    """
    from miner.artifacts.errors import BadInput
    from trainer import losses, registry
    from trainer.analyze import Threshold, thresholds_for
    from trainer.analyze import analyze as count
    from trainer.checkpoint import Checkpoint
    from trainer.encode import default_device

    if bool(checkpoints) == (run_place is not None):
        raise click.UsageError("give either --checkpoint (one or more) or --run.")
    if run_place is not None and tables:
        raise click.UsageError("--run brings the tables of its rounds; leave --negatives out.")
    if tables and len(tables) != len(checkpoints):
        raise click.UsageError(f"{len(checkpoints)} --checkpoint but {len(tables)} --negatives; give one for each.")
    if as_published and thresholds:
        raise click.UsageError("--as-published has the paper's thresholds; leave --threshold out.")
    configs = [(text, losses.configure(*registry.spoken(text))) for text in dict.fromkeys(loss_names or ("triplet",))]
    if tables and not any(config.needs_tables for _, config in configs):
        raise click.UsageError(
            "--negatives: no --loss given here uses offline negatives; add one (aoq, or offline=...), or leave it out."
        )
    dataset = open_dataset(data, fold, split, checkpoint=Checkpoint.load(checkpoints[0]) if checkpoints else None)
    rounds = _rounds(dataset, checkpoints, tables, run_place)
    sweep = [Threshold(value) for value in sorted(set(thresholds))] or thresholds_for(batch_size)
    rows = []
    for found in rounds:
        check_fits(found.checkpoint, dataset)
        for text, config in configs:
            if config.needs_tables and found.tables is None and len(rounds) > 1:
                click.echo(f"{found.label}: no tables, so {text} is not counted there", err=True)
                continue
            label = ", ".join(filter(None, [found.label if len(rounds) > 1 else "", text if len(configs) > 1 else ""]))
            click.echo(f"counting {label or text}", err=True)
            rows += count(
                dataset, found.checkpoint, config, tables=found.tables, batch_size=batch_size, max_batches=batches,
                thresholds=sweep, seed=seed, device=default_device(), as_published=as_published, label=label or text,
            )  # fmt: skip
    if not rows:
        raise BadInput("nothing was counted: none of the rounds has the tables that the losses need.")
    shown = thresholds or SHOWN
    by_value = [row for row in rows if as_published or (row["of_chance"] is None and row["threshold"] in shown)]
    click.echo(_table(by_value))
    click.echo(LEGEND)
    if out is not None:
        _write(out, rows, batch_size, f"{dataset.name} {split}, batches of {batch_size}", plot=not as_published)


def _rounds(
    dataset: Dataset, checkpoints: tuple[Place, ...], tables: tuple[Place, ...], run_place: Place | None
) -> list[Round]:
    from miner.artifacts.errors import BadInput
    from trainer.checkpoint import Checkpoint
    from trainer.plugins import Round, plugged_in
    from trainer.tables import open_tables

    if run_place is not None:
        reader = next(iter(plugged_in("rounds").values()), None)
        if reader is None:
            raise BadInput("--run: this installation does not know quintain's entry points; install it again.")
        of_run: list[Round] = reader.load()(run_place, dataset)
        return of_run
    found = []
    for row, path in enumerate(checkpoints):
        # One checkpoint with several tables is told apart by the tables.
        label = f"{path} with {tables[row]}" if tables and checkpoints.count(path) > 1 else str(path)
        found.append(Round(label, Checkpoint.load(path), open_tables(tables[row], dataset.pairs) if tables else None))
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows for a terminal: mean and standard deviation over batches."""
    figures = ["above", "queries", "count per query", "with any", "count of these", "weight", "nearer"]
    lines = [["", "negatives", "direction", *figures]]
    for row in rows:
        lines.append([
            row["label"], row["negatives"], row["direction"], f"{row['threshold']:g}",
            f"{row['batches']} x {row['queries']:g}", f"{row['share']:.2f} ± {row['share_std']:.2f}",
            f"{1 - row['none'] / row['queries']:.0%}", f"{row['per_query']:.2f} ± {row['per_query_std']:.2f}",
            "-" if math.isnan(row["weight"]) else f"{row['weight']:.3f}",
            "-" if math.isnan(row["nearer"]) else f"{row['nearer']:.0%}",
        ])  # fmt: skip
    return align(lines, left=3)


def _write(out: Path, rows: list[dict[str, Any]], batch_size: int, title: str, *, plot: bool) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from trainer.analyze import COLUMNS
    from trainer.plots import plot_counts

    out.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: [row[name] for row in rows] for name in COLUMNS})
    # Without chance levels the column is empty, and would have no type.
    at = COLUMNS.index("of_chance")
    table = table.set_column(at, "of_chance", table["of_chance"].cast(pa.float64()))
    pq.write_table(table, out / "counts.parquet")
    pyarrow.csv.write_csv(table, out / "counts.csv")
    written = ["counts.parquet", "counts.csv"]
    if plot:
        plot_counts(rows, out / "counts.png", batch_size=batch_size, title=title)
        written.append("counts.png")
    click.echo(f"{out}: {', '.join(written)}")
