"""What the quintuplet costs, and what encoding costs, as ratios measured side by side.

\b
    python benchmarks/training.py --data ../shared/data/flickr8k

Steps: epochs of `fit` on VSE∞ with a BiGRU, batches of 128: the max-violation triplet, and the adaptive quintuplet
(AdapOffQuin, pools of 300 and 60) whose negatives are encoded in addition (each item once) or are in the batch
(`neighbourhood`). Its tables are mined from the model's own embeddings. They take turns, an epoch of a few steps each;
the figure is the ratio of median seconds per step, waiting for data included. Wanted: at most 2.2 and 1.15 times the
triplet. `rows` are the images and texts encoded per step.

Encoding: all captions and all images of the training set in shards that are written and committed, against the bare
forward pass over the same batches, read and tokenised beforehand. Wanted: at least 90% of its speed.

Without --data, a made-up set of the same shape is used.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch
from losses import timed
from models import dataset as made_up

from miner.artifacts.embeddings import EMBEDDINGS
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Side, sides
from miner.artifacts.store import LocalStore
from miner.matrix import mine_exhaustively
from trainer import losses, models
from trainer.data import Dataset
from trainer.encode import BATCH_SIZE, _batches, encode_rows, quiet
from trainer.models import Encoder
from trainer.sampling import check_table
from trainer.scoring import Inputs
from trainer.shards import commit_shards, encode_shards
from trainer.steps import steps_of
from trainer.training import EpochLog, FitConfig, fit

BATCH, SHARD = 128, 2048
POOLS = {"h_t": 300, "h_v": 60}
WAYS = {"triplet": 0, "encoded in addition": 1, "neighbourhoods of 3": 3, "one neighbourhood": BATCH}
SIDES: tuple[Side, Side] = ("image", "text")


@dataclass(frozen=True)
class Mined:
    """A table of blocks, as training reads one."""

    direction: Direction
    negatives: np.ndarray[Any, Any]
    num_negatives: np.ndarray[Any, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_negatives", (self.negatives >= 0).sum(1))


def flickr8k(source: Path, work: Path) -> Dataset:
    from quality import prepare

    from trainer.data import configure, load

    prepare(source, work)
    return load(configure("vectors", {"folder": str(work / "data" / "regions")}), "train")


def mined(model: Encoder, data: Dataset, threads: int) -> dict[Direction, Mined]:
    """The hardest negatives of both directions, by the model as it is."""
    vectors = {
        side: encode_rows(model, data, side, np.arange(len(data.pairs.ids(side))), threads=threads) for side in SIDES
    }
    tables: dict[Direction, Mined] = {}
    for direction in get_args(Direction):
        asked = POOLS["h_t"] if direction == "i2t" else POOLS["h_v"]
        k = min(asked, len(vectors[sides(direction)[1]]))
        ((_, blocks),) = mine_exhaustively(vectors, data.pairs, [direction], k, threads=threads)
        block = NegativeBlock.join(list(blocks))
        rows = np.empty_like(block.negatives)
        rows[block.anchor_rows] = block.negatives
        tables[direction] = Mined(direction, rows)
        check_table(tables[direction], direction, data.pairs)
    return tables


def steps(
    data: Dataset, settings: dict[str, Any], epochs: int, per_epoch: int, threads: int
) -> dict[str, dict[str, float]]:
    """By way: median seconds of a step, the ratio to the triplet's, and rows encoded per step."""
    config = models.configure("vse_inf", settings)
    given = FitConfig(
        epochs=1,
        batch_size=BATCH,
        steps_per_epoch=per_epoch,
        warmup_epochs=0,
        device="cpu",
        threads=threads,
        min_count=4,
    )
    start = fit(data, config, losses.configure("triplet"), given)
    tables = mined(start.model(), data, threads)
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for epoch in range(epochs + 1):
        for way, size in WAYS.items():
            loss = losses.configure("aoq", POOLS) if size else losses.configure("triplet")
            asked = given.model_copy(update={"neighbourhood": max(size, 1), "seed": epoch})
            logs: list[EpochLog] = []
            used = tables if size else None
            fit(data, config, loss, asked, tables=used, start=start, first_epoch=1, progress=logs.append)
            spent[way].append(logs[0].seconds / logs[0].steps)
    middle = {way: statistics.median(times[1:]) for way, times in spent.items()}
    return {
        way: {
            "times the triplet": seconds / middle["triplet"],
            "ms": 1000 * seconds,
            **rows_of(way, data, start, given, tables),
        }
        for way, seconds in middle.items()
    }


