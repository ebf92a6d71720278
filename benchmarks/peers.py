"""Mining beside sentence-transformers' `mine_hard_negatives`, on the same precomputed vectors.

    pip install sentence-transformers==6.2.0 datasets faiss-cpu     # beside this project
    python benchmarks/peers.py --items 20000
    python benchmarks/peers.py --items 100000

Both mine 50 negatives of every image and of every text, with scores, none above 95% of the lowest positive. Each is in
a process of its own, given the vectors as .npy files; its seconds are those of mining, without imports. Memory is the
most it held beyond what it held before mining: anonymous memory, which nobody can take back (looked at every 10 ms),
and resident memory, which counts pages of memory-mapped files as well. sentence-transformers finds its embeddings in
its own cache, mines one direction after the other (use_faiss=True) and makes a `datasets.Dataset` of it; quintain mines
both from one pass, chooses by the rule and writes its tables and its list of dropped candidates to disk. A bare float32
matrix product of the shape is timed in the same run.

What comes out is compared: of the negatives of sentence-transformers, the share that quintain has, anchor by anchor.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import click
import numpy as np

RULE, MARGIN = "relative_margin:margin=0.05", 0.05


def prepare(folder: Path, items: int, dim: int) -> None:
    """Unit vectors and their pairs, as a folder for `miner`."""
    from mining import vectors_of

    image, text, _ = vectors_of(items, items, dim)
    np.save(folder / "images.npy", image)
    np.save(folder / "texts.npy", text)
    ids = [f"{row:08d}" for row in range(items)]
    for side in ("image", "text"):
        (folder / f"{side}_ids.txt").write_text("\n".join(ids) + "\n")
    (folder / "pairs.csv").write_text("image_id,text_id\n" + "".join(f"{i},{i}\n" for i in ids))


class Peak(threading.Thread):
    """The most memory held while this runs beyond what was held before, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.before, self.resident_before = self.anonymous(), self.resident()
        self.most = self.before

    @staticmethod
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    @staticmethod
    def resident() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.most = max(self.most, self.anonymous())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def found(self) -> dict[str, int]:
        return {"memory": self.most - self.before, "resident": self.resident() - self.resident_before}


def sentence_transformers(folder: Path, k: int, out: Path) -> dict[str, Any]:
    """Both directions, one after the other."""
    import datasets
    from sentence_transformers.util import mine_hard_negatives, pairwise_dot_score

    vectors = {side: np.load(folder / f"{side}s.npy") for side in ("image", "text")}
    items, dim = vectors["image"].shape
    names = {side: [f"{side} {row:08d}" for row in range(items)] for side in vectors}
    cards = SimpleNamespace(base_model="")
    model = SimpleNamespace(
        device="cpu",
        model_card_data=cards,
        get_embedding_dimension=lambda: dim,
        similarity_pairwise=pairwise_dot_score,
    )
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    found = {}
    for direction, anchor, gallery in (("i2t", "image", "text"), ("t2i", "text", "image")):
        for role, side in (("query", anchor), ("corpus", gallery)):
            name = hashlib.sha256(repr(("", None, None, names[side])).encode()).hexdigest()
            np.save(cache / f"{role}_embeddings_{name}.npy", vectors[side])
        dataset = datasets.Dataset.from_dict({"anchor": names[anchor], "positive": names[gallery]})
        began = time.perf_counter()
        with Peak() as peak:
            mined = mine_hard_negatives(
                dataset,
                model,
                num_negatives=k,
                relative_margin=MARGIN,
                use_faiss=True,
                output_format="n-tuple",
                output_scores=True,
                cache_folder=str(cache),
                verbose=False,
            )
        found[direction] = {"seconds": time.perf_counter() - began, **peak.found()}
        table = mined.to_pandas()
        rows = table[[f"negative_{at + 1}" for at in range(k)]].map(lambda each: int(each.split()[1]))
        np.savez(out / f"{direction}.npz", anchors=[int(a.split()[1]) for a in table["anchor"]], negatives=rows)
    return {
        "seconds": sum(each["seconds"] for each in found.values()),
        **{what: max(each[what] for each in found.values()) for what in ("memory", "resident")},
    }


