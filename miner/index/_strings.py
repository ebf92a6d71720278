"""FAISS factory strings: chosen by the number of vectors, and refused with a sentence where they cannot work."""

from __future__ import annotations

import math
import re
from typing import Any

from miner.artifacts.errors import BadInput
from miner.index import _faiss
from miner.index._parts import Parts, parts

__all__ = ["AUTO_FROM", "automatic", "check_rows", "made", "refusal"]

AUTO_FROM = 50_000
"""Vectors from which an approximate index is worth its building."""

_MOST_LISTS = 1 << 22
_TO_READ = "https://github.com/facebookresearch/faiss/wiki/The-index-factory"


def automatic(rows: int) -> str:
    """Flat below 50,000 vectors; else IVF with SQ8 codes and, rounded to a power of two, 4 sqrt(rows) lists. The
    nearest of more than 16,384 centres are found by a graph."""
    if rows < AUTO_FROM:
        return "Flat"
    lists = 1 << round(math.log2(4 * math.sqrt(rows)))
    return f"IVF{lists}{'_HNSW32' if lists > 16384 else ''},SQ8"


def made(factory: str, dim: int, rows: int) -> Any:
    """The empty index of a string, with inner product. Raises BadInput for one that cannot be, or not for `rows`
    vectors of `dim`."""
    _refuse_traps(factory)
    module = _faiss.faiss()
    try:
        index = module.index_factory(dim, factory, module.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as wrong:
        raise refusal(factory, dim, rows, wrong) from wrong
    found = parts(index)
    if index.metric_type != module.METRIC_INNER_PRODUCT or found.core.metric_type != module.METRIC_INNER_PRODUCT:
        raise BadInput(f"factory {factory}: faiss searches it by Euclidean distance only; {_fits(rows)}.")
    check_rows(factory, found, rows)
    for transform in found.transforms:
        if getattr(transform, "eigen_power", 0) != 0:
            raise BadInput(f"factory {factory}: whitening changes inner products; write PCA in place of PCAW.")
        if transform.d_out > dim and hasattr(transform, "have_bias"):
            raise BadInput(f"factory {factory}: the vectors have dim {dim}, which cannot become {transform.d_out}.")
    return index


def check_rows(factory: str, found: Parts, rows: int) -> None:
    """Raise BadInput where there are too few vectors to train on."""
    if rows == 0:
        raise BadInput(f"factory {factory}: there are no vectors to index; give at least one.")
    needed = {f"{found.ivf.nlist} lists": int(found.ivf.nlist)} if found.ivf is not None else {}
    if hasattr(found.core, "pq"):
        needed[f"PQ codes of {found.core.pq.nbits} bits"] = int(found.core.pq.ksub)
    for what, least in needed.items():
        if rows < least:
            raise BadInput(
                f"factory {factory}: {what} are trained on at least {least:,} vectors ({39 * least:,} or more is "
                f"good), and there are {rows:,}; {_fits(rows)}."
            )


def refusal(factory: str, dim: int, rows: int, wrong: BaseException) -> BadInput:
    """faiss's refusal in a sentence with what would fit."""
    text = _faiss.said(wrong)
    parted = re.search(r"PQ(\d+)", factory)
    if "multiple of the number of subquantizers" in text and parted:
        m = int(parted[1])
        shortened = re.search(r"(?:OPQ\d+_|PCAR?|RR|Pad)(\d+)", factory)
        width = int(shortened[1]) if shortened else dim
        fits = sorted((abs(each - m), each) for each in range(1, width + 1) if width % each == 0)[:3]
        named = ", ".join(f"PQ{each}" for each in sorted(each for _, each in fits))
        return BadInput(f"factory {factory}: PQ{m} cuts {width} numbers into {m} equal parts; {named} would fit.")
    clusters = re.search(r"training points \((\d+)\).*number of clusters \((\d+)\)", text)
    if clusters:
        text = f"{int(clusters[2]):,} clusters cannot be trained on {int(clusters[1]):,} vectors"
    if "METRIC_L2" in text:
        text = "it does not take inner products"
    return BadInput(f"factory {factory}: faiss cannot make this index ({text}); {_fits(rows)}. See {_TO_READ}.")


def _refuse_traps(factory: str) -> None:
    """What faiss does not refuse by itself: it would crash, fill the memory, or find the wrong things."""

    def refuse(why: str) -> None:
        raise BadInput(f"factory {factory}: {why}.")

    for lists in re.findall(r"IVF(\d+)", factory):
        if not 1 <= int(lists[:20]) <= _MOST_LISTS:
            refuse(f"IVF takes 1 to {_MOST_LISTS:,} lists; about 4 times the square root of the vectors is good")
    for links in re.findall(r"HNSW(\d+)", factory):
        if not 2 <= int(links[:20]) <= 256:
            refuse("HNSW takes 2 to 256 links per vector; 32 is good")
    for bits in re.findall(r"\dx(\d+)", factory):
        if not 1 <= int(bits[:20]) <= 12:
            refuse("codes take 1 to 12 bits per part; 4 with fs (fast scan), or 8, is good")
    if "IDMap" in factory:
        refuse("leave IDMap out, rows are the ids")
    if "L2norm" in factory:
        refuse("L2norm forgets how long the vectors are; leave it out, and say --metric cosine to compare angles")
    if "NSG" in factory:
        refuse("NSG takes all vectors at once, whatever the memory; HNSW32 is a graph that grows")
    if "CAGRA" in factory:
        refuse("this faiss builds no CAGRA graph from a string; HNSW32 is a graph it builds, IVF4096,SQ8 runs on a GPU")


def _fits(rows: int) -> str:
    lists = 1 << int(math.log2(max(1, rows // 39)))
    return f"Flat fits, or IVF{lists},SQ8" if lists > 1 else "Flat fits, and is exact"
