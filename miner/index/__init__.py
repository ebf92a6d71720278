"""Indexes over the vectors of one side. A kind is one file here: `Config`, `build(vectors, config)`, `loads(bytes)`.

An index is an artifact of kind "index" with one file, `index.bin`, and is loaded from verified bytes only.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact, Draft

__all__ = ["INDEX", "Index", "build", "kinds", "load", "save"]

INDEX = "index"


class Index(Protocol):
    """Rows of one gallery, searchable by inner product; higher is closer."""

    kind: str
    """Name of the module."""
    size: int
    """Number of vectors."""
    dim: int
    device: str
    """`cpu` or `gpu`."""
    exact: bool
    """Whether the `depth` best by float32 inner product are always found."""
    max_depth: int
    """The most results one search may ask for."""

    @property
    def max_norm(self) -> float:
        """The largest Euclidean norm of a vector."""
        ...

    def search(
        self, queries: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The best `depth` of every query (n, dim), best first: scores and rows (n, depth); row -1 is an empty slot."""
        ...

    def dumps(self) -> bytes: ...


def kinds() -> list[str]:
    """Names of the kinds of index."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def build(kind: str, vectors: npt.NDArray[np.floating[Any]], settings: Mapping[str, Any] | None = None) -> Index:
    """Index (rows, dim) vectors. Raises BadInput for an unknown kind or setting."""
    module = _module(kind)
    try:
        config = module.Config(**(settings or {}))
    except TypeError as unknown:
        raise BadInput(f"index {kind}: {unknown}.") from unknown
    built: Index = module.build(vectors, config)
    return built


def save(draft: Draft, index: Index, meta: Mapping[str, Any]) -> Artifact:
    """Write and commit."""
    files = {"index.bin": draft.add("index.bin", index.dumps(), index.size)}
    return draft.commit(files, {**meta, "kind": index.kind, "rows": index.size, "dim": index.dim})


def load(artifact: Artifact) -> Index:
    """Load from verified bytes. Raises DamagedArtifact; BadInput for an artifact of another kind."""
    if artifact.manifest.kind != INDEX:
        raise BadInput(f"{artifact.where}: this is a {artifact.manifest.kind!r} artifact, not an index.")
    loaded: Index = _module(str(artifact.manifest.meta["kind"])).loads(artifact.read("index.bin"))
    return loaded


def _module(kind: str) -> ModuleType:
    if kind not in kinds():
        raise BadInput(f"{kind!r} is not a kind of index; there is {', '.join(kinds())}.")
    return importlib.import_module(f"{__name__}.{kind}")
