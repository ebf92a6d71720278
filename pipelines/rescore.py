"""`trainer rescore`: what `miner mine` found with pooled vectors, ranked by a cross-attention model's own score.

It needs the miner, so it lives here and is lent to the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from miner.artifacts.command import PLACE
from trainer.commands import DATA, FOLD, FOLDER, draft_at, open_checkpoint

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeBlock, NegativeTable
    from miner.artifacts.pairs import Pairs
    from miner.artifacts.place import Place
    from miner.rescore import Score, ScoreTable

__all__ = ["rescore"]

_ANCHORS = 256  # ranked between two ticks of the progress bar


@click.command()
@DATA
@FOLD
@click.option("--checkpoint", required=True, type=PLACE, help="The cross-attention model: what `trainer fit` wrote.")
@click.option("--vectors", required=True, type=PLACE, help="What `trainer encode` wrote with it: image/ and text/.")
@click.option("--candidates", required=True, type=PLACE, help="What `miner mine` found with these vectors.")
@click.option("--k", required=True, type=click.IntRange(min=1), help="Negatives to keep per anchor.")
@click.option(
    "--recall-sample", type=click.IntRange(min=1), default=100, show_default=True, help="Anchors to score all."
)
@click.option("--out", required=True, type=FOLDER, help="Folder to write i2t/ and t2i/ to.")
def rescore(
    data: str, fold: int, checkpoint: Place, vectors: Place, candidates: Place, k: int, recall_sample: int, out: Path
) -> None:
    """Rank mined candidates by the model's own score and keep the k hardest: the second stage for scan and bfan.

    \b
    Examples:
        trainer encode --data flickr8k/ --checkpoint runs/scan0 --out runs/vectors
        miner mine runs/vectors --k 400 --out runs/candidates
        trainer rescore --data flickr8k/ --checkpoint runs/scan0 --vectors runs/vectors \\
            --candidates runs/candidates --k 100 --out runs/negatives
        trainer fit --data flickr8k/ --quintuplet --negatives runs/negatives --start runs/scan0 --out runs/scan1

    An index finds candidates by pooled vectors, and what it misses no second stage brings back. So --recall-sample
    anchors are scored with everything, and the share of their truly hardest that were candidates is printed and
    stored with the table. `pipelines run` does all of this by itself.
    """
    from miner.artifacts.elements import ElementLists
    from miner.artifacts.embeddings import EMBEDDINGS
    from miner.artifacts.errors import BadInput
    from miner.artifacts.lock import hold
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.negatives import NEGATIVES, write_negatives
    from miner.artifacts.pairs import Direction, Side, sides
    from trainer import models
    from trainer.encode import default_device, quiet
    from trainer.rescoring import Scorer
    from trainer.tables import open_tables

    artifact, found, dataset = open_checkpoint(checkpoint, data, fold, "train")
    model = found.model(default_device())
    if not isinstance(model, models.PairScorer):
        raise BadInput(
            f"{checkpoint}: {models.name_of(found.model_config)} scores by dot products, which `miner mine` has ranked "
            "already; only a cross-attention model (scan, bfan) needs a second stage."
        )
    pairs, made_by = dataset.pairs, artifact.manifest.fingerprint
    encoded = {side: open_artifact(vectors / side, EMBEDDINGS) for side in get_args(Side)}
    for side, embeddings in encoded.items():
        if embeddings.manifest.meta.get("checkpoint") != made_by:
            raise BadInput(f"{vectors / side}: encoded by another model than {checkpoint}; encode with this one.")
        if embeddings.manifest.meta.get("pairs") != pairs.fingerprint:
            raise BadInput(f"{vectors / side}: encoded from other data than {dataset.name}; encode this.")
    images, texts = (ElementLists.open(encoded[side]) for side in get_args(Side))
    tables = open_tables(candidates, pairs)
    click.get_current_context().with_resource(hold(out))
    for direction in get_args(Direction):
        table = tables[direction]
        if k > table.k:
            raise BadInput(
                f"--k {k}: {candidates / direction} holds {table.k} candidates per anchor; mine several times k."
            )
        inputs = {
            "candidates": table.fingerprint,
            "elements": {side: embeddings.manifest.fingerprint for side, embeddings in encoded.items()},
            "checkpoint": made_by,
            "k": k,
            "recall_sample": recall_sample,
        }
        draft = draft_at(out, direction, NEGATIVES, inputs)
        done = draft.committed()
        if done is not None:
            done.verify()
            click.echo(f"{direction}: already done, {out / direction}")
            continue
        order = pairs.order(sides(direction)[0])
        score = Scorer(model, images, texts, direction)
        click.echo(f"{direction}: scoring {min(recall_sample, len(order))} anchors with everything", err=True)
        with quiet(model, threads=1):
            measured = _measured(table, score.table, pairs, order, k, recall_sample)
            with click.progressbar(length=len(order), label=direction, show_pos=True) as bar:
                blocks = _ranked(table, score, pairs, order, k, bar)
                about = {
                    "round": None,
                    "metric": models.name_of(found.model_config),
                    "index": table.provenance["index"],
                    "checkpoint": made_by,
                    "num_candidates": table.k,
                    "stage_one": measured,
                }
                written = write_negatives(draft, blocks, pairs, direction, k, about)
        recall = ", ".join(f"{share:.3f} of the {n} hardest" for n, share in measured["recall"].items())
        click.echo(f"{direction}: {written.manifest.meta['negatives']} negatives, {out / direction}")
        click.echo(f"  candidates held {recall} ({measured['anchors']} anchors scored with everything)")
        if measured["recall"][str(k)] < 0.9:
            click.echo(f"  note: that is low; mine more candidates than {table.k} (`miner mine --k`).")


def _block(table: NegativeTable, rows: Any) -> NegativeBlock:
    from miner.artifacts.negatives import NegativeBlock

    return NegativeBlock(rows, table.negatives[rows], table.scores[rows], table.lowest_positive[rows])


def _measured(table: NegativeTable, score: ScoreTable, pairs: Pairs, order: Any, k: int, sample: int) -> dict[str, Any]:
    """{"anchors", "recall": {...}} over anchors drawn evenly."""
    import numpy as np

    from miner.rescore import recall

    size = min(sample, len(order))
    drawn = np.sort(np.random.default_rng(0).choice(len(order), size, replace=False))
    found = recall(_block(table, order[drawn]), score, pairs, table.direction, k, depths=(1, 10))
    return {"anchors": size, "recall": found}


def _ranked(table: NegativeTable, score: Score, pairs: Pairs, order: Any, k: int, bar: Any) -> Iterator[NegativeBlock]:
    from miner.rescore import rescore as rank

    for start in range(0, len(order), _ANCHORS):
        rows = order[start : start + _ANCHORS]
        yield rank(_block(table, rows), score, pairs, table.direction, k)
        bar.update(len(rows))
