"""`trainer.fit`: train a model in a notebook or a program of yours, and what comes of it.

model = trainer.fit("flickr8k/", model="vsepp:dim=256", epochs=10)      # what `--data` takes
model = trainer.fit(images, captions, pairs, loss={"name": "ntxent", "tau": 0.05})
found = miner.mine(model.encode_images(images), model.encode_texts(captions), pairs)
model = trainer.fit(images, captions, pairs, tables=found, start=model)
model.evaluate("flickr8k/")["rsum"]
model.save("checkpoints/1")                                             # as `trainer fit --out` writes it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from miner.artifacts.errors import BadInput
from miner.artifacts.given import array_of, links_of
from miner.artifacts.ids import Ids
from miner.artifacts.lock import hold
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.pairs import Direction, Pairs, Side
from miner.artifacts.store import LocalStore
from trainer import losses, models, registry, training
from trainer.checkpoint import CHECKPOINT, Checkpoint
from trainer.data import Dataset, Split, load, spoken
from trainer.encode import default_device, encode_rows
from trainer.evaluate import scores_of
from trainer.protocols import measure
from trainer.tables import open_tables
from trainer.training import EpochLog, FitConfig

__all__ = ["Trained", "fit", "inputs_of"]


@dataclass(frozen=True, repr=False)
class Trained:
    """A trained model: `checkpoint`, and `history`, what every epoch of this training was like, oldest first (see
    `trainer.training.EpochLog`)."""

    checkpoint: Checkpoint
    history: tuple[Mapping[str, Any], ...]
    _inputs: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Trained:
        """What `save` or `trainer fit --out` wrote. Raises BadInput where there is nothing, DamagedArtifact."""
        import json

        artifact = open_artifact(folder, CHECKPOINT)
        history = json.loads(artifact.read("history.json"))["epochs"]
        return cls(Checkpoint.open(artifact), tuple(history), artifact.manifest.inputs)

    @cached_property
    def encoder(self) -> models.Encoder:
        """The torch module, in eval mode, on the GPU where there is one."""
        return self.checkpoint.model(default_device())

    def encode_images(self, images: Any, *, threads: int = 1) -> npt.NDArray[np.float32]:
        """(rows, dim) float32, each of length 1, of images like those that were trained on: an array, a tensor, or a
        `Dataset`. Raises BadInput for images of another shape, and vectors that are not finite."""
        source = images.images if isinstance(images, Dataset) else _images(images)
        self._check_shape(tuple(source.shape[1:]))
        ids = Ids.numbers(len(source))
        rows = np.arange(len(source))
        return self._encode(Dataset(Pairs(ids, ids, rows, rows), source, "images", "given"), "image", threads)

    def encode_texts(self, texts: Sequence[str] | Dataset, *, threads: int = 1) -> npt.NDArray[np.float32]:
        """(rows, dim) float32, each of length 1, of captions. Raises BadInput for what is no text."""
        captions = texts.pairs.texts if isinstance(texts, Dataset) else _captions(texts)
        ids, rows = Ids.numbers(len(captions)), np.arange(len(captions))
        nothing = np.zeros((len(captions), 1), dtype=np.float32)
        return self._encode(Dataset(Pairs(ids, ids, rows, rows, captions), nothing, "texts", "given"), "text", threads)

    def evaluate(
        self,
        data: Any,
        texts: Sequence[str] | None = None,
        pairs: Any = None,
        *,
        split: Split = "test",
        threads: int = 1,
    ) -> dict[str, float]:
        """R@1/5/10 both ways, rsum, median and mean rank over the whole gallery, as `trainer evaluate` gives them.

        `data` is what `fit` takes; of a path, `split`. Raises BadInput.
        """
        dataset = _dataset(data, texts, pairs, split)
        self._check_shape(dataset.image_shape)
        return measure(scores_of(self.encoder, dataset, threads), dataset.pairs)

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint that `trainer` and `pipelines` commands take. Once written, the same call does nothing.

        Raises BadInput when another one is there, AnotherWriter when somebody writes there.
        """
        out = Path(folder)
        with hold(out):
            draft = Draft(LocalStore(out), ".", CHECKPOINT, dict(self._inputs))
            if draft.committed() is None:
                self.checkpoint.commit(draft, self.history)
        return out

    def __repr__(self) -> str:
        name = models.name_of(self.checkpoint.model_config)
        return f"<{name}, {self.checkpoint.epoch} epochs, images {self.checkpoint.image_shape}>"

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self.checkpoint.image_shape:
            raise BadInput(
                f"the model takes images of shape {self.checkpoint.image_shape}, but these are {shape}; give such as "
                "it was trained on."
            )

    def _encode(self, dataset: Dataset, side: Side, threads: int) -> npt.NDArray[np.float32]:
        rows = np.arange(len(dataset.pairs.ids(side)))
        return encode_rows(self.encoder, dataset, side, rows, threads=threads)


