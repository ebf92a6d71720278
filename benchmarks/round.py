"""Where a round's time goes at COCO's size, projected from rates measured on this machine.

\b
    python benchmarks/round.py

Measured: encoding images (36 x 2,048 regions) and captions with VSE∞ of 1,024 dimensions, a step of the adaptive
quintuplet with neighbourhood batches of 128, and mining k = 300 in both directions at a tenth and at a quarter of
COCO's images and captions. Projected to 113,287 images and 566,435 captions, and as many epochs of all pairs a round
as a run file has by default: encode and fit grow with the items, mining by one part with the items (what is kept) and
by another with their product (what is scored), as the two sizes tell. A flat index is a copy of the vectors, whose time
is that of reading them. Wanted: mining below 5% of the round.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from gpu import mined, seconds
from mining import vectors_of
from models import BATCH
from models import dataset as made_up
from training import mined as mined_by

from miner import fused
from miner.artifacts.pairs import Side
from pipelines.run_section import RunConfig
from trainer import losses, models
from trainer.encode import encode_rows
from trainer.training import EpochLog, FitConfig, fit

IMAGES, TEXTS = 113_287, 566_435


def rates(regions: tuple[int, int], dim: int, items: int, steps: int, threads: int, where: str) -> dict[str, float]:
    """Images, captions and pairs per second: encoded, encoded, trained on."""
    data = made_up(regions, -(-5 * items // BATCH))
    config = models.configure("vse_inf", {"dim": dim, "word_dim": min(300, dim)})
    given = FitConfig(epochs=1, batch_size=128, steps_per_epoch=steps, warmup_epochs=0, threads=threads)
    start = fit(data, config, losses.configure("triplet"), given)
    model = start.model().to(where)
    found = {}
    for side in ("image", "text"):
        rows = np.arange(len(data.pairs.ids(side)))
        times = []
        for _ in range(3):
            began = time.perf_counter()
            encode_rows(model, data, side, rows, threads=threads)
            times.append(time.perf_counter() - began)
        found[side] = len(rows) / statistics.median(times)
    tables = mined_by(model, data, threads)
    logs: list[EpochLog] = []
    close = given.model_copy(update={"epochs": 3, "neighbourhood": 3})
    fit(data, config, losses.configure("aoq"), close, tables=tables, start=start, first_epoch=1, progress=logs.append)
    found["pair"] = statistics.median(log.pairs_per_second for log in logs[1:])
    return found


@click.command(help=__doc__)
@click.option("--dim", default=1024, show_default=True)
@click.option("--items", default=512, show_default=True, help="Images to encode, five captions each.")
@click.option("--steps", default=4, show_default=True, help="Per epoch of three.")
@click.option(
    "--shares", type=(int, int), default=(10, 4), show_default=True, help="Mine one in so many images and captions."
)
@click.option("--epochs", default=RunConfig().epochs, show_default=True, help="Of a round.")
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(
    dim: int, items: int, steps: int, shares: tuple[int, int], epochs: int, threads: int, out: Path | None
) -> None:
    torch.set_num_threads(threads)
    where = fused.device()
    machine = torch.cuda.get_device_name() if where else f"{platform.machine()} {platform.system()}, {threads} threads"
    speeds = rates((36, 2048), dim, items, steps, threads, where or "cpu")
    mining = {}
    for share in shares:
        image, text, pairs = vectors_of(IMAGES // share, TEXTS // share, dim)
        vectors: dict[Side, Any] = {"image": image, "text": text}
        mining[share] = mined(vectors, pairs, 300, where, threads)[0]
    copy = seconds(lambda: [side.copy() for side in vectors.values()], "cpu")
    of_scores, of_items = np.linalg.solve([[1 / share**2, 1 / share] for share in shares], list(mining.values()))
    if min(of_scores, of_items) < 0:  # sizes too small to tell them apart
        of_scores, of_items = mining[shares[-1]] * shares[-1] ** 2, 0.0
    spent = {
        "encode": IMAGES / speeds["image"] + TEXTS / speeds["text"],
        "index": copy * share,
        "mine": of_scores + of_items,
        "fit": epochs * TEXTS / speeds["pair"],
    }
    whole = sum(spent.values())
    print(f"{date.today()}, {machine}, torch {torch.__version__}")
    print(
        f"measured: {speeds['image']:.0f} images/s and {speeds['text']:.0f} captions/s encoded, {speeds['pair']:.0f} "
        "pairs/s trained on, "
        + ", ".join(f"{IMAGES // s:,} x {TEXTS // s:,} mined in {took:.1f} s" for s, took in mining.items())
    )
    for name, took in spent.items():
        print(f"{name:7} {took:8.0f} s  {took / whole:6.1%} of a round of {whole / 3600:.2f} h, {epochs} epochs")
    if out:
        found: dict[str, Any] = {"machine": machine, "rates": speeds, "mining": mining, "projected": spent}
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
