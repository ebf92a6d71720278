"""A data set small enough to loop over in seconds, with unequal positives on both sides, and run files for it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["red", "green", "blue", "dark", "light", "cat", "dog", "bird", "fish", "tree", "car", "boat"]


def write_vectors(folder: Path, seed: int = 0, num: int = 112) -> Path:
    """`num` images with 1 to 4 texts each; every ninth text belongs to two images."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((num, 6))
    noise = 0.1 * rng.standard_normal((num, 24))
    np.save(folder / "images.npy", (latent @ rng.standard_normal((6, 24)) + noise).astype(np.float32))
    (folder / "image_ids.txt").write_text("".join(f"img-{(5 * row) % num:03d}\n" for row in range(num)))
    split = ["train" if row % 8 < 6 else ("dev" if row % 8 == 6 else "test") for row in range(num)]
    with open(folder / "pairs.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "text_id", "text", "split"])
        count = 0
        for row in range(num):
            hot = [WORDS[i] for i in np.argsort(-latent[row])[:3]]
            for caption in range(1 + row % 4):
                text = f"{hot[0]} {hot[1]} {hot[2]} {WORDS[(row + caption) % 12]} {row}x{caption}"
                rows.writerow([f"img-{(5 * row) % num:03d}", f"t{count:04d}", text, split[row]])
                if count % 9 == 0 and row + 8 < num and split[row + 8] == split[row]:
                    rows.writerow([f"img-{(5 * (row + 8)) % num:03d}", f"t{count:04d}", text, split[row]])
                count += 1
    return folder


def raw_settings(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "run": {"rounds": 2, "first_epochs": 2, "epochs": 2, "seed": 3},
        "data": {"format": "vectors", "folder": str(folder)},
        "model": {"name": "vsepp", "dim": 16, "word_dim": 8},
        "loss": {"name": "aoq", "h_t": 5, "h_v": 5},
        "fit": {"batch_size": 32, "lr": 5e-3, "threads": 1, "ema_decay": 0.9, "warmup_epochs": 1},
        "encode": {"shard_rows": 32, "batch_size": 16},
        "mine": {"k": 7, "shard_anchors": 32},
        "executor": {"kind": "inline"},
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


def write_small_run(base: Path, **sections: dict[str, Any]) -> Path:
    """A run file below `base` of as few operations as a run can have, for tests that stop it at every one of them."""
    (base / "vectors").mkdir()
    small: dict[str, dict[str, Any]] = {
        "run": {"first_epochs": 1, "epochs": 1},
        "loss": {"h_t": 3, "h_v": 3},
        "fit": {"batch_size": 16},
        "mine": {"k": 4},
        "watch": {"trackers": []},
    }
    given = {name: {**small.get(name, {}), **sections.get(name, {})} for name in (*small, *sections)}
    return write_toml(base / "run.toml", raw_settings(write_vectors(base / "vectors", num=48), **given))


def write_toml(path: Path, raw: dict[str, Any]) -> Path:
    lines = []
    for section, values in raw.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            lines.append(f"{key} = {shown}")
    path.write_text("\n".join(lines) + "\n")
    return path
