"""Does mining help on photographs? The AOQ paper's experiment on Flickr8k features, for five published models.

\b
    python benchmarks/quality.py --data ../shared/data/flickr8k --seeds 3

Every (model, seed) trains these arms, from the same initial weights and the same batches:

\b
    triplet              online max-violation triplet, the baseline
    loop OffTri, ...     as quintain trains: the model finds its own negatives anew each round and goes on
    near OffTri, ...     the same with batches composed from the tables (`fit.neighbourhood`): the offline negatives are
                         in the batch, nothing is encoded in addition
    paper OffTri, ...    as the paper trains: the baseline finds the candidates, a fresh model trains on them; but its
                         first 4 epochs see online negatives alone, as loop's do
    triplet, near's time the triplet with epochs of as many steps as fit into the time of `near AdapOffQuin`, mining
                         included, and every `loop` or `near` arm that takes another time likewise; or of `loop
                         AdapOffQuin`; or of `paper AdapOffQuin`, its first model included (`--equal-time`). Costs are
                         measured first, one after the other on the idle machine

All but these last update their model equally often. Figures are of the test set (1,000 photos, 5 captions each) with
the weights at the end of training: no epoch and no seed is picked. That batches are of 8 was, on this test set with one
seed, by what mining adds there; `--batch-size 16 --lr 2e-3 --steps 1875 --equal-time none` is another size. Differences
are paired by seed, with Student's t for the 95% interval over seeds. R-precision counts captions of other photos that
people judged to fit as well (`trainer.judgements.flickr8k`).

Finished trainings are kept in --work and reused, so a stopped benchmark goes on. Each thing measured, costs too, is a
line of --record: it is not measured again while these settings stay as they are, also where --work is gone.
"""

from __future__ import annotations

import csv
import hashlib
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
# Where a second stage pays for every candidate, no deeper than AOQ's pools (h_t of i2t, h_v of t2i).
TWO_STAGE = {"k": {"i2t": 300, "t2i": 60}, "num_candidates": {"i2t": 400, "t2i": 120}}
MODELS: dict[str, dict[str, Any]] = {
    "VSE++": {"model": {"name": "vsepp", **SMALL}, "images": "gap"},
    "VSE∞": {"model": {"name": "vse_inf", **SMALL}, "images": "regions"},
    "VSRN": {"model": {"name": "vsrn", **SMALL}, "images": "regions"},
    "SCAN": {"model": {"name": "scan", "attention": "t2i", **SMALL}, "images": "regions", "mine": TWO_STAGE},
    "BFAN": {"model": {"name": "bfan", **SMALL}, "images": "regions", "mine": TWO_STAGE},
}
IMAGES = {"gap": "image_lite0_gap.npy", "regions": "image_lite0_regions9_pca256.npy"}
EPOCHS, FIRST, ROUNDS = 10, 4, 2
# What offline negatives add depends on how hard those of the batch are. VSE++, 10 epochs of all pairs, one seed, test
# rsum of loop AdapOffQuin minus triplet: batches of 128 (lr 2e-3) -5.3, 32 (2e-3) -1.4, 16 (2e-3) -0.1, 8 (1e-3) +5.8;
# the triplet alone has 254.5, 263.6, 264.5, 252.2. Small batches are what large encoders leave room for.
FIT: dict[str, Any] = {
    "batch_size": 8, "lr": 1e-3, "lr_schedule": "cosine", "warmup_epochs": "auto", "steps_per_epoch": 1500,
    "threads": 1, "min_count": 4,
}  # fmt: skip
# As published (margin_offline 0, gradient through the weights) VSE++ loses 8 points of rsum on dev to this (lr 5e-4,
# one seed): the weights pull offline negatives nearer, and their hinges are empty until it is too late.
AOQ = {"h_t": 300, "h_v": 60, "margin_offline": 0.1, "detach_weights": True, "clamp_weights": True}
TRAINING = ("encode", "index", "mine", "fit")
Found = dict[str, dict[str, dict[int, dict[str, Any]]]]  # by model, arm and seed


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


