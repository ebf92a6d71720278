"""The only import of faiss. Its CPU and GPU wheels own the same folder, so what is imported is checked, not assumed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput

__all__ = [
    "MAX_GPU_DEPTH", "Placed", "faiss", "num_gpus", "placed", "said", "set_threads", "threads", "unseen", "version",
    "write",
]  # fmt: skip

# Of k and of nprobe on a GPU: https://github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU
MAX_GPU_DEPTH = 2048

_DRIVER = Path("/proc/driver/nvidia/version")


def faiss() -> Any:
    """The faiss module. Raises BadInput where none, or only the remains of one, is installed."""
    try:
        found = importlib.import_module("faiss")
    except ImportError as missing:
        raise BadInput(
            f"faiss cannot be imported ({missing}); install one of its wheels, never both: pip install "
            '"quintain[cpu]", or pip install "quintain[gpu]" on a machine with a GPU.'
        ) from missing
    if not hasattr(found, "IndexFlatIP"):
        raise BadInput(
            "faiss is an empty folder here: its CPU and GPU wheels were both installed and one was removed; "
            'run pip uninstall faiss-cpu faiss-gpu, then pip install "quintain[cpu]".'
        )
    return found


def version() -> str:
    """Of the faiss that is installed."""
    return str(faiss().__version__)


def num_gpus() -> int:
    """GPUs this faiss can use. The only safe gate: without a driver the GPU wheel aborts the process, not raises."""
    module = faiss()
    return int(module.get_num_gpus()) if hasattr(module, "get_num_gpus") else 0


def unseen() -> str:
    """Why faiss does not use the GPU that the machine has; empty where it has none, or faiss sees it."""
    if num_gpus() or not _DRIVER.exists():
        return ""
    return "this faiss sees no GPU, though the machine has one: install quintain[gpu]"


def set_threads(threads: int | None) -> int:
    """Let faiss use `threads` threads; None leaves it as it is. Returns how many it uses."""
    module = faiss()
    if threads is not None:
        if threads < 1:
            raise BadInput(f"threads = {threads}; give at least 1.")
        module.omp_set_num_threads(threads)
    return int(module.omp_get_max_threads())


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let faiss use so many threads, and afterwards as many as before."""
    before = set_threads(None)
    set_threads(number)
    try:
        yield
    finally:
        set_threads(before)


@dataclass(frozen=True)
class Placed:
    """An index where it is searched: `device` is cpu or gpu; `note` says why it is not the GPU, empty where nobody
    would expect one."""

    index: Any
    device: str
    note: str = ""
    resources: Any = None  # must live as long as the index


def placed(index: Any) -> Placed:
    """The index on the first GPU, or where there is none, or none that can search it, on the CPU as it is."""
    if num_gpus() == 0:
        return Placed(index, "cpu", unseen())
    module = faiss()
    resources = module.StandardGpuResources()
    try:
        copied = module.index_cpu_to_gpu(resources, 0, index)
    except RuntimeError as refused:
        return Placed(index, "cpu", f"not on the GPU: {said(refused)}")
    inner = module.downcast_index(copied)
    while hasattr(inner, "index") and not type(inner).__name__.startswith("Gpu"):
        inner = module.downcast_index(inner.index)
    if not type(inner).__name__.startswith("Gpu"):
        return Placed(index, "cpu", f"not on the GPU: faiss has no {type(inner).__name__} for one")
    return Placed(copied, "gpu", "", resources)


def said(error: BaseException) -> str:
    """What an exception of faiss says, without where in its source it says so."""
    text = " ".join(str(error).split())
    text = re.sub(r"^.*? at \S+\.(?:cpp|h|cu|cuh):\d+: ", "", text)
    text = re.sub(r"^Error: '.*' failed: ?", "", text)
    text = re.sub(r"^C\+\+ exception ", "", text)
    return text.strip().rstrip(".") or type(error).__name__


def write(index: Any, path: Path) -> None:
    """Write to a file. Raises OSError with its errno, which faiss's own writer does not tell."""
    failed: list[OSError] = []
    with open(path, "wb") as file:

        def take(data: bytes) -> None:
            try:
                file.write(data)
            except OSError as error:
                failed.append(error)
                raise

        try:
            faiss().write_index(index, faiss().PyCallbackIOWriter(take, 1 << 20))
            file.flush()
        except Exception:  # faiss wraps what the writer raised in errors of its own, of several kinds
            if failed:
                raise failed[0] from None
            raise
