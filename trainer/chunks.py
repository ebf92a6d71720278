"""The items of a step, encoded in chunks: one after the other, or shared out among processes.

A loss sees all items of a step at once, but the encoders need not. Each chunk's embeddings are written into one tensor,
a leaf that the loss is computed from; its gradient then goes back through the encoders chunk by chunk. So the gradient
is that of the whole step, and a batch can be as large as its scores, not its activations, allow (gradient caching: Gao
et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021). With `chunk_size` a
chunk's activations are dropped and made again in the backward pass, with the same random numbers: an encoder runs
forward twice.

Processes share out the chunks and know all embeddings: every process's items are negatives of all others'. Their
gradients add up to the whole step's.

Texts are put into chunks by their lengths, so that short ones are not padded to the longest of the step. Where a model
has batch statistics, they are those of a chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from miner.artifacts.pairs import Side
from trainer.models import Elements, Encoder, PairScorer
from trainer.processes import ALONE, Processes

if TYPE_CHECKING:
    from trainer.scoring import Gathered

__all__ = ["WHOLE", "Chunk", "Division", "Encoded", "auxiliary_loss", "encoded"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Items that are encoded at once: their places among the distinct items of the step, and among those read here."""

    number: int
    places: Rows
    rows: Rows


@dataclass(frozen=True)
class Division:
    """At most `chunk_size` items of a side at once (0: as many as this process has), among `processes`."""

    chunk_size: int = 0
    processes: Processes = ALONE

    @property
    def whole(self) -> bool:
        return self.chunk_size == 0 and self.processes.size == 1

    def of(self, lengths: npt.NDArray[np.int64]) -> tuple[Rows, list[Chunk]]:
        """For the items of a side with such lengths (n,): the places that are read here, ascending, and the chunks.

        Chunks are of nearly the same size, as many for every process. Which items are in a chunk does not depend on
        which process encodes it.
        """
        size, rank = self.processes.size, self.processes.rank
        rounds = 1 if self.chunk_size == 0 else -(-len(lengths) // (self.chunk_size * size))
        order = np.argsort(lengths, kind="stable")
        if self.chunk_size == 0:  # one each, all alike
            all_chunks = [np.sort(order[first::size]) for first in range(size)]
        else:
            all_chunks = np.array_split(order, rounds * size)
        # There and back, so that the longest texts are not always the same process's.
        mine = [turn * size + (rank if turn % 2 == 0 else size - 1 - rank) for turn in range(rounds)]
        mine = [number for number in mine if len(all_chunks[number])]
        read = np.sort(np.concatenate([all_chunks[number] for number in mine] or [order[:0]]))
        return read, [Chunk(at, all_chunks[at], np.searchsorted(read, all_chunks[at])) for at in mine]


WHOLE = Division()


@dataclass
class Encoded:
    """Both sides of a step: vectors (n, dim), or a cross-attention model's elements.

    `backward(loss)` leaves the gradient of a loss that was computed from them in the parameters.
    """

    model: Encoder
    images: Tensor | Elements
    texts: Tensor | Elements
    _again: list[_Again] = field(default_factory=list)
    _processes: Processes = ALONE

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        if self._processes.size > 1:
            # What the scorer's own parameters have, every process has found.
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self._processes.size
        for part in self._again:
            part.backward()
        if self._processes.size > 1:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._processes.sum([parameter.grad for parameter in trained if parameter.grad is not None])


@dataclass
class _Again:
    """A chunk whose gradient is still to go back through its encoder."""

    run: _Run
    chunk: Chunk
    side: Side
    leaf: Tensor
    kept: Tensor | None  # its output with the graph; None: encoded again

    def backward(self) -> None:
        if self.leaf.grad is None:
            return
        output = self.kept if self.kept is not None else self.run.encode(self.side, self.chunk)[0]
        gradient = self.leaf.grad.index_select(0, torch.from_numpy(self.chunk.places).to(self.leaf.device))
        output.backward(gradient[:, : output.shape[1]])


@dataclass
class _Run:
    """One step's encoders."""

    model: Encoder
    gathered: Gathered
    device: torch.device
    precision: torch.dtype
    seed: int

    def encode(self, side: Side, chunk: Chunk | None) -> tuple[Tensor, Tensor | None]:
        """Vectors (n, dim), or elements' values (n, longest, dim) and lengths (n,); float32. None: all items."""
        gathered, elements = self.gathered, isinstance(self.model, PairScorer)
        if chunk is not None:
            torch.manual_seed((self.seed + 2 * chunk.number + (side == "text") + 1) % 2**63)
        if side == "image":
            images = gathered.images if chunk is None else gathered.images[torch.from_numpy(chunk.rows)]
            inputs: tuple[Tensor, ...] = (images.to(self.device, non_blocking=True),)
        else:
            tokens, lengths = gathered.tokens, gathered.lengths
            if chunk is not None:
                rows = torch.from_numpy(chunk.rows)
                lengths = lengths[rows]
                tokens = tokens[rows, : int(lengths.max())]
            inputs = (tokens.to(self.device, non_blocking=True), lengths)  # lengths stay where packing wants them
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16):
            found = getattr(self.model, f"{side}_elements" if elements else f"encode_{side}s")(*inputs)
        if isinstance(found, Elements):
            return found.values.float(), found.lengths
        vectors: Tensor = found
        return vectors.float(), None


