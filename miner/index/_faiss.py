"""The only import of faiss. Its CPU and GPU wheels own the same folder, so what is imported is checked, not assumed."""

from __future__ import annotations

import importlib
from typing import Any

from miner.artifacts.errors import BadInput

__all__ = ["MAX_GPU_DEPTH", "faiss", "num_gpus", "set_threads"]

# Of k on a GPU: https://github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU
MAX_GPU_DEPTH = 2048


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


def num_gpus() -> int:
    """GPUs this faiss can use. The only safe gate: without a driver the GPU wheel aborts the process, not raises."""
    module = faiss()
    return int(module.get_num_gpus()) if hasattr(module, "get_num_gpus") else 0


def set_threads(threads: int | None) -> int:
    """Let faiss use `threads` threads; None leaves it as it is. Returns how many it uses."""
    module = faiss()
    if threads is not None:
        if threads < 1:
            raise BadInput(f"threads = {threads}; give at least 1.")
        module.omp_set_num_threads(threads)
    return int(module.omp_get_max_threads())
