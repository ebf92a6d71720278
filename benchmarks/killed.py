"""A search that does not fit into memory, killed again and again: the same bytes in the end?

    python benchmarks/killed.py --work /scratch        # 20,000 x 10,000,000 x 128, k = 10, 3 GiB, 10 kills

Both directions of 20,000 image vectors against 10,000,000 text vectors, made up, float16 on disk: `miner mine` in a
process whose data segment may not exceed the limit (`ulimit -d`), so that memory-mapped files do not count and all else
does. It is killed (SIGKILL) at random moments, --kills times, by the time that an undisturbed run takes divided by the
kills, and started again; at last it is left alone. Its files are compared with those of the undisturbed run, which is
kept in --work and not made again. --work wants 2.6 GB for the vectors and 4 GB for what comes out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import click
import numpy as np

DIM = 128


def prepare(folder: Path, images: int, texts: int) -> None:
    """Unit vectors around topics, float16; every text belongs to one image. Kept for a second run."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if (folder / "pairs.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def unit(vectors: np.ndarray) -> np.ndarray:
        found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found

    topics = rng.standard_normal((max(1, images // 50), DIM), np.float32)
    image = rng.standard_normal((images, DIM), np.float32) + topics[rng.integers(len(topics), size=images)]
    np.save(folder / "images.npy", unit(image).astype(np.float16))
    text = np.lib.format.open_memmap(folder / "texts.npy", mode="w+", dtype=np.float16, shape=(texts, DIM))
    for start in range(0, texts, 100_000):
        owner = np.arange(start, min(texts, start + 100_000)) % images
        text[start : start + len(owner)] = unit(rng.standard_normal((len(owner), DIM), np.float32) + image[owner])
    text.flush()
    names = [pc.cast(pa.array(ids), pa.string()) for ids in (np.arange(texts) % images, np.arange(texts))]
    temporary = folder / ".pairs"
    pq.write_table(pa.table({"image_id": names[0], "text_id": names[1]}), temporary)
    os.replace(temporary, folder / "pairs.parquet")


def limited(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def start(folder: Path, out: Path, k: int, limit: int) -> subprocess.Popen[bytes]:
    """`miner mine` under the limit."""
    # pyarrow's own allocator reserves a gigabyte of address space, which `ulimit -d` counts though it is never used.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [
        sys.executable,
        "-c",
        "from miner.cli import main; main()",
        "mine",
        str(folder),
        "--k",
        str(k),
        "--out",
        str(out),
    ]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, preexec_fn=limited(limit))


def finished(process: subprocess.Popen[bytes], within: float | None = None) -> tuple[bool, int]:
    """(whether it ended by itself in time, the most anonymous memory seen, in bytes); killed if it did not."""
    began, most = time.monotonic(), 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max(most, *(int(line.split()[1]) * 1024 for line in status.splitlines() if "RssAnon" in line))
        except (OSError, TypeError):
            pass
        if within is not None and time.monotonic() - began > within:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False, most
        time.sleep(0.2)
    if process.returncode:
        raise click.ClickException(f"miner mine ended with {process.returncode}; see its log")
    return True, most


def hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for vectors and results.")
@click.option("--images", default=20_000, show_default=True)
@click.option("--texts", default=10_000_000, show_default=True)
@click.option("--k", default=10, show_default=True)
@click.option("--limit", default=3.0, show_default=True, help="GiB of the data segment.")
@click.option("--kills", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(work: Path, images: int, texts: int, k: int, limit: float, kills: int, seed: int) -> None:
    """Seconds, memory, and whether the bytes are the same."""
    folder = work / f"vectors-{images}-{texts}"
    prepare(folder, images, texts)
    most = int(limit * 2**30)
    size = f"{images}-{texts}-{k}"
    whole, broken, known = (work / f"{name}-{size}" for name in ("whole", "broken", "undisturbed"))
    if not known.exists():
        began = time.monotonic()
        _, memory = finished(start(folder, whole, k, most))
        known.write_text(json.dumps({"seconds": time.monotonic() - began, "memory": memory}))
    seconds, memory = (json.loads(known.read_text())[name] for name in ("seconds", "memory"))
    click.echo(f"undisturbed: {seconds:.0f} s, at most {memory / 2**30:.2f} GiB of anonymous memory", nl=True)
    chance, killed, spent = random.Random(seed), 0, time.monotonic()
    while killed < kills:
        ended, _ = finished(start(folder, broken, k, most), chance.uniform(0.02, 2 * seconds / kills))
        if ended:
            break
        killed += 1
    finished(start(folder, broken, k, most))
    spent = time.monotonic() - spent
    same = hashes(whole) == hashes(broken)
    said = "the same" if same else "NOT the same"
    click.echo(f"{images:,} x {texts:,} x {DIM}, k = {k}, both directions, {limit:g} GiB of data segment")
    click.echo(
        f"killed {killed} times, {spent:.0f} s in all; the bytes are {said}; {platform.machine()}, {date.today()}"
    )
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
