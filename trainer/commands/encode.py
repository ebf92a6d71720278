"""`trainer encode`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from trainer.commands import DATA, FOLD, FOLDER, SPLIT, draft_at, open_checkpoint


@click.command()
@DATA
@FOLD
@click.option("--checkpoint", required=True, type=FOLDER, help="What `trainer fit` wrote.")
@click.option("--split", type=SPLIT, default="train", show_default=True)
@click.option("--out", required=True, type=FOLDER, help="Folder to write image/, text/ and pairs.csv to.")
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
    from miner.artifacts.pairs import Side
    from trainer.encode import BATCH_SIZE, check_pairs, default_device, encode_rows, write_pairs

    artifact, found, dataset = open_checkpoint(checkpoint, data, fold, split)
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
        draft = draft_at(out, side, EMBEDDINGS, inputs)
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
