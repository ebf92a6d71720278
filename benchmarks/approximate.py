"""What an approximate index saves, beside exact FAISS on the same vectors, and whether it takes the memory foretold.

\b
    python benchmarks/approximate.py                                          # 1,000,000 x 256, k = 50
    python benchmarks/approximate.py --rows 100000 --work /tmp/approximate    # the same, smaller

Made-up vectors: a topic for every 100 texts, topics of very unequal size (Zipf) around 300 themes; images vary around
their topic within one of 64 subspaces of 32 dimensions, and by noise in all; five texts are noise (--noise, per number,
beside 1.4 of the topics) around each image; images and texts have different means, none of them zero. The 50 nearest of
an image are of several topics. How hard that is, the share of lists that must be looked into says: about 1 in 100 with
--noise 2; with --noise 3 everything is about as near as anything else, half of the lists are needed, no index helps.

\b
exact     IndexFlatIP: k and the anchors' positives for some thousand anchors
index     the same from the index as tuned for the recall on other anchors: search alone; then with everything that
          `miner mine` does: positives out, what is left scored in float64 and ranked
build     apart, once for all searches; and what both come to for all anchors of the set
memory    of a process of its own that builds and writes the index, and of one that reads and searches it, without what
          it had after its imports, against the estimate that `miner build-index` prints
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from miner.approximate import Miner
from miner.artifacts.ids import Ids
from miner.artifacts.pairs import Pairs
from miner.index import factory
from miner.index._faiss import faiss, set_threads
from miner.memory import readable
from miner.tuning import tune

Vectors = npt.NDArray[np.float32]
TEXTS = 5  # per image


def write_vectors(work: Path, rows: int, dim: int, noise: float, seed: int = 0) -> tuple[Path, Path]:
    """`rows` texts and a fifth as many images, unit vectors; written block by block."""
    paths = work / f"images-{rows}x{dim}-{noise}.npy", work / f"texts-{rows}x{dim}-{noise}.npy"
    if all(path.exists() for path in paths):
        return paths
    rng = np.random.default_rng(seed)
    images, topics = rows // TEXTS, max(2, rows // 100)
    themes = rng.standard_normal((300, dim), np.float32)
    centres = themes[rng.integers(300, size=topics)] + rng.standard_normal((topics, dim), np.float32)
    spans = rng.standard_normal((64, 32, dim), np.float32) / np.float32(
        np.sqrt(32)
    )  # topic t varies within spans[t % 64]
    common, gap = (rng.standard_normal(dim, np.float32) for _ in range(2))
    share = 1 / np.arange(1, topics + 1) ** 0.8
    topic = rng.choice(topics, size=images, p=share / share.sum())
    open_as = [
        np.lib.format.open_memmap(path.with_suffix(".part"), "w+", np.float32, (count, dim))
        for path, count in zip(paths, (images, rows), strict=True)
    ]
    for start in range(0, images, 20_000):
        some = topic[start : start + 20_000]
        inner = rng.standard_normal((len(some), 32), np.float32)
        image = centres[some] + np.einsum("ik,ikd->id", inner, spans[some % 64], optimize=True)
        image += np.float32(0.7 * noise) * rng.standard_normal(image.shape, np.float32)
        text = np.repeat(image, TEXTS, axis=0)
        text += np.float32(noise) * rng.standard_normal(text.shape, np.float32) + gap
        for made, at, array in zip(open_as, (start, start * TEXTS), (image + common, text + common), strict=True):
            made[at : at + len(array)] = array / np.linalg.norm(array, axis=1, keepdims=True)
    for made, path in zip(open_as, paths, strict=True):
        made.flush()
        path.with_suffix(".part").rename(path)
    return paths


def anonymous() -> int:
    """Bytes of this process that are not of files."""
    return _status(os.getpid())


def _status(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def part(name: str, work: Path, texts: Path, string: str, threads: int) -> None:
    """In a process of its own: say what memory there is before, do the work, say what is left."""
    set_threads(threads)
    config = factory.Config(string)
    vectors = np.load(texts, mmap_mode="r")
    factory.build(np.ones((64, 8), np.float32), factory.Config("IVF2,SQ8"))  # what every first call takes
    said: dict[str, Any] = {"before": anonymous()}
    print(json.dumps(said), flush=True)
    began = time.perf_counter()
    if name == "build":
        trained = factory.empty(vectors, config)
        said["train"] = time.perf_counter() - began
        built = factory.filled(trained, vectors)
        said["add"] = time.perf_counter() - began - said["train"]
        built.write(work / "index.bin")
        (work / "index.json").write_text(json.dumps(built.about))
    else:
        index = factory.read(work / "index.bin", json.loads((work / "index.json").read_text()))
        index.search(np.ascontiguousarray(vectors[:512]), 50)
        said["after"] = anonymous()
    print(json.dumps(said), flush=True)


def watched(name: str, work: Path, texts: Path, string: str, threads: int) -> dict[str, Any]:
    """Run `part` and watch its memory: what it says, and the "peak" above what it had before, in bytes."""
    arguments = [
        "--part",
        name,
        "--work",
        str(work),
        "--index",
        string,
        "--threads",
        str(threads),
        "--texts",
        str(texts),
    ]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        before = json.loads(process.stdout.readline())["before"]
        peak = before
        while process.poll() is None:
            try:
                peak = max(peak, _status(process.pid))
            except FileNotFoundError:
                break
            time.sleep(0.01)
        said: dict[str, Any] = json.loads(process.stdout.read())
    assert process.returncode == 0
    return {**said, "peak": peak - before, "after": said.get("after", peak) - before}


def compared(
    texts: Path, images: Path, work: Path, k: int, recall: float, queries: int, threads: int, repeat: int
) -> dict[str, Any]:
    """Search times of both, and the recall."""
    gallery, anchors = np.load(texts), np.load(images, mmap_mode="r")
    pairs = Pairs(
        Ids([f"{row:08d}" for row in range(len(anchors))]),
        Ids([f"{row:08d}" for row in range(len(gallery))]),
        np.repeat(np.arange(len(anchors)), TEXTS),
        np.arange(len(gallery)),
    )
    index = factory.read(work / "index.bin", json.loads((work / "index.json").read_text()))
    miner = Miner(index, gallery, pairs, "i2t", k, threads=threads)
    began = time.perf_counter()
    tuned = tune(miner, anchors, recall)
    tuning = time.perf_counter() - began
    print(f"tuned in {tuning:.1f} s, {len(tuned.tried)} steps: {tuned.settings.chosen()}, {tuned.report}", flush=True)
    rows = np.sort(np.random.default_rng(1).choice(len(anchors), min(queries, len(anchors)), replace=False))
    some = np.ascontiguousarray(anchors[rows])
    began = time.perf_counter()
    exact = faiss().IndexFlatIP(gallery.shape[1])
    exact.add(gallery)
    seconds = {"exact, add": time.perf_counter() - began}
    miner.block(some[:256], rows[:256])
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        began = time.perf_counter()
        found[name] = work()
        seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - began)

    # The contestants alternate, so that whatever else the machine does meets them all.
    for _ in range(repeat):
        timed("exact", lambda: exact.search(some, k + TEXTS)[1])
        timed("index", lambda: index.search(some, miner.depth)[1])
        timed("index, mined", lambda: [miner.block(some[at : at + 4096], rows[at : at + 4096]).negatives
                                       for at in range(0, len(some), 4096)])  # fmt: skip
    mined = np.concatenate(found["index, mined"])
    shares = []
    for row, list_, truth in zip(rows, mined, found["exact"], strict=True):
        true = truth[truth // TEXTS != row][:k]
        shares.append(len(np.intersect1d(list_, true)) / len(true))
    return {
        "seconds": seconds,
        "queries": len(some),
        "anchors": len(anchors),
        "settings": tuned.settings.chosen(),
        "tuning": tuning,
        "report": tuned.stored(),
        "recall of these queries": float(np.mean(shares)),
    }


@click.command(help=__doc__)
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--k", default=50, show_default=True)
@click.option("--index", "string", default="auto", show_default=True, help="A FAISS factory string.")
@click.option("--noise", default=2.0, show_default=True, help="Of texts around their image.")
@click.option("--recall", default=0.95, show_default=True)
@click.option("--queries", default=4000, show_default=True)
@click.option("--threads", default=0, help="[default: all cores]")
@click.option("--repeat", default=2, show_default=True, help="The best of so many counts.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder for vectors and index; kept. [default: a new one]"
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@click.option("--part", "name", type=click.Choice(["build", "read"]), hidden=True)
@click.option("--texts", type=click.Path(path_type=Path), hidden=True)
def main(
    rows: int,
    dim: int,
    k: int,
    string: str,
    noise: float,
    recall: float,
    queries: int,
    threads: int,
    repeat: int,
    work: Path | None,
    out: Path | None,
    name: str | None,
    texts: Path | None,
) -> None:
    threads = set_threads(threads or None)
    if name:
        assert work is not None
        assert texts is not None
        part(name, work, texts, string, threads)
        return
    work = work or Path(tempfile.mkdtemp(prefix="approximate-"))
    work.mkdir(parents=True, exist_ok=True)
    images, texts = write_vectors(work, rows, dim, noise)
    machine = f"{platform.machine()} {platform.system()}, {threads} threads"
    string = factory.automatic(rows) if string == "auto" else string
    print(f"{date.today()}, {machine}; {rows:,} x {dim}, noise {noise}, k = {k}, {string}")
    needed = factory.estimate(factory.Config(string), rows, dim)
    built = watched("build", work, texts, string, threads)
    read = watched("read", work, texts, string, threads)
    size = (work / "index.bin").stat().st_size
    print(f"build: train {built['train']:.1f} s, add and write {built['add']:.1f} s")
    for what, is_, foretold in (
        ("file", size, needed.disk),
        ("building, at most", built["peak"], needed.build),
        ("read and searched", read["after"], needed.search),
    ):
        print(f"{what:20}{readable(is_):>12}   estimate {readable(foretold):>12}   {foretold / is_ - 1:+.1%}")
    figures = compared(texts, images, work, k, recall, queries, threads, repeat)
    seconds = figures["seconds"]
    print(f"recall@{k} of the {figures['queries']} queries timed: {figures['recall of these queries']:.4f}")
    for each in ("exact", "index", "index, mined"):
        print(
            f"{each:16}{seconds[each]:8.2f} s  {1e3 * seconds[each] / figures['queries']:8.3f} ms a query  "
            f"{seconds['exact'] / seconds[each]:6.1f} times as fast as exact"
        )
    scale = figures["anchors"] / figures["queries"]
    all_exact = seconds["exact"] * scale
    all_index = built["train"] + built["add"] + figures["tuning"] + seconds["index, mined"] * scale
    print(
        f"all {figures['anchors']:,} anchors once: exact {all_exact:.0f} s, index {all_index:.0f} s with building and "
        f"tuning: {all_exact / all_index:.1f} times as fast"
    )
    if out:
        memory = {"size": size, "estimate": vars(needed), "build": built, "read": read}
        out.write_text(json.dumps({"machine": machine, "index": string, **figures, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
