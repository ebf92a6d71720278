"""`trainer encode`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from miner.artifacts.command import PLACE
from trainer.commands import (
    BACKBONES,
    DATA,
    FOLD,
    FOLDER,
    SPLIT,
    data_config,
    draft_at,
    open_checkpoint,
    open_split,
    say_once,
    suited,
    was_given,
)
from trainer.commands._progress import Progress

if TYPE_CHECKING:
    from miner.artifacts.place import Place

_OF_CHECKPOINT = ("shard_rows",)
_OF_BACKBONE = ("regions", "pool", "image_size", "batch_size", "dtype")


@click.command()
@DATA
@FOLD
@click.option("--checkpoint", type=PLACE, help="What `trainer fit` wrote: vectors for `miner mine`.")
@click.option(
    "--backbone",
    shell_complete=BACKBONES,
    metavar="NAME|FOLDER|MODULE:FUNCTION",
    help="Image features to train on, by efficientnet-lite0, a vision model of transformers (folder or hub name), or a "
    "function of yours that returns a torch module.",
)
@click.option("--split", type=SPLIT, help="One split alone. [default: train; with --backbone all there are]")
@click.option("--out", required=True, type=FOLDER, help="Folder to write to.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads; part of the result."
)
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    help="With --checkpoint: items per file. [default: 16384, of a cross-attention model 1024]",
)
@click.option(
    "--regions", type=click.IntRange(min=1), help="With --backbone: the last map in N x N parts, for regions."
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "cls", "map"]),
    help="With --backbone: the mean of the last map, its class token, or every place of it. [default: mean]",
)
@click.option("--image-size", type=click.IntRange(min=1), help="With --backbone: pixels a side. [default: the model's]")
@click.option("--batch-size", type=click.IntRange(min=1), help="With --backbone: pictures at once. [default: 64]")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="With --backbone. [default: float32]")
def encode(
    data: str,
    fold: int,
    checkpoint: Place | None,
    backbone: str | None,
    split: str | None,
    out: Path,
    threads: int,
    shard_rows: int | None,
    image_size: int | None,
    **settings: Any,
) -> None:
    """Write a model's vectors of every image and text for `miner mine`, or features of pictures to train on.

    With --checkpoint, a folder that `miner mine` takes. With --backbone, a data set of precomputed features (format
    precomp: train_ims.npy, train_caps.txt, train_ids.txt and so on), which `--data` takes; the same command goes on
    after an interruption. Pictures are read at the size that the backbone wants, unless --data says image_size.

    \b
    Examples:
        trainer encode --data emoji --checkpoint runs/model0 --out runs/vectors
        trainer encode --data emoji --split test --checkpoint runs/model0 --out runs/test-vectors
        trainer encode --data photos/ --backbone efficientnet-lite0 --regions 3 --out features/
        trainer fit --data features/ --model vse_inf --out runs/vse_inf
    """
    if (checkpoint is None) == (backbone is None):
        raise click.UsageError("give one of --checkpoint (vectors to mine) and --backbone (features to train on).")
    for name in _OF_BACKBONE if checkpoint is not None else _OF_CHECKPOINT:
        if was_given(name):
            other = "--backbone" if checkpoint is not None else "--checkpoint"
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to {other}; leave it out.")
    if settings["regions"] is not None and settings["pool"] is not None:
        raise click.UsageError("--regions averages parts of the map; leave --pool out.")
    if checkpoint is not None:
        _vectors(data, fold, checkpoint, split or "train", out, shard_rows, threads)
    elif backbone is not None:
        given = {key: value for key, value in settings.items() if value is not None}
        _features(data, fold, backbone, split, out, image_size, {**given, "threads": threads})


def _vectors(
    data: str, fold: int, checkpoint: Place, split: str, out: Path, shard_rows: int | None, threads: int
) -> None:
    import torch

    from miner.artifacts.embeddings import EMBEDDINGS, shard_ranges
    from miner.artifacts.lock import hold
    from miner.artifacts.pairs import Side
    from trainer.encode import BATCH_SIZE, check_pairs, default_device, write_pairs
    from trainer.models import PairScorer
    from trainer.shards import commit_shards, encode_shards

    artifact, found, dataset = open_checkpoint(checkpoint, data, fold, split)
    device = default_device()
    model = found.model(device)
    # A cross-attention model's regions and words, for `trainer rescore`.
    elements = "float16" if isinstance(model, PairScorer) else None
    shard_rows = shard_rows or (1024 if elements else 16384)
    click.get_current_context().with_resource(hold(out))
    check_pairs(out / "pairs.csv", dataset.pairs)
    meta = {"pairs": dataset.pairs.fingerprint, "checkpoint": artifact.manifest.fingerprint}
    for side in get_args(Side):
        ids = dataset.pairs.ids(side)
        inputs = {
            **meta,
            "data": [dataset.name, fold, split, dataset.fingerprint],
            "side": side,
            "elements": elements,
            "shard_rows": shard_rows,
            "threads": threads,
            "batch_size": BATCH_SIZE,
            "torch": torch.__version__,
        }
        draft = draft_at(out, side, EMBEDDINGS, inputs)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"{side}s: already done, {out / side}")
            continue
        ranges = shard_ranges(len(ids), shard_rows)
        told = partial(Progress(f"{side}s"), dataset.split)
        shards = encode_shards(draft, ranges, model, dataset, side, elements=elements, threads=threads, progress=told)
        commit_shards(draft, shards, ids, side, meta, elements=elements is not None)
        click.echo(f"{side}s: {len(ids)} vectors of dim {model.dim}, encoded on the {device.type}, {out / side}")
    write_pairs(out / "pairs.csv", dataset.pairs)


def _features(
    data: str,
    fold: int,
    name: str,
    split: str | None,
    out: Path,
    image_size: int | None,
    settings: dict[str, Any],
) -> None:
    from miner.artifacts.lock import hold
    from miner.artifacts.store import LocalStore
    from trainer.backbones import open_backbone
    from trainer.encode import default_device
    from trainer.extract import ExtractConfig, extract
    from trainer.registry import validated

    config = validated(ExtractConfig, settings, "trainer encode --backbone")
    of_data = data_config(data, fold)
    datasets = _splits(of_data, split)
    backbone = open_backbone(name, datasets[0].image_shape, image_size).to(default_device())
    better = suited(of_data, backbone.pixels.wanted, backbone.squeezes, "the backbone")
    if better != of_data:
        datasets = _splits(better, split)
    _say_enlarged(better, datasets, backbone.pixels.wanted)
    click.get_current_context().with_resource(hold(out))
    progress = Progress()
    extract(datasets, backbone, config, LocalStore(out), progress)
    for dataset in datasets:
        pairs = dataset.pairs
        click.echo(f"{dataset.split}: features of {pairs.num_images} images, {pairs.num_texts} captions")
    click.echo(f"features: {out}" if progress.began else f"already done: {out}")


def _splits(config: Any, split: str | None) -> list[Any]:
    """The split asked for, else every split there is, which train must be. Raises NoSplit for one that must be there
    and is not, BadInput for one that is wrong."""
    from trainer.data import NoSplit, Split

    if split is not None:
        return [open_split(config, split)]
    found = []
    for each in get_args(Split):
        try:
            found.append(open_split(config, each))
        except NoSplit as absent:
            if each == "train":
                raise
            say_once(f"warning: no features of the split {each}: {absent}")
    return found


def _say_enlarged(config: Any, datasets: list[Any], wanted: int) -> None:
    given = min(datasets[0].image_shape[:2])
    if given < wanted:
        has_setting = "image_size" in type(config).model_fields
        advice = f": set image_size={wanted} in --data" if has_setting else "; they are enlarged"
        click.echo(f"warning: the data gives {given} pixels, the backbone wants {wanted}{advice}", err=True)
