"""What Arrow's threads read is Arrow's own: none of them needs the interpreter when the process ends."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from miner.artifacts.parquet import arrow_source

ROOT = Path(__file__).parents[3]


def test_a_source_holds_no_object_of_python() -> None:
    table = pa.table({"id": [f"text {number}" for number in range(1000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    before = sys.getrefcount(data)
    source = arrow_source(data)
    assert sys.getrefcount(data) == before
    plain = pa.BufferReader(data)
    assert sys.getrefcount(data) > before, "the count tells nothing"
    plain.close()
    assert pq.ParquetFile(source).read() == table


def test_no_bytes_of_python_are_read_in_any_other_way() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): line.strip()
        for package in ("miner", "trainer", "pipelines")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"BufferReader\((?!buffer\)|self\._bytes\))|PythonFile\(|py_buffer\(|foreign_buffer\(", line)
    }
    assert not found, "give Arrow `arrow_source` (miner/artifacts/parquet.py)"