def settings_of(model: str, seed: int, arm: str, **fit: Any) -> dict[str, Any]:
    """The run file of one arm, but for where the data is."""
    mode, _, form = arm.partition(",")[0].partition(" ")
    each = (EPOCHS - FIRST) // ROUNDS
    run: dict[str, Any] = {"seed": seed, "rounds": ROUNDS, "first_epochs": FIRST, "epochs": each}
    if mode == "paper":
        run |= {"rounds": 1, "restart": True, "first_epochs": EPOCHS, "epochs": EPOCHS}
    elif mode == "near":
        fit = {"neighbourhood": fit.get("batch_size", FIT["batch_size"]), **fit}
    return {
        "run": run,
        "data": {"format": "vectors", "folder": MODELS[model]["images"]},
        "model": MODELS[model]["model"],
        "loss": {"name": "aoq", "form": form, **AOQ} if form in FORMS else {"name": "triplet"},
        "fit": {**FIT, **({"online_epochs": FIRST} if mode == "paper" else {}), **fit},
        "mine": MODELS[model].get("mine", {"k": max(AOQ["h_t"], AOQ["h_v"]), "num_candidates": 400}),
    }


class Record:
    """What was measured: a line of JSON each, with the date and the machine, added as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, what: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        key = self._key(settings)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        found = (line for line in map(json.loads, lines) if (line["what"], line["settings"]) == (what, key))
        return next(found, None)

    def add(self, what: str, settings: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        line = {"what": what, "settings": self._key(settings), "date": str(date.today()), "machine": machine, **found}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as out:  # one write: others add lines at the same time
            out.write(json.dumps(line) + "\n")
        return line

    @staticmethod
    def _key(settings: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def train(raw: dict[str, Any], work: Path, root: Path) -> tuple[Any, list[Any], Any]:
    """Run a loop in `root`, in this process; (its settings, its steps, the store)."""
    from miner.artifacts.lock import hold
    from miner.artifacts.store import LocalStore
    from pipelines import loop
    from pipelines.executors.inline import InlineExecutor
    from pipelines.progress import Lines
    from pipelines.settings import Settings

    data_section = {**raw["data"], "folder": str(work / "data" / raw["data"]["folder"])}
    settings = Settings.parse({**raw, "data": data_section}, "quality.py")
    store = LocalStore(root)
    with hold(root), open(root / "progress.log", "a") as log:
        data = loop.describe(settings)
        loop.prepare(settings, data, store)
        return settings, loop.run(settings, data, store, InlineExecutor(), Lines(log)), store


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
    judgements = flickr8k.read(flickr8k.Config.model_validate({"path": judged}), test.pairs)
    extended = extended_metrics(scores_of(model, test), judgements)
    return {
        **{name: metrics["test"][name] for name in METRICS[:3]},
        **{name: extended[name] for name in METRICS[3:5]},
        "dev_rsum": metrics["dev"]["rsum"],
    }


def run_member(
    work: Path, source: Path, record: Record, model: str, seed: int, arms: list[tuple[str, int]], fit: dict[str, Any]
) -> None:
    """Train and measure all arms of one (model, seed), one after the other in one process, on one thread."""
    import torch

    torch.set_num_threads(1)
    # One folder for all arms: what two of them have in common is trained once.
    root = work / "runs" / f"{MODELS[model]['model']['name']}-{seed}"
    for arm, steps_per_epoch in arms:
        raw, what = settings_of(model, seed, arm, steps_per_epoch=steps_per_epoch, **fit), f"{model} {arm}"
        line = record.find(what, raw)
        if line is None:
            settings, steps, store = train(raw, work, root)
            by_round = [step.manifest.meta["metrics"]["dev"]["rsum"] for step in steps if step.stage.work == "evaluate"]
            figures = measured(settings, steps, store, source)
            about = {"seed": seed, "steps_per_epoch": steps_per_epoch, **fit}
            line = record.add(what, raw, {**about, **figures, "dev_rsum_by_round": by_round})
        print(f"{model} seed {seed} {arm}: {line['rsum']:.1f}", file=sys.stderr, flush=True)


def _cost_of(arm: str) -> str:
    """Which arm's costs are its own."""
    return "loop" if arm.partition(" ")[0] in ("loop", "paper") else "near"


def seconds_of(work: Path, record: Record, model: str, arm: str, steps_per_epoch: int) -> Any:
    """Seconds of training and mining up to the end of every round, the first being 0, by the measured costs."""
    mode = arm.partition(" ")[0]
    cost = costs_of(work, record, model, _cost_of(arm))
    online, offline = (steps_per_epoch * cost[f"{loss} step"] for loss in ("triplet", "quintuplet"))
    if mode == "paper":
        return np.array(
            [EPOCHS * online, EPOCHS * online + cost["mining"] + FIRST * online + (EPOCHS - FIRST) * offline]
        )
    each = (EPOCHS - FIRST) // ROUNDS
    round_ = each * online if mode == "triplet" else cost["mining"] + each * offline
    return FIRST * online + round_ * np.arange(ROUNDS + 1)


