"""Parquet and other bytes for Arrow to read with its threads, in memory that is Arrow's own.

A thread of Arrow may let go of what it has read a moment after the table is there. Where that is a Python object, the
thread needs the interpreter for it, and a process that ends at that moment is aborted (SIGABRT, "terminate called
without an active exception"; https://github.com/apache/arrow/issues/34314) with all its work done. So no thread of
Arrow is given Python's bytes here.
"""

from __future__ import annotations

from typing import Any

from miner.artifacts.manifest import Artifact

__all__ = ["arrow_source", "open_parquet"]


def arrow_source(data: bytes) -> Any:
    """A `pyarrow.BufferReader` of a copy of `data`, for as long as Arrow needs it."""
    import pyarrow as pa

    buffer = pa.allocate_buffer(len(data))
    with pa.FixedSizeBufferWriter(buffer) as writer:
        writer.write(data)
    return pa.BufferReader(buffer)


def open_parquet(artifact: Artifact, name: str, **options: Any) -> Any:
    """A `pyarrow.parquet.ParquetFile` of a file of an artifact, its bytes checked. Raises DamagedArtifact."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(arrow_source(artifact.read(name)), **options)
