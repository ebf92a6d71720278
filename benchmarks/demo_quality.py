"""Does mining help on the bundled set? The demo's settings against the online max-violation triplet, paired.

\b
    python benchmarks/demo_quality.py --folds 5 --seeds 2 --out quality.json

Every (fold, seed) trains three arms through the same loop, from the same initial weights and the same batches:

\b
    mined            the demo: AdapOffQuin on tables mined anew each round
    equal-updates    the triplet, as many updates
    equal-time       the triplet, as many epochs as fit into the time `mined` spends on encode, index, mine and fit;
                     what each costs is measured first, one after the other on the otherwise idle machine

The figure is the test rsum of the averaged weights at the end of training; nothing is chosen on the test set, and no
epoch is picked. Test sets of folds share no base emoji but their training sets overlap. Two 95% intervals are given:

\b
    over seeds   of the mean over just these test sets: what another training would give; variances of the folds pooled
    over folds   of what other emoji would give: seeds averaged within a fold, then Nadeau and Bengio's corrected t
                 (Machine Learning 52, 2003), which is far wider than Student's with five folds

Finished trainings are kept in --work and reused, so a stopped benchmark goes on.
"""

from __future__ import annotations

import hashlib
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

from pipelines.compare.results import quantile

TEST_TO_TRAIN = 2 / 7  # buckets of base emoji, see trainer/data/emoji.py
TRAINING = ("encode", "index", "mine", "fit")
ARMS = ("mined", "equal-updates", "equal-time")


def settings_of(fold: int, seed: int, arm: str, **run: int) -> Any:
    """The demo's settings for one arm; `run` overrides its [run]."""
    from pipelines.settings import DEMO, Settings

    raw = Settings.load(DEMO).dump()
    raw["data"]["fold"], raw["run"]["seed"], raw["fit"]["threads"] = fold, seed, 1
    if arm != "mined":
        raw["loss"] = {"name": "triplet", "margin": raw["loss"]["margin_online"]}
    raw["run"] |= run
    return Settings.parse(raw, arm)


def train(settings: Any, root: Path) -> tuple[list[Any], dict[str, float]]:
    """Run a loop in `root`, in this process; (its steps, seconds by artifact)."""
    from miner.artifacts.lock import hold
    from miner.artifacts.store import LocalStore
    from pipelines import loop
    from pipelines.executors.inline import InlineExecutor
    from pipelines.progress import Lines
    from pipelines.summary import seconds_by_prefix

    store = LocalStore(root)
    with hold(root), open(root / "progress.log", "a") as log:
        data = loop.describe(settings)
        loop.prepare(settings, data, store)
        steps = loop.run(settings, data, store, InlineExecutor(), Lines(log))
    return steps, seconds_by_prefix(store)


def epochs_in_equal_time(work: Path) -> int:
    """Epochs of the triplet that take as long as the whole mined arm; measured once per settings, kept in `work`."""
    settings = json.dumps(settings_of(0, 0, "mined").dump(), sort_keys=True)
    kept = work / f"cost-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        seconds: dict[str, float] = {}
        for arm in ("mined", "equal-updates"):
            short = settings_of(0, 0, arm, rounds=1, first_epochs=3, epochs=2)
            steps, spent = train(short, work / "cost")
            for step in steps:
                if step.stage.work in TRAINING and step.stage.round == 1:
                    fit = step.stage.work == "fit"
                    name = f"{arm} {'epoch' if fit else 'mining'}"
                    seconds[name] = seconds.get(name, 0) + spent[step.prefix] / (short.run.epochs if fit else 1)
        kept.write_text(json.dumps(seconds))
    cost = json.loads(kept.read_text())
    run = settings_of(0, 0, "mined").run
    mined = run.rounds * (cost["mined mining"] + run.epochs * cost["mined epoch"])
    epochs: int = round(run.first_epochs + mined / cost["equal-updates epoch"])
    return epochs


def run_arm(work: Path, fold: int, seed: int, arm: str, first_epochs: int = 0) -> dict[str, float]:
    """Train one arm; {"rsum", "i2t_r1", "t2i_r1", "dev_rsum", "epochs"}."""
    run = {"rounds": 0, "first_epochs": first_epochs} if arm == "equal-time" else {}
    settings = settings_of(fold, seed, arm, **run)
    # One folder for all arms: what two of them have in common, the online round 0, is trained once.
    steps, _ = train(settings, work / f"fold{fold}-seed{seed}")
    last = next(s for s in steps if s.stage.name == f"r{settings.run.rounds}/evaluate")
    metrics = last.manifest.meta["metrics"]
    return {
        "rsum": metrics["test"]["rsum"],
        "i2t_r1": metrics["test"]["i2t_r1"],
        "t2i_r1": metrics["test"]["t2i_r1"],
        "dev_rsum": metrics["dev"]["rsum"],
        "epochs": settings.run.total_epochs,
    }