def steps_in_equal_time(work: Path, record: Record, model: str, arm: str, mode: str) -> int:
    """Steps an epoch of `arm` has when it may take the time of `mode` AdapOffQuin."""
    wanted = seconds_of(work, record, model, f"{mode} AdapOffQuin", FIT["steps_per_epoch"])[-1]
    fixed = seconds_of(work, record, model, arm, 0)[-1]  # mining
    step = seconds_of(work, record, model, arm, 1)[-1] - fixed
    return int(np.rint((wanted - fixed) / step))


def costs_of(work: Path, record: Record, model: str, mode: str) -> dict[str, Any]:
    """Seconds of a step and of a round's mining, measured once with few steps: of two runs the least of each, as what
    else goes on on a machine only ever adds to them."""
    from pipelines.log import lines as log_lines
    from pipelines.summary import seconds_by_prefix

    raw, what, known = _cost(record, model, mode)
    if known is not None:
        return known
    least: dict[str, float] = {}

    def measured(name: str, seconds: float) -> None:
        least[name] = min(seconds, least.get(name, seconds))

    for repeat in range(2):
        _, steps, store = train(raw, work, work / "cost" / f"{MODELS[model]['model']['name']}-{mode}-{repeat}")
        spent = seconds_by_prefix(store)
        for line in log_lines(store):
            if line["event"] == "epoch":
                loss = "triplet" if line["stage"] == "r0/fit" else "quintuplet"
                measured(f"{loss} step", line["seconds"] / line["steps"])
        for round in range(1, ROUNDS + 1):
            mining = [s.prefix for s in steps if s.stage.round == round and s.stage.work in TRAINING[:3]]
            measured("mining", sum(spent[prefix] for prefix in mining))
    return record.add(what, raw, least)


def _cost(record: Record, model: str, mode: str) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """The settings it is measured with, what it is called, and what is known of it."""
    raw, what = settings_of(model, 0, f"{mode} AdapOffQuin", steps_per_epoch=100), f"cost of {model} {mode}"
    return raw, what, record.find(what, raw)


def _costs_known(record: Record, model: str, arms: Iterable[str]) -> bool:
    return all(_cost(record, model, _cost_of(arm))[2] is not None for arm in arms)


