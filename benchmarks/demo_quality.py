"""Does mining help on the bundled set? The demo's settings against the online max-violation triplet, paired.

    python benchmarks/demo_quality.py --folds 5 --seeds 2 --out quality.json

Every (fold, seed) trains three arms through the same loop, from the same initial weights and the same batches:

    mined            the demo: AdapOffQuin on tables mined anew each round
    equal-updates    the triplet, as many updates
    equal-time       the triplet, as many epochs as fit into the seconds `mined` spent on encode, index, mine and fit

The figure is the test rsum of the averaged weights at the end of training; nothing is chosen on the test set, and no
epoch is picked. Test sets of folds share no base emoji but their training sets overlap, so seeds are averaged within a
fold, and the 95% interval over folds is Nadeau and Bengio's corrected t (Machine Learning 52, 2003), wider than
Student's. Finished trainings are kept in --work and reused, so a stopped benchmark goes on.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import click

# Two-sided 97.5% quantiles of Student's t by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
TEST_TO_TRAIN = 2 / 7  # buckets of base emoji, see trainer/data/emoji.py
TRAINING = ("encode", "index", "mine", "fit")


def run_arm(work: Path, fold: int, seed: int, arm: str, first_epochs: int = 0) -> dict[str, float]:
    """Train one arm; {"rsum", "i2t_r1", "t2i_r1", "dev_rsum", "seconds", "epochs"}."""
    from miner.artifacts.lock import hold
    from miner.artifacts.store import LocalStore
    from pipelines import loop
    from pipelines.executors.inline import InlineExecutor
    from pipelines.progress import Lines
    from pipelines.settings import DEMO, Settings
    from pipelines.summary import seconds_by_prefix

    raw = Settings.load(DEMO).dump()
    raw["data"]["fold"], raw["run"]["seed"], raw["fit"]["threads"] = fold, seed, 1
    if arm != "mined":
        margin = raw["loss"]["margin_online"]
        raw["loss"] = {"name": "triplet", "margin": margin}
    if arm == "equal-time":
        raw["run"] |= {"rounds": 0, "first_epochs": first_epochs}
    kept = work / f"fold{fold}-seed{seed}-{arm}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    settings = Settings.parse(raw, arm)
    # One folder for all arms: what two of them have in common, the online round 0, is trained once.
    root = work / f"fold{fold}-seed{seed}"
    store = LocalStore(root)
    with hold(root), open(root / "progress.log", "a") as log:
        data = loop.describe(settings)
        loop.prepare(settings, data, store)
        steps = loop.run(settings, data, store, InlineExecutor(), Lines(log))
    last = next(s for s in steps if s.stage.name == f"r{settings.run.rounds}/evaluate")
    assert last.manifest is not None
    metrics = last.manifest.meta["metrics"]
    # A stage of round 0 that another arm trained took as long there.
    seconds, mine = seconds_by_prefix(store), {step.prefix for step in steps if step.stage.work in TRAINING}
    found = {
        "rsum": metrics["test"]["rsum"],
        "i2t_r1": metrics["test"]["i2t_r1"],
        "t2i_r1": metrics["test"]["t2i_r1"],
        "dev_rsum": metrics["dev"]["rsum"],
        "seconds": sum(spent for prefix, spent in seconds.items() if prefix in mine),
        "epochs": settings.run.total_epochs,
    }
    kept.write_text(json.dumps(found))
    return found


def run_pair(work: Path, fold: int, seed: int) -> dict[str, Any]:
    """All three arms of one (fold, seed), one after the other in one process, on one thread."""
    mined = run_arm(work, fold, seed, "mined")
    updates = run_arm(work, fold, seed, "equal-updates")
    epochs = max(round(mined["seconds"] / (updates["seconds"] / updates["epochs"])), 1)
    timed = run_arm(work, fold, seed, "equal-time", epochs)
    return {"fold": fold, "seed": seed, "mined": mined, "equal-updates": updates, "equal-time": timed}


def interval(differences: list[float]) -> tuple[float, float]:
    """(mean, half width of the 95% interval) of one difference per fold."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, math.inf
    variance = statistics.variance(differences) * (1 / len(differences) + TEST_TO_TRAIN)
    return mean, T[len(differences) - 1] * math.sqrt(variance)


def report(found: list[dict[str, Any]]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    folds = sorted({pair["fold"] for pair in found})
    for arm, metric in product(("equal-updates", "equal-time"), ("rsum", "i2t_r1", "t2i_r1")):
        per_fold = [
            statistics.fmean(p["mined"][metric] - p[arm][metric] for p in found if p["fold"] == fold) for fold in folds
        ]
        mean, half = interval(per_fold)
        lines[f"mined - {arm}, test {metric}"] = {"mean": mean, "half_width_95": half, "by_fold": per_fold}
    return lines


@click.command(help=__doc__)
@click.option("--folds", default=5, type=click.IntRange(1, 5), show_default=True)
@click.option("--seeds", default=2, type=click.IntRange(1), show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time, one thread each.")
@click.option("--work", default=Path("runs/quality"), type=click.Path(path_type=Path), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(folds: int, seeds: int, jobs: int, work: Path, out: Path | None) -> None:
    found: list[dict[str, Any]] = []
    work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        # Seeds outermost: a benchmark that is stopped early has still seen every fold.
        waiting = [pool.submit(run_pair, work, fold, seed) for seed, fold in product(range(seeds), range(folds))]
        for future in waiting:
            pair = future.result()
            found.append(pair)
            shown = "  ".join(
                f"{arm} {pair[arm]['rsum']:.1f} ({pair[arm]['epochs']} epochs, {pair[arm]['seconds']:.0f} s)"
                for arm in ("mined", "equal-updates", "equal-time")
            )
            print(f"fold {pair['fold']} seed {pair['seed']}: {shown}", file=sys.stderr, flush=True)
    lines = report(found)
    machine = f"{platform.machine()} {platform.system()}, {jobs} trainings at a time, 1 thread each"
    print(f"{date.today()}, {machine}; {folds} folds x {seeds} seeds")
    for name, line in lines.items():
        print(f"{name}: {line['mean']:+.2f} ± {line['half_width_95']:.2f}   by fold "
              + " ".join(f"{value:+.1f}" for value in line["by_fold"]))  # fmt: skip
    if out:
        out.write_text(json.dumps({"machine": machine, "summary": lines, "pairs": found}, indent=1))


if __name__ == "__main__":
    main()
