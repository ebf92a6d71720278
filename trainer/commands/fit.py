"""`trainer fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import PLACE
from trainer.commands import (
    DATA,
    FOLD,
    FOLDER,
    LOSSES,
    MODELS,
    draft_at,
    loss_of,
    model_of,
    open_dataset,
    sections_of,
    was_given,
)

if TYPE_CHECKING:
    from miner.artifacts.place import Place
    from trainer.training import EpochLog

__all__ = ["fit", "say_epoch"]


@click.command()
@DATA
@FOLD
@click.option("--out", required=True, type=FOLDER, help="Folder to write the checkpoint to.")
@click.option(
    "--model",
    metavar="NAME[:KEY=VALUE,...]",
    shell_complete=MODELS,
    help="Model; see below. [default: cnn_gru for pictures, vse_inf for regions, vsepp for vectors]",
)
@click.option(
    "--loss", metavar="NAME[:KEY=VALUE,...]", shell_complete=LOSSES, help="Objective; see below. [default: triplet]"
)
@click.option("--quintuplet", is_flag=True, help="Train on offline negatives too (AOQ); needs --negatives.")
@click.option("--negatives", type=PLACE, help="What `miner mine` wrote for this data: i2t/ and t2i/.")
@click.option(
    "--form", type=click.Choice(["OffTri", "OffQuin", "AdapOffQuin"]), help="Form of AOQ. [default: AdapOffQuin]"
)
@click.option(
    "--start",
    type=PLACE,
    help="Checkpoint to go on from, and its model unless --model says another. [default: fresh weights]",
)
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True, help="Epochs to add.")
@click.option("--batch-size", type=click.IntRange(min=2), default=128, show_default=True, help="Pairs per step.")
@click.option(
    "--neighbourhood",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="PAIRS",
    help="With --negatives: compose batches of so many pairs that bring each other's negatives (3: a quintuplet), so "
    "that no more is encoded than without any. 1: batches at random, negatives encoded in addition.",
)
@click.option(
    "--chunk-size",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="ITEMS",
    help="Encode so many images or texts at a time and a second time in the backward pass: the same gradients, in the "
    "memory of a chunk. 0: a batch at once.",
)
@click.option("--lr", type=float, default=2e-4, show_default=True, help="Learning rate of Adam.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads. [default: torch's choice]")
@click.option(
    "--settings", type=FOLDER, help="TOML file with the sections [model], [loss], [fit]: every setting there is."
)
def fit(
    data: str,
    fold: int,
    out: Path,
    model: str | None,
    loss: str | None,
    quintuplet: bool,
    negatives: Place | None,
    form: str | None,
    start: Place | None,
    settings: Path | None,
    **fit_flags: Any,
) -> None:
    """Train a model: max-violation triplet loss, any other objective, or with --quintuplet the adaptive offline
    quintuplet (AOQ).

    \b
    Examples:
        trainer fit --data emoji --epochs 10 --lr 1e-3 --out runs/model0
        trainer fit --data emoji --quintuplet --form OffTri --negatives runs/negatives --out runs/offtri
        trainer fit --data emoji --quintuplet --neighbourhood 3 --negatives runs/negatives --out runs/close
        trainer fit --data emoji --loss goal:triplet=nca,pair=lin --out runs/goal
        trainer fit --data emoji --loss ntxent:tau=0.05,offline=softmax --negatives runs/negatives --out runs/ntxent
        trainer fit --data flickr8k/ --model vsrn:dim=1024,caption_loss=1 --out runs/vsrn
        trainer fit --data coco/ --model clip:path=/models/clip-vit-base,tuning=lora --lr 1e-5 --out runs/clip
        trainer fit --data flickr8k/ --settings vsepp.toml --out runs/vsepp
        trainer fit --data coco/ --batch-size 4096 --chunk-size 128 --out runs/large
        torchrun --standalone --nproc-per-node 4 --no-python trainer fit --data coco/ --out runs/four

    \b
    Objectives, each with its settings in the file that documents it, trainer/losses/NAME.py:
        triplet (max_violation=false: all negatives), aoq, ntxent, smoothap, sct, selhn,
        goal (triplet=con|nca|cir|hinge, pair=con|lin|sig|lin_ms|sig_ms|sig_ms_bounded).
    All in-batch ones take offline=OffTri or OffQuin: AOQ's offline hinges on top; ntxent also offline=softmax, goal
    also offline=goal.

    
    Models, each with its settings in trainer/models/NAME.py:
        vsepp, vsrn, vse_inf (also text=bert,bert={path="FOLDER"}), scan, bfan: precomputed vectors or regions;
        clip: pictures, any dual encoder of transformers; cnn_gru: small pictures; custom: factory=module:function.

    Processes that torchrun starts share out the encoding of every batch of --batch-size pairs, and all of them compare
    it whole: the model is that of one process, to rounding. They need see the same --data; --out is the first one's.

    The first epochs use all negatives, until the model can bear the hardest ones. After an interruption the same
    command goes on from the last finished epoch; when it has finished, it does nothing. A flag given here wins over
    the settings file.
    """
    import shutil

    from miner.artifacts.errors import BadInput
    from miner.artifacts.lock import hold
    from miner.artifacts.pace import span
    from trainer import losses, registry
    from trainer.checkpoint import CHECKPOINT, Checkpoint
    from trainer.processes import joined
    from trainer.tables import open_tables
    from trainer.trained import inputs_of
    from trainer.training import FitConfig
    from trainer.training import fit as train

    if quintuplet and loss:
        raise click.UsageError("--quintuplet is --loss aoq; give one of the two.")
    sections = sections_of(settings)
    loss_config = loss_of("aoq" if quintuplet else loss, sections["loss"], form)
    if loss_config.needs_tables and negatives is None:
        asked = "--quintuplet" if quintuplet else f"the loss {losses.name_of(loss_config)}"
        raise click.UsageError(f"{asked} needs --negatives: the folder `miner mine` wrote for this data.")
    if negatives is not None and not loss_config.needs_tables:
        raise click.UsageError(
            "--negatives belongs to --quintuplet, or to a loss with offline=...; add one, or leave --negatives out."
        )
    dataset = open_dataset(data, fold, "train")
    chosen = {key: value for key, value in fit_flags.items() if key not in sections["fit"] or was_given(key)}
    fit_config = registry.validated(FitConfig, {**sections["fit"], **chosen}, "[fit]")
    context = click.get_current_context()
    processes = context.with_resource(joined())
    if "processes" not in sections["fit"]:
        fit_config = fit_config.model_copy(update={"processes": processes.size})
    tables = open_tables(negatives, dataset.pairs) if negatives is not None else None
    begin = Checkpoint.load(start) if start is not None else None
    if begin is not None and model is None and not sections["model"]:
        model_config = begin.model_config
    else:
        model_config = model_of(model, sections["model"], dataset.image_shape)
    if getattr(model_config, "pixels", None) is not None:
        dataset = open_dataset(data, fold, "train", model=model_config, checkpoint=begin)
    if begin is not None and fit_config.total_epochs is not None and begin.epoch >= fit_config.total_epochs:
        raise BadInput(
            f"{start}: {begin.epoch} epochs are done, but fit.total_epochs is {fit_config.total_epochs}; raise it."
        )
    inputs = inputs_of(dataset, fold, model_config, loss_config, fit_config, tables, begin)
    if processes.first:
        context.with_resource(hold(out))
        draft = draft_at(out, ".", CHECKPOINT, inputs)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"already done: {out}")
    if processes.said_by_first(done is not None if processes.first else False):
        return
    if processes.first:
        pairs = dataset.pairs
        click.echo(f"{dataset.name} train: {pairs.num_images} images, {pairs.num_texts} texts, {pairs.num_pairs} pairs")
    scratch, history = out / ".epochs", []

    def told(log: EpochLog) -> None:
        history.append(log.history())
        say_epoch(log)
        left = fit_config.epochs - len(history)
        if left and not log.resumed:
            click.echo(f"           {left} epochs left, about {span(left * log.seconds)}", err=True)

    checkpoint = train(
        dataset,
        model_config,
        loss_config,
        fit_config,
        tables=tables,
        start=begin,
        first_epoch=begin.epoch if begin else 0,
        scratch=scratch,
        progress=told,
    )
    if not processes.first:
        return
    checkpoint.commit(draft, history)
    shutil.rmtree(scratch, ignore_errors=True)
    click.echo(f"checkpoint: {out}")


def say_epoch(log: EpochLog) -> None:
    """One line of what an epoch gave."""
    if log.resumed:
        click.echo(f"epoch {log.epoch:3d}  done before")
        return
    offline = f"  offline {log.offline_hardness:+.3f}" if log.offline_hardness is not None else ""
    # The value of a loss that is given by its gradient means nothing; its figures do.
    told = "  ".join(f"{name} {value:.3f}" for name, value in log.figures.items()) or f"loss {log.loss:9.3f}"
    click.echo(
        f"epoch {log.epoch:3d}  {told}  hardness {log.hardness:+.3f}{offline}  "
        f"negative above positive {log.wrong_share:4.0%}  {log.seconds:.1f} s  {log.pairs_per_second:.0f} pairs/s  "
        f"{log.device}{'  (all negatives)' if log.warm_up else ''}"
    )
    if log.warning:
        click.echo(f"warning: {log.warning}", err=True)
