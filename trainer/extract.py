"""Pictures to precomputed features, in the `precomp` format: what most published models of the field are trained on.

    {split}_ims.npy         (rows, dim), or (rows, regions, dim) with regions from the upper left, row by row
    {split}_caps.txt        one caption per line, the captions of an image together, in the order of the images
    {split}_ids.txt         the id of its image for every caption, so that images may have unequal numbers of captions
    {split}_text_ids.txt    the id of every caption; one that belongs to several images is there once for each of them
    manifest.json           written last

Features are computed for fixed ranges of pictures, so that where a killed extraction went on does not show. Finished
shards wait in the folder .parts until all are there; for a while the features are on disk twice.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from miner.artifacts.embeddings import npy_bytes, part_name, shard_ranges
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact, Draft, FileRecord
from miner.artifacts.pairs import Side
from miner.artifacts.store import Store
from trainer.backbones import Backbone, Features
from trainer.data import Dataset, ImageSource
from trainer.data.precomp import FEATURES
from trainer.encode import quiet

__all__ = ["FEATURES", "Captions", "ExtractConfig", "captions", "extract", "pooled"]

_PARTS = ".parts"
_SHARD_ROWS = 1024  # pictures that a kill may cost at most: a minute or two of a large network


class Captions(NamedTuple):
    """The lines of a split's text files: captions, the image of each, and the text that it is."""

    caps: list[str]
    ids: list[str]
    text_ids: list[str]


class ExtractConfig(BaseModel):
    """`regions` cuts the last map into that many rows and columns and averages each; without, `pool` takes the mean of
    the map, its class token ("cls"), or every place of it as a region ("map").

    `batch_size` pictures go through the network at once, on `threads` threads; both are part of the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pool: Literal["mean", "cls", "map"] = "mean"
    regions: int | None = Field(default=None, ge=1)
    dtype: Literal["float16", "float32"] = "float32"
    batch_size: int = Field(default=64, ge=1)
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.regions is not None and self.pool != "mean":
            raise ValueError("regions are means of parts of the map; leave pool out")
        return self


def pooled(features: Features, config: ExtractConfig, name: str) -> Tensor:
    """(B, dim) or (B, regions, dim). Raises BadInput when the network `name` has no map, or no class token."""
    if config.pool == "cls" or (features.map is None and config.regions is None and config.pool == "mean"):
        if features.vector is None:
            raise BadInput(f"backbone {name}: it has no class token; take --pool mean, or regions.")
        return features.vector
    if features.map is None:
        raise BadInput(f"backbone {name}: it gives one vector per picture, no map; take --pool mean.")
    side = min(features.map.shape[2:])
    if config.regions is not None and config.regions > side:
        raise BadInput(
            f"backbone {name}: regions = {config.regions}, but its map has {tuple(features.map.shape[2:])} places; "
            f"ask for at most {side}, or for a larger --image-size."
        )
    if config.regions is None and config.pool == "mean":
        return features.map.mean((2, 3))
    parts = features.map if config.regions is None else adaptive_avg_pool2d(features.map, config.regions)
    return parts.flatten(2).transpose(1, 2)


def extract(
    datasets: Sequence[Dataset],
    backbone: Backbone,
    config: ExtractConfig,
    store: Store,
    told: Callable[[str, int, int], None] = lambda split, done, total: None,
    shard_bytes: int = 2**26,
) -> Artifact:
    """Write the features and captions of every split, as an artifact at the root of `store`.

    `told(split, done, total)` is called after every batch. At most `shard_bytes` of features, the features of 1024
    pictures, or one batch, are held in memory and lost by a kill. Raises BadInput when somebody else's files are in the
    place, and for features that are not finite or pictures without captions.
    """
    splits = {dataset.split: dataset for dataset in datasets}
    inputs = {
        "data": [[dataset.name, split, dataset.fingerprint] for split, dataset in splits.items()],
        "backbone": backbone.fingerprint,
        "settings": config.model_dump(mode="json"),
        "files": list(Captions._fields),
        "torch": torch.__version__,
    }
    draft, parts = (Draft(store, prefix, FEATURES, inputs) for prefix in (".", _PARTS))
    done = draft.committed()
    if done is None:
        rows = {split: len(dataset.images) for split, dataset in splits.items()}
        texts = {split: captions(dataset) for split, dataset in splits.items()}
        ends = ["ims.npy", *(f"{end}.txt" for end in Captions._fields)]
        _check_free(store, [f"{split}_{end}" for split in splits for end in ends])
        shards = {
            split: _shards(parts, dataset, backbone, config, told, shard_bytes) for split, dataset in splits.items()
        }
        files: dict[str, FileRecord] = {}
        for split, columns in texts.items():
            files[f"{split}_ims.npy"] = _joined(draft, f"{split}_ims.npy", parts, shards[split], rows[split])
            for end, column in columns._asdict().items():
                name = f"{split}_{end}.txt"
                files[name] = draft.add(name, ("\n".join(column) + "\n").encode(), len(column))
        done = draft.commit(files, {"backbone": Path(backbone.name).name, "rows": rows})
    else:
        done.verify()
    store.remove(_PARTS)
    return done


def captions(dataset: Dataset) -> Captions:
    """The captions in the order of the images; one of several images is there for each.

    Raises BadInput for a set without captions, or ids that are no lines of their own.
    """
    pairs = dataset.pairs
    if not pairs.texts:
        raise BadInput(f"{dataset.name}: no captions, only ids; features are written together with the captions.")
    ids: dict[Side, list[str]] = {}
    for side in get_args(Side):
        ids[side] = [_line(own) for own in pairs.ids(side)]
        if len(set(ids[side])) != len(ids[side]):
            raise BadInput(f"{dataset.name}: two {side} ids differ in spaces or line ends alone; give them other ids.")
    # Pairs are sorted by image, then by text.
    return Captions(
        [_line(pairs.texts[row]) for row in pairs.text_rows],
        [ids["image"][row] for row in pairs.image_rows],
        [ids["text"][row] for row in pairs.text_rows],
    )


def _line(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text).strip()


def _check_free(store: Store, names: Sequence[str]) -> None:
    """Without finished shards of an earlier attempt, files of these names are somebody else's."""
    taken = [name for name in names if store.exists(name)]
    if taken and not store.exists(_PARTS):
        raise BadInput(f"{store.url}/{taken[0]}: there already, and would be overwritten; choose another --out.")
    store.sweep(".")


