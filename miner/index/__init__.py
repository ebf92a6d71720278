"""Indexes over the vectors of one side. A kind is one file here: `Config`, `build(vectors, config)`, `read(path,
about)`.

An index is an artifact of kind "index" with one file, `index.bin`, and is read from a verified file only. How it is
built and how it is searched are settings apart: `Config` is part of what the artifact was made from, `SearchSettings`
of what a table was.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact, Draft

__all__ = ["INDEX", "Approximate", "Index", "SearchSettings", "build", "kinds", "load", "save"]

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
    note: str
    """Why it is not searched on the GPU, where one would expect it."""
    exact: bool
    """Whether the `depth` best by float32 inner product are always found."""
    max_depth: int
    """The most results one search may ask for."""

    @property
    def max_norm(self) -> float:
        """The largest Euclidean norm of a vector."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest says beside kind, rows and dim; the module's `read` is given it back."""
        ...

    def search(
        self, queries: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The best `depth` of every query (n, dim), best first: scores and rows (n, depth); row -1 is an empty slot."""
        ...

    def dumps(self) -> bytes: ...

    def write(self, path: Path) -> None:
        """The same bytes into a file."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """How hard an approximate index looks; None is left to the index. Which of them an index has, its `knobs` say."""

    nprobe: int | None = None
    """Lists looked into, of those an IVF index has."""
    ef_search: int | None = None
    """Candidates kept while an HNSW graph is walked."""
    k_factor: int | None = None
    """Proposals per negative wanted, to be scored exactly, where the index holds vectors with a loss."""

    def chosen(self) -> dict[str, int]:
        """Those that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Approximate(Index, Protocol):
    """An index that may miss what is there, and can be told to look harder."""

    factory: str
    """FAISS's name for how it is built."""
    knobs: Mapping[str, int]
    """The settings it has, by name: the largest value that makes sense."""
    settings: SearchSettings
    """How it searches now; what is not a knob is None."""
    refines: bool
    """Whether it holds the vectors without a loss as well, and ranks by them."""

    def set(self, settings: SearchSettings) -> None:
        """Search like this from now on. Raises BadInput for a setting it does not have, or a value out of range."""
        ...

    def compared(self, settings: SearchSettings, depth: int) -> float:
        """About how many bytes a query reads: what one choice of settings costs beside another."""
        ...


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
    """Write and commit; memory holds the index once."""
    source = draft.scratch()
    try:
        index.write(source)
        files = {"index.bin": draft.adopt("index.bin", source, index.size)}
    finally:
        source.unlink(missing_ok=True)
    return draft.commit(files, {**meta, **index.about, "kind": index.kind, "rows": index.size, "dim": index.dim})


def load(artifact: Artifact) -> Index:
    """Read a file that was hashed and found to be the one committed. Raises DamagedArtifact; BadInput for an artifact
    of another kind."""
    if artifact.manifest.kind != INDEX:
        raise BadInput(f"{artifact.where}: this is a {artifact.manifest.kind!r} artifact, not an index.")
    meta = artifact.manifest.meta
    loaded: Index = _module(str(meta["kind"])).read(artifact.path("index.bin"), meta)
    return loaded


def _module(kind: str) -> ModuleType:
    if kind not in kinds():
        raise BadInput(f"{kind!r} is not a kind of index; there is {', '.join(kinds())}.")
    return importlib.import_module(f"{__name__}.{kind}")
