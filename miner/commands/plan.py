"""`miner plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath
from miner.commands.filter import RULES
from miner.commands.search import width, with_opposites
from miner.commands.shown import DIRECTION, FOLDER, MEMORY, METRIC, THREADS, chosen, refuse
from miner.commands.stored import index_options, stored_indexes, to_be_built

if TYPE_CHECKING:
    from miner.artifacts.pairs import Side
    from miner.plan import Plan

__all__ = ["plan"]


@click.command()
@FOLDER
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@DIRECTION
@RULES
@click.option(
    "--num-candidates", type=click.IntRange(min=1), help="Candidates for rules. [default: twice --k where there is one]"
)
@click.option("--factory", metavar="STRING", help="Plan with an index that `miner build-index` would build so.")
@index_options
@METRIC
@THREADS
@MEMORY
@click.option("--out", type=LocalPath(), default=Path(), help="Where `miner mine` would write.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: seconds, and bytes of memory and disk, by stage.")
def plan(
    folder: Path,
    k: int,
    direction: str,
    said: tuple[str, ...],
    num_candidates: int | None,
    factory: str | None,
    index_folder: Path | None,
    recall: float | None,
    nprobe: int | None,
    ef_search: int | None,
    k_factor: int | None,
    recall_sample: int | None,
    metric: str,
    threads: int | None,
    memory: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Say what `miner mine` with the same options would take: time, memory and disk, stage by stage.

    \b
    Examples:
        miner plan vectors/ --k 50 --memory 4G
        miner plan vectors/ --k 50 --rule default
        miner plan vectors/ --k 50 --factory auto --recall 0.97
        miner plan vectors/ --k 50 --index index/ --recall 0.97

    Ends with exit code 3 where there is not enough memory or disk. Time is that of a sample, searched now. Not counted
    are deeper searches for anchors that rules leave with too few, and rules that look at texts, pictures or files.
    """
    from miner.artifacts.errors import BadInput
    from miner.filters import chosen as rules_of
    from miner.folder import open_folder
    from miner.index._faiss import set_threads
    from miner.memory import half, in_all, parse_size
    from miner.nearest import check_k
    from miner.plan import Choosing, check_fits
    from miner.plan import plan as planned
    from miner.plan_index import plan_through

    if factory is not None and index_folder is not None:
        raise BadInput(f"--index {index_folder} is built already, and --factory says what would be; give one of them.")
    rules = rules_of(said)
    opened = open_folder(folder)
    directions = chosen(direction, "i2t", "t2i")
    for each in directions:
        check_k(opened.pairs, each, k)
    choosing, searched = None, k
    if rules or num_candidates is not None:
        choosing, directions = Choosing(rules, k, directions), with_opposites(directions, rules)
        searched = width(opened, directions, k, num_candidates, rules)
        if num_candidates is not None and num_candidates < k:
            raise BadInput(
                f"--num-candidates {num_candidates} are fewer than the {k} negatives wanted; give at least {k}."
            )
    budget = parse_size(memory) if memory else half()
    vectors: dict[Side, Any] = {"image": opened.vectors("image", metric), "text": opened.vectors("text", metric)}
    how = (nprobe, ef_search, k_factor)
    if factory is not None:
        indexes = to_be_built(factory, opened, directions, recall, recall_sample, how)
    else:
        stored = stored_indexes(index_folder, opened, directions, metric, recall, recall_sample, how)
        indexes = {side: each.planned() for side, each in stored.items()}
    refuse(bool(indexes), "bounds an exact search, not one through an index", "memory")
    threads = set_threads(threads)
    if indexes:
        found = plan_through(vectors, opened.pairs, directions, searched, indexes, threads, choosing=choosing)
    else:
        found = planned(vectors, opened.pairs, directions, searched, budget, threads, choosing=choosing)
    click.echo(json.dumps(_as_json(found), indent=1) if as_json else _as_text(found))
    check_fits(found, out, in_all())


def _as_json(found: Plan) -> dict[str, object]:
    return {
        "scores": found.scores,
        "shards": [len(grid.shards()) for grid in found.grids],
        "stages": [vars(stage) for stage in found.stages],
        "seconds": found.seconds,
        "memory": found.memory,
        "disk": found.disk,
        "notes": list(found.notes),
    }


def _as_text(found: Plan) -> str:
    from miner.memory import readable

    lines = [f"{'stage':28} {'time':>10} {'memory':>10} {'disk':>10}"]
    for stage in found.stages:
        lines.append(
            f"{stage.name:28} {_time(stage.seconds):>10} {readable(stage.memory):>10} {readable(stage.disk):>10}"
        )
    lines.append(f"{'all':28} {_time(found.seconds):>10} {readable(found.memory):>10} {readable(found.disk):>10}")
    if found.grids:
        shards = sum(len(grid.shards()) for grid in found.grids)
        cut = "at once" if shards == len(found.grids) else f"in {shards} shards; stopped, it goes on at the shard"
        lines.append(f"{found.scores:.3g} scores, {cut}")
    return "\n".join([*lines, *found.notes])


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
