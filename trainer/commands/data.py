"""`trainer data check` and `trainer data formats`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from miner.artifacts.command import CommandGroup, LocalPath, align
from miner.artifacts.completion import files_in
from trainer.commands import FOLD, FORMATS, data_config
from trainer.commands._formats import WithFormats, described, first_lines
from trainer.commands._progress import Progress

if TYPE_CHECKING:
    from trainer.data._check import Report

__all__ = ["data"]

_LISTED = 20  # broken images that are shown; --json has all


@click.group(cls=CommandGroup)
def data() -> None:
    """Look at a data set before training on it.

    \b
    Examples:
        trainer data check flickr8k/
        trainer data check karpathy:annotations=dataset_coco.json,images=coco --json > coco.json
        trainer data formats karpathy
    """


@data.command()
@click.argument("name", required=False, shell_complete=files_in(Path(__file__).parents[1] / "data"))
def formats(name: str | None) -> None:
    """List the data formats, or say what the format NAME reads and every setting that it has.

    \b
    Examples:
        trainer data formats
        trainer data formats precomp
    """
    if name is not None:
        click.echo(described(name))
        return
    for each, said in first_lines():
        click.echo(f"{each:<12} {said}")


@data.command(cls=WithFormats)
@click.argument("spec", metavar="emoji|PATH|FORMAT:KEY=VALUE,...", shell_complete=FORMATS)
@FOLD
@click.option(
    "--min-count", type=click.IntRange(min=1), default=1, show_default=True,
    help="Occurrences from which a word is in the vocabulary.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option(
    "--write-exclude", type=LocalPath(), metavar="FILE",
    help="Write the broken images there, for the setting exclude. What the set excludes already stays in the list.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def check(spec: str, fold: int, min_count: int, strict: bool, write_exclude: Path | None, as_json: bool) -> None:
    """Say what a data set holds and what is wrong with it. Every image is read, every picture decoded.

    \b
    Examples:
        trainer data check flickr8k/
        trainer data check folder:folder=photos,image_size=96 --write-exclude broken.txt
        trainer fit --data folder:folder=photos,image_size=96,exclude=broken.txt --out runs/model0

    Counts captions per image and words, and finds captions and images that occur twice, within a split and across
    splits, and pictures that cannot be read. Exit code 3 when there is an error.
    """
    from miner.artifacts.errors import BadInput
    from trainer.data._check import examine
    from trainer.data._links import excluded

    config = data_config(spec, fold)
    if write_exclude is not None:
        if "exclude" not in type(config).model_fields:
            raise BadInput(f"{spec}: --write-exclude is for pictures; this format has no setting exclude.")
        _check_place(write_exclude, config.exclude)
    report = examine(config, min_count, Progress())
    click.echo(_as_json(report) if as_json else _as_text(report))
    if write_exclude is not None:
        broken = {key: reason for split in report.splits.values() for key, reason in split.broken.items()}
        lines = [
            f"{key}\t{broken.get(key, 'excluded before')}"
            for key in {**dict.fromkeys(sorted(excluded(config.exclude))), **broken}
        ]
        whole = write_exclude.with_name(f"{write_exclude.name}.{os.getpid()}.part")
        try:
            whole.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            whole.replace(write_exclude)
        finally:
            whole.unlink(missing_ok=True)
        click.echo(f"{write_exclude}: {len(lines)} image(s); use it as exclude={write_exclude}", err=True)
    if report.says("error") or (strict and report.says("warning")):
        click.get_current_context().exit(BadInput.exit_code)


def _check_place(path: Path, exclude: Path | None) -> None:
    """Raises BadInput for a file that is not the set's own list, and for a folder that is not there."""
    from miner.artifacts.errors import BadInput

    if path.exists() and (exclude is None or not exclude.exists() or not path.samefile(exclude)):
        raise BadInput(
            f"{path}: there already, and would be overwritten; give --write-exclude another name, or exclude={path} "
            "in the data if it is the list of these images."
        )
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent}: no such folder, so that {path.name} cannot be written there; make it first.")


def _as_json(report: Report) -> str:
    import json
    from dataclasses import asdict

    content = asdict(report)
    content["findings"] = [finding._asdict() for finding in report.findings]
    return json.dumps(content, indent=2, ensure_ascii=False)


def _as_text(report: Report) -> str:
    places = [value for key, value in report.settings.items() if key in ("folder", "path", "annotations")]
    lines = [f"format {report.format}" + "".join(f", {place}" for place in places)]
    if report.splits:
        lines += ["", align(_table(report)), ""]
    for split, found in report.splits.items():
        several = sum(count for images, count in found.images_per_caption.items() if images > 1)
        if len(found.captions_per_image) > 1:
            lines.append(f"{split}: captions per image: {_counts(found.captions_per_image)}")
        if several:
            lines.append(f"{split}: {several} caption(s) belong to several images: {_counts(found.images_per_caption)}")
    if report.vocabulary is not None:
        lines.append(f"vocabulary: {report.vocabulary} words occur {report.min_count} times or more in train")
    for split, found in report.splits.items():
        if found.handled:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.handled.items()))
            lines.append(f"{split}: pictures that are read, though unusual: {kinds}")
    for split, found in report.splits.items():
        lines += [f"{split}: broken: {key}: {reason}" for key, reason in list(found.broken.items())[:_LISTED]]
        if len(found.broken) > _LISTED:
            lines.append(f"{split}: ... and {len(found.broken) - _LISTED} more; --json lists all")
    lines += ["", *(f"{finding.severity}: {finding.sentence}" for finding in report.findings)]
    errors, warnings = len(report.says("error")), len(report.says("warning"))
    lines.append(f"{errors} error(s), {warnings} warning(s)" if errors or warnings else "nothing is wrong")
    return "\n".join(lines)


def _table(report: Report) -> list[list[str]]:
    words = ["per image", "words", "unknown", "twice", "images twice", "broken", "image"]
    rows = [["split", "images", "captions", "pairs", *words]]
    for split, found in report.splits.items():
        unknown = "-" if found.out_of_vocabulary is None else f"{found.out_of_vocabulary:.2%}"
        figures = [found.images, found.captions, found.pairs]
        rows.append([
            split, *(f"{figure:,}" for figure in figures),
            _range(found.captions_per_image), _range(found.words_per_caption), unknown,
            f"{found.duplicate_captions:,}", f"{found.duplicate_images:,}", f"{len(found.broken):,}",
            f"{' x '.join(map(str, found.shape))} {found.dtype}",
        ])  # fmt: skip
    return rows


def _range(histogram: dict[int, int]) -> str:
    """Lowest, mean and highest value."""
    if not histogram:
        return "-"
    mean = sum(value * count for value, count in histogram.items()) / sum(histogram.values())
    return f"{min(histogram)} / {mean:.1f} / {max(histogram)}"


def _counts(histogram: dict[int, int]) -> str:
    shown = [f"{count:,} have {value}" for value, count in sorted(histogram.items())]
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "")
