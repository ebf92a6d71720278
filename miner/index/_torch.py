"""The only import of torch: its matrix products are faster than numpy's, and it has one of int8. Everything works
without it, with the same negatives."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["available", "one_thread_each", "torch"]


def available() -> bool:
    """Whether torch is installed."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


def torch() -> Any:
    """The torch module."""
    return importlib.import_module("torch")


@contextlib.contextmanager
def one_thread_each() -> Iterator[Callable[[], None]]:
    """A function for threads to call first, so that their matrix products do not start threads of their own."""
    if not available():
        yield lambda: None
        return
    before = torch().get_num_threads()
    try:
        yield lambda: torch().set_num_threads(1)
    finally:
        torch().set_num_threads(before)
