"""`pipelines report`: the page of a run, finished or not."""

from __future__ import annotations

from pathlib import Path

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.completion import places

__all__ = ["report"]


@click.command()
@click.argument("run_dir", shell_complete=places)
@click.option("--out", type=LocalPath(dir_okay=False), help="Where to write it.  [default: RUN_DIR/report.html]")
@click.option(
    "--anchors",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="List so many of each direction, half of them the most suspicious; fewer where the page would exceed 20 MB.",
)
def report(run_dir: str, out: Path | None, anchors: int) -> None:
    """Write the page that shows what RUN_DIR has come to so far: one HTML file that opens from disk.

    \b
    Examples:
      pipelines report runs/demo
      pipelines report s3://bucket/runs/nightly --out nightly.html
      pipelines report runs/demo --anchors 500 --out small.html

    RUN_DIR is a path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; a run that goes on there is not disturbed, and no
    cluster is needed. The data that were trained on must be where the run file says. Negatives are ordered by how much
    they look like their anchor's positives; where `gc` removed the vectors, by their score, and there is no map.
    """
    from pipelines.loop import keep
    from pipelines.places import place
    from pipelines.report import PAGE, render
    from pipelines.report.of_run import view_of

    store = place(run_dir)
    page = render(view_of(store), num_anchors=anchors).encode("utf-8", "replace")
    if out is None:
        keep(store, PAGE, page)
    else:
        out.write_bytes(page)
    click.echo(f"page: {out or f'{store.url}/{PAGE}'} ({len(page) / 1e6:.1f} MB)")
