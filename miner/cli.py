"""Command line of the miner. Heavy imports happen inside the commands."""

from __future__ import annotations

import click

from miner import __version__
from miner.artifacts import completion
from miner.artifacts.command import CommandGroup
from miner.commands.build_index import build_index
from miner.commands.calibrate import calibrate
from miner.commands.check import check
from miner.commands.diff import diff
from miner.commands.export import export
from miner.commands.filter import filter_candidates
from miner.commands.mine import mine
from miner.commands.plan import plan

__all__ = ["main"]


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


for command in (
    build_index,
    mine,
    plan,
    filter_candidates,
    calibrate,
    check,
    diff,
    export,
    completion.command("miner", main),
):
    main.add_command(command)
