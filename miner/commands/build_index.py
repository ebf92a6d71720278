"""`miner build-index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.commands.shown import FOLDER, METRIC, OUT, THREADS, chosen, refuse

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
@click.option(
    "--factory",
    default="Flat",
    show_default=True,
    metavar="STRING",
    help="What to build, as FAISS spells it, or auto; see below.",
)
@click.option(
    "--train-sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Vectors to train on. [default: 64 per list, at least 16,384]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sample and of k-means.")
@METRIC
@THREADS
def build_index(
    folder: Path,
    out: Path,
    side: str,
    factory: str,
    train_sample: int | None,
    seed: int,
    metric: str,
    threads: int | None,
) -> None:
    """Index the vectors of FOLDER once, to mine from them several times.

    \b
    Examples:
        miner build-index vectors/ --out index/
        miner build-index vectors/ --factory auto --out index/
        miner mine vectors/ --index index/ --k 50 --out tables/

    \b
    What FAISS builds, for example (any of its strings will do):
        Flat                  compares everything: exact
        IVF4096,Flat          4,096 lists around centres; looks into some of them
        IVF4096,SQ8           the same in a quarter of the memory
        IVF4096,PQ64x4fs      half a byte per part, 64 parts of a vector; looks at
                              more and scores them again
        OPQ64_128,IVF4096,PQ64x4fs  turned and shortened before that
        HNSW32                a graph with 32 links per vector: slow to build
        auto                  Flat below 50,000 vectors; else IVF with 4 sqrt(vectors)
                              lists, rounded to a power of two, and SQ8

    All but Flat are approximate. How hard they look is chosen when they are searched: `miner mine --index` takes the
    recall you want, finds the settings, measures the recall against an exact search on a sample, and stores it in the
    table. Lists are worth it from about 100,000 vectors on, when an index is searched often; what is mined just once
    is often mined sooner without any.
    """
    from miner.artifacts.errors import BadInput
    from miner.artifacts.lock import hold
    from miner.folder import open_folder
    from miner.index import save
    from miner.index._faiss import set_threads
    from miner.memory import readable

    refuse(factory == "Flat", "is for an approximate index, and --factory is Flat", "train_sample", "seed")
    opened = open_folder(folder)
    sides = chosen(side, "image", "text")
    for each in sides:
        if (out / f"{each}s.npy").exists():
            raise BadInput(
                f"{out}: {each}s.npy is here, and an index in {each}/ beside it would be taken for vectors too; choose "
                "another --out."
            )
    set_threads(threads)
    settings = {"train_sample": train_sample or 0, "seed": seed}
    click.get_current_context().with_resource(hold(out))
    for each in sides:
        draft = index_draft(out, opened, each, metric, factory, **settings)
        draft.store.sweep(draft.prefix)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"index of {each}s: already done, {out / each}")
            continue
        made = draft.inputs.get("factory", "Flat")
        _announce(made, opened, each, settings)
        index = fresh_index(opened, each, metric, made, **settings)
        artifact = save(draft, index, {"side": each, "metric": metric})
        click.echo(
            f"index of {each}s: {made}, {index.size} vectors of dim {index.dim}, "
            f"{readable(artifact.manifest.files['index.bin'].bytes)} in {out / each}; searched on the {index.device}"
            + (f" ({index.note})" if index.note else "")
        )


def _announce(factory: str, opened: Folder, side: Side, settings: dict[str, Any]) -> None:
    """What is about to be built, and what it will take."""
    from miner.index.factory import Config, estimate
    from miner.memory import available, readable

    vectors = opened.images if side == "image" else opened.texts
    needed = estimate(Config(factory, **settings), *vectors.shape)
    free = available()
    click.echo(
        f"index of {side}s: building {factory} over {len(vectors)} vectors; takes about {readable(needed.build)} of "
        f"memory and {readable(needed.disk)} on disk"
        + (f", but only {readable(free)} of memory are free" if needed.build > free else "")
    )


def index_draft(
    out: Path, opened: Folder, side: Side, metric: str, factory: str = "Flat", train_sample: int = 0, seed: int = 0
) -> Draft:
    """An index of `side` below `out`, committed or not; "auto" becomes what it stands for. A `Flat` is of kind flat."""
    from miner.artifacts.manifest import Draft
    from miner.artifacts.store import LocalStore
    from miner.index import INDEX
    from miner.index._faiss import version
    from miner.index.factory import automatic

    if factory == "auto":
        factory = automatic(len(opened.images if side == "image" else opened.texts))
    inputs = {"kind": "flat", "side": side, "metric": metric, "vectors": opened.fingerprints[side]}
    if factory != "Flat":
        made: dict[str, Any] = {"factory": factory, "train_sample": train_sample, "seed": seed, "faiss": version()}
        inputs |= {"kind": "factory", **made}
    return Draft(LocalStore(out), side, INDEX, inputs)


def fresh_index(
    opened: Folder, side: Side, metric: str, factory: str = "Flat", train_sample: int = 0, seed: int = 0
) -> Index:
    """Built now; `factory` is not "auto"."""
    from miner.index import build

    vectors = opened.vectors(side, metric)
    if factory == "Flat":
        return build("flat", vectors)
    return build("factory", vectors, {"factory": factory, "train_sample": train_sample, "seed": seed})
