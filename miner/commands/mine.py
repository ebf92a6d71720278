"""`miner mine`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from miner.artifacts.command import LocalPath
from miner.commands.filter import RULES, Rules, check_looks
from miner.commands.mining import Mining
from miner.commands.shown import DIRECTION, FOLDER, MEMORY, METRIC, OUT, THREADS, chosen, refuse
from miner.commands.stored import deeper, index_options, stored_indexes

if TYPE_CHECKING:
    from miner.artifacts.pairs import Direction, Within

__all__ = ["mine"]


@click.command(cls=Rules)
@FOLDER
@OUT
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@DIRECTION
@RULES
@click.option(
    "--num-candidates",
    type=click.IntRange(min=1),
    help="Search so many per anchor for rules to choose from, and keep them in OUT/candidates, for `miner filter` to "
    "choose again. [default: twice --k where there is a rule]",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(min=1),
    help="Search no deeper for an anchor that rules leave with fewer than k. [default: 16 times the candidates]",
)
@click.option("--texts", type=LocalPath(), help="Table of id and text, for rules that look at texts.")
@click.option("--images", type=LocalPath(), help="Table of id and path, for rules that look at pictures.")
@index_options
@METRIC
@THREADS
@MEMORY
def mine(
    folder: Path,
    out: Path,
    k: int,
    direction: str,
    said: tuple[str, ...],
    num_candidates: int | None,
    max_candidates: int | None,
    texts: Path | None,
    images: Path | None,
    index_folder: Path | None,
    recall: float | None,
    nprobe: int | None,
    ef_search: int | None,
    k_factor: int | None,
    recall_sample: int | None,
    metric: str,
    threads: int | None,
    memory: str | None,
) -> None:
    """Write the k hardest negatives of every anchor of FOLDER: per direction one table below --out.

    \b
    Examples:
        miner mine vectors/ --k 50 --direction i2t --out tables/
        miner mine vectors/ --k 300 --metric cosine --out tables/
        miner mine vectors/ --k 50 --rule default --out tables/
        miner mine vectors/ --k 50 --rule same-text --rule relative-margin:margin=0.05 \\
            --texts captions.csv --out tables/

    A positive is never among them (for i2i, nor is an image that shares a text with the anchor). Rules drop more, each
    candidate with its reason in dropped.parquet, and the search goes deeper for who is left with fewer than k. An
    anchor that has fewer than k still gets what there is, and is listed with the reason in shortfalls.parquet.

    Every pair is compared, unless --index gives an approximate index: then the recall against an exact search is
    measured on a sample, and stored in the table.

    What does not fit into memory is searched in shards. Stopped at any moment, the same command goes on at the shard.
    """
    from miner.artifacts.lock import hold
    from miner.filters import chosen as rules_of
    from miner.folder import open_folder
    from miner.index._faiss import set_threads
    from miner.memory import parse_size

    rules = rules_of(said)
    check_looks(rules)
    budget = parse_size(memory) if memory else None
    opened = open_folder(folder)
    if metric == "ip" and not opened.unit_length():
        click.echo("note: the vectors do not all have length 1, so long ones win; --metric cosine compares angles.")
    directions = cast("list[Direction | Within]", chosen(direction, "i2t", "t2i"))
    mining = Mining(
        opened, directions, k, rules, num_candidates, max_candidates, metric, budget, texts=texts, images=images
    )
    mining.check()
    threads = set_threads(threads)
    click.get_current_context().with_resource(hold(out))
    how = (nprobe, ef_search, k_factor)
    indexes = stored_indexes(index_folder, opened, directions, metric, recall, recall_sample, how)
    refuse(bool(indexes), "bounds an exact search, not one through --index", "memory")
    mining.write(out, threads, indexes, partial(deeper, opened, indexes, threads))
    if rules or num_candidates is not None:
        click.echo(
            f"choose again by other rules: miner filter {folder} --candidates {out / 'candidates'} --rule ... --out ..."
        )
