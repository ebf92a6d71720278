"""Does mining help on photographs? The AOQ paper's experiment on Flickr8k features, for five published models.

    python benchmarks/quality.py --data ../shared/data/flickr8k --seeds 3 --out quality.json

Every (model, seed) trains these arms, from the same initial weights and the same batches:

    triplet              online max-violation triplet, the baseline
    loop OffTri, ...     as quintain trains: the model finds its own negatives anew each round and goes on
    near OffTri, ...     the same with batches composed from the tables (`fit.neighbourhood`): the offline negatives are
                         in the batch, nothing is encoded in addition
    paper OffTri, ...    as the paper trains: the baseline finds the candidates, a fresh model trains on them; but its
                         first 4 epochs see online negatives alone, as loop's do
    triplet, near's time the triplet for as many epochs as fit into the time of `near AdapOffQuin`, mining included; or
                         of `loop AdapOffQuin`; or of `paper AdapOffQuin`, its first model included (`--equal-time`).
                         Costs are measured first, one after the other on the idle machine

All but these last update their model equally often. Figures are of the test set (1,000 photos, 5 captions each) with
the weights at the end of training: nothing is chosen on it, no epoch is picked. Differences are paired by seed, with
Student's t for the 95% interval over seeds. R-precision counts captions of other photos that people judged to fit as
well (`trainer.judgements.flickr8k`).

Finished trainings are kept in --work and reused, so a stopped benchmark goes on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipelines.compare.results import interval

FORMS = ("OffTri", "OffQuin", "AdapOffQuin")
MODES = ("loop", "near", "paper")
ARMS = ("triplet", *(f"{mode} {form}" for mode in MODES for form in reversed(FORMS)))
METRICS = ("rsum", "i2t_r1", "t2i_r1", "i2t_r_precision", "t2i_r_precision", "dev_rsum")

# The published models at a size that two cores train in minutes: 256 dimensions instead of 1,024 or 2,048.
SMALL = {"dim": 256, "word_dim": 128}
MODELS: dict[str, dict[str, Any]] = {
    "VSE++": {"model": {"name": "vsepp", **SMALL}, "images": "gap"},
    "VSE∞": {"model": {"name": "vse_inf", **SMALL}, "images": "regions"},
    "VSRN": {"model": {"name": "vsrn", **SMALL}, "images": "regions"},
    "SCAN": {"model": {"name": "scan", "attention": "t2i", **SMALL}, "images": "regions"},
    "BFAN": {"model": {"name": "bfan", **SMALL}, "images": "regions"},
}
IMAGES = {"gap": "image_lite0_gap.npy", "regions": "image_lite0_regions9_pca256.npy"}
EPOCHS, FIRST, ROUNDS = 10, 4, 2
# What offline negatives add depends on how hard those of the batch are. VSE++, 10 epochs of all pairs, one seed, test
# rsum of loop AdapOffQuin minus triplet: batches of 128 (lr 2e-3) -5.3, 32 (2e-3) -1.4, 16 (2e-3) -0.1, 8 (1e-3) +5.8;
# the triplet alone has 254.5, 263.6, 264.5, 252.2. Small batches are what large encoders leave room for.
FIT = {
    "batch_size": 8, "lr": 1e-3, "lr_schedule": "cosine", "warmup_epochs": "auto", "steps_per_epoch": 1500,
    "threads": 1, "min_count": 4,
}  # fmt: skip
# As published (margin_offline 0, gradient through the weights) VSE++ loses 8 points of rsum on dev to this (lr 5e-4,
# one seed): the weights pull offline negatives nearer, and their hinges are empty until it is too late.
AOQ = {"h_t": 300, "h_v": 60, "margin_offline": 0.1, "detach_weights": True, "clamp_weights": True}
TRAINING = ("encode", "index", "mine", "fit")


def write(path: Path, text: str) -> None:
    """Whole or not at all, so that what a stopped benchmark left can be trusted."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def prepare(source: Path, work: Path) -> None:
    """The features as folders of the format `vectors`, under --work."""
    ids = (source / "ids.txt").read_text().split()
    captions = (source / "captions.txt").read_text().splitlines()
    split_of = {
        name: split for split in ("train", "dev", "test") for name in (source / f"{split}.txt").read_text().split()
    }
    for kind, file in IMAGES.items():
        folder = work / "data" / kind
        if (folder / "pairs.csv").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", np.load(source / file))
        (folder / "image_ids.txt").write_text("\n".join(ids) + "\n")
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(["image_id", "text_id", "text", "split"])
        for row, caption in enumerate(captions):
            name = ids[row // 5]
            if name in split_of:
                writer.writerow([name, f"{name}#{row % 5}", caption, split_of[name]])
        write(folder / "pairs.csv", out.getvalue())


def settings_of(work: Path, model: str, seed: int, arm: str, epochs: int = EPOCHS, **fit: Any) -> Any:
    """The run file of one arm; `epochs` is the triplet's."""
    from pipelines.settings import Settings

    mode, _, form = arm.partition(" ")
    each = (EPOCHS - FIRST) // ROUNDS
    run: dict[str, Any] = {"seed": seed, "rounds": ROUNDS, "first_epochs": epochs - ROUNDS * each, "epochs": each}
    if mode == "paper":
        run |= {"rounds": 1, "restart": True, "first_epochs": EPOCHS, "epochs": EPOCHS}
    elif mode == "near":
        fit = {"neighbourhood": FIT["batch_size"], **fit}
    raw = {
        "run": run,
        "data": {"format": "vectors", "folder": str(work / "data" / MODELS[model]["images"])},
        "model": MODELS[model]["model"],
        "loss": {"name": "aoq", "form": form, **AOQ} if form in FORMS else {"name": "triplet"},
        "fit": {**FIT, **({"online_epochs": FIRST} if mode == "paper" else {}), **fit},
        "mine": {"k": max(AOQ["h_t"], AOQ["h_v"]), "num_candidates": 400},
    }
    return Settings.parse(raw, arm)


def train(settings: Any, root: Path) -> tuple[list[Any], Any]:
    """Run a loop in `root`, in this process; (its steps, the store)."""
    from miner.artifacts.lock import hold
    from miner.artifacts.store import LocalStore
    from pipelines import loop
    from pipelines.executors.inline import InlineExecutor
    from pipelines.progress import Lines

    store = LocalStore(root)
    with hold(root), open(root / "progress.log", "a") as log:
        data = loop.describe(settings)
        loop.prepare(settings, data, store)
        return loop.run(settings, data, store, InlineExecutor(), Lines(log)), store


def measured(settings: Any, steps: list[Any], store: Any, judged: Path) -> dict[str, float]:
    """Figures of the last round's model."""
    from miner.artifacts.manifest import Artifact
    from trainer.checkpoint import Checkpoint
    from trainer.data import load
    from trainer.evaluate import extended_metrics, scores_of
    from trainer.judgements import flickr8k

    last = {step.stage.name: step for step in steps}
    metrics = last[f"r{settings.run.rounds}/evaluate"].manifest.meta["metrics"]
    fit = last[f"r{settings.run.rounds}/fit"]
    test = load(settings.data, "test")
    model = Checkpoint.open(Artifact(store, fit.prefix, fit.manifest)).model()
    judgements = flickr8k.read(flickr8k.Config(path=judged), test.pairs)
    extended = extended_metrics(scores_of(model, test), judgements)
    return {
        **{name: metrics["test"][name] for name in METRICS[:3]},
        **{name: extended[name] for name in METRICS[3:5]},
        "dev_rsum": metrics["dev"]["rsum"],
    }


def run_arm(work: Path, source: Path, model: str, seed: int, arm: str, epochs: int) -> dict[str, Any]:
    """Train and measure one arm, on one thread; a finished one is read back."""
    settings = settings_of(work, model, seed, arm, epochs)
    # One folder for all arms of a (model, seed): what two of them have in common is trained once.
    root = work / "runs" / f"{MODELS[model]['model']['name']}-{seed}"
    steps, store = train(settings, root)
    fit = next(step for step in reversed(steps) if step.stage.work == "fit")
    kept = root / f"measured-{fit.prefix.replace('/', '-')}.json"
    if not kept.exists():
        write(kept, json.dumps(measured(settings, steps, store, source)))
    by_round = [step.manifest.meta["metrics"]["dev"]["rsum"] for step in steps if step.stage.work == "evaluate"]
    return {**json.loads(kept.read_text()), "epochs": epochs, "dev_rsum_by_round": by_round}


def run_member(work: Path, source: Path, model: str, seed: int, arms: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """All arms of one (model, seed), one after the other in one process."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"model": model, "seed": seed}
    for arm, epochs in arms:
        found[arm] = run_arm(work, source, model, seed, arm.partition(",")[0], epochs)
        print(f"{model} seed {seed} {arm}: {found[arm]['rsum']:.1f}", file=sys.stderr, flush=True)
    return found


def epochs_in_equal_time(work: Path, model: str, mode: str) -> int:
    """Epochs of the triplet in the time of `mode` AdapOffQuin, its first model and mining included."""
    cost = costs_of(work, model, "near" if mode == "near" else "loop")
    steps_per_epoch = FIT["steps_per_epoch"]
    slower = cost["quintuplet step"] / cost["triplet step"]
    mining = cost["mining"] / (cost["triplet step"] * steps_per_epoch)
    if mode == "paper":
        return round(EPOCHS + mining + FIRST + (EPOCHS - FIRST) * slower)
    return round(FIRST + ROUNDS * mining + (EPOCHS - FIRST) * slower)


def costs_of(work: Path, model: str, mode: str) -> dict[str, float]:
    """Seconds of a step and of a round's mining, measured once with few steps."""
    from pipelines.summary import log_lines, seconds_by_prefix

    name = f"{MODELS[model]['model']['name']}-{mode}"
    kept = work / f"cost-{name}.json"
    if not kept.exists():
        few = settings_of(work, model, 0, f"{mode} AdapOffQuin", steps_per_epoch=100)
        steps, store = train(few, work / "cost" / name)
        spent = seconds_by_prefix(store)
        epochs = {
            (line["stage"], line["epoch"]): line["seconds"] / line["steps"]
            for line in log_lines(store)
            if line["event"] == "epoch"
        }
        mining = sum(spent[s.prefix] for s in steps if s.stage.round == 1 and s.stage.work in TRAINING[:3])
        costs = {
            "triplet step": epochs["r0/fit", FIRST - 1],
            "quintuplet step": epochs["r1/fit", FIRST + 1],
            "mining": mining,
        }
        write(kept, json.dumps(costs))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def plot(found: list[dict[str, Any]], work: Path, arms: list[str], out: Path) -> None:
    """Dev rsum after every round against the seconds of training and mining up to there, by the measured costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = list(dict.fromkeys(member["model"] for member in found))
    figure, axes = pyplot.subplots(1, len(wanted), figsize=(4 * len(wanted), 3.4), squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], wanted, strict=True):
        for arm in (arm for arm in arms if not arm.startswith("paper")):
            members = [member[arm] for member in found if member["model"] == model]
            rsums = np.array([member["dev_rsum_by_round"] for member in members])
            mode = arm.partition(" ")[0]
            cost = costs_of(work, model, mode if mode in MODES else "near")
            mined = mode in MODES
            step = cost["quintuplet step" if mined else "triplet step"]
            epochs = members[0]["epochs"] - (ROUNDS - np.arange(ROUNDS + 1)) * ((EPOCHS - FIRST) // ROUNDS)
            first = epochs[0] * cost["triplet step"] * FIT["steps_per_epoch"]
            later = (epochs - epochs[0]) * step * FIT["steps_per_epoch"] + np.arange(ROUNDS + 1) * mined * cost[
                "mining"
            ]
            axis.errorbar(
                first + later, rsums.mean(0), yerr=rsums.std(0, ddof=min(1, len(rsums) - 1)),
                marker="o", capsize=3, label=arm,
            )  # fmt: skip
        axis.set(title=f"{model}, {len(members)} seeds", xlabel="seconds, one thread", ylabel="dev rsum")
        axis.legend(fontsize=7)
    figure.savefig(out, dpi=120)


def report(found: list[dict[str, Any]], arms: list[str]) -> dict[str, Any]:
    """By model and arm: mean and interval of every metric, and of rsum minus each of the baselines'."""
    lines: dict[str, Any] = {}
    for model in dict.fromkeys(member["model"] for member in found):
        members = [member for member in found if member["model"] == model]
        for arm in arms:
            line: dict[str, Any] = {name: interval([m[arm][name] for m in members]) for name in METRICS}
            for baseline in (a for a in arms if a.startswith("triplet") and a != arm):
                line[f"rsum minus {baseline}"] = interval([m[arm]["rsum"] - m[baseline]["rsum"] for m in members])
                for side in ("i2t", "t2i"):
                    name = f"{side}_r_precision"
                    line[f"{name} minus {baseline}"] = interval([m[arm][name] - m[baseline][name] for m in members])
            lines.setdefault(model, {})[arm] = line
    return lines


@click.command(help=__doc__)
@click.option(
    "--data", "source", default=Path("../shared/data/flickr8k"), type=click.Path(path_type=Path), show_default=True
)
@click.option("--models", default=",".join(MODELS), show_default=True, help="Which of them, by comma.")
@click.option("--arms", default=",".join(ARMS), show_default=True, help="Which of them, by comma.")
@click.option("--seeds", default=3, type=click.IntRange(1), show_default=True)
@click.option("--first-seed", default=0, type=click.IntRange(0), show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time, one thread each.")
@click.option(
    "--equal-time", default="near", show_default=True, help="Of which of loop, near, paper, by comma; or none."
)
@click.option("--work", default=Path("runs/quality-flickr8k"), type=click.Path(path_type=Path), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write everything as JSON.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path),
    help="Draw dev rsum against seconds; costs are measured first.",
)
def main(
    source: Path,
    models: str,
    arms: str,
    seeds: int,
    first_seed: int,
    jobs: int,
    equal_time: str,
    work: Path,
    out: Path | None,
    picture: Path | None,
) -> None:
    if not (source / "captions.txt").exists():
        raise click.UsageError(f"{source}: not the Flickr8k features; give their folder with --data.")
    work = work.resolve()
    prepare(source, work)
    chosen, wanted = arms.split(","), models.split(",")
    plan = {model: [(arm, EPOCHS) for arm in chosen] for model in wanted}
    for model in wanted:
        for mode in () if equal_time == "none" else equal_time.split(","):
            if mode not in MODES:
                raise click.BadParameter(f"{mode!r} is none of {', '.join(MODES)}.", param_hint="--equal-time")
            plan[model].append((f"triplet, {mode}'s time", epochs_in_equal_time(work, model, mode)))
    if picture:  # on the machine while it is idle
        for model in wanted:
            for mode in {"near", *(arm.partition(" ")[0] for arm in chosen)} & {"near", "loop"}:
                costs_of(work, model, mode)
    found = []
    with ProcessPoolExecutor(jobs) as pool:
        # Seeds outermost: a benchmark that is stopped early has still seen every model.
        order = [(model, seed) for seed in range(first_seed, first_seed + seeds) for model in wanted]
        for future in [pool.submit(run_member, work, source, model, seed, plan[model]) for model, seed in order]:
            found.append(future.result())
            if out:
                write(out, json.dumps({"members": found}, indent=1))
    labels = [arm for arm, _ in plan[wanted[0]]]
    lines = report(found, labels)
    machine = f"{platform.machine()} {platform.system()}, {jobs} trainings at a time, 1 thread each"
    print(f"{date.today()}, {machine}; {seeds} seeds; test rsum and R-precision with people's positives")
    for model, by_arm in lines.items():
        for arm, line in by_arm.items():
            against = "  ".join(
                f"{name.partition(' minus ')[2]}: {value}"
                for name, value in line.items()
                if name.startswith("rsum minus")
            )
            precision = " ".join(str(line[f"{side}_r_precision"]) for side in ("i2t", "t2i"))
            print(f"{model:6} {arm:24} rsum {line['rsum']}  R-P {precision}  minus {against}")
    if picture:
        plot(found, work, labels, picture)
    if out:
        shown = {
            m: {a: {n: [v.mean, v.half] for n, v in line.items()} for a, line in by.items()} for m, by in lines.items()
        }
        write(out, json.dumps({"machine": machine, "summary": shown, "members": found}, indent=1))


if __name__ == "__main__":
    main()
