"""The run file that `pipelines init` writes: settings for the data that were found, and what each section does.

Numbers follow the size of the training split. Published ones (dim 1024, k = 300, rate 2e-4) are for sets of 100,000
captions and more; those for smaller ones are what worked on Flickr8k and on the bundled set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput
from trainer import models
from trainer.data import Dataset, load, name_of
from trainer.data._links import SPLITS

__all__ = ["Found", "examine", "run_file"]

_LARGE = 50_000  # pairs from which published settings hold
_APPROXIMATE = 1_000_000  # items of a side from which comparing everything takes hours
_ALONE = 20_000  # pairs below which starting a cluster is not worth it
_PIXELS = 64  # side of a picture that a model trained from nothing can learn from in a reasonable time
_DATA = {"image_size": "pixels a side; more is slower"}
_ABOUT = {
    "vsepp": ['# One vector per image: VSE++. Also name = "custom", a model of yours.'],
    "vse_inf": ['# Regions: VSE-infinity. Also "vsrn"; "scan" and "bfan" compare regions with words; slower.'],
    "cnn_gru": [
        "# Pixels: a small network that learns from nothing. Features of a trained one are better: `trainer encode",
        '# --backbone efficientnet-lite0 --regions 3`, or name = "clip" and the path of its weights, image_size = 224.',
    ],
}


@dataclass(frozen=True)
class Found:
    """What lies there: `data`, some format's settings, and its splits by name."""

    data: Any
    splits: Mapping[str, Dataset]

    @property
    def train(self) -> Dataset:
        return self.splits["train"]


def examine(data: Any) -> Found:
    """Open every split; pictures are made small enough for a model that learns from pixels, unless `data` says a size.

    Raises BadInput for what `trainer data check` calls an error and shows without reading every image.
    """
    if "image_size" in type(data).model_fields and "image_size" not in data.model_fields_set:
        data = data.model_copy(update={"image_size": _PIXELS})
    found = Found(data, {split: load(data, split) for split in SPLITS})
    if not found.train.pairs.texts:
        raise BadInput(f"{found.train.name}: no captions, only ids; training needs the texts themselves.")
    shapes = {split: dataset.image_shape for split, dataset in found.splits.items()}
    if len(set(shapes.values())) > 1:
        said = "; ".join(f"{split} {shape}" for split, shape in shapes.items())
        raise BadInput(f"{found.train.name}: the splits have different images: {said}; one model takes one shape.")
    return found


def run_file(found: Found, folder: Path) -> str:
    """The text of a run file for what was found, to lie in `folder`; paths below it are written relative to it."""
    pairs, shape = found.train.pairs, found.train.image_shape
    large = pairs.num_pairs >= _LARGE
    model = models.fitting(shape)
    smaller = min(pairs.num_images, pairs.num_texts)
    k = min(300 if large else 50, smaller)
    pool = min(k, 300 if large else 30)
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
        _set("first_epochs", 10 if large else 20, "before the first mining, on the negatives of the batch alone"),
        _set("epochs", 5, "per mined round"),
        "",
        "# What is trained on. Paths are meant from where this file lies; `trainer data check` says what is wrong.",
        "[data]",
        *data,
        "",
        *_ABOUT[model],
        "[model]",
        _set("name", model),
        _set("dim", 1024 if large and model != "cnn_gru" else 256, "length of the embeddings"),
        "",
        "# The objective: the adaptive offline quintuplet. `trainer fit --help` lists the others.",
        "[loss]",
        _set("name", "aoq"),
        _set("form", "AdapOffQuin"),
        _set("margin_offline", 0.0 if large else 0.1, "raise it when offline negatives no longer count"),
        _set("h_t", pool, "an offline text is drawn from so many of the hardest of its image"),
        _set("h_v", max(1, min(pool, round(pool * pairs.num_images / pairs.num_texts))), "an image, of its text"),
        "",
        "# How it is trained. Halve `batch_size` when memory runs out, `lr` when the loss jumps.",
        "[fit]",
        _set("batch_size", min(128, max(2, pairs.num_pairs // 20)), "pairs per step"),
        _set("lr", 2e-4 if large else 1e-3),
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


def _set(key: str, value: Any, comment: str = "") -> str:
    """A line of TOML, whose comment stands in a column of its own; JSON's strings, numbers and lists are TOML's."""
    line = f"{key} = {json.dumps(value, ensure_ascii=False, default=list)}"
    return f"{line:<24} # {comment}" if comment else line


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
        if isinstance(value, Path):
            whole = value.resolve()
            value = str(whole.relative_to(folder.resolve()) if whole.is_relative_to(folder.resolve()) else whole)
        yield key, value
