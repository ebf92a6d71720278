"""An index that a FAISS factory string names: for galleries too large to compare everything with everything.

What it finds is approximate; `miner.recall` says how much of the truth that is. It is built in blocks from vectors that
may be memory-mapped, after training on a sample drawn by (seed, number of vectors) alone.

The same vectors, settings, machine and version of faiss give the same bytes. Another number of threads gives them too,
unless the string turns vectors (PCA, OPQ, RR), as the last bits of those products depend on it, or grows a graph
(HNSW), of which faiss promises nothing of the kind: see `steady`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.index import SearchSettings, _faiss
from miner.index._grown import BLOCK, PCA_SAMPLE, fill, merge, train
from miner.index._parts import Parts, list_bytes, parts, stored_bytes
from miner.index._strings import automatic, made, refusal

__all__ = [
    "Config", "Estimate", "Factory", "Shape", "automatic", "build", "empty", "estimate", "filled", "merged", "read",
    "shape", "steady",
]  # fmt: skip

Vectors = npt.NDArray[np.floating[Any]]

_PER_LIST = 64  # vectors to train a centre on; FAISS wants 39 to 256
_LEAST_SAMPLE = 1 << 14
_PRODUCTS = 20 << 20  # bytes of FAISS's matrix products
_BY_GRAPH = 2048  # centres, about, that are looked at where a graph finds the nearest
_FIRST = {"nprobe": 32, "ef_search": 128, "k_factor": 2}  # until somebody asks for a recall


@dataclass(frozen=True)
class Config:
    """How an index is built.

    factory        FAISS's string, or "auto": Flat below 50,000 vectors, else IVF with 4 sqrt(vectors) lists, SQ8
    train_sample   vectors to train on; 0: 64 per list, at least 16,384, at most all
    seed           of the sample and of k-means
    """

    factory: str = "auto"
    train_sample: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes: of the file, of the index in memory when it is searched, and at most while it is built, the vectors (which
    are read from a file) and what the process holds anyhow apart."""

    disk: int
    search: int
    build: int


