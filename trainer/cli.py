"""The command `trainer`: fit, encode, evaluate. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from miner import __version__
from miner.artifacts.command import CommandGroup

if TYPE_CHECKING:
    from miner.artifacts.manifest import Draft
    from trainer.data import Dataset
    from trainer.fit import EpochLog

_FOLDER = click.Path(path_type=Path)
_DATA = click.option(
    "--data",
    required=True,
    metavar="emoji|FOLDER",
    help="The bundled emoji set, or a folder with images.npy and pairs.csv (image_id,text_id,text,split).",
)
_FOLD = click.option(
    "--fold", type=click.IntRange(0, 4), default=0, show_default=True, help="Which fifth of the emoji set is its test."
)
_SPLIT = click.Choice(["train", "dev", "test"])


@click.group(cls=CommandGroup)
@click.version_option(__version__, prog_name="quintain")
def main() -> None:
    """Train, encode and evaluate an image-text retrieval model on one machine.

    \b
    A round of hard-negative mining by hand:
        trainer fit      --data emoji --out runs/model0
        trainer encode   --data emoji --checkpoint runs/model0 --out runs/vectors
        miner   mine     runs/vectors --k 50 --out runs/negatives
        trainer fit      --data emoji --quintuplet --negatives runs/negatives --start runs/model0 --out runs/model1
        trainer evaluate --data emoji --checkpoint runs/model1

    `pipelines run` does all of this, for several rounds and on many machines.
    """
    # Threads that wait by spinning take the cores from whoever else is on the machine: measured, a step of 0.1 s took
    # 1.4 s beside another job. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@main.command()
@_DATA
@_FOLD
@click.option("--out", required=True, type=_FOLDER, help="Folder to write the checkpoint to.")
@click.option("--model", "model_name", help="Model. [default: cnn_gru for pictures, vsepp for vectors]")
@click.option("--quintuplet", is_flag=True, help="Train on offline negatives too (AOQ); needs --negatives.")
@click.option("--negatives", type=_FOLDER, help="What `miner mine` wrote for this data: i2t/ and t2i/.")
@click.option(
    "--form", type=click.Choice(["OffTri", "OffQuin", "AdapOffQuin"]), help="Form of AOQ. [default: AdapOffQuin]"
)
@click.option("--start", type=_FOLDER, help="Checkpoint to go on from. [default: fresh weights]")
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True, help="Epochs to add.")
@click.option("--batch-size", type=click.IntRange(min=2), default=128, show_default=True, help="Pairs per step.")
@click.option("--lr", type=float, default=2e-4, show_default=True, help="Learning rate of Adam.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads. [default: torch's choice]")
@click.option(
    "--settings", type=_FOLDER, help="TOML file with the sections [model], [loss], [fit]: every setting there is."
)
def fit(
    data: str,
    fold: int,
    out: Path,
    model_name: str | None,
    quintuplet: bool,
    negatives: Path | None,
    form: str | None,
    start: Path | None,
    settings: Path | None,
    **fit_flags: Any,
) -> None:
    """Train a model: max-violation triplet loss, or with --quintuplet the adaptive offline quintuplet (AOQ).

    \b
    Examples:
        trainer fit --data emoji --epochs 10 --lr 1e-3 --out runs/model0
        trainer fit --data emoji --quintuplet --form OffTri --negatives runs/negatives --out runs/offtri
        trainer fit --data flickr8k/ --settings vsepp.toml --out runs/vsepp

    The first epoch uses all negatives, later ones the hardest. After an interruption the same command goes on from
    the last finished epoch; when it has finished, it does nothing. A flag given here wins over the settings file.
    """
    import shutil

    import torch

    from miner.artifacts.errors import BadInput
    from miner.artifacts.lock import hold
    from trainer import losses, models, registry
    from trainer.checkpoint import CHECKPOINT, Checkpoint
    from trainer.fit import FitConfig
    from trainer.fit import fit as train
    from trainer.tables import open_tables

    if quintuplet and negatives is None:
        raise click.UsageError("--quintuplet needs --negatives: the folder `miner mine` wrote for this data.")
    for flag, value in (("--negatives", negatives), ("--form", form)):
        if value is not None and not quintuplet:
            raise click.UsageError(f"{flag} belongs to --quintuplet; add it, or leave {flag} out.")
    sections = _sections(settings)
    dataset = _dataset(data, fold, "train")
    default_model = "cnn_gru" if len(dataset.image_shape) == 3 else "vsepp"
    model_config = models.configure(model_name or default_model, sections["model"])
    given = {**sections["loss"], **({"form": form} if form else {})}
    loss_config = losses.configure("aoq" if quintuplet else "triplet", given)
    chosen = {key: value for key, value in fit_flags.items() if key not in sections["fit"] or _was_given(key)}
    fit_config = registry.validated(FitConfig, {**sections["fit"], **chosen}, "[fit]")
    tables = open_tables(negatives, dataset.pairs) if negatives is not None else None
    begin = Checkpoint.load(start) if start is not None else None
    if begin is not None and fit_config.total_epochs is not None and begin.epoch >= fit_config.total_epochs:
        raise BadInput(
            f"{start}: {begin.epoch} epochs are done, but fit.total_epochs is {fit_config.total_epochs}; raise it."
        )
    inputs = {
        "data": [dataset.name, fold, dataset.fingerprint],
        "model": [models.name_of(model_config), model_config.model_dump(mode="json")],
        "loss": [losses.name_of(loss_config), loss_config.model_dump(mode="json")],
        "fit": fit_config.model_dump(mode="json"),
        "tables": {direction: table.fingerprint for direction, table in tables.items()} if tables else None,
        "start": begin.fingerprint if begin else None,
        "torch": torch.__version__,
    }
    click.get_current_context().with_resource(hold(out))
    draft = _draft(out, ".", CHECKPOINT, inputs)
    done = draft.committed()
    if done is not None:
        done.verify()
        click.echo(f"already done: {out}")
        return
    pairs = dataset.pairs
    click.echo(f"{dataset.name} train: {pairs.num_images} images, {pairs.num_texts} texts, {pairs.num_pairs} pairs")
    scratch = out / ".epochs"
    checkpoint = train(
        dataset,
        model_config,
        loss_config,
        fit_config,
        tables=tables,
        start=begin,
        first_epoch=begin.epoch if begin else 0,
        scratch=scratch,
        progress=_say_epoch,
    )
    checkpoint.commit(draft)
    shutil.rmtree(scratch, ignore_errors=True)
    click.echo(f"checkpoint: {out}")


@main.command()
@_DATA
@_FOLD
@click.option("--checkpoint", required=True, type=_FOLDER, help="What `trainer fit` wrote.")
@click.option("--split", type=_SPLIT, default="train", show_default=True)
@click.option("--out", required=True, type=_FOLDER, help="Folder to write image/, text/ and pairs.csv to.")
@click.option("--shard-rows", type=click.IntRange(min=1), default=16384, show_default=True, help="Vectors per file.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads; part of the result."
)
def encode(data: str, fold: int, checkpoint: Path, split: str, out: Path, shard_rows: int, threads: int) -> None:
    """Write a model's vectors of every image and every text: a folder that `miner mine` takes.

    \b
    Examples:
        trainer encode --data emoji --checkpoint runs/model0 --out runs/vectors
        trainer encode --data emoji --split test --checkpoint runs/model0 --out runs/test-vectors
    """
    import numpy as np
    import torch

    from miner.artifacts.embeddings import EMBEDDINGS, commit_embeddings, npy_bytes, part_name, shard_ranges
    from miner.artifacts.lock import hold
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.pairs import Side
    from trainer.checkpoint import CHECKPOINT, Checkpoint
    from trainer.encode import BATCH_SIZE, check_pairs, default_device, encode_rows, write_pairs

    artifact = open_artifact(checkpoint, CHECKPOINT)
    found = Checkpoint.open(artifact)
    dataset = _dataset(data, fold, split)
    _check_fits(found, dataset)
    model = found.model(default_device())
    click.get_current_context().with_resource(hold(out))
    check_pairs(out / "pairs.csv", dataset.pairs)
    meta = {"pairs": dataset.pairs.fingerprint, "checkpoint": artifact.manifest.fingerprint}
    for side in get_args(Side):
        ids = dataset.pairs.ids(side)
        inputs = {
            **meta,
            "data": [dataset.name, fold, split, dataset.fingerprint],
            "side": side,
            "shard_rows": shard_rows,
            "threads": threads,
            "batch_size": BATCH_SIZE,
            "torch": torch.__version__,
        }
        draft = _draft(out, side, EMBEDDINGS, inputs)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"{side}s: already done, {out / side}")
            continue
        parts = []
        for index, (start, stop) in enumerate(shard_ranges(len(ids), shard_rows)):
            record = draft.find_part(part_name(index))
            if record is None:
                vectors = encode_rows(model, dataset, side, np.arange(start, stop), threads=threads)
                record = draft.add_part(part_name(index), npy_bytes(vectors), stop - start)
            parts.append(record)
        commit_embeddings(draft, side, ids, parts, model.dim, meta)
        click.echo(f"{side}s: {len(ids)} vectors of dim {model.dim}, {out / side}")
    write_pairs(out / "pairs.csv", dataset.pairs)


@main.command()
@_DATA
@_FOLD
@click.option("--checkpoint", required=True, type=_FOLDER, help="What `trainer fit` wrote.")
@click.option("--split", type=_SPLIT, default="test", show_default=True)
@click.option("--out", type=_FOLDER, help="Folder to write metrics.json to. [default: print alone]")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads; part of the result."
)
def evaluate(data: str, fold: int, checkpoint: Path, split: str, out: Path | None, threads: int) -> None:
    """Rank all texts for every image and all images for every text: R@1/5/10, rsum, median and mean rank.

    \b
    Examples:
        trainer evaluate --data emoji --checkpoint runs/model1
        trainer evaluate --data emoji --split dev --checkpoint runs/model1 --out runs/dev

    An anchor's rank is that of its best positive; a tie counts against the model.
    """
    import numpy as np
    import torch

    from miner.artifacts.manifest import canonical_json, open_artifact
    from miner.artifacts.pairs import Side
    from trainer.checkpoint import CHECKPOINT, Checkpoint
    from trainer.encode import default_device, encode_rows
    from trainer.evaluate import metrics

    artifact = open_artifact(checkpoint, CHECKPOINT)
    found = Checkpoint.open(artifact)
    dataset = _dataset(data, fold, split)
    _check_fits(found, dataset)
    pairs, model = dataset.pairs, found.model(default_device())
    images, texts = (
        encode_rows(model, dataset, side, np.arange(len(pairs.ids(side))), threads=threads) for side in get_args(Side)
    )
    measured = metrics(images, texts, pairs)
    click.echo(f"{dataset.name} {split}: {pairs.num_images} images, {pairs.num_texts} texts")
    for direction, what in (("i2t", "image to text"), ("t2i", "text to image")):
        recalls = "  ".join(f"R@{cutoff} {measured[f'{direction}_r{cutoff}']:5.1f}" for cutoff in (1, 5, 10))
        median, mean = measured[f"{direction}_median_rank"], measured[f"{direction}_mean_rank"]
        click.echo(f"  {what}  {recalls}  median rank {median:g}  mean rank {mean:.1f}")
    click.echo(f"  rsum {measured['rsum']:.1f}")
    if out is not None:
        inputs = {
            "pairs": pairs.fingerprint,
            "checkpoint": artifact.manifest.fingerprint,
            "data": [dataset.name, fold, split, dataset.fingerprint],
            "threads": threads,
            "torch": torch.__version__,
        }
        draft = _draft(out, ".", "metrics", inputs)
        if draft.committed() is None:
            draft.commit({"metrics.json": draft.add("metrics.json", canonical_json(measured))}, {"metrics": measured})
        click.echo(f"  {out / 'metrics.json'}")


def _draft(out: Path, prefix: str, kind: str, inputs: dict[str, Any]) -> Draft:
    from miner.artifacts.manifest import Draft
    from miner.artifacts.store import LocalStore

    return Draft(LocalStore(out), prefix, kind, inputs)


def _dataset(data: str, fold: int, split: Any) -> Dataset:
    from miner.artifacts.errors import BadInput
    from trainer.data import configure, load

    if data == "emoji":
        return load(configure("emoji", {"fold": fold}), split)
    if fold:
        raise BadInput(f"--fold {fold} belongs to the emoji set; a folder's own split column says what its test is.")
    return load(configure("vectors", {"folder": Path(data)}), split)


def _check_fits(checkpoint: Any, dataset: Dataset) -> None:
    from miner.artifacts.errors import BadInput

    if checkpoint.image_shape != dataset.image_shape:
        raise BadInput(
            f"the checkpoint takes images of shape {checkpoint.image_shape}, but those of {dataset.name} are "
            f"{dataset.image_shape}; give the data it was trained on."
        )


def _sections(path: Path | None) -> dict[str, dict[str, Any]]:
    """[model], [loss] and [fit] of a settings file; empty without one."""
    import tomllib

    from miner.artifacts.errors import BadInput

    found: dict[str, dict[str, Any]] = {"model": {}, "loss": {}, "fit": {}}
    if path is None:
        return found
    try:
        given = tomllib.loads(path.read_text(encoding="utf8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}.") from error
    for name, section in given.items():
        if name not in found or not isinstance(section, dict):
            raise BadInput(f"{path}: {name!r} is not a section; the sections are [model], [loss] and [fit].")
        found[name] = section
    return found


def _was_given(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _say_epoch(log: EpochLog) -> None:
    if log.resumed:
        click.echo(f"epoch {log.epoch:3d}  done before")
        return
    offline = f"  offline {log.offline_hardness:+.3f}" if log.offline_hardness is not None else ""
    click.echo(
        f"epoch {log.epoch:3d}  loss {log.loss:9.3f}  hardness {log.hardness:+.3f}{offline}  "
        f"negative above positive {log.wrong_share:4.0%}  {log.seconds:.1f} s  {log.pairs_per_second:.0f} pairs/s  "
        f"{log.device}{'  (all negatives)' if log.warm_up else ''}"
    )
    if log.warning:
        click.echo(f"warning: {log.warning}", err=True)


if __name__ == "__main__":
    main()
