"""What the loop costs beside the work it hands out, how encode and mine scale, and what that means for a cluster.

\b
    python benchmarks/loop.py [--images 10000] [--repeats 3] [--work DIR]

A made-up set of vectors with five captions each; one round of VSE++ before mining, `--rounds` after.

Orchestration: the same run in one process, and on a local Ray cluster with one worker, `--repeats` times in turns. A
round on Ray, from its first line in the log to its last, less what encode, index, mine and fit took in the one process
just before, is everything but the work: planning, manifests, actors and Ray Train starting, evaluation. It is shown as
a share of a round of five minutes: what is done once per round or stage does not grow with the data; what is done per
shard does, and is taken as it is for as many shards as here. Of `--few` images: it is a difference of two times, and
less certain the longer both are.

Scaling: encode and mine of round 1 alone, again and again with one worker and with two, each of one thread, in turns. A
rate is shards per second after each worker's first, so that nobody's start counts; the ratio is of medians.

Projection: the time of a shard of one worker here, on one thread, carried over to 100 million pairs on 64 GPUs, by the
assumptions that are printed with it.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

WORK = ("encode", "index", "mine", "fit")
ROUND_SECONDS = 300
DIM, FEATURES = 256, 512


def prepare(folder: Path, images: int) -> None:
    """Vectors around topics, and five captions each of words that tell the topic."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    topics = max(2, images // 20)
    topic = rng.integers(topics, size=images)
    centres = rng.standard_normal((topics, FEATURES), np.float32)
    np.save(folder / "images.npy", centres[topic] + rng.standard_normal((images, FEATURES), np.float32))
    (folder / "image_ids.txt").write_text("".join(f"i{row}\n" for row in range(images)))
    with open(folder / "pairs.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "text_id", "text", "split"])
        held = max(images // 50, 4)
        for row in range(images):
            split = "dev" if row < held else "test" if row < 2 * held else "train"
            for caption in range(5):
                words = [f"w{(topic[row] * 7 + word) % (topics + 40)}" for word in range(8)]
                rows.writerow([f"i{row}", f"t{row}-{caption}", " ".join([*words, f"x{row}", f"y{caption}"]), split])


def settings(folder: Path, rounds: int, shards: int, images: int) -> str:
    return f"""
[run]
rounds = {rounds}
first_epochs = 1
epochs = 1
[data]
format = "vectors"
folder = "{folder}"
[model]
name = "vsepp"
dim = {DIM}
[fit]
batch_size = {128 if images >= 1000 else 16}
[encode]
shard_rows = {max(1, images // shards)}
[mine]
k = {50 if images >= 1000 else 5}
shard_anchors = {max(1, images // shards)}
[watch]
trackers = []
"""


def prepared(folder: Path, images: int, rounds: int, shards: int) -> Path:
    """The run file of a set of so many images, both in `folder`."""
    prepare(folder / "vectors", images)
    run_file = folder / "run.toml"
    run_file.write_text(settings(folder / "vectors", rounds, shards, images))
    return run_file


def run(run_file: Path, root: Path, *options: str) -> list[dict[str, Any]]:
    """`pipelines run`; its events."""
    events = root.with_suffix(".jsonl")
    home = run_file.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "pipelines", "run", str(run_file), "--run-dir", str(root)]
    done = subprocess.run(
        [*command, "--log-json", str(events), *options], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return [json.loads(line) for line in events.read_text().splitlines()]


def log(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]


def seconds(root: Path) -> dict[str, float]:
    """Of every stage."""
    return {line["stage"]: line["seconds"] for line in log(root) if line["event"] == "done"}


def walls(root: Path) -> dict[int, float]:
    """Seconds of every mined round from the start of its first stage to the start of the next round's, or the last
    one's end; the page, which is of all rounds, apart."""
    times: dict[int, list[float]] = defaultdict(list)
    for line in log(root):
        if not line["stage"].endswith("/report"):
            times[int(line["stage"][1:].partition("/")[0])].append(line["time"])
    begun = {round: min(found) for round, found in times.items()}
    return {round: begun.get(round + 1, max(times[round])) - begun[round] for round in sorted(begun) if round}


def of_round(stages: dict[str, float], round: int, works: tuple[str, ...]) -> float:
    return sum(took for name, took in stages.items() if name.startswith(f"r{round}/") and _work(name) in works)


def _work(stage: str) -> str:
    return stage.partition("/")[2].partition("-")[0]


def rates(events: list[dict[str, Any]], workers: int) -> dict[str, float]:
    """Shards per second of each stage of round 1, from when every worker had done one."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["event"] == "shard_done" and event["round"] == 1:
            times[event["stage"]].append(_time(event))
    return {
        stage: (len(found) - workers) / (found[-1] - found[workers - 1])
        for stage, found in times.items()
        if len(found) > 2 * workers
    }


def _time(event: dict[str, Any]) -> float:
    from datetime import datetime

    told = event["time"]
    return float(told) if isinstance(told, int | float) else datetime.fromisoformat(told).timestamp()


def orchestration(turns: list[tuple[Path, Path]], say: Any) -> dict[int, float]:
    """Seconds of everything but the work and evaluation, by round: medians over pairs of a run in one process and the
    same run on Ray."""
    found: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    alone, there = [seconds(inline) for inline, _ in turns], [seconds(ray) for _, ray in turns]
    for stages, (_, ray) in zip(alone, turns, strict=True):
        for round, wall in walls(ray).items():
            found[round].append((wall, of_round(stages, round, WORK), of_round(stages, round, ("evaluate",))))
    say(f"| round | on Ray, s | work, s | evaluate, s | everything else, s ({len(turns)} turns) | of five minutes |")
    say("|---|---:|---:|---:|---:|---:|")
    fixed = {}
    for round, measured in found.items():
        wall, work, evaluation = (statistics.median(column) for column in zip(*measured, strict=True))
        others = sorted(wall - work - evaluation for wall, work, evaluation in measured)
        other = statistics.median(wall - work for wall, work, _ in measured)
        fixed[round] = statistics.median(others)
        say(
            f"| {round} | {wall:.1f} | {work:.1f} | {evaluation:.1f} | {fixed[round]:.1f} ({others[0]:.1f} to "
            f"{others[-1]:.1f}) | {other / ROUND_SECONDS:.1%} |"
        )
    say("\nWanted: below 5% of five minutes; the shares count evaluation too.\n")
    say("| stage | one process, s | Ray, s |")
    say("|---|---:|---:|")
    for name in [name for name in there[0] if name.startswith("r1/") and name in alone[0]]:
        both = [statistics.median(stages[name] for stages in some) for some in (alone, there)]
        say(f"| {name} | {both[0]:.2f} | {both[1]:.2f} |")
    return fixed


def scaling(done: Path, run_file: Path, repeats: int, say: Any) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, list[float]]] = {1: defaultdict(list), 2: defaultdict(list)}
    for repeat in range(repeats):
        for workers in found:
            root = done.with_name(f"scaled-{repeat}-{workers}")
            shutil.copytree(done, root)
            for made in ("encode", "index", "mine"):
                for folder in root.glob(f"rounds/001/{made}-*"):
                    shutil.rmtree(folder)
            events = run(run_file, root, "--executor", "ray", "--workers", str(workers))
            for stage, rate in rates(events, workers).items():
                found[workers][stage].append(rate)
            shutil.rmtree(root)
    medians = {w: {s: statistics.median(rates) for s, rates in stages.items()} for w, stages in found.items()}
    say(f"\n| stage | 1 worker, shards/s | 2 workers, shards/s | ratio (wanted 1.7; {repeats} runs each) |")
    say("|---|---:|---:|---:|")
    for stage in [stage for stage in medians[1] if stage in medians[2]]:
        one, two = medians[1][stage], medians[2][stage]
        say(f"| {stage} | {one:.2f} | {two:.2f} | {two / one:.2f} |")
    return medians


def projection(
    medians: dict[int, dict[str, float]], counts: dict[str, int], shard: int, factors: dict[str, float], fixed: float,
    pairs: int, gpus: int, say: Any,
) -> None:  # fmt: skip
    """What a refresh of `pairs` images with a text each would take."""
    efficiency = statistics.median(medians[2][s] / medians[1][s] / 2 for s in medians[1] if s in medians[2])
    say(f"\nA refresh of {pairs:,} pairs on {gpus} GPUs, from the shards above. Assumed, not measured:")
    encode, search = factors["encode"], factors["search"]
    say(f"- a GPU encodes {encode:g} times and searches {search:g} times as fast as a thread here;")
    say(f"- {gpus} workers do {efficiency:.0%} of {gpus} times what one does, the share that 2 workers keep here;")
    say("- encoding grows with items, exact search with anchors times gallery, and what a shard costs beside that with")
    say("  them, so that small shards say too much; both galleries fit a GPU's memory;")
    say(f"- what a stage costs beside its shards stays what it was here: {fixed:.1f} s for a whole round.\n")
    say("| stage | a shard here, s | items or scores in it | one thread, s | on the cluster, s |")
    say("|---|---:|---:|---:|---:|")
    total = fixed
    for stage, rate in medians[1].items():
        scored = stage.startswith("mine")
        gallery = counts["text" if stage.endswith("i2t") else "image"]
        each = shard * (gallery if scored else 1)
        work = pairs * (pairs if scored else 1)
        one = work / each / rate
        cluster = one / (search if scored else encode) / gpus / efficiency
        total += cluster
        say(f"| {stage} | {1 / rate:.3f} | {each:,} | {one:.3g} | {cluster:,.0f} |")
    say(f"| refresh, with {fixed:.1f} s of orchestration ({fixed / total:.1%}) | | | | {total:,.0f} |")


@click.command(help=__doc__)
@click.option("--images", default=10_000, show_default=True, help="For the scaling of encode and mine.")
@click.option("--few", default=2_000, show_default=True, help="Images for what is beside the work.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--shards", default=20, show_default=True, help="Of the images; texts have five times as many.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where runs are left.  [default: nowhere]")
@click.option("--pairs", default=100_000_000, show_default=True)
@click.option("--gpus", default=64, show_default=True)
@click.option("--gpu-encode", default=100.0, show_default=True, help="Speed of a GPU, in threads of this machine.")
@click.option("--gpu-search", default=500.0, show_default=True, help="The same for exact search.")
def main(
    images: int, few: int, rounds: int, shards: int, repeats: int, work: Path | None, pairs: int, gpus: int,
    gpu_encode: float, gpu_search: float,
) -> None:  # fmt: skip
    base = work or Path(tempfile.mkdtemp(prefix="quintain-loop-"))
    base = base.resolve()
    base.mkdir(parents=True, exist_ok=True)
    try:
        click.echo(
            f"{date.today()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores: {few:,} images, then "
            f"{images:,}, 5 texts each; {rounds} mined rounds\n"
        )
        run_file = prepared(base / "few", few, rounds, shards)
        turns = []
        for turn in range(repeats):
            turns.append((run_file.with_name(f"inline-{turn}"), run_file.with_name(f"ray-{turn}")))
            run(run_file, turns[-1][0], "--executor", "inline")
            run(run_file, turns[-1][1], "--executor", "ray", "--workers", "1")
        fixed = orchestration(turns, click.echo)
        run_file = prepared(base / "many", images, 1, shards)
        run(run_file, run_file.with_name("inline"), "--executor", "inline")
        medians = scaling(run_file.with_name("inline"), run_file, repeats, click.echo)
        train = images - 2 * max(images // 50, 4)
        counts = {"image": train, "text": 5 * train}
        factors = {"encode": gpu_encode, "search": gpu_search}
        projection(medians, counts, max(1, images // shards), factors, max(fixed.values()), pairs, gpus, click.echo)
    finally:
        if work is None:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
