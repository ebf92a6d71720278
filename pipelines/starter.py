"""The run file that `pipelines init` writes: settings for the data that were found, and what each section does.

Numbers follow the size of the training split. Published ones (dim 1024, pools of 300 and 60, rate 2e-4) are for sets of
100,000 captions and more. Smaller ones get few epochs of small batches composed from the tables, what did best on
Flickr8k (README says what was tried); the smallest, and pixels, longer training in larger batches. As published, AOQ's
weights are neither detached nor clamped; here they are, since otherwise they pull offline negatives nearer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput
from trainer import models, registry
from trainer.data import Dataset, load, name_of
from trainer.data._links import SPLITS

__all__ = ["Found", "examine", "run_file"]

_LARGE = 50_000  # pairs from which published settings hold
_FEW = 5_000  # pairs below which a few epochs are too few steps
_COMPOSED = ("vsepp", "vse_inf", "vsrn", "scan", "bfan")  # models whose training in composed batches was measured
_APPROXIMATE = 1_000_000  # items of a side from which comparing everything takes hours
_ALONE = 20_000  # pairs below which starting a cluster is not worth it
_PIXELS = 64  # side of a picture that a model trained from nothing can learn from in a reasonable time
_NEAR = "so many come with each other's negatives; 1: at random, negatives are encoded in addition"
_DATA = {"image_size": "pixels a side; more is slower"}
_ABOUT = {
    "vsepp": ['# One vector per image: VSE++. Also name = "custom", a model of yours.'],
    "vse_inf": ['# Regions: VSE-infinity. Also "vsrn"; "scan" and "bfan" compare regions with words; slower.'],
    "clip": [
        '# A trained dual encoder. tuning = "lora" trains small adapters alone; "full", every weight, needs more',
        "# memory and a lower lr, 1e-6 or so.",
    ],
    "cnn_gru": [
        "# Pixels: a small network that learns from nothing. Features of a trained one are better: `trainer encode",
        "# --backbone efficientnet-lite0 --regions 3`, or a CLIP: `pipelines init --model clip:path=FOLDER`.",
    ],
}


@dataclass(frozen=True)
class Found:
    """What lies there: `data`, some format's settings, and its splits by name; `model` is the section to train with."""

    data: Any
    splits: Mapping[str, Dataset]
    model: Mapping[str, Any]

    @property
    def train(self) -> Dataset:
        return self.splits["train"]


def examine(data: Any, model: str | None = None) -> Found:
    """Open every split; pictures are made small enough for a model that learns from pixels, or of the size that `model`
    (NAME:KEY=VALUE,...) was trained with, unless `data` says a size.

    Raises BadInput for what `trainer data check` calls an error and shows without reading every image, and for a model
    that is not there or does not take these images.
    """
    name, settings = registry.spoken(model) if model is not None else ("", {})
    chosen: Any = models.resolved(models.configure(name, settings)) if model is not None else None
    if "image_size" in type(data).model_fields and "image_size" not in data.model_fields_set:
        size = chosen.pixels.wanted if name == "clip" else _PIXELS
        data = data.model_copy(update={"image_size": size})
    if name == "clip" and chosen.pixels.squeezes and "image_mode" not in getattr(data, "model_fields_set", ()):
        data = data.model_copy(update={"image_mode": "squeeze"})
    splits: dict[str, Dataset] = {split: load(data, split) for split in SPLITS}
    train = splits["train"]
    if not train.pairs.texts:
        raise BadInput(f"{train.name}: no captions, only ids; training needs the texts themselves.")
    shapes = {split: dataset.image_shape for split, dataset in splits.items()}
    if len(set(shapes.values())) > 1:
        said = "; ".join(f"{split} {shape}" for split, shape in shapes.items())
        raise BadInput(f"{train.name}: the splits have different images: {said}; one model takes one shape.")
    if chosen is None:
        return Found(data, splits, {"name": models.fitting(train.image_shape)})
    models.build(chosen, models.tokenizer_of(chosen, train.pairs.texts, 1), train.image_shape)
    return Found(data, splits, {"name": name, **settings})


