"""What the commands share: their common options, and how they show progress and results."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.pace import Pace

if TYPE_CHECKING:
    from miner.artifacts.manifest import Artifact

__all__ = [
    "ALOUD", "DIRECTION", "FOLDER", "MEMORY", "METRIC", "OUT", "THREADS", "Voice", "chosen", "progress", "refuse",
    "summary",
]  # fmt: skip

FOLDER = click.argument("folder", type=LocalPath())
OUT = click.option("--out", required=True, type=LocalPath(), help="Folder to write to.")
METRIC = click.option(
    "--metric",
    type=click.Choice(["ip", "cosine"]),
    default="ip",
    show_default=True,
    help="Inner product of the vectors as they are, or of the vectors scaled to length 1.",
)
DIRECTION = click.option(
    "--direction",
    type=click.Choice(["i2t", "t2i", "both", "i2i", "t2t"]),
    default="both",
    show_default=True,
    help="i2t: texts for every image; t2i: images for every text; both: these two from one pass; i2i, t2t: a side "
    "with itself.",
)
MEMORY = click.option(
    "--memory",
    help="What the search may keep at once, as 8G or 500M; the libraries, ids and room to work in come on top (`miner "
    "plan` adds up). [default: half of what is free]",
)
THREADS = click.option("--threads", type=click.IntRange(min=1), help="Threads to use. [default: all cores]")


def chosen(choice: str, *all_of_them: str) -> list[Any]:
    """`both` as all of them."""
    return list(all_of_them) if choice == "both" else [choice]


def refuse(useless: bool, why: str, *names: str) -> None:
    """Raise BadInput if one of these options (by parameter name) was given where it is `useless`."""
    from click.core import ParameterSource

    from miner.artifacts.errors import BadInput

    context = click.get_current_context()
    said = {option.name: max(option.opts, key=len) for option in context.command.params}
    for name in names:
        if useless and context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise BadInput(f"{said[name]} {why}; leave it out.")


def progress(label: str, items: str, *, brief: bool = False) -> Callable[[int, int], None]:
    """A line that moves on a terminal, cut to its width; off one, a line for every tenth. Both say how fast it goes and
    how long it will still take. `brief`: nothing for what takes a moment."""
    shown, pace = -1, Pace()
    pace.said(0, 1, items)

    def show(done: int, total: int) -> None:
        nonlocal shown
        if brief and shown < 0 and done == total:
            return
        tenth = 10 * done // total
        line = f"{label}: {done}/{total} {items}{pace.said(done, total, items)}"
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r{line[:width]:<{width}}", nl=done == total, err=True)
        elif tenth > shown:
            click.echo(line, err=True)
        shown = max(shown, tenth)

    return show


@dataclass(frozen=True)
class Voice:
    """Where sentences go, and who is told how far a search is: a terminal, or nobody (see `miner.arrays`)."""

    say: Callable[[str], object] = click.echo
    progress: Callable[..., Callable[[int, int], None]] = progress


ALOUD = Voice()


def summary(direction: str, artifact: Artifact, say: Callable[[str], object] = click.echo) -> None:
    """What a person wants to know of a finished table."""
    meta = artifact.manifest.meta
    where = f"{artifact.where}/negatives.parquet"
    say(f"{direction}: {meta['anchors']} anchors x {meta['k']} negatives, {meta['shortfalls']} shortfalls")
    say(
        f"    hardness (score - lowest positive) {meta['hardness_mean']:+.4f} on average; "
        f"{meta['share_above_lowest_positive']:.1%} of the negatives, and the hardest of "
        f"{meta['share_anchors_above_lowest_positive']:.1%} of the anchors, score above a positive"
    )
    found = meta["provenance"].get("recall")
    if found and found["anchors"]:
        low, high = found["interval"]
        say(
            f"    approximate: recall@{found['k']} {found['recall'][str(found['k'])]:.4f} (95% interval {low:.4f} to "
            f"{high:.4f}, {found['anchors']} anchors) with {meta['provenance']['factory']}"
        )
    if meta["shortfalls"]:
        say(f"    who has fewer than {meta['k']}, and why: {artifact.where}/shortfalls.parquet")
    say(f"    {where}")
    say(f"    read it: pandas.read_parquet({where!r})")
