"""The processes of one training: which of them this is, and sums over all of them.

`torchrun` starts them; training itself never knows more than what is here. Weights are the same bits in all of them
after every step, since they are moved by the same sums.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

__all__ = ["ALONE", "Processes", "joined"]


@dataclass(frozen=True)
class Processes:
    """`rank` of `size`; the sums below are over the default process group of `torch.distributed`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Processes:
        """What the default process group says; alone without one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether it is this one that writes and talks."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over the processes, in place; all of them at once."""
        self._together(tensors, distributed.all_reduce)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        self._together(tensors, lambda flat: distributed.broadcast(flat, src=0))

    def largest(self, number: int, device: torch.device) -> int:
        found = torch.tensor([number], device=device)
        if self.size > 1:
            distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found)

    def said_by_first(self, word: bool) -> bool:
        """The first process's word, in all of them."""
        found = torch.tensor([int(word)], device=_device())
        self.copy_first([found])
        return bool(found)

    def _together(self, tensors: Sequence[Tensor], work: Callable[[Tensor], object]) -> None:
        if self.size == 1:
            return
        alike: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            alike.setdefault(tensor.dtype, []).append(tensor)
        for some in alike.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
            work(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in some])
            for tensor, values in zip(some, parts, strict=True):
                tensor.detach().copy_(values.view_as(tensor))


ALONE = Processes()


def _device() -> torch.device:
    """Where the process group's tensors lie."""
    there = distributed.is_initialized() and distributed.get_backend() == "nccl"
    return torch.device("cuda" if there else "cpu")


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, over NCCL where each has a GPU, else gloo; alone without torchrun.

    Gloo's threads have ended when this block ends. One that is left lets go of a tensor at any later moment, needs the
    interpreter for it, and aborts a process that is ending (SIGABRT, "terminate called without an active exception").
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield ALONE
        return
    # A module with the process group of its import among its defaults, which keeps that group and its threads for good.
    # The first step of an optimizer imports it; imported before there is a group, it has none to keep.
    importlib.import_module("torch.distributed.nn.functional")
    gpus = torch.cuda.device_count()
    at = int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        torch.cuda.set_device(at % gpus)
    distributed.init_process_group("nccl" if gpus > at else "gloo")
    try:
        yield Processes.here()
    finally:
        distributed.destroy_process_group()