class Factory:
    """A FAISS index on the CPU, or on the first GPU where there is one that can search it (`device`, `note`)."""

    kind = "factory"

    def __init__(self, index: Any, config: Config, max_norm: float) -> None:
        self._cpu, self.config, self.max_norm = index, config, max_norm
        self.factory, self.size, self.dim = config.factory, int(index.ntotal), int(index.d)
        self._parts = parts(index)
        self._placed = _faiss.placed(index) if self.size else _faiss.Placed(index, "cpu")
        self.device, self.note = self._placed.device, self._placed.note
        if self.note and self._parts.refine is not None:
            self.note += "; leave the refinement out, found rows are scored exactly anyway"
        on_gpu = self.device == "gpu"
        self.max_depth = min(self.size, _faiss.MAX_GPU_DEPTH) if on_gpu else self.size
        self.refines = self._parts.refine is not None
        self.exact = len(self._parts.around) == 2 and self._parts.core.__class__.__name__ == "IndexFlat"
        self.knobs: Mapping[str, int] = self._knobs(_faiss.MAX_GPU_DEPTH if on_gpu else 1 << 30)
        self.settings = SearchSettings()
        self.set(SearchSettings(**{name: min(_FIRST[name], most) for name, most in self.knobs.items()}))

    def _knobs(self, most: int) -> dict[str, int]:
        found: dict[str, int] = {}
        if self._parts.ivf is not None:
            found["nprobe"] = min(int(self._parts.ivf.nlist), most)
        if self._parts.graph is not None:
            found["ef_search"] = 1 << 14
        if self._parts.lossy:
            found["k_factor"] = 64
        return found

    @property
    def about(self) -> dict[str, Any]:
        return {**asdict(self.config), "max_norm": self.max_norm, "faiss": _faiss.version()}

    def set(self, settings: SearchSettings) -> None:
        """See `Approximate`."""
        for name, value in settings.chosen().items():
            if name not in self.knobs:
                raise BadInput(
                    f"{self.factory} has no {name}; it takes {', '.join(self.knobs) or 'no settings: it is exact'}."
                )
            if not 1 <= value <= self.knobs[name]:
                raise BadInput(f"{name} = {value}; {self.factory} on the {self.device} takes 1 to {self.knobs[name]}.")
        self.settings = replace(self.settings, **settings.chosen())
        if settings.nprobe is not None:
            self._probe(settings.nprobe)
        if settings.ef_search is not None:
            assert self._parts.graph is not None
            self._parts.graph.hnsw.efSearch = settings.ef_search
        if settings.k_factor is not None and self._parts.refine is not None:
            self._parts.refine.k_factor = settings.k_factor

    def _probe(self, nprobe: int) -> None:
        module = _faiss.faiss()
        if self.device == "gpu":
            module.GpuParameterSpace().set_index_parameter(self._placed.index, "nprobe", nprobe)
            return
        assert self._parts.ivf is not None
        self._parts.ivf.nprobe = nprobe
        quantizer = module.downcast_index(self._parts.ivf.quantizer)
        if isinstance(quantizer, module.IndexHNSW):
            quantizer.hnsw.efSearch = max(64, 2 * nprobe)

    def compared(self, settings: SearchSettings, depth: int) -> float:
        """See `Approximate`."""
        core, factor = self._parts.core, settings.k_factor or 1
        vectors = 4.0 * self.dim * depth * (1 + factor if self.refines else factor)
        if self._parts.ivf is not None:
            read = (settings.nprobe or 1) / int(core.nlist) * self.size * int(core.code_size)
            return vectors + read + 4.0 * self.dim * int(core.nlist)
        if self._parts.graph is not None:
            code = int(_faiss.faiss().downcast_index(core.storage).code_size)
            return vectors + (settings.ef_search or 1) * int(core.hnsw.nb_neighbors(0)) * code
        return vectors + float(self.size) * int(core.code_size)

    def search(
        self, queries: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        assert 0 < depth <= self.max_depth
        scores, rows = self._placed.index.search(np.ascontiguousarray(queries, dtype=np.float32), depth)
        return scores, rows

    def dumps(self) -> bytes:
        return bytes(_faiss.faiss().serialize_index(self._cpu))

    def write(self, path: Path) -> None:
        _faiss.write(self._cpu, path)


def build(vectors: Vectors, config: Config) -> Factory:
    """Train on a sample and add all vectors (rows, dim). Raises BadInput for a string that cannot work with them."""
    return filled(empty(vectors, config), vectors)


def empty(vectors: Vectors, config: Config) -> Factory:
    """A trained index without vectors, to fill shard by shard. Raises as `build`."""
    rows, dim = vectors.shape
    index, config = _made(config, rows, dim)
    if not index.is_trained:
        drawn = np.random.default_rng([config.seed, rows]).choice(rows, _sample_size(config, index, rows), False)
        sample = np.ascontiguousarray(vectors[np.sort(drawn)], dtype=np.float32)
        try:
            train(index, sample, config.seed)
        except (RuntimeError, MemoryError) as wrong:
            raise refusal(config.factory, dim, rows, wrong) from wrong
    return Factory(index, config, 0.0)


def filled(trained: Factory, vectors: Vectors) -> Factory:
    """A copy of what `empty` gave, with these vectors (rows, dim) in it."""
    index = _faiss.faiss().clone_index(trained._cpu)
    return Factory(index, trained.config, fill(index, vectors))


def merged(shards: Sequence[Factory]) -> Factory:
    """One index from shards that were filled from one trained index with consecutive rows: what it finds is what one
    filled with all of the rows finds. The shards are empty afterwards. Raises BadInput for a make that cannot be merged
    (graphs)."""
    whole = shards[0]._cpu
    for shard in shards[1:]:
        try:
            merge(whole, shard._cpu)
        except RuntimeError as refused:
            raise BadInput(
                f"{shards[0].factory}: indexes of this make cannot be merged ({_faiss.said(refused)}); build it from "
                "all vectors at once, or take an IVF index."
            ) from refused
    return Factory(whole, shards[0].config, max(shard.max_norm for shard in shards))


def read(path: Path, about: Mapping[str, Any]) -> Factory:
    """The inverse of `Factory.write` and `Factory.about`, for a file that was verified."""
    config = Config(about["factory"], about["train_sample"], about["seed"])
    return Factory(_faiss.faiss().read_index(str(path)), config, float(about["max_norm"]))


def estimate(config: Config, rows: int, dim: int) -> Estimate:
    """What an index of `rows` vectors of `dim` will take; nothing is trained. Raises BadInput as `build`."""
    index, config = _made(config, rows, dim)
    found = parts(index)
    size = stored_bytes(index, rows)
    # A fast-scan list takes memory in powers of two.
    search = size + (list_bytes(found.ivf, rows) * 2 // 5 if hasattr(found.ivf, "bbs") else 0)
    block = min(rows, max(1024, BLOCK // dim)) * dim * 4
    adding = search + 4 * rows * found.plain_lists + len(found.transforms) * block + _PRODUCTS // 2
    training = 0 if index.is_trained else _training_bytes(found, _sample_size(config, index, rows), dim)
    return Estimate(size, search, max(adding, training + stored_bytes(index, 0)))


@dataclass(frozen=True)
class Shape:
    """What an index is before anything is trained.

    lists     of an IVF index, else 0; `compared`: with how many centres a vector is compared to find its list
    sample    vectors it is trained on, in `rounds` of k-means
    graph     whether vectors are linked
    exact     whether it compares everything
    settings  how it searches: as it begins with, but for what was given
    """

    lists: int
    compared: int
    sample: int
    rounds: int
    graph: bool
    exact: bool
    settings: SearchSettings


def shape(config: Config, rows: int, dim: int, given: SearchSettings) -> Shape:
    """Raises BadInput as `build`, and for settings that the index does not have."""
    index, config = _made(config, rows, dim)
    made, found = Factory(index, config, 0.0), parts(index)
    made.set(given)
    lists = int(found.ivf.nlist) if found.ivf is not None else 0
    compared = min(lists, _BY_GRAPH) if _graph_of_centres(found) else lists
    rounds = int(found.ivf.cp.niter) if found.ivf is not None else 0
    sample = _sample_size(config, index, rows)
    return Shape(lists, compared, sample, rounds, found.graph is not None, made.exact, made.settings)


def steady(config: Config, rows: int, dim: int) -> bool:
    """Whether an index has the same bytes whatever the number of threads. Raises BadInput as `build`."""
    found = parts(_made(config, rows, dim)[0])
    return not found.transforms and found.graph is None and not _graph_of_centres(found)


def _graph_of_centres(found: Parts) -> bool:
    return found.ivf is not None and hasattr(_faiss.faiss().downcast_index(found.ivf.quantizer), "hnsw")


def _training_bytes(found: Parts, sample: int, dim: int) -> int:
    """What is in memory beside an empty index: the sample, as it is and turned, what codes are trained on (how a sample
    of it differs from the centres), and products with the centres."""
    vectors = sample * (1 + bool(found.transforms))
    if found.ivf is not None and found.lossy and found.ivf.by_residual:
        coded = min(sample, int(found.ivf.train_encoder_num_vectors()))
        vectors += coded * (2 if coded < sample else 1)
    if any(hasattr(transform, "PCAMat") for transform in found.transforms):
        vectors += 2 * min(sample, PCA_SAMPLE)
    return vectors * dim * 4 + _PRODUCTS


def _made(config: Config, rows: int, dim: int) -> tuple[Any, Config]:
    """The empty index, untrained, and the settings without "auto"."""
    factory = automatic(rows) if config.factory == "auto" else config.factory
    return made(factory, dim, rows), replace(config, factory=factory)


def _sample_size(config: Config, index: Any, rows: int) -> int:
    found = parts(index)
    lists = int(found.ivf.nlist) if found.ivf is not None else 1
    if 0 < config.train_sample < lists:
        raise BadInput(
            f"train_sample = {config.train_sample}: {config.factory} has {lists:,} lists; train on at least as many "
            f"vectors, {_PER_LIST * lists:,} is good."
        )
    return min(rows, config.train_sample or max(_PER_LIST * lists, _LEAST_SAMPLE))
