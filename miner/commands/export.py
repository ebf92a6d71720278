"""`miner export`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from miner.export import Mined

__all__ = ["export"]

_FILE = click.Path(path_type=Path)
_PLACE = Path(__file__).parents[1] / "export"


class _WithFormats(click.Command):
    """A command whose help ends with the formats and their settings, as their files say it; none is imported."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Formats, each with its settings"):
            formatter.write_dl(list(_described()))
        super().format_epilog(ctx, formatter)


def _described() -> Iterator[tuple[str, str]]:
    for path in sorted(_PLACE.glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        config = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Config")
        settings = [_setting(node) for node in config.body if isinstance(node, ast.AnnAssign)]
        said = (ast.get_docstring(module) or "").partition("\n")[0]
        yield path.stem.replace("_", "-"), " ".join([said, *settings])


def _setting(node: ast.AnnAssign) -> str:
    """`layout: Literal["a", "b"] = "a"` as `[layout=a|b, default a]`."""
    name, kind, default = (ast.unparse(part) if part else "" for part in (node.target, node.annotation, node.value))
    if isinstance(node.annotation, ast.Subscript):
        kind = "|".join(ast.literal_eval(node.annotation.slice))
    kind = {"bool": "true|false", "str": name.upper()}.get(kind, kind)
    default = default.strip("'").lower()
    return f"[{name}={kind}, default {default}]" if default else f"[{name}={kind}]"


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
    mined = Mined.open(table, pairs, negatives, texts, images, _progress(out.name))
    for given in (pairs, texts, images):
        if given is not None and given.resolve() in [file.resolve() for file in files]:
            raise BadInput(f"{given}: this file is read and cannot be written too; choose another --out.")
    rows = write(chosen, config, mined, files, force=force)
    _summary(mined, rows, files)
    click.echo(f"    read it: {chosen.read_with(config, out)}")


def _progress(label: str) -> Callable[[int, int], None]:
    """A line that moves on a terminal; off one, a line for every tenth. Silent for what takes a moment."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        if shown < 0 and done == total:
            return
        tenth = 10 * done // total
        if sys.stderr.isatty():
            click.echo(f"\r{label}: {done}/{total} anchors", nl=done == total, err=True)
        elif tenth > shown:
            click.echo(f"{label}: {done}/{total} anchors", err=True)
        shown = max(shown, tenth)

    return show


def _summary(mined: Mined, rows: int, files: tuple[Path, ...]) -> None:
    tally = mined.tally
    click.echo(f"{mined.direction}: {rows} rows from {tally.written} of {len(mined.anchor_ids)} anchors")
    for why, many in sorted(tally.left_out.items()):
        click.echo(f"    left out: {many} anchor(s) with {why}")
    if tally.short:
        click.echo(f"    {tally.short} anchor(s) with fewer than {mined.num_negatives} negatives gave what they have")
    for file in files:
        click.echo(f"    {file}")