def _shards(
    parts: Draft,
    dataset: Dataset,
    backbone: Backbone,
    config: ExtractConfig,
    told: Callable[[str, int, int], None],
    shard_bytes: int,
) -> list[str]:
    """Names of the finished shards of one split, in order; those that an earlier attempt left are kept."""
    size, total = config.batch_size, len(dataset.images)
    with quiet(backbone, config.threads):
        device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
        black = torch.zeros(1, *dataset.image_shape, dtype=torch.uint8, device=device)
        shape = pooled(backbone(black), config, backbone.name).shape[1:]
        fitting = shard_bytes // (prod(shape) * np.dtype(config.dtype).itemsize)
        shard_rows = max(min(fitting, _SHARD_ROWS) // size, 1) * size
        names = []
        for index, (start, stop) in enumerate(shard_ranges(total, shard_rows)):
            name = f"{dataset.split}-{part_name(index)}"
            names.append(name)
            if parts.find_part(name) is None:
                found = np.empty((stop - start, *shape), dtype=config.dtype)
                for rows, images in _read_ahead(dataset.images, start, stop, size):
                    features = pooled(backbone(torch.from_numpy(images).to(device)), config, backbone.name)
                    with np.errstate(over="ignore"):  # infinity is found below, with the image's name
                        found[rows - start] = features.cpu().numpy()
                    told(dataset.split, int(rows[-1]) + 1, total)
                _check_finite(found, dataset, start)
                parts.add_part(name, npy_bytes(found), stop - start)
            else:
                told(dataset.split, stop, total)
    return names


def _read_ahead(
    images: ImageSource, start: int, stop: int, size: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
    """(rows, pictures) of every batch; the next is read while this one is in use."""
    batches = [np.arange(first, last) + start for first, last in shard_ranges(stop - start, size)]

    def read(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(images[rows])

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, batches[0])
        for number, rows in enumerate(batches):
            pictures = ahead.result()
            if number + 1 < len(batches):
                ahead = reader.submit(read, batches[number + 1])
            yield rows, pictures


def _check_finite(found: npt.NDArray[Any], dataset: Dataset, start: int) -> None:
    bad = ~np.isfinite(found.reshape(len(found), -1)).all(1)
    if bad.any():
        image_id = dataset.pairs.image_ids[start + int(np.argmax(bad))]
        raise BadInput(
            f"{dataset.name}: the features of image {image_id!r} are not finite as {found.dtype}; "
            "take --dtype float32, or another backbone if it is that already."
        )


def _joined(draft: Draft, name: str, parts: Draft, shards: Sequence[str], rows: int) -> FileRecord:
    """One .npy of all shards, a shard at a time in memory. Raises DamagedArtifact for a shard that has changed."""
    path = draft.scratch(".npy")
    with open(path, "wb") as file:
        for shard in shards:
            array = np.load(io.BytesIO(parts.read_part(shard)), allow_pickle=False)
            if shard == shards[0]:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data)
    return draft.adopt(name, path, rows)
