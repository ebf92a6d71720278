"""What a GPU makes of mining and of training, as ratios measured on it; on a CPU a small size shows that it runs.

\b
    python benchmarks/gpu.py --out gpu.json

Mining: k = 300 of both directions for 113,287 images x 566,435 captions x 1,024 (COCO's training set), against one bare
bfloat16 matrix product of that size, tile by tile into memory that is there already; beside it faiss-gpu's flat index,
searched for both directions, where faiss sees a GPU. Ids are compared, on a sample of anchors, with scores in float64.
Wanted on an H200-class GPU: within 5 s, within 10 times the product, at least 0.999 of the ids.

Training: pairs per second of the adaptive quintuplet on VSE∞, neighbourhood batches, with bfloat16 and compiled
encoders, against eager float32.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from mining import vectors_of
from models import dataset as made_up
from training import Mined

from miner import fused
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side
from miner.matrix import AnyDirection, mine_exhaustively
from trainer import losses, models
from trainer.training import EpochLog, FitConfig, fit

TILE = 8192


def seconds(work: Callable[[], Any], where: str) -> float:
    """Of one call, all of its work on the device included."""
    began = time.perf_counter()
    work()
    if where.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def bare(image: np.ndarray[Any, Any], text: np.ndarray[Any, Any], where: str) -> float:
    """Seconds of the product in bfloat16, the second time."""
    left, right = (torch.from_numpy(side).to(where, torch.bfloat16) for side in (image, text))
    room = torch.empty(TILE, TILE, dtype=torch.bfloat16, device=where)

    def product() -> None:
        for rows in left.split(TILE):
            for columns in right.split(TILE):
                torch.mm(rows, columns.T, out=room[: len(rows), : len(columns)])

    seconds(product, where)
    return seconds(product, where)


def mined(
    vectors: dict[Side, Any], pairs: Pairs, k: int, where: str | None, threads: int = 1
) -> tuple[float, dict[AnyDirection, NegativeBlock]]:
    """Seconds of the second search, on a device of torch or on the CPU, and what was found."""
    found: dict[AnyDirection, NegativeBlock] = {}

    def search() -> None:
        for direction, blocks in mine_exhaustively(vectors, pairs, ["i2t", "t2i"], k, threads=threads, device=where):
            found[direction] = NegativeBlock.join(list(blocks))

    seconds(search, where or "cpu")
    return seconds(search, where or "cpu"), found


def faiss_gpu(image: np.ndarray[Any, Any], text: np.ndarray[Any, Any], k: int) -> float | None:
    """Seconds of two flat indexes, built and searched; None where faiss is not there or sees no GPU."""
    try:
        import faiss
    except ImportError:
        return None
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return None

    def search() -> None:
        for anchors, gallery in ((image, text), (text, image)):
            index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), gallery.shape[1])
            index.add(gallery)
            index.search(anchors, k)

    search()
    return seconds(search, "cuda")


def agreement(
    vectors: dict[Side, np.ndarray[Any, Any]], pairs: Pairs, block: NegativeBlock, k: int, sample: int
) -> float:
    """Share of a sample's images' negatives that exact scores rank there, positives left out."""
    rng = np.random.default_rng(0)
    same = 0
    place = {int(row): at for at, row in enumerate(block.anchor_rows)}
    rows = rng.choice(len(block), min(sample, len(block)), replace=False)
    for row in rows:
        scores = vectors["text"].astype(np.float64) @ vectors["image"][row].astype(np.float64)
        scores[pairs.text_rows[pairs.image_rows == row]] = -np.inf
        best = np.argpartition(-scores, k)[:k]
        same += len(np.intersect1d(best, block.negatives[place[int(row)]]))
    return same / (k * len(rows))


def training(where: str, dim: int, epochs: int, steps: int) -> dict[str, float]:
    """Pairs per second by way, median over epochs that take turns."""
    data = made_up((36, 2048) if where == "cuda" else (9, 64), 2000 if where == "cuda" else 200)
    config = models.configure("vse_inf", {"dim": dim, "word_dim": min(300, dim)})
    loss = losses.configure("aoq", {"h_t": 100, "h_v": 60})
    rng = np.random.default_rng(0)
    images, texts = data.pairs.num_images, data.pairs.num_texts
    sizes: dict[Direction, tuple[int, int]] = {"i2t": (images, texts), "t2i": (texts, images)}
    tables: dict[Direction, Mined] = {}
    for direction, (anchors, gallery) in sizes.items():
        rows = rng.integers(gallery, size=(anchors, 60))
        side = data.pairs.belong(np.arange(data.pairs.num_images), np.arange(data.pairs.num_texts))
        side = side if direction == "i2t" else side.T
        rows = np.where(np.take_along_axis(side, rows, 1), -1, rows)
        rows = np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), 1)
        tables[direction] = Mined(direction, rows)
    given = FitConfig(epochs=1, batch_size=128, steps_per_epoch=steps, warmup_epochs=0, neighbourhood=3)
    ways = {
        "eager float32": given.model_copy(update={"precision": "float32"}),
        "bfloat16": given.model_copy(update={"precision": "bfloat16"}),
        "bfloat16, compiled": given.model_copy(update={"precision": "bfloat16", "compile": True}),
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    start = fit(data, config, losses.configure("triplet"), given.model_copy(update={"neighbourhood": 1}))
    for _ in range(epochs + 1):
        for way, asked in ways.items():
            logs: list[EpochLog] = []
            both = asked.model_copy(update={"epochs": 2})  # the second has nothing left to compile
            fit(data, config, loss, both, tables=tables, start=start, first_epoch=1, progress=logs.append)
            speeds[way].append(logs[1].pairs_per_second)
    return {way: statistics.median(found[1:]) for way, found in speeds.items()}


@click.command(help=__doc__)
@click.option("--images", type=int, help="[default: 113,287 on a GPU, 2,000 elsewhere]")
@click.option("--texts", type=int, help="[default: 566,435 on a GPU, 6,000 elsewhere]")
@click.option("--dim", type=int, help="[default: 1,024 on a GPU, 64 elsewhere]")
@click.option("--k", default=300, show_default=True)
@click.option("--sample", default=200, show_default=True, help="Anchors whose ids are checked.")
@click.option("--epochs", default=3, show_default=True, help="Of training, each way; one more to warm up.")
@click.option("--steps", type=int, help="Per epoch. [default: 50 on a GPU, 3 elsewhere]")
@click.option("--only", type=click.Choice(["mining", "training"]), help="[default: both]")
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(
    images: int | None, texts: int | None, dim: int | None, k: int, sample: int, epochs: int, steps: int | None,
    only: str | None, out: Path | None,
) -> None:  # fmt: skip
    where = fused.device() or "cpu"
    gpu = where == "cuda"
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()} {platform.system()}, no GPU"
    sizes = images or (113_287 if gpu else 2_000), texts or (566_435 if gpu else 6_000), dim or (1024 if gpu else 64)
    found: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "date": str(date.today())}
    print(f"{date.today()}, {machine}, torch {torch.__version__}")
    if only != "training":
        image, text, pairs = vectors_of(*sizes)
        vectors: dict[Side, Any] = {"image": image, "text": text}
        product = bare(image, text, where)
        took, tables = mined(vectors, pairs, k, where)
        flat = faiss_gpu(image, text, k)
        same = agreement(vectors, pairs, tables["i2t"], k, sample)
        found["mining"] = {
            "size": [*sizes, k], "seconds": took, "product": product, "faiss": flat, "same ids": same,
        }  # fmt: skip
        print(f"mining {sizes[0]:,} x {sizes[1]:,} x {sizes[2]:,}, k = {k}, both directions: {took:.2f} s")
        print(f"  {took / product:.1f}x the bfloat16 product ({product:.3f} s); {same:.4%} of the ids as in float64")
        print(f"  faiss-gpu flat: {f'{flat:.2f} s' if flat else 'not there'}")
    if only != "mining":
        found["training"] = training(where, sizes[2], epochs, steps or (50 if gpu else 3))
        slowest = found["training"]["eager float32"]
        for way, speed in found["training"].items():
            print(f"training, {way:20} {speed:8.0f} pairs/s, {speed / slowest:.2f}x")
    if out:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
