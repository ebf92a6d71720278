"""What models cost, as ratios measured side by side.

\b
    python benchmarks/models.py

Cross-attention: the scores of 128 images x 128 captions by SCAN and BFAN, batched, against a loop over captions as the
published codes have it: each caption at its true length is repeated for every image, and every attended vector is
formed. Regions and words of unit length, captions of 5 to 25 words (12 on average), float32. Wanted: at least 5 times
faster, both the scores alone and with their gradients.

Training: a step of `fit` against its bare forward and backward: both encoders, the product, the max-violation triplet,
backward, over and over on one batch of 128 pairs. A step of `fit` has gathering, clipping, Adam and the epoch's figures
on top. Wanted: at most 1.2.

The two sides alternate, so that whatever else the machine does meets both; the figure is the ratio of medians.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from losses import plain, ratio, timed
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize

from miner.artifacts.pairs import Pairs
from trainer import losses, models
from trainer.data import Dataset
from trainer.models import Elements, Encoder, PairScorer
from trainer.scoring import Inputs
from trainer.text import Vocabulary
from trainer.training import EpochLog, FitConfig, fit

BATCH = 128
SHAPES = [(dim, regions) for dim in (1024, 256) for regions in (36, 9)]
SCORERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SCAN t2i": ("scan", {"attention": "t2i"}),
    "SCAN i2t": ("scan", {"attention": "i2t"}),
    "SCAN both": ("scan", {"attention": "both"}),
    "BFAN equal": ("bfan", {"focal": "equal"}),
    "BFAN prob": ("bfan", {"focal": "prob"}),
}
# As published, but for VSRN's 2,048 dimensions, with which one step takes half a minute on a CPU core.
TOWERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "vsepp": ((2048,), {}),
    "vse_inf": ((36, 2048), {}),
    "vsrn": ((36, 2048), {"dim": 512}),
}


def caption_lengths(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(12, 4, count).round().clip(5, 25).astype(np.int64)


# ---- cross-attention ----


def sides(dim: int, regions: int) -> tuple[Elements, Elements]:
    """Unit vectors that point a little the same way, as a model's do."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.from_numpy(caption_lengths(BATCH))
    found = []
    for longest, counted in ((regions, torch.full((BATCH,), regions)), (int(lengths.max()), lengths)):
        values = torch.randn(BATCH, longest, dim, generator=random) + 0.3 * torch.randn(1, 1, dim, generator=random)
        found.append(Elements(normalize(values, dim=2), counted))
    return found[0], found[1]