def plot(found: Found, work: Path, record: Record, out: Path) -> None:
    """Dev rsum after every round against the seconds of training and mining up to there, by the measured costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across, down = min(len(found), 3), -(-len(found) // 3)
    figure, axes = pyplot.subplots(down, across, figsize=(4 * across, 3.4 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, (model, by_arm) in zip(axes.flat, found.items(), strict=False):
        for arm, members in by_arm.items():
            rsums = np.array([line["dev_rsum_by_round"] for line in members.values()])
            steps_per_epoch = next(iter(members.values()))["steps_per_epoch"]
            axis.errorbar(
                seconds_of(work, record, model, arm.partition(",")[0], steps_per_epoch),
                rsums.mean(0), yerr=rsums.std(0, ddof=min(1, len(rsums) - 1)), marker="o", capsize=3, label=arm,
            )  # fmt: skip
        seeds = min(len(members) for members in by_arm.values())
        axis.set(title=f"{model}, {seeds} seeds", xlabel="seconds, one thread", ylabel="dev rsum")
        axis.legend(fontsize=7)
    figure.savefig(out, dpi=120)


def report(found: Found) -> None:
    """By model and arm: mean and interval of rsum, of R-precision, and of their differences to the baselines."""
    for model, by_arm in found.items():
        for arm, members in by_arm.items():
            said = [f"{model:6} {arm:28} {len(members)} seeds"]
            for name in ("rsum", "i2t_r_precision", "t2i_r_precision"):
                said.append(f"{name} {interval([line[name] for line in members.values()])}")
                for baseline in (a for a in by_arm if a.startswith("triplet") and a != arm):
                    both = sorted(members.keys() & by_arm[baseline].keys())
                    less = [members[seed][name] - by_arm[baseline][seed][name] for seed in both]
                    said.append(f"(minus {baseline}: {interval(less)})")
            print("  ".join(said))


def _of_equal_time(by_arm: dict[str, dict[int, dict[str, Any]]], arm: str) -> tuple[dict[int, Any], dict[int, Any]]:
    """An arm and the triplet of as much time: of the arm's own, or both of another's."""
    own = arm.partition(" ")[0]
    for mode in (own, *MODES):
        ours = by_arm[arm] if mode == own else by_arm.get(f"{arm}, {mode}'s time", {})
        others = by_arm.get(f"triplet, {mode}'s time", {})
        if ours and others:
            return ours, others
    return {}, {}


def table(found: Found, said: tuple[str, ...] = METRICS[:1] + METRICS[3:5]) -> None:
    """A line of Markdown for every model and arm that mines: what it has over the triplet, both ways."""
    print(f"| model | arm | seeds | {' | '.join(f'{name}, equal updates | equal time' for name in said)} |")
    print("|---" * (3 + 2 * len(said)) + "|")
    for model, by_arm in found.items():
        for arm, members in by_arm.items():
            if "," in arm or arm == "triplet":
                continue
            cells = []
            for name in said:
                for ours, others in ((members, by_arm.get("triplet", {})), _of_equal_time(by_arm, arm)):
                    less = [ours[seed][name] - others[seed][name] for seed in sorted(ours.keys() & others.keys())]
                    cells.append(f"{'+' if np.mean(less) >= 0 else ''}{interval(less)}" if less else "")
            print(f"| {model} | {arm} | {len(members)} | {' | '.join(cells)} |")


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
@click.option("--batch-size", type=click.IntRange(2), help="Another than 8, of which nothing else is known.")
@click.option("--lr", type=float, help="[default: 1e-3]")
@click.option("--steps", default=FIT["steps_per_epoch"], show_default=True, help="An epoch, in batches.")
@click.option("--work", default=Path("runs/quality-flickr8k"), type=click.Path(path_type=Path), show_default=True)
@click.option(
    "--record",
    "kept",
    default=Path(__file__).with_name("quality.jsonl"),
    type=click.Path(path_type=Path),
    help="What was measured: read and added to.  [default: quality.jsonl beside this script]",
)
@click.option("--known", is_flag=True, help="Measure nothing: show what --record holds.")
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
    batch_size: int | None,
    lr: float | None,
    steps: int,
    work: Path,
    kept: Path,
    known: bool,
    picture: Path | None,
) -> None:
    work, record = work.resolve(), Record(kept.resolve())
    fit = {name: value for name, value in (("batch_size", batch_size), ("lr", lr)) if value is not None}
    if (fit or steps != FIT["steps_per_epoch"]) and (equal_time != "none" or picture):
        raise click.UsageError("costs are of batches of 8 and their steps; say --equal-time none, and no --plot.")
    if not known:
        if not (source / "captions.txt").exists():
            raise click.UsageError(f"{source}: not the Flickr8k features; give their folder with --data.")
        prepare(source, work)
    chosen, wanted = arms.split(","), models.split(",")
    plan: dict[str, list[tuple[str, int]]] = {}
    for model in wanted:
        plan[model] = [(arm, steps) for arm in chosen]
        for mode in () if equal_time == "none" else equal_time.split(","):
            if mode not in MODES:
                raise click.BadParameter(f"{mode!r} is none of {', '.join(MODES)}.", param_hint="--equal-time")
            for arm in ("triplet", *(a for a in chosen if a.partition(" ")[0] in {"loop", "near"} - {mode})):
                if known and not _costs_known(record, model, (arm, mode)):
                    continue
                timed = steps_in_equal_time(work, record, model, arm, mode)
                plan[model].append((f"{arm}, {mode}'s time", timed))
    # Seeds outermost: a benchmark that is stopped early has still seen every model.
    order = [(model, seed) for seed in range(first_seed, first_seed + seeds) for model in wanted]
    if not known:
        with ProcessPoolExecutor(jobs) as pool:
            for running in [pool.submit(run_member, work, source, record, m, seed, plan[m], fit) for m, seed in order]:
                running.result()
    found: Found = {}
    for model, seed in order:
        for arm, each in plan[model]:
            line = record.find(f"{model} {arm}", settings_of(model, seed, arm, steps_per_epoch=each, **fit))
            if line is not None:
                found.setdefault(model, {}).setdefault(arm, {})[seed] = line
    print("test rsum and R-precision with people's positives; mean and 95% interval over seeds")
    report(found)
    table(found)
    if picture:
        if known:  # what a step and a mining cost is measured, too
            found = {model: arms for model, arms in found.items() if _costs_known(record, model, arms)}
        plot(found, work, record, picture)


if __name__ == "__main__":
    main()
