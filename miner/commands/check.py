"""`miner check`."""

from __future__ import annotations

from pathlib import Path

import click

from miner.commands.shown import summary

__all__ = ["check"]


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
def check(table: Path) -> None:
    """Hash every file of a table again and print its summary.

    \b
    Example:
        miner check tables/i2t
    """
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.negatives import NEGATIVES

    artifact = open_artifact(table, NEGATIVES)
    artifact.verify()
    click.echo(f"{table}: every file is as it was committed")
    summary(artifact.manifest.meta["provenance"]["direction"], artifact)
