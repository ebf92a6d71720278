"""`miner export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miner.artifacts.command import PLACE, TABLE, LocalPath
from miner.artifacts.completion import files_in
from miner.commands.shown import progress, refuse
from miner.spoken import Described

if TYPE_CHECKING:
    from miner.artifacts.place import Place
    from miner.artifacts.ranks import Law
    from miner.export import Mined

__all__ = ["export"]

_FILE = LocalPath()
_LAWS = ("top", "uniform", "log-uniform", "simans", "temperature")


class _WithFormats(Described):
    section = "Formats, each with its settings"
    place = Path(__file__).parents[1] / "export"


@click.command(cls=_WithFormats)
@click.argument("table", type=PLACE)
@click.option(
    "--pairs",
    required=True,
    type=TABLE,
    help="pairs.csv, .tsv or .parquet that TABLE was mined for, or its run's pairs/.",
)
@click.option(
    "--format",
    "spoken",
    required=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="Which layout, and its settings.",
    shell_complete=files_in(Path(__file__).parents[1] / "export", dashed=True),
)
@click.option("--out", required=True, type=_FILE, help="File to write.")
@click.option("--negatives", type=click.IntRange(min=1), help="So many of every anchor. [default: all]")
@click.option(
    "--sample",
    type=click.Choice(_LAWS),
    default="top",
    show_default=True,
    help="Which: the hardest; any, evenly; by rank, as 1 / (rank + 1); as similar as the positive (SimANS), "
    "exp(-a (s - s+ - b)^2); by exp(s / temperature). Drawn without repeats, written hardest first.",
)
@click.option("--pool", type=click.IntRange(min=1), help="Draw from so many of the hardest. [default: all]")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Pass over so many of the hardest. [default: 0]")
@click.option("--simans-a", type=click.FloatRange(0, min_open=True), help="SimANS' a; try 50 for cosines.")
@click.option("--simans-b", type=float, default=0.0, help="SimANS' b: the middle lies above s+ by this. [default: 0]")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="In units of score; try 0.05 for cosines.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn.")
@click.option("--texts", type=_FILE, help="Table of id (or text_id) and text: writes texts in place of their ids.")
@click.option("--images", type=_FILE, help="Table of id (or image_id) and path (or text): the same for images.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def export(
    table: Place,
    pairs: Place,
    spoken: str,
    out: Path,
    negatives: int | None,
    sample: str,
    pool: int | None,
    skip: int,
    simans_a: float | None,
    simans_b: float,
    temperature: float | None,
    seed: int,
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
        miner export tables/t2i --pairs vectors/pairs.csv --negatives 5 --sample log-uniform --pool 100 --seed 1 \\
            --format jsonl --out epoch1.jsonl

    Anchors come with all their positives, whatever their number, and with their negatives, hardest first. Items are
    named by id unless --texts or --images says what to write in their place (.csv, .tsv, .parquet, .jsonl). Anchors
    that lack what a format needs are left out, and counted; nothing is padded. TABLE may lie in a run folder: then
    --pairs is that run's pairs/, and its texts.parquet can be --texts.
    """
    from miner.artifacts.errors import BadInput
    from miner.export import Mined, configured, files_of, write
    from miner.export._sampling import Sampling

    refuse(sample == "top", "is for what is drawn, and --sample top draws nothing", "pool", "seed")
    refuse(sample != "simans", "is for --sample simans", "simans_a", "simans_b")
    refuse(sample != "temperature", "is for --sample temperature", "temperature")
    sampling = Sampling(_law(sample, simans_a, simans_b, temperature), pool, skip, seed)
    chosen, config = configured(spoken)
    files = files_of(chosen, config, out, force=force)
    mined = Mined.open(table, pairs, negatives, texts, images, progress(out.name, "anchors", brief=True), sampling)
    given = [each for each in (table.local, pairs.local, texts, images) if each is not None]
    for read in (path for each in given for path in (each.iterdir() if each.is_dir() else [each])):
        if read.resolve() in [file.resolve() for file in files]:
            raise BadInput(f"{read}: this file is read and cannot be written too; choose another --out.")
    rows = write(chosen, config, mined, files, force=force)
    _summary(mined, rows, files)
    click.echo(f"    read it: {chosen.read_with(config, out)}")


def _law(sample: str, simans_a: float | None, simans_b: float, temperature: float | None) -> Law:
    """What --sample and its settings mean. Raises BadInput when one is missing."""
    from miner.artifacts.errors import BadInput
    from miner.artifacts.ranks import Simans, Softmax

    if sample == "simans":
        if simans_a is None:
            raise BadInput(
                "--sample simans needs --simans-a: the bell around the positive is 1 / sqrt(2 a) wide, in units of the "
                "table's scores; try 50 for cosines."
            )
        return Simans(simans_a, simans_b)
    if sample == "temperature":
        if temperature is None:
            raise BadInput("--sample temperature needs --temperature, in units of the table's scores; try 0.05.")
        return Softmax(temperature)
    laws: dict[str, Law] = {"top": "top", "uniform": "untied", "log-uniform": "log_uniform"}
    return laws[sample]


def _summary(mined: Mined, rows: int, files: tuple[Path, ...]) -> None:
    tally = mined.tally
    click.echo(f"{mined.direction}: {rows} rows from {tally.written} of {len(mined.anchor_ids)} anchors")
    for why, many in sorted(tally.left_out.items()):
        click.echo(f"    left out: {many} anchor(s) with {why}")
    if tally.short:
        click.echo(f"    {tally.short} anchor(s) with fewer than {mined.num_negatives} negatives gave what they have")
    for file in files:
        click.echo(f"    {file}")
