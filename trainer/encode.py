"""Embeddings of a dataset by a trained model, the same bits whoever encodes which rows.

A matrix product rounds differently when its shape changes, so a row's embedding depends on the batch it is computed in.
Hence batches are fixed parts of the dataset's rows: whoever wants a row computes its whole batch, in float32, on a
fixed number of threads. Images come in the order of their rows; of every `BLOCK` texts, those of like lengths come
together, so that few are padded far. Shards whose edges are multiples of both sizes cost nothing extra.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from miner.artifacts.embeddings import check_vectors
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, Side
from trainer.data import Dataset
from trainer.models import Encoder, PairScorer
from trainer.prefetch import Ahead

__all__ = [
    "BATCH_SIZE",
    "BLOCK",
    "check_pairs",
    "default_device",
    "encode_elements",
    "encode_rows",
    "quiet",
    "write_pairs",
]

BATCH_SIZE = 256
BLOCK = 1024


def encode_rows(
    model: Encoder,
    dataset: Dataset,
    side: Side,
    rows: npt.NDArray[np.int64],
    batch_size: int = BATCH_SIZE,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> npt.NDArray[np.float32]:
    """(rows, dim) float32, each of length 1, on the model's device; bits do not depend on `rows`.

    `progress(rows done, all rows)` after every batch. Raises BadInput for a row outside the dataset, captions that are
    not there, or an embedding that is not finite.
    """
    rows = np.asarray(rows, dtype=np.int64)
    found, done = np.empty((len(rows), model.dim), dtype=np.float32), 0
    with quiet(model, threads), _read_ahead(model, dataset, side, rows, batch_size) as batches:
        for mine, here, inputs in batches:
            embeddings = model.encode_images(*inputs) if side == "image" else model.encode_texts(*inputs)
            found[mine] = embeddings.cpu().numpy()[here]
            done += len(mine)
            progress(done, len(rows))
    _check(found, dataset, side, rows)
    return found


def encode_elements(
    model: PairScorer,
    dataset: Dataset,
    side: Side,
    rows: npt.NDArray[np.int64],
    batch_size: int = BATCH_SIZE,
    threads: int = 1,
    dtype: Any = np.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Pooled vectors (rows, dim) as `encode_rows` gives them, elements (all of the rows', dim), lengths (rows,) int32.

    Elements are stored as `dtype`. Tells and raises as `encode_rows`.
    """
    rows, done = np.asarray(rows, dtype=np.int64), 0
    pooled = np.empty((len(rows), model.dim), dtype=np.float32)
    lengths = np.empty(len(rows), dtype=np.int32)
    values: list[npt.NDArray[Any]] = [np.empty((0, 0))] * len(rows)
    with quiet(model, threads), _read_ahead(model, dataset, side, rows, batch_size) as batches:
        for mine, here, inputs in batches:
            elements = model.image_elements(*inputs) if side == "image" else model.text_elements(*inputs)
            # A model may have a vector of its own to search with.
            encode = f"encode_{side}s"
            own = getattr(type(model), encode) is not getattr(PairScorer, encode)
            vectors: torch.Tensor = getattr(model, encode)(*inputs) if own else elements.pooled
            pooled[mine] = vectors.cpu().numpy()[here]
            lengths[mine] = elements.lengths.cpu().numpy()[here]
            with np.errstate(over="ignore"):  # told below
                batch = elements.values.cpu().numpy().astype(dtype)
            counted = np.arange(batch.shape[1]) < elements.lengths.cpu().numpy()[:, None]
            if not np.isfinite(batch[counted]).all():
                raise BadInput(
                    f"{dataset.name}: {side} elements are not finite as {np.dtype(dtype)}; set encode.element_dtype = "
                    '"float32", or train again if they are that already.'
                )
            for row, at in zip(mine.tolist(), here.tolist(), strict=True):
                values[row] = batch[at, : lengths[row]].copy()
            done += len(mine)
            progress(done, len(rows))
    _check(pooled, dataset, side, rows)
    return pooled, np.concatenate(values), lengths


def _read_ahead(
    model: Encoder, dataset: Dataset, side: Side, rows: npt.NDArray[np.int64], batch_size: int
) -> Ahead[Batch]:
    """`_batches`, each read while the one before is encoded."""
    return Ahead(lambda batch: batch, _batches(model, dataset, side, rows, batch_size))


Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[torch.Tensor, ...]]


def _batches(
    model: Encoder, dataset: Dataset, side: Side, rows: npt.NDArray[np.int64], batch_size: int
) -> Iterator[Batch]:
    """(places in `rows`, places in the batch, what the encoder takes) of every fixed batch that holds wanted rows."""
    size = len(dataset.pairs.ids(side))
    if side == "text" and not dataset.pairs.texts:
        raise BadInput(f"{dataset.name}: no captions, only ids; encoding needs the texts themselves.")
    if len(rows) and (rows.min() < 0 or rows.max() >= size):
        raise BadInput(f"{dataset.name}: row {int(rows.max())} of {size} {side}s was asked for.")
    device = next(model.parameters()).device
    block_size = batch_size * max(1, BLOCK // batch_size) if side == "text" else batch_size
    block_of = rows // block_size
    for block in np.unique(block_of):
        start = int(block) * block_size
        whole = np.arange(start, min(start + block_size, size))
        mine = np.flatnonzero(block_of == block)
        if side == "image":
            images = torch.from_numpy(np.ascontiguousarray(dataset.images[whole]))
            yield mine, rows[mine] - start, (images.to(device),)
            continue
        tokens, lengths = model.tokenizer.encode([dataset.pairs.texts[row] for row in whole])
        order = np.argsort(lengths, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        at = place[rows[mine] - start]
        for batch in np.unique(at // batch_size):
            wanted = at // batch_size == batch
            items = order[batch * batch_size : (batch + 1) * batch_size]
            trimmed = np.ascontiguousarray(tokens[items, : int(lengths[items[-1]])])
            inputs = torch.from_numpy(trimmed).to(device), torch.from_numpy(lengths[items])
            yield mine[wanted], at[wanted] - batch * batch_size, inputs


def _check(vectors: npt.NDArray[np.float32], dataset: Dataset, side: Side, rows: npt.NDArray[np.int64]) -> None:
    if len(vectors):
        check_vectors(vectors, f"{side} embeddings", [dataset.pairs.ids(side)[row] for row in rows])


@contextlib.contextmanager
def quiet(model: nn.Module, threads: int) -> Iterator[None]:
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
