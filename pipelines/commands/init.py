"""`pipelines init`: a commented run file for the data at hand."""

from __future__ import annotations

from pathlib import Path

import click

from miner.artifacts.command import LocalPath
from trainer.commands import FORMATS, MODELS

__all__ = ["init"]


@click.command()
@click.argument("data", default="emoji", metavar="[emoji|PATH|FORMAT:KEY=VALUE,...]", shell_complete=FORMATS)
@click.option(
    "--out",
    type=LocalPath(dir_okay=False),
    default="run.toml",
    show_default=True,
    help="The run file to write; never over one that is there.",
)
@click.option(
    "--model",
    metavar="NAME:KEY=VALUE,...",
    shell_complete=MODELS,
    help="The model to train, as `trainer fit` takes it. [default: one that suits the images]",
)
def init(data: str, out: Path, model: str | None) -> None:
    """Look at the data and write a run file for it: the model that suits, sizes that fit, and what each section does.

    \b
    Examples:
      pipelines init                                      the bundled emoji set, to look at
      pipelines init photos/ --out photos.toml
      pipelines init photos/ --model clip:path=/models/clip-vit-base
      pipelines init folder:folder=photos,image_size=96
      pipelines init precomp:folder=coco,test=testall

    DATA is what `trainer fit --data` takes; a path's format is recognised. `trainer data check` says more about it.
    """
    import tomllib

    from miner.artifacts.errors import BadInput
    from pipelines.settings import Settings
    from pipelines.starter import examine, run_file
    from trainer.data import name_of, spoken

    taken = BadInput(f"{out}: there already, and nothing is overwritten; give --out another name, or delete it.")
    if out.exists():
        raise taken
    if not out.parent.is_dir():
        raise BadInput(f"{out.parent}: no such folder to write {out.name} to; make it first.")
    found = examine(spoken(data), model)
    text = run_file(found, out.parent)
    Settings.read(tomllib.loads(text), out)
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as there:
        raise taken from there
    for note in found.train.notes:
        click.echo(f"note: {note}", err=True)
    for split, dataset in found.splits.items():
        click.echo(f"{split}: {dataset.pairs.num_images:,} images, {dataset.pairs.num_texts:,} texts")
    click.echo(f"{out}: format {name_of(found.data)}, images {found.train.image_shape}")
    click.echo(f"next: pipelines plan {out}, then: pipelines run {out}")
