"""`miner export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miner.commands.shown import progress
from miner.spoken import Described

if TYPE_CHECKING:
    from miner.export import Mined

__all__ = ["export"]

_FILE = click.Path(path_type=Path)


class _WithFormats(Described):
    section = "Formats, each with its settings"
    place = Path(__file__).parents[1] / "export"


@click.command(cls=_WithFormats)
@click.argument("table", type=_FILE)
@click.option("--pairs", required=True, type=_FILE, help="The pairs.csv, .tsv or .parquet that TABLE was mined for.")
@click.option(
    "--format", "spoken", required=True, metavar="NAME[:KEY=VALUE,...]", help="Which layout, and its settings."
)
@click.option("--out", required=True, type=_FILE, help="File to write.")
@click.option("--negatives", type=click.IntRange(min=1), help="The hardest so many of every anchor. [default: all]")
@click.option("--texts", type=_FILE, help="Table of id (or text_id) and text: writes texts in place of their ids.")
@click.option("--images", type=_FILE, help="Table of id (or image_id) and path (or text): the same for images.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def export(
    table: Path,
    pairs: Path,
    spoken: str,
    out: Path,
    negatives: int | None,
    texts: Path | None,
    images: Path | None,
    force: bool,
) -> None:
    """Write the negative table in folder TABLE as another trainer reads it.

    \b
    Examples:
        miner export tables/t2i --pairs vectors/pairs.csv --format jsonl --out t2i.jsonl
        miner export tables/t2i --pairs vectors/pairs.csv --texts captions.csv --images paths.csv \\
            --negatives 5 --format sentence-transformers:layout=n-tuple,scores=true --out t2i.parquet
        miner export tables/i2t --pairs vectors/pairs.csv --texts captions.csv --images queries.jsonl \\
            --format flagembedding --out train.jsonl

    Anchors come with all their positives, whatever their number, and with their negatives, hardest first. Items are
    named by id unless --texts or --images says what to write in their place (.csv, .tsv, .parquet, .jsonl). Anchors
    that lack what a format needs are left out, and counted; nothing is padded. TABLE may lie in a run folder: then
    --pairs is that run's pairs/, and its texts.parquet can be --texts.
    """
    from miner.artifacts.errors import BadInput
    from miner.export import Mined, configured, files_of, write

    chosen, config = configured(spoken)
    files = files_of(chosen, config, out, force=force)
    mined = Mined.open(table, pairs, negatives, texts, images, progress(out.name, "anchors", brief=True))
    given = [each for each in (table, pairs, texts, images) if each is not None]
    for read in (path for each in given for path in (each.iterdir() if each.is_dir() else [each])):
        if read.resolve() in [file.resolve() for file in files]:
            raise BadInput(f"{read}: this file is read and cannot be written too; choose another --out.")
    rows = write(chosen, config, mined, files, force=force)
    _summary(mined, rows, files)
    click.echo(f"    read it: {chosen.read_with(config, out)}")


def _summary(mined: Mined, rows: int, files: tuple[Path, ...]) -> None:
    tally = mined.tally
    click.echo(f"{mined.direction}: {rows} rows from {tally.written} of {len(mined.anchor_ids)} anchors")
    for why, many in sorted(tally.left_out.items()):
        click.echo(f"    left out: {many} anchor(s) with {why}")
    if tally.short:
        click.echo(f"    {tally.short} anchor(s) with fewer than {mined.num_negatives} negatives gave what they have")
    for file in files:
        click.echo(f"    {file}")
