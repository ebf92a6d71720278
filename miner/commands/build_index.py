"""`miner build-index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miner.commands.shown import FOLDER, METRIC, OUT, THREADS, chosen

if TYPE_CHECKING:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.pairs import Side
    from miner.folder import Folder
    from miner.index import Index

__all__ = ["build_index", "fresh_index", "index_draft"]


@click.command("build-index")
@FOLDER
@OUT
@click.option(
    "--side",
    type=click.Choice(["image", "text", "both"]),
    default="both",
    show_default=True,
    help="Which vectors to index: i2t searches texts, t2i searches images.",
)
@METRIC
@THREADS
def build_index(folder: Path, out: Path, side: str, metric: str, threads: int | None) -> None:
    """Index the vectors of FOLDER once, to mine from them several times.

    \b
    Example:
        miner build-index vectors/ --out index/
        miner mine vectors/ --index index/ --k 50 --out tables/
    """
    from miner.artifacts.lock import hold
    from miner.folder import open_folder
    from miner.index import save
    from miner.index._faiss import set_threads

    opened = open_folder(folder)
    set_threads(threads)
    click.get_current_context().with_resource(hold(out))
    for each in chosen(side, "image", "text"):
        draft = index_draft(out, opened, each, metric)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"index of {each}s: already done, {out / each}")
            continue
        index = fresh_index(opened, each, metric)
        artifact = save(draft, index, {"side": each, "metric": metric})
        click.echo(
            f"index of {each}s: {index.kind}, {index.size} vectors of dim {index.dim}, "
            f"{artifact.manifest.files['index.bin'].bytes / 2**20:.1f} MiB in {out / each}"
        )


def index_draft(out: Path, opened: Folder, side: Side, metric: str) -> Draft:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.store import LocalStore
    from miner.index import INDEX

    inputs = {"kind": "flat", "side": side, "metric": metric, "vectors": opened.fingerprints[side]}
    return Draft(LocalStore(out), side, INDEX, inputs)


def fresh_index(opened: Folder, side: Side, metric: str) -> Index:
    from miner.index import build

    return build("flat", opened.vectors(side, metric))
