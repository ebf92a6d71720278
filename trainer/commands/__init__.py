"""One file per command of `trainer`, and what they share. Heavy imports happen inside, so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from miner.artifacts.manifest import Artifact, Draft
    from trainer.checkpoint import Checkpoint
    from trainer.data import Dataset

__all__ = [
    "DATA", "FOLD", "FOLDER", "SPLIT", "check_fits", "draft_at", "loss_of", "open_checkpoint",
    "open_dataset", "sections_of", "was_given",
]  # fmt: skip

FOLDER = click.Path(path_type=Path)
DATA = click.option(
    "--data",
    required=True,
    metavar="emoji|FOLDER",
    help="The bundled emoji set, or a folder with images.npy and pairs.csv (image_id,text_id,text,split).",
)
FOLD = click.option(
    "--fold", type=click.IntRange(0, 4), default=0, show_default=True, help="Which fifth of the emoji set is its test."
)
SPLIT = click.Choice(["train", "dev", "test"])


def draft_at(out: Path, prefix: str, kind: str, inputs: dict[str, Any]) -> Draft:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.store import LocalStore

    return Draft(LocalStore(out), prefix, kind, inputs)


def open_dataset(data: str, fold: int, split: Any) -> Dataset:
    from miner.artifacts.errors import BadInput
    from trainer.data import configure, load

    if data == "emoji":
        return load(configure("emoji", {"fold": fold}), split)
    if fold:
        raise BadInput(f"--fold {fold} belongs to the emoji set; a folder's own split column says what its test is.")
    return load(configure("vectors", {"folder": Path(data)}), split)


def open_checkpoint(path: Path, data: str, fold: int, split: Any) -> tuple[Artifact, Checkpoint, Dataset]:
    """A checkpoint and the data to use it on. Raises BadInput when the two do not fit."""
    from miner.artifacts.manifest import open_artifact
    from trainer.checkpoint import CHECKPOINT, Checkpoint

    artifact = open_artifact(path, CHECKPOINT)
    found, dataset = Checkpoint.open(artifact), open_dataset(data, fold, split)
    check_fits(found, dataset)
    return artifact, found, dataset


def check_fits(checkpoint: Any, dataset: Dataset) -> None:
    from miner.artifacts.errors import BadInput

    if checkpoint.image_shape != dataset.image_shape:
        raise BadInput(
            f"the checkpoint takes images of shape {checkpoint.image_shape}, but those of {dataset.name} are "
            f"{dataset.image_shape}; give the data it was trained on."
        )


def sections_of(path: Path | None) -> dict[str, dict[str, Any]]:
    """[model], [loss] and [fit] of a settings file; empty without one."""
    from miner.artifacts.errors import BadInput
    from trainer.registry import read_toml

    found: dict[str, dict[str, Any]] = {"model": {}, "loss": {}, "fit": {}}
    if path is None:
        return found
    given = read_toml(
        path, "settings file", "write one with the sections [model], [loss] and [fit], or leave --settings out."
    )
    for name, section in given.items():
        if name not in found or not isinstance(section, dict):
            raise BadInput(f"{path}: {name!r} is not a section; the sections are [model], [loss] and [fit].")
        found[name] = section
    return found


def loss_of(flag: str | None, section: dict[str, Any], form: str | None) -> Any:
    """The loss of --loss, else of the [loss] section, else the triplet; settings of the flag win over the section's.

    Raises UsageError for --form with another loss than aoq, BadInput for an unknown loss or setting.
    """
    from trainer import losses

    values = dict(section)
    name = values.pop("name", "triplet")
    if flag is not None:
        spoken, given = losses.spoken(flag)
        # A section without a name is about whatever loss the command asks for.
        values = {**(values if spoken == name or "name" not in section else {}), **given}
        name = spoken
    if form is not None:
        if name != "aoq":
            raise click.UsageError("--form belongs to --quintuplet; add it, or leave --form out.")
        values["form"] = form
    return losses.configure(str(name), values)


def was_given(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
