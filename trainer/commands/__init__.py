"""One file per command of `trainer`, and what they share. Heavy imports happen inside, so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.completion import files_in

if TYPE_CHECKING:
    from miner.artifacts.manifest import Artifact, Draft
    from miner.artifacts.place import Place
    from trainer.checkpoint import Checkpoint
    from trainer.data import Dataset

__all__ = [
    "BACKBONES", "DATA", "FOLD", "FOLDER", "FORMATS", "JUDGEMENTS", "LOSSES", "MODELS", "SPLIT", "check_fits",
    "data_config", "draft_at", "loss_of", "model_of", "open_checkpoint", "open_dataset", "open_split", "say_once",
    "sections_of", "suited", "was_given",
]  # fmt: skip

_HERE = Path(__file__).parents[1]
MODELS, LOSSES, BACKBONES, JUDGEMENTS = (
    files_in(_HERE / name, paths=name == "backbones") for name in ("models", "losses", "backbones", "judgements")
)
FORMATS = files_in(_HERE / "data", "emoji", settings=True, paths=True)
FOLDER = LocalPath()
DATA = click.option(
    "--data",
    required=True,
    metavar="emoji|PATH|FORMAT:KEY=VALUE,...",
    shell_complete=FORMATS,
    help="The bundled emoji set; a folder or file whose format is recognised; or a format with its settings, such as "
    "karpathy:annotations=dataset_flickr8k.json,images=Images. `trainer data check` says what is found there.",
)
FOLD = click.option(
    "--fold", type=click.IntRange(0, 4), default=0, show_default=True, help="Which fifth of the emoji set is its test."
)
SPLIT = click.Choice(["train", "dev", "test"])


def draft_at(out: Path, prefix: str, kind: str, inputs: dict[str, Any]) -> Draft:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.store import LocalStore

    return Draft(LocalStore(out), prefix, kind, inputs)


def data_config(data: str, fold: int) -> Any:
    """The settings of the format that --data names. Raises BadInput."""
    from miner.artifacts.errors import BadInput
    from trainer.data import name_of, spoken

    config = spoken(data)
    if not fold:
        return config
    if name_of(config) != "emoji":
        raise BadInput(f"--fold {fold} belongs to the emoji set; a folder's own split column says what its test is.")
    return config.model_copy(update={"fold": fold})


def open_dataset(
    data: str, fold: int, split: Any, *, model: Any = None, checkpoint: Checkpoint | None = None
) -> Dataset:
    """One split of what --data names, with pictures as a `model` (its `Config`) wants them, or as a checkpoint was
    trained on. What a person should know about it goes to stderr. Raises BadInput."""
    config = data_config(data, fold)
    pixels = getattr(model if checkpoint is None else checkpoint.model_config, "pixels", None)
    if pixels is not None:
        side = pixels.wanted if checkpoint is None else min(checkpoint.image_shape[:2])
        config = suited(config, side, pixels.squeezes, "the model")
    return open_split(config, split)


def suited(config: Any, wanted: int, squeezes: bool, who: str) -> Any:
    """The settings of the data with the size of pictures that a network wants, and squeezed where it was trained so,
    unless somebody chose otherwise: a picture would be enlarged again, or lose its sides."""
    from trainer.data import name_of
    from trainer.registry import validated

    asked = {"image_size": wanted, **({"image_mode": "squeeze"} if squeezes else {})}
    changed = {
        key: value
        for key, value in asked.items()
        if key in type(config).model_fields and key not in config.model_fields_set and getattr(config, key) != value
    }
    if not changed:
        return config
    said = ", ".join(f"{key}={value}" for key, value in changed.items())
    say_once(f"note: pictures are read with {said}, which {who} wants")
    return validated(type(config), {**config.model_dump(), **changed}, f"data {name_of(config)}")


def open_split(config: Any, split: Any) -> Dataset:
    """The same by the settings of a format."""
    from trainer.data import load

    dataset = load(config, split)
    for note in dataset.notes:
        say_once(f"note: {note}")
    opened: dict[tuple[str, str], Dataset] = click.get_current_context().meta.setdefault(f"{__name__}.opened", {})
    if (dataset.name, dataset.split) not in opened:
        click.get_current_context().call_on_close(lambda: _say_broken(opened[dataset.name, dataset.split]))
    opened[dataset.name, dataset.split] = dataset  # one that is opened again, otherwise, takes the first one's place
    return dataset


def say_once(sentence: str) -> None:
    """To stderr, unless this command has said it already."""
    said: set[str] = click.get_current_context().meta.setdefault(f"{__name__}.said", set())
    if sentence not in said:
        said.add(sentence)
        click.echo(sentence, err=True)


def _say_broken(dataset: Dataset) -> None:
    found = dataset.broken
    if found:
        image_id, reason = next(iter(found.items()))
        click.echo(
            f"warning: {dataset.name} {dataset.split}: {len(found)} of {len(dataset.images)} pictures could not be "
            f"read, and a grey one stood for each; first {image_id!r}: {reason}. `trainer data check` lists them all.",
            err=True,
        )


def open_checkpoint(place: Place, data: str, fold: int, split: Any) -> tuple[Artifact, Checkpoint, Dataset]:
    """A checkpoint and the data to use it on. Raises BadInput when the two do not fit."""
    from miner.artifacts.manifest import open_artifact
    from trainer.checkpoint import CHECKPOINT, Checkpoint

    artifact = open_artifact(place, CHECKPOINT)
    found = Checkpoint.open(artifact)
    dataset = open_dataset(data, fold, split, checkpoint=found)
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

    name, values = _named(flag, section, "triplet")
    if form is not None:
        if name != "aoq":
            raise click.UsageError("--form belongs to --quintuplet; add it, or leave --form out.")
        values["form"] = form
    return losses.configure(name, values)


def model_of(flag: str | None, section: dict[str, Any], image_shape: tuple[int, ...]) -> Any:
    """The model of --model, else of the [model] section, else one for such images; the flag's settings win.

    Raises BadInput for an unknown model or setting, or settings that refer to what is not there.
    """
    from trainer import models

    return models.resolved(models.configure(*_named(flag, section, models.fitting(image_shape))))


def _named(flag: str | None, section: dict[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    """(name, settings) of NAME:KEY=VALUE,... and of a section; one without a name is about what is asked for."""
    from trainer import registry

    values = dict(section)
    name = str(values.pop("name", default))
    if flag is not None:
        asked, given = registry.spoken(flag)
        values = {**(values if asked == name or "name" not in section else {}), **given}
        name = asked
    return name, values


def was_given(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