def run_pair(work: Path, fold: int, seed: int, epochs: int | None) -> dict[str, Any]:
    """All arms of one (fold, seed), one after the other in one process, on one thread."""
    found: dict[str, Any] = {"fold": fold, "seed": seed}
    for arm in ARMS[: 2 if epochs is None else 3]:
        found[arm] = run_arm(work, fold, seed, arm, epochs or 0 if arm == "equal-time" else 0)
    return found


def over_folds(differences: list[list[float]]) -> float:
    """Half width of the 95% interval for other emoji; `differences` are by fold, then seed."""
    if len(differences) < 2:
        return math.inf
    variance = statistics.variance([statistics.fmean(fold) for fold in differences])
    return quantile(len(differences) - 1) * math.sqrt(variance * (1 / len(differences) + TEST_TO_TRAIN))


def over_seeds(differences: list[list[float]]) -> float:
    """Half width of the 95% interval for these folds, from the pooled variance of seeds within a fold."""
    freedom = sum(len(fold) - 1 for fold in differences)
    if freedom == 0:
        return math.inf
    pooled = sum(statistics.variance(fold) * (len(fold) - 1) for fold in differences if len(fold) > 1) / freedom
    error = math.sqrt(sum(pooled / len(fold) for fold in differences)) / len(differences)
    return quantile(freedom) * error


def report(found: list[dict[str, Any]]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    folds = sorted({pair["fold"] for pair in found})
    others = [arm for arm in ARMS[1:] if arm in found[0]]
    for arm, metric in product(others, ("rsum", "i2t_r1", "t2i_r1", "dev_rsum")):
        by_fold = [[p["mined"][metric] - p[arm][metric] for p in found if p["fold"] == fold] for fold in folds]
        means = [statistics.fmean(fold) for fold in by_fold]
        lines[f"mined - {arm}, {'' if metric.startswith('dev') else 'test '}{metric}"] = {
            "mean": statistics.fmean(means),
            "over_seeds_95": over_seeds(by_fold),
            "over_folds_95": over_folds(by_fold),
            "by_fold": means,
        }
    return lines


@click.command(help=__doc__)
@click.option("--folds", default=5, type=click.IntRange(1, 5), show_default=True)
@click.option("--seeds", default=2, type=click.IntRange(1), show_default=True)
@click.option("--first-seed", default=0, type=click.IntRange(0), show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time, one thread each.")
@click.option("--equal-time/--no-equal-time", default=True, show_default=True, help="The third arm.")
@click.option("--work", default=Path("runs/quality"), type=click.Path(path_type=Path), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
def main(folds: int, seeds: int, first_seed: int, jobs: int, equal_time: bool, work: Path, out: Path | None) -> None:
    found: list[dict[str, Any]] = []
    work.mkdir(parents=True, exist_ok=True)
    epochs = epochs_in_equal_time(work) if equal_time else None
    # Seeds outermost: a benchmark that is stopped early has still seen every fold.
    order = product(range(first_seed, first_seed + seeds), range(folds))
    with ProcessPoolExecutor(jobs) as pool:
        for future in [pool.submit(run_pair, work, fold, seed, epochs) for seed, fold in order]:
            pair = future.result()
            found.append(pair)
            arms = [arm for arm in ARMS if arm in pair]
            shown = "  ".join(f"{arm} {pair[arm]['rsum']:.1f} ({pair[arm]['epochs']} epochs)" for arm in arms)
            print(f"fold {pair['fold']} seed {pair['seed']}: {shown}", file=sys.stderr, flush=True)
    lines = report(found)
    machine = f"{platform.machine()} {platform.system()}, {jobs} trainings at a time, 1 thread each"
    print(f"{date.today()}, {machine}; {folds} folds x {seeds} seeds")
    for name, line in lines.items():
        by_fold = " ".join(f"{value:+.1f}" for value in line["by_fold"])
        halves = f"± {line['over_seeds_95']:.2f} over seeds, ± {line['over_folds_95']:.2f} over folds"
        print(f"{name}: {line['mean']:+.2f} {halves}   by fold {by_fold}")
    if out:
        out.write_text(json.dumps({"machine": machine, "summary": lines, "pairs": found}, indent=1))


if __name__ == "__main__":
    main()