def fit(
    data: Any,
    texts: Sequence[str] | None = None,
    pairs: Any = None,
    *,
    model: str | Mapping[str, Any] | None = None,
    loss: str | Mapping[str, Any] | None = None,
    tables: Any = None,
    start: Trained | str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> Trained:
    """Train a model, and return it.

    `data` is what `--data` takes ("emoji", a path, "FORMAT:KEY=VALUE,..."), of which the split train is taken; or
    images by row, (n, dim), (n, regions, dim) floats or (n, height, width, 3) uint8, with `texts`, their captions, and
    `pairs` as `miner.mine` takes them. `model` and `loss` are "NAME:KEY=VALUE,..." or a dict with `name`. Without
    `model`, the one that suits the images; without `loss`, triplet, and aoq where there are `tables`: what `miner.mine`
    returned for these pairs, or the folder that `miner mine` wrote. `start` is the model to go on from. `progress`
    prints a line per epoch. Everything else is a setting of `trainer.training.FitConfig`: epochs, lr, batch_size, seed.

    Raises BadInput, with a sentence, for whatever of this does not fit together.
    """
    dataset = _dataset(data, texts, pairs, "train")
    fit_config = registry.validated(FitConfig, settings, "fit")
    begin = start.checkpoint if isinstance(start, Trained) else Checkpoint.load(start) if start else None
    if begin is not None and model is None:
        model_config = begin.model_config
    else:
        named = _named(model, models.fitting(dataset.image_shape), "model")
        model_config = models.resolved(models.configure(*named))
    loss_config = losses.configure(*_named(loss, "triplet" if tables is None else "aoq", "loss"))
    opened = _tables(tables, dataset.pairs)
    if loss_config.needs_tables and opened is None:
        raise BadInput(
            f"the loss {losses.name_of(loss_config)} trains on offline negatives; give tables, what miner.mine returns."
        )
    if progress:
        from trainer.commands.fit import say_epoch as say
    history: list[Mapping[str, Any]] = []

    def told(log: EpochLog) -> None:
        history.append(log.history())
        if progress:
            say(log)

    checkpoint = training.fit(
        dataset,
        model_config,
        loss_config,
        fit_config,
        tables=opened,
        start=begin,
        first_epoch=begin.epoch if begin else 0,
        progress=told,
    )
    inputs = inputs_of(dataset, 0, model_config, loss_config, fit_config, opened, begin)
    return Trained(checkpoint, tuple(history), inputs)


def inputs_of(
    dataset: Dataset,
    fold: int,
    model_config: Any,
    loss_config: Any,
    fit_config: FitConfig,
    tables: Mapping[Direction, Any] | None,
    start: Checkpoint | None,
) -> dict[str, Any]:
    """Everything that determines a checkpoint, for its manifest."""
    return {
        "data": [dataset.name, fold, dataset.fingerprint],
        "model": [models.name_of(model_config), model_config.model_dump(mode="json")],
        "loss": [losses.name_of(loss_config), loss_config.model_dump(mode="json")],
        "fit": fit_config.model_dump(mode="json"),
        "tables": {direction: table.fingerprint for direction, table in tables.items()} if tables else None,
        "start": start.fingerprint if start else None,
        "torch": torch.__version__,
    }


def _dataset(data: Any, texts: Sequence[str] | None, pairs: Any, split: Split) -> Dataset:
    if isinstance(data, Dataset | str | Path):
        if texts is not None or pairs is not None:
            raise BadInput(f"{data}: brings its own texts and pairs; leave them out, or give the images as an array.")
        return data if isinstance(data, Dataset) else load(spoken(str(data)), split)
    if texts is None:
        raise BadInput("images were given as an array; give their captions too: fit(images, texts, pairs).")
    images, captions = _images(data), _captions(texts)
    links = links_of(pairs, Ids.numbers(len(images)), Ids.numbers(len(captions)))
    return Dataset(
        Pairs(links.image_ids, links.text_ids, links.image_rows, links.text_rows, captions, "arrays"),
        images,
        "arrays",
        split,
    )


def _images(given: Any) -> npt.NDArray[Any]:
    images = array_of(given, "images", ndims=(2, 3, 4))
    if images.ndim == 4:
        if images.dtype != np.uint8 or images.shape[3] != 3:
            raise BadInput(f"images: shape {images.shape} of {images.dtype}; pictures are (n, height, width, 3) uint8.")
        return images
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    if images.dtype not in (np.float16, np.float32):
        raise BadInput(f"images: dtype {images.dtype}; vectors and regions are float16, float32 or float64.")
    finite = np.isfinite(images).reshape(len(images), -1).all(1)
    if not finite.all():
        raise BadInput(
            f"images: row {int(np.argmin(finite))} holds NaN or infinity; leave it out, or fix what made it."
        )
    return images


def _captions(given: Sequence[str]) -> tuple[str, ...]:
    captions = tuple([given] if isinstance(given, str) else given)
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise BadInput(f"texts: entry {row} is {caption!r}; give captions as strings.")
    if not captions:
        raise BadInput("texts: none were given; give one caption at least.")
    return captions


def _named(given: str | Mapping[str, Any] | None, default: str, what: str) -> tuple[str, dict[str, Any]]:
    if given is None:
        return default, {}
    if isinstance(given, str):
        return registry.spoken(given)
    values = dict(given)
    if "name" not in values:
        raise BadInput(f"{what}: a dict needs the key name, as {{'name': {default!r}}}.")
    return str(values.pop("name")), values


def _tables(tables: Any, pairs: Pairs) -> dict[Direction, Any] | None:
    if tables is None:
        return None
    if isinstance(tables, str | Path):
        return dict(open_tables(tables, pairs))
    if not isinstance(tables, Mapping):
        raise BadInput("tables: give what miner.mine returned, or the folder that `miner mine` wrote.")
    missing = [each for each in training.DIRECTIONS if each not in tables]
    if missing:
        raise BadInput(f"tables: no {missing[0]} among them; mine both directions.")
    return {each: tables[each] for each in training.DIRECTIONS}