def encoded(model: Encoder, gathered: Gathered, device: torch.device, precision: torch.dtype, seed: int = 0) -> Encoded:
    """Both sides of what was gathered; `seed` gives a chunk's random numbers their beginning."""
    run = _Run(model, gathered, device, precision, seed)
    if gathered.division.whole:
        return Encoded(model, _side(*run.encode("image", None)), _side(*run.encode("text", None)))
    again: list[_Again] = []
    processes = gathered.division.processes
    images = _leaf(run, "image", gathered.image_chunks, gathered.num_images, again)
    texts = _leaf(run, "text", gathered.text_chunks, gathered.num_texts, again)
    torch.manual_seed(seed)  # for whatever is drawn from here on, the same in every process
    return Encoded(model, images, texts, again, processes)


def auxiliary_loss(model: Encoder, gathered: Gathered, device: torch.device, precision: torch.dtype) -> Tensor:
    """The model's own loss of the step, a mean over its pairs.

    In chunks its gradient is left in the parameters at once, and the value has none.
    """
    images, tokens, lengths = gathered.of_pairs()
    size = gathered.division.chunk_size
    total = torch.zeros((), device=device)
    for rows in torch.split(torch.arange(len(lengths)), size or len(lengths)):
        longest = int(lengths[rows].max())
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            inputs = images[rows].to(device), tokens[rows, :longest].to(device), lengths[rows]
            part = model.auxiliary_loss(*inputs) * (len(rows) / len(lengths))
        if size:
            part.backward()
            part = part.detach()
        total = total + part
    return total


def _side(values: Tensor, lengths: Tensor | None) -> Tensor | Elements:
    return values if lengths is None else Elements(values, lengths)


def _leaf(run: _Run, side: Side, chunks: list[Chunk], count: int, again: list[_Again]) -> Tensor | Elements:
    """All `count` items of a side in one tensor without a history; what its gradient goes back to joins `again`."""
    division = run.gathered.division
    found: list[tuple[Tensor, Tensor | None]] = []
    dropped = division.chunk_size > 0 and torch.is_grad_enabled()
    for chunk in chunks:
        with torch.no_grad() if dropped else contextlib.nullcontext(), _statistics_kept(run.model, dropped):
            found.append(run.encode(side, chunk))
    leaf, lengths = _assembled(run, chunks, found, count, division.processes)
    if torch.is_grad_enabled():
        leaf.requires_grad_()
        for chunk, (values, _) in zip(chunks, found, strict=True):
            again.append(_Again(run, chunk, side, leaf, None if dropped else values))
    return _side(leaf, lengths)


def _assembled(
    run: _Run, chunks: list[Chunk], found: list[tuple[Tensor, Tensor | None]], count: int, processes: Processes
) -> tuple[Tensor, Tensor | None]:
    """Values and lengths of all `count` items, those of other processes too; zeros beyond a chunk's longest."""
    device = run.device
    elements = isinstance(run.model, PairScorer)
    own = max((values.shape[1] for values, _ in found), default=0)
    second = processes.largest(own, device)
    shape: tuple[int, ...] = (count, second)
    if elements:
        last = processes.largest(max((values.shape[2] for values, _ in found), default=0), device)
        shape = (count, second, last)
    leaf = torch.zeros(shape, dtype=torch.float32, device=device)
    lengths = torch.zeros(count, dtype=torch.int64, device=device) if elements else None
    for chunk, (values, counted) in zip(chunks, found, strict=True):
        places = torch.from_numpy(chunk.places).to(device)
        leaf[places, : values.shape[1]] = values.detach()
        if lengths is not None and counted is not None:
            lengths[places] = counted.to(device)
    processes.sum([leaf] if lengths is None else [leaf, lengths])
    return leaf, lengths


@contextlib.contextmanager
def _statistics_kept(model: nn.Module, kept: bool) -> Iterator[None]:
    """Running statistics of the batch do not move: they do when the chunk is encoded again."""
    norms = (
        [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)] if kept else []
    )
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
