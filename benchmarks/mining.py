"""What exact mining costs, as ratios measured side by side on the same vectors.

\b
    python benchmarks/mining.py                                       # 20,000 images x 100,000 texts x 1,024, k = 50
    python benchmarks/mining.py --images 20000 --texts 20000 --dim 384

Every figure is a multiple of one bare float32 matrix product of that shape with the fastest BLAS that is installed
(torch's or numpy's), into memory that is there already. Beside it:

\b
    quintain        both directions: k negatives of every image and every text, positives left out, ties by id, every
                    one proved and scored in float64; with the tiles it chose, and with float32 tiles
    FAISS           two IndexFlatIP, built and searched for k + the number of positives; float32 scores, nothing left
                    out
    row at a time   as the AOQ paper's tool does it (github.com/sunnychencool/AOQ, tools/gett2ioffcandi.py): for one
                    item after the other the product with the whole other side, added up, and the k largest; a sample
                    of the items, scaled up

What comes out is compared: the share of items for which FAISS finds the same negatives in the same order; it differs
where float32 does not tell two scores apart.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import numpy.typing as npt

from miner.artifacts.ids import Ids
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Pairs, Side
from miner.index._faiss import faiss, set_threads

Vectors = npt.NDArray[np.float32]
SIDES: tuple[Side, Side] = ("image", "text")


def vectors_of(images: int, texts: int, dim: int, seed: int = 0) -> tuple[Vectors, Vectors, Pairs]:
    """Unit vectors; each text leans towards its image, and every image has a topic that it shares with others."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((max(1, images // 50), dim), np.float32)
    image = rng.standard_normal((images, dim), np.float32) + topics[rng.integers(len(topics), size=images)]
    owner = np.arange(texts) % images
    text = rng.standard_normal((texts, dim), np.float32) + image[owner]
    for side in (image, text):
        side /= np.linalg.norm(side, axis=1, keepdims=True)
    image_ids, text_ids = (Ids(f"{row:08d}" for row in range(size)) for size in (images, texts))
    return image, text, Pairs(image_ids, text_ids, owner, np.arange(texts))


def bare(image: Vectors, text: Vectors) -> dict[str, float]:
    """Seconds of the product by every BLAS there is."""
    width = 8192
    room = np.empty((len(image), width), np.float32)
    products: dict[str, Callable[[Vectors], Any]] = {
        "numpy": lambda part: np.matmul(image, part.T, out=room[:, : len(part)] if len(part) < width else room)
    }
    try:
        import torch

        products["torch"] = lambda part: torch.mm(
            torch.from_numpy(image), torch.from_numpy(part).T, out=torch.from_numpy(room[:, : len(part)])
        )
    except ImportError:
        pass
    found = {}
    for name, product in products.items():
        product(text[:width])
        began = time.perf_counter()
        for start in range(0, len(text), width):
            product(text[start : start + width])
        found[name] = time.perf_counter() - began
    return found


def quintain(image: Vectors, text: Vectors, pairs: Pairs, k: int, threads: int, kind: str) -> dict[str, NegativeBlock]:
    from miner import matrix, tiles

    def float32(rows: Vectors, lengths: Any, columns: Any, max_norm: float, *_: float) -> tiles.Tiles:
        return tiles.Float32(rows, lengths, max_norm)

    with mock.patch("miner.matrix.fastest", float32) if kind == "float32" else nullcontext():
        both = matrix.mine_exhaustively({"image": image, "text": text}, pairs, ["i2t", "t2i"], k, threads=threads)
        return {direction: NegativeBlock.join(list(blocks)) for direction, blocks in both}


def with_faiss(image: Vectors, text: Vectors, depth: dict[str, int]) -> dict[str, Any]:
    found = {}
    for direction, queries, gallery in (("i2t", image, text), ("t2i", text, image)):
        index = faiss().IndexFlatIP(image.shape[1])
        index.add(gallery)
        found[direction] = index.search(queries, depth[direction])[1]
    return found