def rows_of(way: str, data: Dataset, start: Any, given: FitConfig, tables: Any) -> dict[str, float]:
    """Images and texts that a step encodes, and the share of pairs that have an offline text there."""
    size = WAYS[way]
    asked = given.model_copy(update={"neighbourhood": max(size, 1)})
    loss = losses.configure("aoq", POOLS) if size else losses.configure("triplet")
    _, items = steps_of(Inputs.of(data, start.model()), loss, asked, tables if size else None, 1)
    with items as gathered:
        found = [(len(g.images), len(g.tokens), float(g.drawn[0].float().mean()) if g.drawn else 0.0) for g in gathered]
    images, texts, has = np.mean(found, axis=0)
    return {"images": float(images), "texts": float(texts), "with a negative": float(has)}


def encoding(data: Dataset, settings: dict[str, Any], repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """By side: the share of the bare forward pass's speed that the whole stage has."""
    tokenizer = models.tokenizer_of(models.configure("vse_inf", settings), data.pairs.texts, 4)
    model = models.build(models.configure("vse_inf", settings), tokenizer, data.image_shape)
    found: dict[str, dict[str, float]] = {}
    for side in SIDES:
        rows = np.arange(len(data.pairs.ids(side)))
        batches = [inputs for _, _, inputs in _batches(model, data, side, rows, BATCH_SIZE)]
        encode = model.encode_images if side == "image" else model.encode_texts

        def bare(batches: Any = batches, encode: Any = encode) -> None:
            with quiet(model, threads):
                for inputs in batches:
                    encode(*inputs)

        def whole(side: Side = side, rows: Any = rows) -> None:
            with tempfile.TemporaryDirectory() as folder:
                draft = Draft(LocalStore(Path(folder)), side, EMBEDDINGS, {})
                bounds = [(start, min(start + SHARD, len(rows))) for start in range(0, len(rows), SHARD)]
                parts = encode_shards(draft, bounds, model, data, side, threads=threads)
                commit_shards(draft, parts, data.pairs.ids(side), side, {}, elements=False)

        times = [(timed(bare), timed(whole)) for _ in range(repeats + 1)][1:]
        forward, stage = (statistics.median(column) for column in zip(*times, strict=True))
        found[side] = {"share": forward / stage, "rows per second": len(rows) / stage}
    return found


@click.command(help=__doc__)
@click.option("--data", "source", type=click.Path(path_type=Path), help="Folder of the Flickr8k features.")
@click.option("--work", default=Path("runs/training"), type=click.Path(path_type=Path), show_default=True)
@click.option("--dim", default=1024, show_default=True)
@click.option("--epochs", default=7, show_default=True, help="Of steps, each way; one more to warm up.")
@click.option("--steps", "per_epoch", default=10, show_default=True, help="Per epoch.")
@click.option("--repeats", default=3, show_default=True, help="Of encoding.")
@click.option("--threads", default=2, show_default=True)
@click.option("--only", type=click.Choice(["steps", "encode"]), help="[default: both]")
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(
    source: Path | None, work: Path, dim: int, epochs: int, per_epoch: int, repeats: int, threads: int,
    only: str | None, out: Path | None,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    data = flickr8k(source, work.resolve()) if source else made_up((9, 256), 235)
    settings = {"dim": dim, "word_dim": min(dim, 300)}
    found: dict[str, Any] = {"data": data.name, "dim": dim, "threads": threads}
    print(
        f"{date.today()}, {platform.machine()} {platform.system()}, {threads} threads, {data.name}, VSE∞ of dim {dim}"
    )
    if only != "encode":
        found["steps"] = steps(data, settings, epochs, per_epoch, threads)
        for way, line in found["steps"].items():
            print(
                f"{way:22} {line['times the triplet']:5.2f}x ({line['ms']:.0f} ms)  {line['images']:.0f} images, "
                f"{line['texts']:.0f} texts, {line['with a negative']:.0%} of the pairs with an offline text"
            )
    if only != "steps":
        found["encode"] = encoding(data, settings, repeats, threads)
        for side, line in found["encode"].items():
            print(f"encode {side:8} {line['share']:.0%} of the bare forward pass, {line['rows per second']:.0f} rows/s")
    if out:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
