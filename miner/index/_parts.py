"""What a FAISS index is made of, whatever its factory string: a refinement around rotations around lists or a graph
around codes; and how many bytes that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from miner.index import _faiss

__all__ = ["Parts", "list_bytes", "parts", "stored_bytes"]

# Those that hold the numbers themselves
_LOSSLESS = ("IndexFlat", "IndexFlatIP", "IndexIVFFlat", "IndexIVFFlatPanorama", "IndexHNSWFlat")


@dataclass(frozen=True)
class Parts:
    """`refine` holds the vectors once more, to rank again by; `transforms` are applied in order; `ivf` has the lists,
    `graph` the links, at most one of them; `core` is the innermost index, `around` it are the others. They live as long
    as the whole index."""

    around: tuple[Any, ...]
    refine: Any | None
    transforms: tuple[Any, ...]
    ivf: Any | None
    graph: Any | None
    core: Any

    @property
    def lossy(self) -> bool:
        """Whether scores are of something other than the vectors, as far as `core` tells."""
        shorter = any(transform.d_out < transform.d_in for transform in self.transforms)
        return shorter or type(self.core).__name__ not in _LOSSLESS

    @property
    def plain_lists(self) -> bool:
        """Whether the lists are vectors of codes, which one can make room in beforehand."""
        kinds = ("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFRaBitQ")
        return self.ivf is not None and type(self.core).__name__ in kinds

    def clusterings(self) -> Iterator[Any]:
        """The parameters of every k-means in it."""
        core = self.core
        if self.ivf is not None:
            yield self.ivf.cp
        if self.graph is not None:
            core = _faiss.faiss().downcast_index(self.graph.storage)
        if hasattr(core, "pq"):
            yield core.pq.cp


def parts(index: Any) -> Parts:
    """Take an index apart."""
    module = _faiss.faiss()
    inner = module.downcast_index(index)
    refine, transforms, around = None, [], [index]
    while True:
        around.append(inner)
        if isinstance(inner, module.IndexRefine):
            refine = refine or inner
            inner = module.downcast_index(inner.base_index)
        elif isinstance(inner, module.IndexPreTransform):
            chain = (inner.chain.at(at) for at in range(inner.chain.size()))
            transforms += [module.downcast_VectorTransform(each) for each in chain]
            inner = module.downcast_index(inner.index)
        else:
            break
    ivf = inner if isinstance(inner, module.IndexIVF) else None
    graph = inner if isinstance(inner, module.IndexHNSW) else None
    return Parts(tuple(around), refine, tuple(transforms), ivf, graph, inner)


def stored_bytes(index: Any, rows: int) -> int:
    """Bytes of an index of this make, trained or not, over `rows` vectors."""
    module = _faiss.faiss()
    index = module.downcast_index(index)
    if isinstance(index, module.IndexRefine):
        return stored_bytes(index.base_index, rows) + stored_bytes(index.refine_index, rows)
    if isinstance(index, module.IndexPreTransform):
        chain = (module.downcast_VectorTransform(index.chain.at(at)) for at in range(index.chain.size()))
        return sum(map(_transform_bytes, chain)) + stored_bytes(index.index, rows)
    if isinstance(index, module.IndexIVF):
        return stored_bytes(index.quantizer, index.nlist) + list_bytes(index, rows) + _codebook_bytes(index)
    if isinstance(index, module.IndexHNSW):
        return stored_bytes(index.storage, rows) + _link_bytes(index.hnsw, rows)
    return rows * int(index.code_size) + _codebook_bytes(index)


def list_bytes(ivf: Any, rows: int) -> int:
    """Codes and ids of inverted lists; fast-scan lists hold their codes in full blocks."""
    lists = int(ivf.nlist)
    padded = rows + lists * int(ivf.bbs) // 2 if hasattr(ivf, "bbs") else rows
    return padded * int(ivf.code_size) + rows * 8 + lists * 8


def _link_bytes(hnsw: Any, rows: int) -> int:
    """Of a graph: links on the ground, `upper` more on each floor, which 1 in `upper` of those below reaches; the level
    and where the links begin."""
    ground, upper = (int(hnsw.nb_neighbors(floor)) for floor in (0, 1))
    return int(rows * (4 * (ground + upper / (upper - 1)) + 12))


def _codebook_bytes(index: Any) -> int:
    if hasattr(index, "pq"):
        return 4 * int(index.pq.ksub) * int(index.pq.d)
    return 0


def _transform_bytes(transform: Any) -> int:
    whole = transform.d_in * transform.d_in if hasattr(transform, "PCAMat") else 0
    return 4 * int(transform.d_in * transform.d_out + whole) if hasattr(transform, "have_bias") else 0
