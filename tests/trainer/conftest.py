"""Small made-up data sets with unequal numbers of positives on both sides, and negative tables mined by brute force."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miner.artifacts.pairs import Direction, Pairs, sides
from trainer.data import Dataset

WORDS = ["red", "green", "blue", "small", "large", "happy", "sad", "cat", "dog", "bird", "tree", "house", "car", "boat"]


@dataclass(frozen=True)
class ToyTable:
    """What sampling reads of a negative table."""

    direction: Direction
    negatives: np.ndarray
    num_negatives: np.ndarray


def toy_pairs(num_images: int = 30, seed: int = 0) -> Pairs:
    """Every image has its own 1 to 4 texts; every fifth text belongs to another image as well."""
    rng = np.random.default_rng(seed)
    links, texts = [], []
    for image in range(num_images):
        for _ in range(int(rng.integers(1, 5))):
            text = len(texts)
            texts.append(" ".join(rng.choice(WORDS, int(rng.integers(1, 6)))) + f" w{image}")
            links.append((f"i{image}", f"t{text}"))
            if text % 5 == 0:
                links.append((f"i{int(rng.integers(num_images))}", f"t{text}"))
    return Pairs.from_ids(
        [f"i{image}" for image in range(num_images)],
        [f"t{text}" for text in range(len(texts))],
        links,
        texts=texts,
        name="toy",
    )


def toy_dataset(num_images: int = 30, dim: int = 12, seed: int = 0) -> Dataset:
    vectors = np.random.default_rng(seed + 1).normal(size=(num_images, dim)).astype(np.float32)
    return Dataset(toy_pairs(num_images, seed), vectors, "toy", "train")


def toy_tables(pairs: Pairs, k: int = 8, seed: int = 0) -> dict[Direction, ToyTable]:
    """Random negatives, never a positive; the first anchor has none, the second only two."""
    rng = np.random.default_rng(seed)
    tables: dict[Direction, ToyTable] = {}
    directions: tuple[Direction, Direction] = ("i2t", "t2i")
    for direction in directions:
        anchor, gallery = sides(direction)
        offsets, positives = pairs.positives(anchor)
        rows = np.full((len(pairs.ids(anchor)), k), -1, dtype=np.int32)
        for row in range(len(rows)):
            allowed = np.setdiff1d(np.arange(len(pairs.ids(gallery))), positives[offsets[row] : offsets[row + 1]])
            wanted = {0: 0, 1: 2}.get(row, k)
            rows[row, :wanted] = rng.permutation(allowed)[:wanted]
        tables[direction] = ToyTable(direction, rows, (rows >= 0).sum(1))
    return tables


def write_vectors(folder: Path, num_images: int = 40, dim: int = 12) -> Path:
    """A folder of the `vectors` format: of five images three are train, one dev, one test."""
    folder.mkdir(parents=True)
    pairs = toy_pairs(num_images)
    np.save(folder / "images.npy", np.random.default_rng(3).normal(size=(num_images, dim)).astype(np.float16))
    (folder / "image_ids.txt").write_text("\n".join(pairs.image_ids) + "\n")
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "text_id", "text", "split"])
        for image, text in zip(pairs.image_rows, pairs.text_rows, strict=True):
            split = {3: "dev", 4: "test"}.get(int(image) % 5, "train")
            writer.writerow([pairs.image_ids[image], pairs.text_ids[text], pairs.texts[text], split])
    return folder


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The makers above, for tests to call."""
    return SimpleNamespace(
        Table=ToyTable, pairs=toy_pairs, dataset=toy_dataset, tables=toy_tables, write_vectors=write_vectors
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on matrices this small wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dataset() -> Dataset:
    return toy_dataset()
