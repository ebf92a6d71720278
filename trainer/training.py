"""Training, a straight loop: epochs of batches, offline negatives drawn anew each epoch, averaged weights at the end.

Randomness is arithmetic on (seed, epoch, step), so epoch e does not know whether the process was killed after e - 1. On
the CPU, with the same number of threads, a resumed training ends with the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import canonical_json
from miner.artifacts.pairs import Direction
from miner.artifacts.place import Place
from trainer import collapse, compiled, epochs, losses, models, sampling
from trainer.checkpoint import Checkpoint
from trainer.chunks import Division, auxiliary_loss
from trainer.data import Dataset
from trainer.fit_section import WARM, FitConfig, learning_rate
from trainer.processes import Processes
from trainer.scoring import Inputs, score
from trainer.similarities import Similarities
from trainer.steps import steps_of
from trainer.trainee import Trainee

__all__ = ["WARM", "EpochLog", "FitConfig", "fit", "learning_rate"]

DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")
Tables = Mapping[Direction, sampling.Table]


@dataclass(frozen=True)
class EpochLog:
    """Means over one epoch's steps.

    `parts` are the loss's named parts and `loss` their sum, `figures` what else the loss has to say. The rest is of the
    in-batch scores: see `collapse.observe`.
    `waited` are the seconds that steps waited for their data.
    `offline_hardness` is the mean of s(anchor, offline negative) - s(anchor, positive), both directions; None without.
    """

    epoch: int
    lr: float
    loss: float
    parts: dict[str, float]
    figures: dict[str, float]
    mean_negative: float
    wrong_share: float
    hardness: float
    std: float
    offline_hardness: float | None
    warm_up: bool
    pairs: int
    steps: int
    seconds: float
    waited: float
    pairs_per_second: float
    device: str
    warning: str | None
    resumed: bool = False

    def history(self) -> dict[str, Any]:
        """What is the same whenever and wherever this epoch is trained: everything but time and machine."""
        fleeting = ("seconds", "waited", "pairs_per_second", "device", "resumed")
        return {name: value for name, value in asdict(self).items() if name not in fleeting}


def fit(
    dataset: Dataset,
    model_config: Any,
    loss_config: Any,
    fit_config: FitConfig,
    *,
    tables: Tables | None = None,
    start: Checkpoint | None = None,
    first_epoch: int = 0,
    scratch: Path | Place | None = None,
    progress: Callable[[EpochLog], None] = lambda log: None,
) -> Checkpoint:
    """Train `fit_config.epochs` epochs, numbers `first_epoch`...; with `tables`, on offline negatives as well.

    `start` continues a model (weights, averages, moments); without it a fresh one is made from the seed. `scratch`
    (a folder, or a place in a store) holds epoch files: the same call after a kill goes on from the newest, after
    passing the finished epochs' logs to `progress`. Where `torch.distributed` has a process group, its processes train
    together, `fit_config.processes` of them; the first one writes and reports. A loss that can use tables trains on
    online negatives alone when `tables` is None.

    Raises BadInput when data, model, tables, device and start do not fit together, and when the loss is no longer
    finite.
    """
    if not dataset.pairs.texts:
        raise BadInput(f"{dataset.name}: no captions, only ids; training needs the texts themselves.")
    if tables is not None:
        _check_tables(tables, loss_config, fit_config, dataset)
    device, precision = _device(fit_config)
    with _threads(fit_config.threads), torch.random.fork_rng():
        trainee = Trainee(dataset, model_config, fit_config, start, device)
        inputs = Inputs.of(dataset, trainee.model)
        if fit_config.compile:
            compiled.encoders(trainee.model)
        total_epochs = fit_config.total_epochs or first_epoch + fit_config.epochs
        last_epoch = first_epoch + fit_config.epochs - 1
        said = f"{device.type} ({torch.get_num_threads()} threads), {str(precision).removeprefix('torch.')}"
        processes = Processes.here()
        if processes.size != fit_config.processes:
            raise BadInput(
                f"fit.processes is {fit_config.processes}, but this training has {processes.size} "
                "(torchrun --nproc-per-node starts several); say the same number in both."
            )
        if processes.size > 1 and trainee.model.has_auxiliary_loss:
            raise BadInput(
                f"model {models.name_of(model_config)} has a loss of its own, which is not shared out among processes; "
                "train with one process, or turn that loss off."
            )
        logs: list[EpochLog] = []
        key = _key(dataset, model_config, loss_config, fit_config, tables, start, first_epoch) if scratch else ""
        kept = Place.of(scratch) if scratch and processes.first else None
        resumed = epochs.read_latest(kept, key, last_epoch) if kept else None
        if resumed is not None:
            trainee.restore(resumed.tensors, resumed.updates)
            logs = [EpochLog(**log) for log in resumed.logs]
            for log in logs:
                progress(replace(log, resumed=True))
        warm = _is_warm(logs[-1]) if logs else start is not None and start.warm
        done, warm = trainee.follow_first(processes, len(logs), warm)
        for epoch in range(first_epoch + done, last_epoch + 1):
            at_least = fit_config.warmup_epochs
            cold = not warm if at_least == "auto" else epoch < at_least
            warm_up = cold and loss_config.warm_up is not None
            log = _epoch(
                trainee, inputs, loss_config, fit_config, tables, epoch, total_epochs, device, precision, said, warm_up
            )
            logs.append(log)
            _, warm = trainee.follow_first(processes, len(logs), _is_warm(log))
            if kept is not None:
                state = epochs.EpochFile(epoch, trainee.updates, trainee.tensors(), [asdict(log) for log in logs])
                epochs.write(kept, key, state)
            if processes.first:
                progress(log)
        return trainee.checkpoint(last_epoch + 1, warm)


def _is_warm(log: EpochLog) -> bool:
    """Whether the next epoch may look at hardest negatives alone."""
    return not log.warm_up or log.wrong_share < WARM


def _epoch(
    trainee: Trainee,
    inputs: Inputs,
    loss_config: Any,
    config: FitConfig,
    tables: Tables | None,
    epoch: int,
    total_epochs: int,
    device: torch.device,
    precision: torch.dtype,
    said: str,
    warm_up: bool,
) -> EpochLog:
    began = time.perf_counter()
    effective = loss_config.online if epoch < config.online_epochs else loss_config
    effective = effective.warm_up if warm_up else effective
    offline = tables if effective.needs_tables else None
    trainee.model.train()
    division = Division(config.chunk_size, Processes.here())
    steps, items = steps_of(inputs, effective, config, offline, epoch, division, pinned=device.type == "cuda")
    part_names: list[str] = []
    figure_names: list[str] = []
    rows: list[Tensor] = []
    lr, seen = config.lr, 0
    # The reading thread draws no random number of torch's, so the seed set here is the step's alone.
    with items as ahead:
        for step, gathered in enumerate(ahead):
            seed = sampling.step_seed(config.seed, epoch, step)
            torch.manual_seed(seed)
            scored = score(trainee.model, gathered, device, precision, seed)
            parts = losses.parts(effective, scored.similarities)
            if trainee.model.has_auxiliary_loss:
                parts["model"] = auxiliary_loss(trainee.model, gathered, device, precision)
            loss = torch.stack(list(parts.values())).sum()
            lr = learning_rate(config, epoch + step / steps, total_epochs)
            scored.backward(loss)
            trainee.update(lr)
            seen += gathered.num_pairs
            figures = losses.figures(effective, scored.similarities)
            part_names, figure_names = list(parts), list(figures)
            gap = _offline_hardness(scored.similarities)
            observed = collapse.observe(scored.similarities, scored.images, scored.texts)
            named = torch.stack([value.detach().float() for value in (*parts.values(), *figures.values())])
            rows.append(torch.cat([named, gap, observed]))
    means = torch.stack(rows).double().mean(0).cpu().tolist()
    named_means = dict(zip([*part_names, *figure_names], means, strict=False))
    loss_mean = sum(named_means[name] for name in part_names)
    if not math.isfinite(loss_mean) or not all(bool(parameter.isfinite().all()) for parameter in trainee.raw):
        raise BadInput(
            f"epoch {epoch}: the loss or a weight is no longer a finite number (mean loss {loss_mean}); lower "
            f"the learning rate ({config.lr:g}) and check the image vectors for huge values."
        )
    names = collapse.OBSERVED
    observed_means = dict(zip(names, means[-len(names) :], strict=True))
    seconds = time.perf_counter() - began
    return EpochLog(
        epoch=epoch,
        lr=lr,
        loss=loss_mean,
        parts={name: named_means[name] for name in part_names},
        figures={name: named_means[name] for name in figure_names},
        **observed_means,
        offline_hardness=means[len(named_means)] if offline is not None else None,
        warm_up=warm_up,
        pairs=seen,
        steps=steps,
        seconds=seconds,
        waited=ahead.waited,
        pairs_per_second=seen / seconds,
        device=said,
        warning=collapse.collapsed(observed_means, has_warm_up=loss_config.warm_up is not None),
    )


@torch.no_grad()
def _offline_hardness(similarities: Similarities) -> Tensor:
    """(1,): mean of offline negative minus positive over the anchors that have one; 0 without."""
    found = similarities.offline
    if found is None:
        return similarities.scores.new_zeros(1)
    gap = torch.cat([found.text - similarities.positive, found.image - similarities.positive])
    has = torch.cat([found.has_text, found.has_image])
    return ((gap * has).sum() / has.sum().clamp(min=1)).reshape(1)


def _check_tables(tables: Tables, loss_config: Any, config: FitConfig, dataset: Dataset) -> None:
    if not loss_config.needs_tables:
        raise BadInput(
            f"the loss {losses.name_of(loss_config)} uses no offline negatives, but tables were given; leave them out, "
            "or take the loss aoq, or set the loss's `offline`."
        )
    if config.neighbourhood > 1:
        why = None
        if loss_config.batch_by != "pairs":
            why = f"the loss {losses.name_of(loss_config)} takes batches of images with all their captions"
        elif config.neighbourhood > config.batch_size:
            why = f"a batch has {config.batch_size}"
        elif getattr(loss_config, "correction", "") == "stratified":
            why = 'correction = "stratified" takes the negatives of a pool to be drawn evenly'
        if why:
            raise BadInput(f"fit.neighbourhood = {config.neighbourhood} pairs cannot be, as {why}; set it to 1.")
    for direction in DIRECTIONS:
        if direction not in tables:
            raise BadInput(f"the {direction} table is missing; offline negatives need both, i2t and t2i.")
        sampling.check_table(tables[direction], direction, dataset.pairs)
        skip, k = loss_config.skip_t if direction == "i2t" else loss_config.skip_v, tables[direction].negatives.shape[1]
        if skip >= k:
            raise BadInput(
                f"skip_{'t' if direction == 'i2t' else 'v'} = {skip} passes over the whole {direction} table, which "
                f"holds {k} negatives per anchor; skip fewer, or mine a larger k."
            )


def _device(config: FitConfig) -> tuple[torch.device, torch.dtype]:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise BadInput("device 'cuda' was asked for, but torch sees no GPU here; use device 'auto' or 'cpu'.")
    device = torch.device("cuda" if available and config.device != "cpu" else "cpu")
    half = config.precision == "bfloat16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return device, torch.bfloat16 if half else torch.float32


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(
    dataset: Dataset,
    model_config: Any,
    loss_config: Any,
    fit_config: FitConfig,
    tables: Tables | None,
    start: Checkpoint | None,
    first_epoch: int,
) -> str:
    """Which training an epoch file belongs to: everything that determines its bits."""
    settings = {
        "data": [dataset.name, dataset.split, dataset.fingerprint],
        "model": [models.name_of(model_config), model_config.model_dump(mode="json")],
        "loss": [losses.name_of(loss_config), loss_config.model_dump(mode="json")],
        "fit": fit_config.model_dump(mode="json"),
        "start": start.fingerprint if start is not None else None,
        "first_epoch": first_epoch,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(canonical_json(settings))
    for direction in DIRECTIONS if tables is not None else ():
        assert tables is not None
        for array in (tables[direction].negatives, tables[direction].num_negatives):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
