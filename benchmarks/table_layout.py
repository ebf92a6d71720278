"""Which Parquet layout should a negative table have? Flat rows (what `miner` writes) against fixed-size lists.

    python benchmarks/table_layout.py [--anchors 500000] [--k 50]

Prints for both: seconds to write, seconds from the file to an (anchors, k) int32 array, MiB, and what pandas, polars
and DuckDB make of the file when asked the same question, "the mean score of rank 0", without any code of ours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.artifacts.ids import Ids
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, NegativeTable, write_negatives
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore

GROUP = 32768


def made_up(anchors: int, k: int) -> tuple[Pairs, NegativeBlock]:
    """A table of the size asked for, its ids as long as those of COCO."""
    rng = np.random.default_rng(0)
    image_ids = Ids([f"COCO_train_{row:012d}.jpg" for row in range(anchors)])
    text_ids = Ids([f"{row:07d}" for row in range(anchors)])
    pairs = Pairs(image_ids, text_ids, np.arange(anchors), np.arange(anchors))
    scores = np.sort(rng.normal(0.4, 0.1, (anchors, k)).astype(np.float32), axis=1)[:, ::-1]
    negatives = rng.integers(0, anchors, (anchors, k), dtype=np.int32)
    lowest = rng.normal(0.5, 0.1, anchors).astype(np.float32)
    return pairs, NegativeBlock(np.arange(anchors), negatives, np.ascontiguousarray(scores), lowest)


def write_flat(folder: Path, pairs: Pairs, block: NegativeBlock, k: int) -> Path:
    blocks: Iterator[NegativeBlock] = (block.cut(at, at + 4096) for at in range(0, len(block), 4096))
    write_negatives(Draft(LocalStore(folder), "flat", NEGATIVES, {}), blocks, pairs, "i2t", k, {})
    return folder / "flat" / "negatives.parquet"


def read_flat(folder: Path, pairs: Pairs, k: int) -> np.ndarray:
    return NegativeTable.open(folder / "flat", pairs).negatives


def write_lists(folder: Path, pairs: Pairs, block: NegativeBlock, k: int) -> Path:
    """One row per anchor: anchor_id, negative_ids[k], scores[k], lowest_positive. It cannot say "fewer than k"."""
    path = folder / "lists.parquet"
    anchor_ids, gallery_ids = pa.array(pairs.image_ids), pa.array(pairs.text_ids)
    schema = pa.schema(
        [
            ("anchor_id", pa.string()),
            ("negative_ids", pa.list_(pa.dictionary(pa.int32(), pa.string()), k)),
            ("scores", pa.list_(pa.float32(), k)),
            ("lowest_positive", pa.float32()),
        ]
    )
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["negative_ids.list.element"],
        store_schema=False,
        use_byte_stream_split=["scores.list.element"],
        dictionary_pagesize_limit=1 << 30,
        version="2.6",
    ) as writer:
        for start in range(0, len(block), GROUP):
            part = block.cut(start, start + GROUP)
            used, code = np.unique(part.negatives, return_inverse=True)
            words = pa.DictionaryArray.from_arrays(code.reshape(-1).astype(np.int32), gallery_ids.take(pa.array(used)))
            columns = [
                anchor_ids.slice(start, len(part)),
                pa.FixedSizeListArray.from_arrays(words, k),
                pa.FixedSizeListArray.from_arrays(pa.array(part.scores.reshape(-1)), k),
                pa.array(part.lowest_positive),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(part))
    return path


def read_lists(folder: Path, pairs: Pairs, k: int) -> np.ndarray:
    file = pq.ParquetFile(
        pa.BufferReader((folder / "lists.parquet").read_bytes()), read_dictionary=["negative_ids.list.element"]
    )
    gallery_ids, parts = pa.array(pairs.text_ids), []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).combine_chunks()
        words = table["negative_ids"].chunk(0).flatten()
        known = pc.index_in(words.dictionary, value_set=gallery_ids).to_numpy().astype(np.int32)
        parts.append(known[words.indices.to_numpy()].reshape(-1, k))
        table["scores"].chunk(0).flatten().to_numpy(), table["lowest_positive"].to_numpy()
    return np.concatenate(parts)


def questions(path: Path, flat: bool) -> dict[str, Callable[[], float]]:
    """The mean score of rank 0, as each library's user would write it."""
    import duckdb
    import pandas as pd
    import polars as pl

    def by_pandas() -> float:
        frame = pd.read_parquet(path)
        return float(frame[frame["rank"] == 0]["score"].mean() if flat else frame["scores"].str[0].mean())

    def by_polars() -> float:
        frame = pl.read_parquet(path)
        hardest: Any = frame.filter(pl.col("rank") == 0)["score"] if flat else frame["scores"].list.first()
        return float(hardest.mean())

    def by_duckdb() -> float:
        what = "avg(score)" if flat else "avg(scores[1])"
        where = " where rank = 0" if flat else ""
        found = duckdb.connect().execute(f"select {what} from '{path}'{where}").fetchone()
        assert found is not None
        return float(found[0])

    return {"pandas": by_pandas, "polars": by_polars, "duckdb": by_duckdb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--anchors", type=int, default=500_000)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    pairs, block = made_up(asked.anchors, asked.k)
    print(f"{pairs.unordered_fingerprint[:8]}: {asked.anchors} anchors x {asked.k}, median of {asked.repeats}")
    for name, write, read in (("flat rows", write_flat, read_flat), ("fixed-size lists", write_lists, read_lists)):
        writing, reading = [], []
        for _ in range(asked.repeats):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                start = time.perf_counter()
                path = write(folder, pairs, block, asked.k)
                writing.append(time.perf_counter() - start)
                start = time.perf_counter()
                assert np.array_equal(read(folder, pairs, asked.k), block.negatives)
                reading.append(time.perf_counter() - start)
                size = path.stat().st_size / 2**20
                if len(writing) < asked.repeats:
                    continue
                print(
                    f"{name}: write {statistics.median(writing):.2f} s, read {statistics.median(reading):.2f} s, "
                    f"{size:.0f} MiB"
                )
                for library, ask in questions(path, name == "flat rows").items():
                    start = time.perf_counter()
                    try:
                        answer = f"{ask():.6f}"
                    except Exception as error:  # whatever a foreign reader raises is its answer
                        answer = f"cannot: {type(error).__name__}: {str(error)[:80]}"
                    print(f"    {library}: {answer} in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
