"""Command line of the miner: `build-index`, `mine`, `check`, `export`. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from miner import __version__
from miner.artifacts.command import CommandGroup
from miner.commands.export import export

if TYPE_CHECKING:
    from miner.artifacts.manifest import Artifact, Draft
    from miner.artifacts.negatives import NegativeBlock
    from miner.artifacts.pairs import Direction, Side
    from miner.folder import Folder
    from miner.index import Index

__all__ = ["main"]

_FOLDER = click.argument("folder", type=click.Path(path_type=Path))
_OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
_METRIC = click.option(
    "--metric",
    type=click.Choice(["ip", "cosine"]),
    default="ip",
    show_default=True,
    help="Inner product of the vectors as they are, or of the vectors scaled to length 1.",
)
_THREADS = click.option("--threads", type=click.IntRange(min=1), help="Threads to use. [default: all cores]")


@click.group(cls=CommandGroup)
@click.version_option(__version__, prog_name="miner")
def main() -> None:
    """Mine hard negatives from the vectors of any dual encoder.

    \b
    FOLDER holds
        images.npy  texts.npy        (rows, dim) float16, float32 or float64
        image_ids.txt  text_ids.txt  optional, one id per line (else 0, 1, 2, ...)
        pairs.csv | .tsv | .parquet  columns image_id, text_id; many-to-many
    or, in place of the .npy files, image/ and text/ as `trainer encode` writes them.

    \b
    Examples:
        miner mine vectors/ --k 50 --direction both --out tables/
        python -c "import pandas; print(pandas.read_parquet('tables/i2t/negatives.parquet'))"

    A negative table has one row per anchor and rank: anchor_id, rank (0 = hardest), negative_id, score (higher is
    closer), lowest_positive (score of the anchor's farthest positive). The same vectors give the same bytes on any
    machine.
    """


@main.command("build-index")
@_FOLDER
@_OUT
@click.option(
    "--side",
    type=click.Choice(["image", "text", "both"]),
    default="both",
    show_default=True,
    help="Which vectors to index: i2t searches texts, t2i searches images.",
)
@_METRIC
@_THREADS
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
    for each in _chosen(side, "image", "text"):
        draft = _index_draft(out, opened, each, metric)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"index of {each}s: already done, {out / each}")
            continue
        index = _fresh_index(opened, each, metric)
        artifact = save(draft, index, {"side": each, "metric": metric})
        click.echo(
            f"index of {each}s: {index.kind}, {index.size} vectors of dim {index.dim}, "
            f"{artifact.manifest.files['index.bin'].bytes / 2**20:.1f} MiB in {out / each}"
        )


@main.command()
@_FOLDER
@_OUT
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@click.option(
    "--direction",
    type=click.Choice(["i2t", "t2i", "both"]),
    default="both",
    show_default=True,
    help="i2t: texts for every image; t2i: images for every text.",
)
@click.option("--index", "index_folder", type=click.Path(path_type=Path), help="What `miner build-index` wrote.")
@_METRIC
@_THREADS
def mine(
    folder: Path, out: Path, k: int, direction: str, index_folder: Path | None, metric: str, threads: int | None
) -> None:
    """Write the k hardest negatives of every anchor of FOLDER: per direction one table below --out.

    \b
    Examples:
        miner mine vectors/ --k 50 --direction i2t --out tables/
        miner mine vectors/ --k 300 --metric cosine --out tables/

    A positive is never among them. An anchor that has fewer than k others gets what there is, and is listed with the
    reason in shortfalls.parquet.
    """
    from miner.artifacts.lock import hold
    from miner.artifacts.negatives import write_negatives
    from miner.folder import open_folder
    from miner.index._faiss import set_threads
    from miner.mine import check_k

    opened = open_folder(folder)
    if metric == "ip" and not opened.unit_length():
        click.echo("note: the vectors do not all have length 1, so long ones win; --metric cosine compares angles.")
    directions = cast("list[Direction]", _chosen(direction, "i2t", "t2i"))
    for each in directions:
        check_k(opened.pairs, each, k)
    threads = set_threads(threads)
    click.get_current_context().with_resource(hold(out))
    drafts = {each: _table_draft(out, opened, each, k, metric) for each in directions}
    done = {each: artifact for each in directions if (artifact := drafts[each].committed()) is not None}
    for each, artifact in done.items():
        artifact.verify()
        click.echo(f"{each}: already done")
        _summary(each, artifact)
    left = [each for each in directions if each not in done]
    provenance = {"round": None, "metric": metric, "index": "flat", "checkpoint": opened.checkpoint}
    for each, blocks in _searches(opened, left, k, metric, index_folder, threads):
        artifact = write_negatives(drafts[each], blocks, opened.pairs, each, k, provenance)
        _summary(each, artifact)


@main.command()
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
    _summary(artifact.manifest.meta["provenance"]["direction"], artifact)


main.add_command(export)


def _chosen(choice: str, *all_of_them: str) -> list[Any]:
    return list(all_of_them) if choice == "both" else [choice]


def _index_draft(out: Path, opened: Folder, side: Side, metric: str) -> Any:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.store import LocalStore
    from miner.index import INDEX

    inputs = {"kind": "flat", "side": side, "metric": metric, "vectors": opened.fingerprints[side]}
    return Draft(LocalStore(out), side, INDEX, inputs)


def _table_draft(out: Path, opened: Folder, direction: Direction, k: int, metric: str) -> Draft:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.negatives import NEGATIVES
    from miner.artifacts.store import LocalStore

    inputs = {
        "pairs": opened.pairs.fingerprint,
        **opened.fingerprints,
        "direction": direction,
        "k": k,
        "metric": metric,
        "index": "flat",
    }
    return Draft(LocalStore(out), direction, NEGATIVES, inputs)


def _searches(
    opened: Folder, directions: list[Direction], k: int, metric: str, index_folder: Path | None, threads: int
) -> Iterator[tuple[Direction, Iterator[NegativeBlock]]]:
    """Each direction with its negatives: from one pass for all of them, or with an index one search each."""
    from miner.artifacts.pairs import sides
    from miner.index._faiss import num_gpus
    from miner.mine import mine, mine_exhaustively

    if not directions:
        return
    vectors: dict[Side, Any] = {"image": opened.vectors("image", metric), "text": opened.vectors("text", metric)}
    if index_folder is None and num_gpus() == 0:
        click.echo(f"comparing {len(vectors['image'])} images with {len(vectors['text'])} texts on the cpu")
        shown = _progress(" and ".join(directions), "items")
        yield from mine_exhaustively(vectors, opened.pairs, directions, k, threads=threads, progress=shown)
        return
    for each in directions:
        anchors, gallery = sides(each)
        index = (
            _stored_index(index_folder, opened, gallery, metric)
            if index_folder
            else _fresh_index(opened, gallery, metric)
        )
        shown = _progress(each, "anchors")
        yield (
            each,
            mine(vectors[anchors], index, vectors[gallery], opened.pairs, each, k, threads=threads, progress=shown),
        )


def _fresh_index(opened: Folder, side: Side, metric: str) -> Index:
    from miner.index import build

    return build("flat", opened.vectors(side, metric))


def _stored_index(folder: Path, opened: Folder, side: Side, metric: str) -> Index:
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import open_artifact
    from miner.index import INDEX, load

    artifact = open_artifact(folder / side, INDEX)
    if artifact.manifest.inputs != _index_draft(folder, opened, side, metric).inputs:
        raise BadInput(
            f"{folder / side}: this index was built from other vectors or another metric than asked for now "
            f"({metric}); build it again into another folder."
        )
    index = load(artifact)
    click.echo(f"searching {side}s with the {index.kind} index {folder / side} on the {index.device}")
    return index


def _progress(label: str, items: str) -> Callable[[int, int], None]:
    """A line that moves on a terminal; off one, a line for every tenth."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // total
        if sys.stderr.isatty():
            click.echo(f"\r{label}: {done}/{total} {items}", nl=done == total, err=True)
        elif tenth > shown:
            shown = tenth
            click.echo(f"{label}: {done}/{total} {items}", err=True)

    return show


def _summary(direction: str, artifact: Artifact) -> None:
    meta = artifact.manifest.meta
    where = f"{artifact.where}/negatives.parquet"
    click.echo(f"{direction}: {meta['anchors']} anchors x {meta['k']} negatives, {meta['shortfalls']} shortfalls")
    click.echo(
        f"    hardness (score - lowest positive) {meta['hardness_mean']:+.4f} on average; "
        f"{meta['share_above_lowest_positive']:.1%} of the negatives, and the hardest of "
        f"{meta['share_anchors_above_lowest_positive']:.1%} of the anchors, score above a positive"
    )
    if meta["shortfalls"]:
        click.echo(f"    who has fewer than {meta['k']}, and why: {artifact.where}/shortfalls.parquet")
    click.echo(f"    {where}")
    click.echo(f"    read it: pandas.read_parquet({where!r})")