def quintain(folder: Path, k: int, out: Path) -> dict[str, Any]:
    """`miner mine --rule`, whole, but for the imports."""
    import miner.plan  # noqa: F401 - what the command imports
    from miner.cli import main
    from miner.folder import open_folder
    from miner.index import _torch

    if _torch.available():
        _torch.torch()
    opened = open_folder(folder)
    began = time.perf_counter()
    with Peak() as peak:
        main(["mine", str(folder), "--k", str(k), "--rule", RULE, "--out", str(out / "tables")], standalone_mode=False)
    found = {"seconds": time.perf_counter() - began, **peak.found()}
    from miner.artifacts.negatives import NegativeTable

    for direction in ("i2t", "t2i"):
        table = NegativeTable.open(out / "tables" / direction, opened.pairs)
        np.savez(out / f"{direction}.npz", anchors=np.arange(len(table.negatives)), negatives=table.negatives)
    return found


def bare(folder: Path) -> dict[str, Any]:
    from mining import bare as products

    seconds = products(np.load(folder / "images.npy"), np.load(folder / "texts.npy"))
    return {"seconds": min(seconds.values()), "memory": 0, "resident": 0}


def agreement(one: Path, other: Path) -> float:
    """The share of the negatives in `one` that `other` has too, of the anchors in both."""
    shares = []
    for direction in ("i2t", "t2i"):
        first, second = (np.load(each / f"{direction}.npz") for each in (one, other))
        rows = second["negatives"][np.searchsorted(second["anchors"], first["anchors"])]
        shares.append(np.mean([np.isin(a, b).mean() for a, b in zip(first["negatives"], rows, strict=True)]))
    return float(np.mean(shares))


TOOLS = {
    "bare": lambda folder, k, out: bare(folder),
    "quintain": quintain,
    "sentence_transformers": sentence_transformers,
}


@click.command()
@click.option("--items", default=20_000, show_default=True)
@click.option("--dim", default=384, show_default=True)
@click.option("--k", default=50, show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--tool", type=click.Choice(list(TOOLS)), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
@click.option("--out", type=click.Path(path_type=Path), hidden=True)
def main(items: int, dim: int, k: int, repeats: int, tool: str | None, folder: Path, out: Path) -> None:
    """Seconds and memory, as multiples of the bare product and of each other."""
    sys.path.insert(0, str(Path(__file__).parent))
    if tool:
        click.echo("RESULT " + json.dumps(TOOLS[tool](folder, k, out)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "vectors"
        folder.mkdir()
        prepare(folder, items, dim)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in TOOLS}
        for repeat in range(repeats):
            for name in TOOLS:
                result = Path(place) / f"{name}-{repeat}"
                result.mkdir()
                command = [sys.executable, __file__, "--tool", name, "--folder", folder, "--out", result, "--k", k]
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
                if done.returncode:
                    raise click.ClickException(f"{name}: {done.stderr[-2000:]}")
                line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
                found[name].append(json.loads(line.removeprefix("RESULT ")))
        best = {name: min(each["seconds"] for each in runs) for name, runs in found.items()}
        memory, resident = (
            {name: min(each[what] for each in runs) for name, runs in found.items()} for what in ("memory", "resident")
        )
        same = agreement(Path(place) / "sentence_transformers-0", Path(place) / "quintain-0")
    click.echo(f"{items:,} x {items:,} x {dim}, k = {k}, {platform.machine()}, {date.today()}, best of {repeats}")
    for name in TOOLS:
        held = f"{memory[name] / 2**20:8.0f} MiB ({resident[name] / 2**20:.0f} resident)"
        click.echo(f"    {name:24} {best[name]:8.2f} s = {best[name] / best['bare']:6.2f} x bare, {held}")
    faster = best["sentence_transformers"] / best["quintain"]
    less = memory["sentence_transformers"] / max(1, memory["quintain"])
    click.echo(f"quintain: {faster:.2f} times as fast, 1/{less:.1f} of the memory; has {same:.2%} of its negatives")


if __name__ == "__main__":
    main()