def attended(queries: Tensor, contexts: Tensor, smooth: float, focal: str | None) -> Tensor:
    """(images, queries): cosines with attended vectors, one caption against all images; step by step as published."""
    products = leaky_relu(torch.bmm(contexts, queries.transpose(1, 2)), 0.1)
    products = products / (products.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
    weights = torch.softmax(products.transpose(1, 2).contiguous() * smooth, 2)
    if focal is not None:
        root = torch.ones_like(weights) if focal == "equal" else weights.sqrt()
        kept = weights * root.sum(2, keepdim=True) - (weights * root).sum(2, keepdim=True) > 0
        weights = kept * weights
        weights = weights / weights.sum(2, keepdim=True)
    found = torch.bmm(contexts.transpose(1, 2), weights.transpose(1, 2).contiguous()).transpose(1, 2)
    lengths: Tensor = queries.norm(dim=2) * found.norm(dim=2)
    return (queries * found).sum(2) / lengths.clamp(min=1e-8)


def one_by_one(config: Any, images: Elements, texts: Elements) -> Tensor:
    """(images, captions), caption by caption."""
    columns = []
    for values, length in zip(texts.values, texts.lengths.tolist(), strict=True):
        words = values[None, :length].repeat(len(images), 1, 1)
        if hasattr(config, "focal"):
            parts = [
                attended(words, images.values, config.lambda_softmax, config.focal).mean(1),
                attended(images.values, words, config.lambda_softmax, config.focal).mean(1),
            ]
        else:
            parts = []
            if config.attention in ("t2i", "both"):
                parts.append((attended(words, images.values, 9, None) * 6).exp().sum(1).log() / 6)
            if config.attention in ("i2t", "both"):
                parts.append((attended(images.values, words, 4, None) * 5).exp().sum(1).log() / 5)
            parts = [part / len(parts) for part in parts]
        columns.append(torch.stack(parts).sum(0))
    return torch.stack(columns, 1)


def cross_attention(case: str, dim: int, regions: int, backward: bool, seconds: float) -> dict[str, float]:
    name, settings = SCORERS[case]
    config = models.configure(name, {**settings, "dim": dim, "word_dim": 8})
    model = models.build(config, Vocabulary.build([]), (regions, 8))
    assert isinstance(model, PairScorer)
    images, texts = sides(dim, regions)
    leaves = [images.values.requires_grad_(backward), texts.values.requires_grad_(backward)]

    def run(score: Callable[[Elements, Elements], Tensor]) -> Callable[[], None]:
        def work() -> None:
            for leaf in leaves:
                leaf.grad = None
            with torch.set_grad_enabled(backward):
                scores = score(images, texts)
            if backward:
                plain(scores).backward()

        return work

    def loop(images: Elements, texts: Elements) -> Tensor:
        return one_by_one(config, images, texts)

    with torch.no_grad():
        # The median: where one weight sits on BFAN's threshold up to rounding, a pair may differ.
        gap = (model.scores(images, texts) - loop(images, texts)).abs().median().item()
    assert gap < 1e-6, f"the two do not agree: {gap}"
    slower, milliseconds = ratio(run(loop), run(model.scores), seconds)
    return {"times faster": slower, "ms": milliseconds}


# ---- training ----


def dataset(image_shape: tuple[int, ...], batches: int) -> Dataset:
    """`batches` batches of images with 5 captions each, of a vocabulary of 8,000 words."""
    random = np.random.default_rng(0)
    count = BATCH * batches // 5
    texts = [
        " ".join(f"w{word}" for word in random.integers(8000, size=length)) for length in caption_lengths(5 * count)
    ]
    pairs = Pairs.from_ids(
        [f"i{image}" for image in range(count)],
        [f"t{text}" for text in range(len(texts))],
        [(f"i{text // 5}", f"t{text}") for text in range(len(texts))],
        texts=texts,
        name="random",
    )
    images = random.random((count, *image_shape), dtype=np.float32)
    return Dataset(pairs, images, "random", "train")


def bare_step(model: Encoder, data: Dataset) -> Callable[[], None]:
    """Forward and backward of one batch, with nothing around."""
    inputs, rows = Inputs.of(data, model), np.arange(BATCH)
    images = inputs.images(data.pairs.image_rows[rows])
    tokens, lengths = inputs.texts(data.pairs.text_rows[rows])

    def work() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        plain(model.encode_images(images).float() @ model.encode_texts(tokens, lengths).float().T).backward()

    return work


def training(name: str, epochs: int, steps: int) -> dict[str, float]:
    """Epochs of `steps` steps, and as many bare steps after each; the first epoch is for warming up."""
    image_shape, settings = TOWERS[name]
    data, config = dataset(image_shape, 12), models.configure(name, settings)
    torch.manual_seed(0)
    bare = bare_step(models.fresh(config, Vocabulary.build(data.pairs.texts), data.image_shape).train(), data)
    whole: list[float] = []
    alone: list[float] = []

    def progress(log: EpochLog) -> None:
        whole.append(log.seconds / log.steps)
        alone.extend(timed(bare) for _ in range(steps))

    given = FitConfig(epochs=epochs + 1, batch_size=BATCH, steps_per_epoch=steps, warmup_epochs=0, device="cpu")
    fit(data, config, losses.configure("triplet"), given, progress=progress)
    ms = 1000 * statistics.median(alone[steps:])
    return {"whole step / bare": 1000 * statistics.median(whole[1:]) / ms, "bare ms": ms}


@click.command(help=__doc__)
@click.option("--seconds", default=5.0, show_default=True, help="Per figure of cross-attention, at least 7 runs.")
@click.option("--epochs", default=7, show_default=True, help="Of training; each gives one time per step.")
@click.option("--steps", default=5, show_default=True, help="Per epoch.")
@click.option("--only", multiple=True, help="Names of scorers and models.  [default: all]")
@click.option("--threads", default=0, help="[default: torch's choice]")
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(seconds: float, epochs: int, steps: int, only: tuple[str, ...], threads: int, out: Path | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    print(f"{date.today()}, {platform.machine()} {platform.system()}, {torch.get_num_threads()} threads")
    print(f"{'times faster than a loop over captions':40} {'forward':>18} {'and backward':>18}")
    for case in SCORERS:
        for dim, regions in SHAPES if not only or case in only else ():
            row = {
                what: cross_attention(case, dim, regions, what == "backward", seconds)
                for what in ("forward", "backward")
            }
            found[f"{case}, {dim}-d, {regions} regions"] = row
            shown = "  ".join(f"{value['times faster']:5.1f} ({value['ms']:6.0f} ms)" for value in row.values())
            print(f"{f'{case}, {dim}-d, {regions} regions':40}  {shown}", flush=True)
    print(f"{'step of fit / bare forward and backward':40}")
    for name in TOWERS:
        if not only or name in only:
            found[name] = training(name, epochs, steps)
            print(f"{name:40}  {found[name]['whole step / bare']:5.2f} ({found[name]['bare ms']:.0f} ms)", flush=True)
    if out:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
