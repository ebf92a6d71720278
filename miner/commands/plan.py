"""`miner plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.commands.shown import DIRECTION, FOLDER, MEMORY, METRIC, THREADS, chosen

if TYPE_CHECKING:
    from miner.artifacts.pairs import Side
    from miner.plan import Plan

__all__ = ["plan"]


@click.command()
@FOLDER
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@DIRECTION
@METRIC
@THREADS
@MEMORY
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Where `miner mine` would write.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: seconds, and bytes of memory and disk, by stage.")
def plan(
    folder: Path, k: int, direction: str, metric: str, threads: int | None, memory: str | None, out: Path, as_json: bool
) -> None:
    """Say what `miner mine` with the same options would take: time, memory and disk, stage by stage.

    \b
    Example:
        miner plan vectors/ --k 50 --memory 4G

    Ends with exit code 3 where there is not enough memory or disk. Time is that of a sample, searched now.
    """
    from miner.folder import open_folder
    from miner.index._faiss import set_threads
    from miner.memory import available, parse_size
    from miner.mine import check_k
    from miner.plan import check_fits
    from miner.plan import plan as planned

    opened = open_folder(folder)
    directions = chosen(direction, "i2t", "t2i")
    for each in directions:
        check_k(opened.pairs, each, k)
    free = available()
    budget = parse_size(memory) if memory else free // 2
    vectors: dict[Side, Any] = {"image": opened.vectors("image", metric), "text": opened.vectors("text", metric)}
    found = planned(vectors, opened.pairs, directions, k, budget, set_threads(threads))
    click.echo(json.dumps(_as_json(found), indent=1) if as_json else _as_text(found))
    check_fits(found, out, free)


def _as_json(found: Plan) -> dict[str, object]:
    return {
        "scores": found.scores,
        "shards": [len(grid.shards()) for grid in found.grids],
        "stages": [vars(stage) for stage in found.stages],
        "seconds": found.seconds,
        "memory": found.memory,
        "disk": found.disk,
    }


def _as_text(found: Plan) -> str:
    from miner.memory import readable

    lines = [f"{'stage':28} {'time':>10} {'memory':>10} {'disk':>10}"]
    for stage in found.stages:
        lines.append(
            f"{stage.name:28} {_time(stage.seconds):>10} {readable(stage.memory):>10} {readable(stage.disk):>10}"
        )
    lines.append(f"{'all':28} {_time(found.seconds):>10} {readable(found.memory):>10} {readable(found.disk):>10}")
    shards = sum(len(grid.shards()) for grid in found.grids)
    cut = "at once" if shards == len(found.grids) else f"in {shards} shards; stopped, it goes on at the shard"
    lines.append(f"{found.scores:.3g} scores, {cut}")
    return "\n".join(lines)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
