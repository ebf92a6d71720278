"""`trainer evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import PLACE
from trainer.commands import (
    DATA,
    FOLD,
    FOLDER,
    JUDGEMENTS,
    SPLIT,
    check_fits,
    draft_at,
    open_dataset,
    say_once,
    was_given,
)
from trainer.commands._progress import Progress

if TYPE_CHECKING:
    from miner.artifacts.pairs import Pairs
    from miner.artifacts.place import Place
    from trainer.judgements import Judgements


@click.command()
@DATA
@FOLD
@click.option(
    "--checkpoint",
    "checkpoints",
    required=True,
    multiple=True,
    type=PLACE,
    help="What `trainer fit` wrote; repeat it for an ensemble: the mean of the models' scores.",
)
@click.option("--split", type=SPLIT, default="test", show_default=True)
@click.option(
    "--protocol",
    type=click.Choice(["full", "folds"]),
    default="full",
    show_default=True,
    help="Rank the whole gallery, or take the mean over folds of consecutive images (the 1K test of COCO).",
)
@click.option(
    "--fold-images", type=click.IntRange(min=1), default=1000, show_default=True, help="Images per fold of --protocol."
)
@click.option(
    "--positives",
    shell_complete=JUDGEMENTS,
    metavar="NAME[:PATH][,KEY=VALUE...]",
    help="Judged positives beyond the data's own, for mAP@R and R-precision; see below.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, and nothing else.")
@click.option("--latex", "as_latex", is_flag=True, help="Print one row of a LaTeX table, and nothing else.")
@click.option("--name", help="What the LaTeX row calls the model. [default: the checkpoint's folder]")
@click.option("--out", type=FOLDER, help="Folder to write metrics.json to. [default: print alone]")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads; part of the result."
)
def evaluate(
    data: str,
    fold: int,
    checkpoints: tuple[Place, ...],
    split: str,
    protocol: str,
    fold_images: int,
    positives: str | None,
    as_json: bool,
    as_latex: bool,
    name: str | None,
    out: Path | None,
    threads: int,
) -> None:
    """Rank all texts for every image and all images for every text: R@1/5/10, rsum, median and mean rank.

    \b
    Examples:
        trainer evaluate --data emoji --checkpoint runs/model1
        trainer evaluate --data emoji --split dev --checkpoint runs/model1 --out runs/dev
        trainer evaluate --data emoji --checkpoint s3://bucket/runs/nightly/best
        trainer evaluate --data precomp:folder=coco,test=testall --checkpoint runs/a --checkpoint runs/b \\
            --protocol folds
        trainer evaluate --data precomp:folder=coco,test=testall --checkpoint runs/a \\
            --positives eccv:order=testall --latex --name VSE++ >> table.tex

    Of the files published for COCO, testall are its 5,000 test images and test the first 1,000 of them.
    An anchor's rank is that of its best positive; a tie counts against the model.

    \b
    Where --positives come from, each with its settings in the file that documents it, trainer/judgements/NAME.py:
        eccv                   ECCV Caption, of the COCO test; labels=cxc, order=testall
        cxc:sits_test.csv      Crisscrossed Captions, of COCO; min_score=3, order=testall
        flickr8k:FOLDER        human judgements of the Flickr8k test; min_expert=3, min_crowd=0.66
        pairs:FILE             image_id,text_id[,score]; min_score, judged_images=FILE, judged_texts=FILE
    order=testall is for data whose ids are not COCO's, but whose rows are those of testall_caps.txt.
    mAP@R, R-precision and R@1/5/10 then count them too, over the queries that were judged.

    --json and metrics.json hold what was measured, {"of": {...}, "metrics": {...}}.

    \b
    A LaTeX row: name & R@1 & R@5 & R@10 (image to text) & R@1 & R@5 & R@10 (text to image) & rsum \\\\
    and with --positives, for each direction: & mAP@R & R-precision & R@1 & R@5 & R@10
    """
    import torch

    from miner.artifacts.errors import BadInput
    from miner.artifacts.lock import hold
    from miner.artifacts.manifest import canonical_json, open_artifact
    from trainer import models
    from trainer.checkpoint import CHECKPOINT, Checkpoint
    from trainer.encode import default_device
    from trainer.evaluate import Mean, scores_of
    from trainer.metrics_table import latex_row
    from trainer.protocols import folds, measure

    if as_json and as_latex:
        raise click.UsageError("--json and --latex print different things; give one of the two.")
    if name is not None and not as_latex:
        raise click.UsageError("--name belongs to --latex; add it, or leave --name out.")
    if protocol == "full" and was_given("fold_images"):
        raise click.UsageError("--fold-images belongs to --protocol folds; add it, or leave --fold-images out.")
    artifacts = [open_artifact(place, CHECKPOINT) for place in checkpoints]
    if len({artifact.manifest.fingerprint for artifact in artifacts}) < len(artifacts):
        raise BadInput("--checkpoint: the same model twice; an ensemble of it is the model itself: give each one once.")
    opened = [Checkpoint.open(artifact) for artifact in artifacts]
    dataset = open_dataset(data, fold, split, checkpoint=opened[0])
    pairs = dataset.pairs
    # Whatever is wrong with what was asked is said before anything is encoded.
    for checkpoint in opened:
        check_fits(checkpoint, dataset)
    size = fold_images if protocol == "folds" else None
    num_folds = len(folds(pairs, size)) if size is not None else 0
    judgements = _judgements(positives, pairs) if positives is not None else None
    for note in judgements.notes if judgements is not None else ():
        say_once(f"note: {note}")
    of: dict[str, Any] = {
        "data": {"name": dataset.name, "split": split, "images": pairs.num_images, "texts": pairs.num_texts},
        "protocol": {"name": protocol, "fold_images": size, "folds": num_folds or None},
        "positives": _said_of(judgements, pairs) if judgements is not None else None,
        "models": [
            {"name": models.name_of(checkpoint.model_config), "checkpoint": artifact.manifest.fingerprint}
            for checkpoint, artifact in zip(opened, artifacts, strict=True)
        ],
    }
    draft = done = None
    if out is not None:
        click.get_current_context().with_resource(hold(out))
        inputs = {
            "of": of,
            "pairs": pairs.fingerprint,
            "data": [dataset.name, fold, split, dataset.fingerprint],
            "positives": judgements.fingerprint if judgements is not None else None,
            "threads": threads,
            "torch": torch.__version__,
        }
        draft = draft_at(out, ".", "metrics", inputs)
        done = draft.committed()
    if done is not None:
        measured = json.loads(done.read("metrics.json"))["metrics"]
    else:
        device = default_device()
        each = (scores_of(model.model(device), dataset, threads, _progress(split)) for model in opened)
        scores = Mean(list(each))
        measured = measure(scores, pairs, judgements, size)
    found = {"of": of, "metrics": measured}
    written = canonical_json(found)

    if as_json:
        click.echo(written.decode(), nl=False)
    elif as_latex:
        click.echo(latex_row(name or " + ".join(place.last for place in checkpoints), measured))
    else:
        what = f", mean over {num_folds} folds of {size} images" if num_folds else ""
        what += f", ensemble of {len(opened)} models" if len(opened) > 1 else ""
        click.echo(f"{dataset.name} {split}: {pairs.num_images} images, {pairs.num_texts} texts{what}")
        _show(measured, pairs, positives, judgements)
    if draft is not None and out is not None:
        # Printed first: a disk that is full by now does not cost the figures.
        if done is None:
            draft.commit({"metrics.json": draft.add("metrics.json", written)}, found)
        click.echo(f"  {out / 'metrics.json'}", err=as_json or as_latex)


def _progress(split: str) -> Callable[[str, int, int], None]:
    """Of one model: a line now and then for every kind of work."""
    told: dict[str, Progress] = {}

    def progress(what: str, done: int, total: int) -> None:
        told.setdefault(what, Progress(what, only_long=True))(split, done, total)

    return progress


def _said_of(judgements: Judgements, pairs: Pairs) -> dict[str, Any]:
    """Whose positives, how many more and fewer than those of the data, and how many queries were judged."""
    added, refuted = judgements.changes(pairs)
    images, texts = (len(judgements.positives(side)[0]) for side in ("image", "text"))
    return {"name": judgements.name, "added": added, "refuted": refuted, "images": images, "texts": texts}


def _judgements(positives: str, pairs: Pairs) -> Judgements:
    from trainer import judgements

    name, settings = judgements.spoken(positives)
    return judgements.read(judgements.configure(name, settings), pairs)


def _show(measured: dict[str, float], pairs: Pairs, positives: str | None, judgements: Judgements | None) -> None:
    from trainer.metrics_table import extended_lines, lines

    shown = lines(measured)
    if judgements is not None:
        said = _said_of(judgements, pairs)
        shown.append(
            f"{positives}: {said['added']} more positives, {said['refuted']} fewer; {said['images']} images, "
            f"{said['texts']} texts judged"
        )
        shown += extended_lines(measured)
    click.echo("\n".join(f"  {line}" for line in shown))
