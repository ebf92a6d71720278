"""Training from a precomp file that is larger than memory: peak resident memory, and who waits for whom.

    python benchmarks/loader.py --work DIR [--images 100000] [--steps 200] [--also-mapped] [--fingerprint]

Writes the train split of a precomp folder into a temporary folder below DIR (100,000 x 36 x 2,048 float32 are 29.5 GB),
takes it out of the system's cache, and trains VSE++ on it with `trainer.training` in a process of its own. Prints the
peak resident memory of that process (anonymous and file-backed pages), the share of the steps' time that was spent
waiting for data, and how much the disk gave. `--also-mapped` trains again with the file memory-mapped, as a comparison.
The files are deleted at the end. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

BLOCK, WORDS = 64, 5000


def write_set(folder: Path, asked: argparse.Namespace) -> None:
    """Rows are one random block over and over, told apart by their first number: as fast as the disk takes it."""
    rng = np.random.default_rng(0)
    shape = (asked.images, asked.regions, asked.dim)
    block = rng.normal(size=(BLOCK, *shape[1:])).astype(np.float32)
    with open(folder / "train_ims.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, asked.images, BLOCK):
            count = min(BLOCK, asked.images - start)
            block[:count, 0, 0] = np.arange(start + 1, start + 1 + count)
            file.write(block[:count].data)
        file.flush()
        os.fsync(file.fileno())
    with open(folder / "train_caps.txt", "w") as captions:
        for _ in range(asked.images):
            for words in rng.integers(0, WORDS, (asked.captions, 10)):
                captions.write(" ".join(f"w{word}" for word in words) + "\n")


def leave_cache(path: Path) -> None:
    """Have the next read come from the disk."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak(field: str) -> float:
    """GB; VmHWM is the peak, RssAnon and RssFile are what it is now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def bytes_read() -> int:
    """What the disk gave to this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def train(folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    from trainer import data, losses, models
    from trainer.training import EpochLog, FitConfig, fit

    began = time.perf_counter()
    dataset = data.load(data.spoken(f'precomp:folder="{folder}"'), "train")
    if asked.kind == "mapped":
        dataset = replace(dataset, images=np.load(folder / "train_ims.npy", mmap_mode="r"))
    opened, before = time.perf_counter() - began, bytes_read()
    logs: list[EpochLog] = []
    fit(
        dataset,
        models.configure("vsepp", {"dim": asked.model_dim}),
        losses.configure("triplet"),
        FitConfig(epochs=1, steps_per_epoch=asked.steps, batch_size=asked.batch_size, threads=asked.threads),
        progress=logs.append,
    )
    found = {
        "opened": opened,
        "step": logs[0].seconds / logs[0].steps,
        "waited": logs[0].waited / logs[0].seconds,
        "disk": (bytes_read() - before) / logs[0].seconds / 1e6,
        "peak": peak("VmHWM"),
        "anonymous": peak("RssAnon"),
        "file": peak("RssFile"),
    }
    if asked.fingerprint:
        began = time.perf_counter()
        print(f"fingerprint {dataset.fingerprint[:12]}", file=sys.stderr)
        found |= {"fingerprint": time.perf_counter() - began, "fingerprint_peak": peak("VmHWM")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="a folder on the disk to measure")
    for name, default in (("images", 100_000), ("regions", 36), ("dim", 2048), ("captions", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("steps", 200), ("batch-size", 128), ("threads", 0), ("model-dim", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--also-mapped", action="store_true")
    parser.add_argument("--fingerprint", action="store_true", help="also read the whole file once, in order")
    parser.add_argument("--kind", choices=["read", "mapped"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.kind:
        print(json.dumps(train(asked.work, asked)))
        return
    size = asked.images * asked.regions * asked.dim * 4 + asked.images * asked.captions * 80
    asked.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(asked.work).free
    if free < size * 1.05:
        sys.exit(f"{asked.work}: {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB needed; take fewer --images.")
    with tempfile.TemporaryDirectory(dir=asked.work) as temporary:
        began = time.perf_counter()
        write_set(Path(temporary), asked)
        print(f"{size / 1e9:.1f} GB written in {time.perf_counter() - began:.0f} s", flush=True)
        for kind in ("read", "mapped") if asked.also_mapped else ("read",):
            leave_cache(Path(temporary) / "train_ims.npy")
            command = [sys.executable, *sys.argv, "--kind", kind, "--work", temporary]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(
                f"{kind}: peak resident {found['peak']:.2f} GB (at the end {found['anonymous']:.2f} anonymous, "
                f"{found['file']:.2f} of files); {found['step'] * 1000:.0f} ms a step, {found['waited']:.1%} of it "
                f"waiting for data, {found['disk']:.0f} MB/s from disk; opened in {found['opened']:.1f} s"
            )
            if asked.fingerprint:
                print(f"    fingerprint in {found['fingerprint']:.0f} s, peak then {found['fingerprint_peak']:.2f} GB")


if __name__ == "__main__":
    main()
