"""`pipelines serve`: the page of a run, on this machine, saving what is said of negatives."""

from __future__ import annotations

from pathlib import Path

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.completion import places

__all__ = ["serve"]


@click.command()
@click.argument("run_dir", shell_complete=places)
@click.option("--verdicts", type=LocalPath(dir_okay=False),
              help="File of verdicts to go on with.  [default: RUN_DIR/verdicts.jsonl]")  # fmt: skip
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1.  [default: any that is free]"
)
@click.option(
    "--anchors", type=click.IntRange(min=1), default=100_000, show_default=True, help="As `pipelines report`."
)
def serve(run_dir: str, verdicts: Path | None, port: int, anchors: int) -> None:
    """Serve the page of RUN_DIR on 127.0.0.1 until Ctrl-C; verdicts are saved as they are given.

    \b
    Examples:
      pipelines serve runs/demo
      pipelines serve s3://bucket/runs/nightly --verdicts verdicts.jsonl

    Prints the address with a token that changes every time; who does not know it, and a page from anywhere else, is
    refused. Each verdict is one line added to the file: see miner/verdicts.py for what `miner filter --rule
    verdicts:file=...`, `miner calibrate --verdicts` and [mine] verdicts make of it.
    """
    from miner.artifacts.errors import BadInput
    from miner.artifacts.store import LocalStore
    from pipelines.places import place
    from pipelines.report import render
    from pipelines.report.of_run import view_of
    from pipelines.report.server import Server

    store = place(run_dir)
    if verdicts is None:
        if not isinstance(store, LocalStore):
            raise BadInput(f"{store.url}: verdicts are saved line by line in a file on this machine: --verdicts FILE.")
        verdicts = store.root / "verdicts.jsonl"
    page = render(view_of(store), num_anchors=anchors, served=True).encode("utf-8", "replace")
    with Server(page, verdicts, port) as server:
        click.echo(f"page: {server.url}\nverdicts: {verdicts}\nCtrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo(f"\nsaved {server.saved} verdicts in {verdicts}")