def row_at_a_time(image: Vectors, text: Vectors, pairs: Pairs, k: int, sample: int) -> float:
    """Seconds for all items, from `sample` of each side."""
    import torch

    sides = torch.from_numpy(image), torch.from_numpy(text)
    seconds = 0.0
    for side, (queries, gallery) in zip(SIDES, (sides, sides[::-1]), strict=True):
        offsets, rows = pairs.positives(side)
        some = np.random.default_rng(0).choice(len(queries), min(sample, len(queries)), replace=False)
        began = time.perf_counter()
        for row in some.tolist():
            scores = (gallery * queries[row : row + 1]).sum(1)
            scores[rows[offsets[row] : offsets[row + 1]]] = -9999
            torch.topk(scores, k)
        seconds += (time.perf_counter() - began) * len(queries) / len(some)
    return seconds


def same(block: NegativeBlock, found: Any, pairs: Pairs, direction: str) -> float:
    """Share of anchors for which FAISS's list without the positives is the same."""
    offsets, own = pairs.positives(SIDES[direction == "t2i"])
    equal = 0
    for at, row in enumerate(block.anchor_rows.tolist()):
        left = found[row][~np.isin(found[row], own[offsets[row] : offsets[row + 1]])]
        equal += np.array_equal(left[: block.negatives.shape[1]], block.negatives[at])
    return equal / len(block)


@click.command(help=__doc__)
@click.option("--images", default=20_000, show_default=True)
@click.option("--texts", default=100_000, show_default=True)
@click.option("--dim", default=1024, show_default=True)
@click.option("--k", default=50, show_default=True)
@click.option("--threads", default=0, help="[default: all cores]")
@click.option("--repeat", default=2, show_default=True, help="The best of so many counts.")
@click.option("--sample", default=200, show_default=True, help="Items of each side for the row-at-a-time tool.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(images: int, texts: int, dim: int, k: int, threads: int, repeat: int, sample: int, out: Path | None) -> None:
    threads = set_threads(threads or None)
    image, text, pairs = vectors_of(images, texts, dim)
    most = {side: int(np.diff(pairs.positives(side)[0]).max()) for side in SIDES}
    depth = {"i2t": min(k + most["image"], texts), "t2i": min(k + most["text"], images)}
    seconds: dict[str, float] = {}
    blocks: dict[str, NegativeBlock] = {}
    lists: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - began)
        return found

    # The contestants alternate, so that whatever else the machine does meets them all.
    for _ in range(repeat):
        for name, taken in bare(image, text).items():
            seconds[f"bare product, {name}"] = min(seconds.get(f"bare product, {name}", np.inf), taken)
        blocks = timed("quintain", lambda: quintain(image, text, pairs, k, threads, "fastest"))
        slow = timed("quintain, float32 tiles", lambda: quintain(image, text, pairs, k, threads, "float32"))
        lists = timed("FAISS, two searches", lambda: with_faiss(image, text, depth))
        assert all(np.array_equal(slow[way].negatives, blocks[way].negatives) for way in blocks)
    seconds["row at a time"] = row_at_a_time(image, text, pairs, k, sample)
    product = min(taken for name, taken in seconds.items() if name.startswith("bare"))
    machine = f"{platform.machine()} {platform.system()}, {threads} threads"
    print(f"{date.today()}, {machine}; {images:,} images x {texts:,} texts x {dim:,}, k = {k}, both directions")
    print(f"{'':28}{'seconds':>10}{'bare products':>16}{'over quintain':>16}")
    for name, taken in seconds.items():
        print(f"{name:28}{taken:10.2f}{taken / product:16.2f}{taken / seconds['quintain']:16.2f}")
    agreed = {direction: same(block, lists[direction], pairs, direction) for direction, block in blocks.items()}
    print(
        "FAISS finds the same, in the same order: " + ", ".join(f"{way} {share:.2%}" for way, share in agreed.items())
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"peak resident memory of all of it {peak:.2f} GiB, of which vectors {(image.nbytes + text.nbytes) / 2**30:.2f}"
    )
    if out:
        out.write_text(json.dumps({"machine": machine, "seconds": seconds, "agreed": agreed}, indent=1))


if __name__ == "__main__":
    main()
