"""What each loss costs: forward and backward as a ratio to one plain max-violation triplet on the same batch.

\b
    python benchmarks/losses.py

Embeddings of dim 1,024, batches of 128 and 1,024 pairs, float32. Baseline and loss alternate, so that whatever else the
machine does meets both; the figure is the ratio of medians. Two ratios: from embeddings (with the product X Y' and its
gradients, and the offline scores where a loss wants them), as a training step pays it; and from the scores alone, where
nothing hides the loss's own arithmetic. SmoothAP's batch is 128 images with 5 captions each, measured for its time and
for the peak memory of a process that does nothing else.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from trainer import losses
from trainer.similarities import Offline, Similarities

DIM = 1024
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "triplet": ("triplet", {}),
    "triplet, all": ("triplet", {"max_violation": False}),
    "triplet + OffQuin": ("triplet", {"offline": "OffQuin"}),
    "AOQ OffTri": ("aoq", {"form": "OffTri"}),
    "AOQ OffQuin": ("aoq", {"form": "OffQuin"}),
    "AOQ AdapOffQuin": ("aoq", {}),
    "NT-Xent": ("ntxent", {}),
    "NT-Xent, offline": ("ntxent", {"offline": "softmax", "correction": "stratified"}),
    "SCT": ("sct", {}),
    "SelHN": ("selhn", {}),
    **{
        f"GOAL {triplet} x {pair}": ("goal", {"triplet": triplet, "pair": pair})
        for triplet, pair in (
            ("con", "con"), ("nca", "con"), ("cir", "lin"), ("hinge", "sig"), ("nca", "lin_ms"), ("nca", "sig_ms"),
            ("con", "sig_ms_bounded"),
        )
    },
    "GOAL nca x sig_ms, offline": ("goal", {"triplet": "nca", "pair": "sig_ms", "offline": "goal"}),
}  # fmt: skip


def embeddings(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(count, DIM, generator=random)
    return torch.nn.functional.normalize(found + 0.3 * torch.randn(1, DIM, generator=random), dim=1)


def plain(scores: Tensor) -> Tensor:
    """The max-violation triplet as anybody would write it."""
    positive = scores.diagonal()
    masked = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), float("-inf"))
    text = (0.2 + masked.max(1).values - positive).clamp(min=0)
    image = (0.2 + masked.max(0).values - positive).clamp(min=0)
    return text.sum() + image.sum()


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(work: Callable[[], None], baseline: Callable[[], None], seconds: float) -> tuple[float, float]:
    """(ratio of medians, median milliseconds of the baseline), alternating for about `seconds`."""
    work()
    baseline()
    mine: list[float] = []
    theirs: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(mine) < 7:
        mine.append(timed(work))
        theirs.append(timed(baseline))
    return statistics.median(mine) / statistics.median(theirs), 1000 * statistics.median(theirs)


def compare(case: str, batch: int, seconds: float, *, from_embeddings: bool) -> tuple[float, float]:
    config = losses.configure(*CASES[case])
    sides = [embeddings(batch, seed).requires_grad_() for seed in range(2)]
    more = [embeddings(batch, seed).requires_grad_() for seed in range(2, 6)]
    leaf = (sides[0] @ sides[1].T).detach().requires_grad_()
    others = [*more[2:], *more[:2]]
    fixed = [(a * b).sum(1).detach().requires_grad_() for a, b in zip(more, others, strict=True)]
    valid = ~torch.eye(batch, dtype=torch.bool)
    true, false = torch.ones(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.bool)
    share = torch.full((batch,), 0.01)

    def clear() -> None:
        for tensor in (*sides, *more, leaf, *fixed):
            tensor.grad = None

    def work() -> None:
        clear()
        offline = None
        if config.needs_tables:
            scores = fixed
            if from_embeddings:
                scores = [(sides[0] * more[0]).sum(1), (more[1] * sides[1]).sum(1), (more[1] * more[0]).sum(1)]
                scores.append((more[2] * more[3]).sum(1) if config.needs_partners else scores[0].detach())
            text, image, negatives, partners = scores
            offline = Offline(text, image, negatives, partners, true, true, false, false, share, share)
        matrix = sides[0] @ sides[1].T if from_embeddings else leaf
        torch.stack(list(losses.parts(config, Similarities(matrix, valid, offline)).values())).sum().backward()

    def baseline() -> None:
        clear()
        plain(sides[0] @ sides[1].T if from_embeddings else leaf).backward()

    return ratio(work, baseline, seconds)


def smoothap_step(images: int = 128, captions: int = 5) -> Callable[[], None]:
    """One forward and backward of SmoothAP from embeddings."""
    config = losses.configure("smoothap")
    x, y = embeddings(images, 0).requires_grad_(), embeddings(images * captions, 1).requires_grad_()
    owner = torch.arange(images * captions) // captions
    valid = owner[None, :] != torch.arange(images)[:, None]

    def work() -> None:
        x.grad = y.grad = None
        step = Similarities(x @ y.T, valid, None, owner, torch.arange(images * captions))
        torch.stack(list(losses.parts(config, step).values())).sum().backward()

    return work


def smoothap_memory() -> dict[str, float]:
    """Peak memory in MiB of a fresh process, before the step and after three."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import losses, resource, json\n"
        "step = losses.smoothap_step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "[step() for _ in range(3)]\n"
        "print(json.dumps({'before': before, 'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))\n"
    )
    here = str(Path(__file__).parent)
    ended = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True)
    return dict(json.loads(ended.stdout))


@click.command(help=__doc__)
@click.option("--seconds", default=2.0, show_default=True, help="Per figure.")
@click.option("--threads", default=0, help="[default: torch's choice]")
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(seconds: float, threads: int, out: Path | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    print(f"{date.today()}, {platform.machine()} {platform.system()}, {torch.get_num_threads()} threads")
    print(f"{'':28}  {'from embeddings':>17}   {'from scores':>17}")
    print(f"{'ratio to the plain triplet':28}  {'B=128':>8} {'B=1024':>8}   {'B=128':>8} {'B=1024':>8}")
    for case in CASES:
        row = {}
        for whole in (True, False):
            for batch in (128, 1024):
                row[f"{'embeddings' if whole else 'scores'} {batch}"] = compare(
                    case, batch, seconds, from_embeddings=whole
                )
        found[case] = {name: value[0] for name, value in row.items()}
        shown = [f"{value:8.2f}" for value in found[case].values()]
        print(f"{case:28}  {shown[0]} {shown[1]}   {shown[2]} {shown[3]}", flush=True)
    found["baseline ms"] = {name: value[1] for name, value in row.items()}
    base = "  ".join(f"{name}: {ms:.2f}" for name, ms in found["baseline ms"].items())
    print(f"{'plain triplet, ms':28}  {base}")
    step = smoothap_step()
    sides = [embeddings(128, seed).requires_grad_() for seed in range(2)]
    found["SmoothAP"] = ratio(step, lambda: plain(sides[0] @ sides[1].T).backward(), seconds)[0]
    found["SmoothAP memory, MiB"] = smoothap_memory()
    memory = found["SmoothAP memory, MiB"]
    print(
        f"SmoothAP, 128 images x 5 captions: {found['SmoothAP']:.1f} x a triplet of 128 pairs; peak memory of the "
        f"process {memory['peak']:.0f} MiB, {memory['before']:.0f} MiB before the first step"
    )
    if out:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