@dataclass(frozen=True)
class _Pace:
    """How long is trained, in what steps, and how deep the pools of offline texts are that these draw from."""

    first_epochs: int
    epochs: int
    batch_size: int
    neighbourhood: int
    h_t: int

    @classmethod
    def of(cls, model: str, pairs: Any) -> _Pace:
        num, largest = pairs.num_pairs, max(2, pairs.num_pairs // 20)
        if model == "clip":
            return cls(1, 5, min(128, largest), 1, 300 if num >= _LARGE else 30)
        if num >= _LARGE:
            return cls(10, 5, 128, 1, 300)
        if num >= _FEW and model in _COMPOSED:
            return cls(4, 2, 16, 16, max(30, pairs.num_texts // 100))
        return cls(20, 5, min(128, largest), 1, 30)


def run_file(found: Found, folder: Path) -> str:
    """The text of a run file for what was found, to lie in `folder`; paths below it are written relative to it."""
    pairs = found.train.pairs
    large = pairs.num_pairs >= _LARGE
    model = found.model["name"]
    config = models.configure(model, {key: value for key, value in found.model.items() if key != "name"})
    smaller = min(pairs.num_images, pairs.num_texts)
    pace = _Pace.of(model, pairs)
    composed = pace.neighbourhood > 1
    halved = "`batch_size` and `neighbourhood`" if composed else "`batch_size`"
    h_t = min(pace.h_t, 300, smaller)
    h_v = max(1, min(h_t, round(h_t * pairs.num_images / pairs.num_texts)))
    # Of a large set, or where every candidate is compared by attention, what is mined beyond the pools costs too much.
    just_pools = large or getattr(config, "cross_attention", False)
    k: int | dict[str, int] = {"i2t": h_t, "t2i": h_v} if just_pools else min(max(50, h_t), smaller)
    approximate = max(pairs.num_images, pairs.num_texts) >= _APPROXIMATE
    sizes = ", ".join(
        f"{split} {dataset.pairs.num_images:,} images and {dataset.pairs.num_texts:,} texts"
        for split, dataset in found.splits.items()
    )
    data = [_set(key, value, _DATA.get(key, "")) for key, value in _data(found.data, folder)]
    threads = min(4, os.cpu_count() or 1)
    recall = [_set("recall", 0.97, "what an approximate search has to find; tables hold what was measured")]
    lines = [
        f"# Made by `pipelines init` for {_said(found)}.",
        f"# {sizes}.",
        "#     pipelines plan THIS_FILE      what would run",
        "#     pipelines run THIS_FILE       run it; after a kill the same command goes on",
        "# Every setting there is: the page Settings of `make docs`, or the `Config` in the file that a section names.",
        "",
        "# How long. A round encodes the training set, mines it, and trains on; raise `rounds` or `epochs` for more.",
        "[run]",
        _set("seed", 0),
        _set("rounds", 3),
        _set("first_epochs", pace.first_epochs, "before the first mining, on the negatives of the batch alone"),
        _set("epochs", pace.epochs, "per mined round"),
        "",
        "# What is trained on. Paths are meant from where this file lies; `trainer data check` says what is wrong.",
        "[data]",
        *data,
        "",
        *_ABOUT.get(model, ["# As it was asked for; its settings are in the file of its name, trainer/models/."]),
        "[model]",
        *(_set(key, _with_paths(key, value, folder)) for key, value in found.model.items()),
        *_model(model, config, large),
        "",
        "# The objective: the adaptive offline quintuplet. `trainer fit --help` lists the others;",
        "# `trainer compare` tells what one gains over another on your data.",
        *["# On Flickr8k, in such batches, it was no better than the triplet of as many updates."] * composed,
        "[loss]",
        _set("name", "aoq"),
        _set("form", "AdapOffQuin"),
        _set("margin_offline", 0.0 if large else 0.1, "raise it when offline negatives no longer count"),
        _set("detach_weights", True, "as published, false: the weights pull offline negatives nearer"),
        _set("clamp_weights", True, "and may be negative"),
        _set("h_t", h_t, "an offline text is drawn from so many of the hardest of its image"),
        _set("h_v", h_v, "an image, of its text"),
        "",
        f"# How it is trained. Halve {halved} when memory runs out, `lr` when the loss jumps.",
        "[fit]",
        _set("batch_size", pace.batch_size, "pairs per step"),
        *[_set("neighbourhood", pace.neighbourhood, _NEAR)] * composed,
        _set("lr", _rate(model, config, large, pace)),
        *[_set("min_count", 4, "a rarer word is an unknown one")] * (composed or (large and model != "clip")),
        _set(
            "lr_schedule", "cosine", "down to 0 in the last round: with other `rounds` or `epochs` all is trained anew"
        ),
        _set("threads", threads, "part of the result: another number gives other bits"),
        "",
        "# Which negatives are kept. `default` drops the quarter that looks most like what belongs to the anchor, for",
        "# many of the hardest are true; rules = [] keeps them all, `miner mine --help` lists the rules.",
        "[mine]",
        _set("k", k, "per image and per text"),
        _set("rules", ["default"]),
        *recall * approximate,
        "",
        '# What is searched: "Flat" compares everything; "auto" is approximate, for millions of items.',
        "[index]",
        _set("factory", "auto" if approximate else "Flat"),
        "",
        "# Files of embeddings: so many rows make one, and one task.",
        "[encode]",
        _set("shard_rows", 16384 if large else 1024),
        "",
        "# End early, after so many rounds without a better rsum on the dev split.",
        "[stop]",
        _set("patience", 2),
        "",
        '# Where: "inline" is this process; "ray" a cluster, local with `workers` processes (0: one per core), or the',
        "# one at `address`. It changes no byte of the result.",
        "[executor]",
        _set("kind", "inline" if pairs.num_pairs < _ALONE else "ray"),
    ]
    return "\n".join(lines) + "\n"


def _model(name: str, config: Any, large: bool) -> Iterator[str]:
    """What the section [model] says beyond what was asked for."""
    if name == "clip" and "tuning" not in config.model_fields_set:
        yield _set("tuning", "lora")
    if name not in ("clip", "custom") and "dim" not in config.model_fields_set:
        yield _set("dim", 1024 if large and name != "cnn_gru" else 256, "length of the embeddings")


def _rate(name: str, config: Any, large: bool, pace: _Pace) -> float:
    """Of Adam. Trained weights bear little change, adapters beside them more."""
    if name == "clip":
        return 1e-6 if config.tuning == "full" and "tuning" in config.model_fields_set else 1e-5
    if large:
        return 2e-4
    return 2e-3 if name == "vsepp" and pace.neighbourhood > 1 else 1e-3


def _set(key: str, value: Any, comment: str = "") -> str:
    """A line of TOML, whose comment stands in a column of its own."""
    line = f"{key} = {_toml(value)}"
    return f"{line:<24} # {comment}" if comment else line


def _toml(value: Any) -> str:
    """Strings and numbers are those of JSON; a table is on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _with_paths(key: str, value: Any, folder: Path) -> Any:
    """A model's setting `path`, also of its text encoder, as the run file in `folder` says it; it may be a hub name."""
    if isinstance(value, Mapping):
        return {inner: _with_paths(inner, each, folder) for inner, each in value.items()} if key == "bert" else value
    here = Path(value).expanduser() if key == "path" and isinstance(value, str) else None
    return _beside(here, folder) if here is not None and here.is_dir() else value


def _beside(path: Path, folder: Path) -> str:
    """Relative to `folder` where it lies below that, else whole."""
    whole, root = path.resolve(), folder.resolve()
    return str(whole.relative_to(root) if whole.is_relative_to(root) else whole)


def _said(found: Found) -> str:
    shape = found.train.image_shape
    what = {1: f"vectors of {shape[0]}", 2: f"{shape[0]} regions of {shape[-1]}"}.get(len(shape))
    return f"{found.train.name} ({name_of(found.data)}: {what or f'pictures of {shape[0]} x {shape[1]} pixels'})"


def _data(config: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    """The settings that were said or recognised."""
    yield "format", name_of(config)
    for key in type(config).model_fields:
        value = getattr(config, key)
        if value is None or value == type(config).model_fields[key].default:
            continue
        yield key, _beside(value, folder) if isinstance(value, Path) else value
