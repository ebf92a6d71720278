"""`miner mine`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from miner.commands.build_index import fresh_index, index_draft
from miner.commands.shown import DIRECTION, FOLDER, MEMORY, METRIC, OUT, THREADS, chosen, progress, summary

if TYPE_CHECKING:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.negatives import NegativeBlock
    from miner.artifacts.pairs import Direction, Side, Within
    from miner.folder import Folder
    from miner.index import Index

__all__ = ["mine"]


@click.command()
@FOLDER
@OUT
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@DIRECTION
@click.option("--index", "index_folder", type=click.Path(path_type=Path), help="What `miner build-index` wrote.")
@METRIC
@THREADS
@MEMORY
def mine(
    folder: Path,
    out: Path,
    k: int,
    direction: str,
    index_folder: Path | None,
    metric: str,
    threads: int | None,
    memory: str | None,
) -> None:
    """Write the k hardest negatives of every anchor of FOLDER: per direction one table below --out.

    \b
    Examples:
        miner mine vectors/ --k 50 --direction i2t --out tables/
        miner mine vectors/ --k 300 --metric cosine --out tables/

    A positive is never among them (for i2i, nor is an image that shares a text with the anchor). An anchor that has
    fewer than k others gets what there is, and is listed with the reason in shortfalls.parquet.

    What does not fit into memory is searched in shards. Stopped at any moment, the same command goes on at the shard.
    """
    from miner.artifacts.lock import hold
    from miner.artifacts.negatives import write_negatives
    from miner.folder import open_folder
    from miner.index._faiss import set_threads
    from miner.matrix import forget
    from miner.memory import parse_size
    from miner.mine import check_k

    budget = parse_size(memory) if memory else None
    opened = open_folder(folder)
    if metric == "ip" and not opened.unit_length():
        click.echo("note: the vectors do not all have length 1, so long ones win; --metric cosine compares angles.")
    directions = cast("list[Direction | Within]", chosen(direction, "i2t", "t2i"))
    for each in directions:
        check_k(opened.pairs, each, k)
    threads = set_threads(threads)
    click.get_current_context().with_resource(hold(out))
    drafts = {each: _table_draft(out, opened, each, k, metric) for each in directions}
    shards = {each: replace(drafts[each], prefix=f".search/{each}", kind="search") for each in directions}
    for each in directions:
        for draft in (drafts[each], shards[each]):
            draft.store.sweep(draft.prefix)
    done = {each: artifact for each in directions if (artifact := drafts[each].committed()) is not None}
    for each, artifact in done.items():
        artifact.verify()
        click.echo(f"{each}: already done")
        summary(each, artifact)
    left = [each for each in directions if each not in done]
    provenance = {"round": None, "metric": metric, "index": "flat", "checkpoint": opened.checkpoint}
    for each, blocks in _searches(opened, left, k, metric, index_folder, threads, budget, out, shards):
        artifact = write_negatives(drafts[each], blocks, opened.pairs, each, k, provenance)
        forget(shards[each])
        summary(each, artifact)


def _table_draft(out: Path, opened: Folder, direction: Direction | Within, k: int, metric: str) -> Draft:
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
    opened: Folder,
    directions: list[Direction | Within],
    k: int,
    metric: str,
    index_folder: Path | None,
    threads: int,
    memory: int | None,
    out: Path,
    shards: Mapping[Direction | Within, Draft],
) -> Iterator[tuple[Direction | Within, Iterator[NegativeBlock]]]:
    """Each direction with its negatives: from one pass for all of them, or with an index one search each."""
    from miner.artifacts.pairs import sides
    from miner.index._faiss import num_gpus
    from miner.matrix import mine_exhaustively
    from miner.memory import available
    from miner.mine import mine
    from miner.plan import check_fits, plan

    if not directions:
        return
    vectors: dict[Side, Any] = {"image": opened.vectors("image", metric), "text": opened.vectors("text", metric)}
    if index_folder is None and num_gpus() == 0:
        click.echo("comparing " + " and ".join(_compared(opened, directions)) + " on the cpu")
        shown = progress(" and ".join(directions), "items")
        free = available()
        memory = memory or free // 2
        check_fits(plan(vectors, opened.pairs, directions, k, memory, threads, timed=False), out, free)
        yield from mine_exhaustively(
            vectors, opened.pairs, directions, k, threads=threads, memory=memory, drafts=shards, progress=shown
        )
        return
    for each in directions:
        anchors, gallery = sides(each)
        index = (
            _stored_index(index_folder, opened, gallery, metric)
            if index_folder
            else fresh_index(opened, gallery, metric)
        )
        shown = progress(each, "anchors")
        yield (
            each,
            mine(vectors[anchors], index, vectors[gallery], opened.pairs, each, k, threads=threads, progress=shown),
        )


def _compared(opened: Folder, directions: list[Direction | Within]) -> list[str]:
    """What is compared with what, each once."""
    from miner.artifacts.pairs import sides

    named = {side: f"{len(opened.pairs.ids(side))} {side}s" for direction in directions for side in sides(direction)}
    passes = dict.fromkeys(tuple(sorted(sides(direction))) for direction in directions)
    return [f"{named[one]} with {named[other] if one != other else 'each other'}" for one, other in passes]


def _stored_index(folder: Path, opened: Folder, side: Side, metric: str) -> Index:
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import open_artifact
    from miner.index import INDEX, load

    artifact = open_artifact(folder / side, INDEX)
    if artifact.manifest.inputs != index_draft(folder, opened, side, metric).inputs:
        raise BadInput(
            f"{folder / side}: this index was built from other vectors or another metric than asked for now "
            f"({metric}); build it again into another folder."
        )
    index = load(artifact)
    click.echo(f"searching {side}s with the {index.kind} index {folder / side} on the {index.device}")
    return index
