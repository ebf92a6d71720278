"""Embeddings of a dataset by a trained model, the same bits whoever encodes which rows.

A matrix product rounds differently when its shape changes, so a row's embedding depends on the batch it is computed in.
Hence batches are fixed ranges of the dataset's rows: whoever wants a row computes its whole batch, in float32, on a
fixed number of threads. Shards whose edges are multiples of the batch size cost nothing extra.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from miner.artifacts.embeddings import check_vectors
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, Side
from trainer.data import Dataset
from trainer.models import Encoder

__all__ = ["BATCH_SIZE", "check_pairs", "default_device", "encode_rows", "write_pairs"]

BATCH_SIZE = 256


def encode_rows(
    model: Encoder,
    dataset: Dataset,
    side: Side,
    rows: npt.NDArray[np.int64],
    batch_size: int = BATCH_SIZE,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """(rows, dim) float32, each of length 1, on the model's device; bits do not depend on `rows`.

    Raises BadInput for a row outside the dataset, captions that are not there, or an embedding that is not finite.
    """
    size = len(dataset.pairs.ids(side))
    rows = np.asarray(rows, dtype=np.int64)
    if side == "text" and not dataset.pairs.texts:
        raise BadInput(f"{dataset.name}: no captions, only ids; encoding needs the texts themselves.")
    if len(rows) and (rows.min() < 0 or rows.max() >= size):
        raise BadInput(f"{dataset.name}: row {int(rows.max())} of {size} {side}s was asked for.")
    found = np.empty((len(rows), model.dim), dtype=np.float32)
    batch_of = rows // batch_size
    with _quiet(model, threads):
        for batch in np.unique(batch_of):
            start = int(batch) * batch_size
            embeddings = _batch(model, dataset, side, np.arange(start, min(start + batch_size, size)))
            mine = batch_of == batch
            found[mine] = embeddings[rows[mine] - start]
    if len(found):
        check_vectors(found, f"{side} embeddings", [dataset.pairs.ids(side)[row] for row in rows])
    return found


def _batch(model: Encoder, dataset: Dataset, side: Side, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    device = next(model.parameters()).device
    if side == "image":
        images = torch.from_numpy(np.ascontiguousarray(dataset.images[rows]))
        embeddings = model.encode_images(images.to(device))
    else:
        tokens, lengths = model.tokenizer.encode([dataset.pairs.texts[row] for row in rows])
        embeddings = model.encode_texts(torch.from_numpy(tokens).to(device), torch.from_numpy(lengths))
    return embeddings.cpu().numpy()


@contextlib.contextmanager
def _quiet(model: Encoder, threads: int) -> Iterator[None]:
    """Eval mode, no gradient, `threads` threads; all as before afterwards."""
    training, before = model.training, torch.get_num_threads()
    torch.set_num_threads(threads)
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
        torch.set_num_threads(before)


def default_device() -> torch.device:
    """The GPU where torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _pairs_csv(pairs: Pairs) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image_id", "text_id"])
    for image, text in zip(pairs.image_rows, pairs.text_rows, strict=True):
        writer.writerow([pairs.image_ids[image], pairs.text_ids[text]])
    return file.getvalue().encode()


def check_pairs(path: Path, pairs: Pairs) -> None:
    """Raise BadInput when `path` is already somebody's own pairs file, which `write_pairs` would replace."""
    if path.exists() and path.read_bytes() != _pairs_csv(pairs):
        raise BadInput(f"{path}: other pairs are here already, and would be overwritten; choose another --out.")


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write `pairs.csv` (image_id, text_id), as `miner mine` wants it beside the vectors; whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(_pairs_csv(pairs))
    os.replace(temporary, path)
