"""Training a FAISS index, filling it block by block from vectors that need not fit into memory, merging shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.index import _faiss
from miner.index._parts import Parts, parts
from miner.scores import norms

__all__ = ["BLOCK", "PCA_SAMPLE", "fill", "merge", "reserve", "train"]

Vectors = npt.NDArray[np.floating[Any]]
Block = npt.NDArray[np.float32]

BLOCK = 1 << 22
"""Numbers of a block of vectors."""
PCA_SAMPLE = 50_000
"""Vectors of the sample that PCA is made from."""
_FOUND_BY_GRAPH = 64  # candidates kept while a graph of centres finds a vector's list


def train(index: Any, sample: Block, seed: int) -> None:
    """Train on (vectors, dim). Raises RuntimeError as faiss does."""
    module = _faiss.faiss()
    found = parts(index)
    for clustering in found.clusterings():
        clustering.seed = seed
        clustering.min_points_per_centroid = 1  # below it faiss warns; we refuse, or it was meant
    if hasattr(found.core, "do_polysemous_training"):
        found.core.do_polysemous_training = False  # for searches by Hamming distance, and ten times the work
    for at, transform in enumerate(found.transforms):
        if transform.is_trained:
            continue
        turned = _turned(found.transforms[:at], sample)
        if hasattr(transform, "PCAMat"):
            _train_pca(transform, turned)
        else:
            transform.train(turned)
    if found.ivf is None:
        index.train(sample)
        return
    found.ivf.cp.max_points_per_centroid = len(sample)  # all of it: the sample was drawn for that
    nearest = _faiss.placed(module.IndexFlatIP(int(found.ivf.d)))
    found.ivf.clustering_index = nearest.index if nearest.device == "gpu" else None
    try:
        index.train(sample)
    finally:
        found.ivf.clustering_index = None


def _train_pca(transform: Any, sample: Block) -> None:
    """Keep inner products, not distances: turn around the origin, towards where squared projections are largest.

    PCA as it is turns around the mean, and <x - m, y - m> has another order than <x, y>. A vector and its opposite have
    the mean 0, and the products of all of them are as before.
    """
    some = sample[:: -(-len(sample) // PCA_SAMPLE)]
    transform.train(np.concatenate([some, -some]))
    _faiss.faiss().copy_array_to_vector(np.zeros(int(transform.d_out), np.float32), transform.b)


def fill(index: Any, vectors: Vectors) -> float:
    """Add (rows, dim) to an empty index; returns the largest norm."""
    found = parts(index)
    for codes in (found.core, found.refine and found.refine.refine_index, found.graph and found.graph.storage):
        reserve(codes, len(vectors))
    if found.graph is not None:
        ground, upper = (int(found.graph.hnsw.nb_neighbors(floor)) for floor in (0, 1))
        _reserve(found.graph.hnsw.neighbors, int(len(vectors) * (ground + upper / (upper - 1) * 1.02)))
    if found.plain_lists:
        return _fill_lists(found, vectors)
    longest = 0.0
    for _, block in _blocks(vectors):
        index.add(block)
        longest = max(longest, float(norms(block).max()))
    return longest


def reserve(index: Any, rows: int) -> None:
    """Take the memory for `rows` vectors at once, where they are one array; one that grows takes up to twice that."""
    module = _faiss.faiss()
    index = module.downcast_index(index) if index is not None else None
    if isinstance(index, module.IndexFlatCodes) and not hasattr(index, "bbs"):
        _reserve(index.codes, rows * int(index.code_size))


def _reserve(array: Any, size: int) -> None:
    array.resize(size)
    array.resize(0)


def _fill_lists(found: Parts, vectors: Vectors) -> float:
    """Find every vector's list before adding any, to make room: lists that grow take up to twice the memory."""
    module, ivf = _faiss.faiss(), found.ivf
    assert ivf is not None
    quantizer = module.downcast_index(ivf.quantizer)
    if isinstance(quantizer, module.IndexHNSW):
        quantizer.hnsw.efSearch = _FOUND_BY_GRAPH
    centres = _faiss.placed(quantizer).index if _faiss.num_gpus() else quantizer
    own = np.empty(len(vectors), np.int32)
    longest = 0.0
    for at, block in _blocks(vectors):
        longest = max(longest, float(norms(block).max()))
        own[at] = centres.search(_turned(found.transforms, block), 1)[1][:, 0]
    lists = module.downcast_InvertedLists(ivf.invlists)
    for number, size in enumerate(np.bincount(own, minlength=ivf.nlist).tolist()):
        lists.resize(number, size)
        lists.resize(number, 0)  # the memory stays
    for at, block in _blocks(vectors):
        turned = _turned(found.transforms, block)
        ids = np.arange(at.start, at.stop, dtype=np.int64)
        numbers = own[at].astype(np.int64)
        ivf.add_core(len(block), *map(module.swig_ptr, (turned, ids, numbers)))
        if found.refine is not None:
            found.refine.refine_index.add(block)
    for each in found.around:
        each.ntotal = len(vectors)
    return longest


def merge(whole: Any, shard: Any) -> None:
    """Move the vectors of one index behind those of another. Raises RuntimeError for a make that cannot be merged."""
    module = _faiss.faiss()
    whole, shard = module.downcast_index(whole), module.downcast_index(shard)
    if isinstance(whole, module.IndexRefine):
        merge(whole.base_index, shard.base_index)
        merge(whole.refine_index, shard.refine_index)
        whole.ntotal, shard.ntotal = whole.base_index.ntotal, 0
    else:
        whole.merge_from(shard, whole.ntotal if parts(whole).ivf is not None else 0)


def _turned(transforms: tuple[Any, ...], block: Block) -> Block:
    for transform in transforms:
        block = transform.apply(block)
    return block


def _blocks(vectors: Vectors) -> Iterator[tuple[slice, Block]]:
    """All rows as float32, a few MiB at a time. The size depends on the dim alone, as graphs depend on it."""
    step = max(1024, BLOCK // vectors.shape[1])
    for start in range(0, len(vectors), step):
        at = slice(start, min(start + step, len(vectors)))
        yield at, np.ascontiguousarray(vectors[at], dtype=np.float32)
