"""`trainer evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from trainer.commands import DATA, FOLD, FOLDER, SPLIT, draft_at, open_checkpoint


@click.command()
@DATA
@FOLD
@click.option("--checkpoint", required=True, type=FOLDER, help="What `trainer fit` wrote.")
@click.option("--split", type=SPLIT, default="test", show_default=True)
@click.option("--out", type=FOLDER, help="Folder to write metrics.json to. [default: print alone]")
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

    from miner.artifacts.manifest import canonical_json
    from miner.artifacts.pairs import Side
    from trainer.encode import default_device, encode_rows
    from trainer.evaluate import metrics

    artifact, found, dataset = open_checkpoint(checkpoint, data, fold, split)
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
        draft = draft_at(out, ".", "metrics", inputs)
        if draft.committed() is None:
            draft.commit({"metrics.json": draft.add("metrics.json", canonical_json(measured))}, {"metrics": measured})
        click.echo(f"  {out / 'metrics.json'}")
