"""The traps that miners of hard negatives fall into, one test each, named after its trap.

Every test goes through the commands or the functions that a user calls, and compares with a slow loop. The data have
unequal positives: images with 1 to 7 texts and more, texts of two images, ids in another order than the rows.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from miner import index
from miner.artifacts.candidates import CANDIDATES, Candidates
from miner.artifacts.embeddings import npy_bytes
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.negatives import NegativeBlock, NegativeTable
from miner.artifacts.pairs import Direction, Pairs, Side, sides
from miner.artifacts.ranks import Law, Simans, Softmax
from miner.artifacts.store import LocalStore
from miner.cli import main
from miner.index import _faiss
from miner.matrix import mine_exhaustively
from miner.nearest import mine
from miner.select import depths_of
from pipelines.cli import main as pipelines_main
from tests.miner.conftest import Problem
from tests.miner.filters_oracle import (
    Drop,
    Expected,
    by_image,
    by_text,
    cosine,
    ends,
    expected,
    images_of,
    own_pairs,
    percentile,
    ranking,
    texts_of,
)
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from trainer import sampling
from trainer.cli import main as trainer_main

Found = dict[int, tuple[list[int], list[float], float]]
"""By anchor row: rows of its negatives, hardest first, their scores, its lowest positive."""
Oracle = Callable[[Problem, Direction, int], Found]

BOTH: tuple[Direction, Direction] = ("i2t", "t2i")
LAST = {"image": "999999", "text": "t9999999"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = _faiss.set_threads(None)
    _faiss.set_threads(1)
    yield
    _faiss.set_threads(before)


def uneven(images: int = 28, dim: int = 8, seed: int = 0, grid: bool = False) -> Problem:
    """Images with 1 to 7 texts that are near them; every fourth text belongs to a second image. `grid`: many ties."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(1 + np.arange(images) % 7)
    own = np.repeat(np.arange(images), counts)
    shared = np.arange(0, len(own), 4)
    links = np.concatenate([own, (own[shared] + 5) % images]), np.concatenate([np.arange(len(own)), shared])
    vectors = rng.normal(size=(images, dim))
    texts = vectors[own] + 0.7 * rng.normal(size=(len(own), dim))
    if grid:
        vectors, texts = (np.clip(np.rint(each), -1, 1) / 2 for each in (vectors, texts))
        vectors[:, 0] = texts[:, 0] = 1
    return Problem(pairs_of(images, len(own), links), vectors.astype(np.float32), texts.astype(np.float32))


def pairs_of(images: int, texts: int, links: tuple[Any, Any]) -> Pairs:
    image_ids = tuple(f"{row * 7919 % 10007}" for row in range(images))
    return Pairs(Ids(image_ids), Ids(f"t{row * 104729 % 1000003}" for row in range(texts)), *links)


def run(*arguments: object, code: int = 0, command: click.Command = main) -> str:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, without what stands in its footer."""
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def read(table: Path, given: Problem) -> Found:
    """What a table on disk holds, row by row: anchors with a negative, and those that are listed as short."""
    anchors, gallery = sides(cast(Direction, table.name))
    anchor_rows, rows = ({name: row for row, name in enumerate(given.pairs.ids(side))} for side in (anchors, gallery))
    found: Found = {}
    for one in rows_of(table / "negatives.parquet"):
        negatives, scores, lowest = found.setdefault(anchor_rows[one["anchor_id"]], ([], [], one["lowest_positive"]))
        assert (one["rank"], one["lowest_positive"]) == (len(negatives), lowest)
        negatives.append(rows[one["negative_id"]])
        scores.append(one["score"])
    for one in rows_of(table / "shortfalls.parquet"):
        negatives, _, lowest = found.setdefault(anchor_rows[one["anchor_id"]], ([], [], one["lowest_positive"]))
        assert (one["found"], one["lowest_positive"]) == (len(negatives), lowest)
    return found


def size_of(given: Problem, direction: Direction) -> int:
    return len(given.vectors(direction)[1])


def filtered(
    given: Problem, oracle: Oracle, direction: Direction, drops: list[Drop], k: int, num: int
) -> dict[int, Expected]:
    """What is left of `num` candidates by some rules, and of a deeper search where that is too few."""
    depths = depths_of(num, 16 * num, size_of(given, direction))
    return expected(ranking(given, oracle, direction), drops, k, depths)


def negatives_of(found: dict[int, Expected]) -> dict[int, list[int]]:
    return {anchor: [row for row, _ in one.negatives] for anchor, one in found.items()}


def only_rows(found: Found) -> dict[int, list[int]]:
    return {anchor: rows for anchor, (rows, _, _) in found.items()}


def provenance(table: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((table / "manifest.json").read_text())["meta"]["provenance"]
    return said


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def with_a_last_one_far_from_all(images: int) -> Problem:
    """The last row of either side, by storage and by id, has the lowest score of all with every anchor but its own."""
    made = uneven(images, seed=1)
    ids = {side: (*list(made.pairs.ids(side))[:-1], LAST[side]) for side in ("image", "text")}
    pairs = Pairs(Ids(ids["image"]), Ids(ids["text"]), made.pairs.image_rows, made.pairs.text_rows)
    vectors = []
    for each in (made.images, made.texts):
        each = np.concatenate([np.full((len(each), 1), 4, np.float32), each], axis=1)
        each[-1] = 0
        each[-1, 0] = -40
        vectors.append(each)
    return Problem(pairs, *vectors)


@pytest.mark.parametrize("rules", [[], ["--num-candidates", 100, "--rule", "max-score:score=1e9"]])
def test_empty_result_slots_read_as_the_last_row(oracle: Oracle, tmp_path: Path, rules: list[object]) -> None:
    given = with_a_last_one_far_from_all(100)
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF16,Flat", "--out", tmp_path / "index")
    few = ["--index", tmp_path / "index", "--nprobe", 1, *rules]
    tables: dict[Direction, NegativeTable] = {}
    for direction, k in zip(BOTH, (100, 90), strict=True):
        run("mine", folder, "--k", k, "--direction", direction, *few, "--out", tmp_path / "found")
        size = size_of(given, direction)
        exact, last = oracle(given, direction, size), size - 1
        run("mine", folder, "--k", size, "--direction", direction, "--out", tmp_path / "all")
        assert read(tmp_path / "all" / direction, given) == exact
        short = 0
        for anchor, (rows, scores, lowest) in read(tmp_path / "found" / direction, given).items():
            true = dict(zip(*exact[anchor][:2], strict=True))
            assert last not in rows
            assert len(set(rows)) == len(rows)
            assert ([true[row] for row in rows], exact[anchor][2]) == (scores, lowest)
            short += len(rows) < 90
        assert short > 10
        tables[direction] = NegativeTable.open(tmp_path / "found" / direction, given.pairs)
    drawn = sampling.draw(given.pairs, tables, pool_text=100, pool_image=90, ranks="untied", seed=0, epoch=0)
    assert given.pairs.num_texts - 1 not in drawn.text
    assert given.pairs.num_images - 1 not in drawn.image


def test_too_few_fetched_when_a_query_has_many_positives(oracle: Oracle, tmp_path: Path) -> None:
    """The 90 texts nearest to one image, and the 20 images nearest to one text, are all its positives."""
    made = uneven()
    rng = np.random.default_rng(0)
    many, first = 90, made.pairs.num_texts
    near = 3 * made.images[3] + 0.1 * rng.normal(size=(many, 8))
    images, texts = made.images.copy(), np.concatenate([made.texts, near.astype(np.float32)])
    texts[0] = 9 * images[:20].sum(0)
    links = (
        np.concatenate([made.pairs.image_rows, np.full(many, 3), np.arange(20)]),
        np.concatenate([made.pairs.text_rows, first + np.arange(many), np.zeros(20, np.int64)]),
    )
    given = Problem(pairs_of(28, len(texts), links), images, texts)
    folder = given.write(tmp_path / "vectors")
    for name, factory in (("flat", "Flat"), ("ivf", "IVF4,Flat")):
        run("build-index", folder, "--factory", factory, "--out", tmp_path / name)
    everything: list[object] = ["--index", tmp_path / "ivf", "--nprobe", 4]
    for number, how in enumerate(
        [[], ["--index", tmp_path / "flat"], everything, ["--rule", "max-score:score=1e9", "--num-candidates", 6]]
    ):
        out = tmp_path / f"{number}"
        run("mine", folder, "--k", 6, *how, "--out", out)
        for direction in BOTH:
            found = read(out / direction, given)
            assert found == oracle(given, direction, 6)
            assert {len(rows) for rows, _, _ in found.values()} == {6}


@pytest.mark.parametrize("direction", BOTH)
def test_thresholds_inverted_for_negative_scores(oracle: Oracle, tmp_path: Path, direction: Direction) -> None:
    """Where every score is below 0, lowest * (1 - margin) lies above the lowest positive."""
    made = uneven(seed=2)
    given = Problem(made.pairs, np.abs(made.images), -np.abs(made.texts))
    folder, k, num = given.write(tmp_path / "vectors"), 4, 12
    full = ranking(given, oracle, direction)
    first = [score for found, _ in full.values() for _, score in found[:num]]
    assert max(first) < 0
    high = percentile(first, 80)
    rules: dict[str, Drop] = {
        "relative-margin:margin=0.1": lambda a, g, rank, score, low: score > low - 0.1 * abs(low),
        "relative-margin:margin=-0.1": lambda a, g, rank, score, low: score > low + 0.1 * abs(low),
        "absolute-margin:margin=0.5": lambda a, g, rank, score, low: score > low - 0.5,
        "max-score:score=-1.5": lambda a, g, rank, score, low: score > -1.5,
        "min-score:score=-3": lambda a, g, rank, score, low: score < -3,
        "percentile:above=80": lambda a, g, rank, score, low: score > high,
    }
    run("mine", folder, "--k", k, "--num-candidates", num, "--direction", direction, "--out", tmp_path / "mined")
    chosen = ["--candidates", tmp_path / "mined" / "candidates"]
    for number, (rule, drop) in enumerate(rules.items()):
        run("filter", folder, *chosen, "--rule", rule, "--k", k, "--out", tmp_path / f"{number}")
        wanted = filtered(given, oracle, direction, [drop], k, num)
        assert sum(len(one.dropped) for one in wanted.values()) > 0, rule
        assert only_rows(read(tmp_path / f"{number}" / direction, given)) == negatives_of(wanted), rule
        assert len(rows_of(tmp_path / f"{number}" / direction / "dropped.parquet")) == sum(
            len(one.dropped) for one in wanted.values()
        )
    told = json.loads(run("calibrate", folder, *chosen, "--k", k, "--json"))["directions"][direction]["ladder"]
    kept = {rung["rule"]: rung["candidates_kept"] for rung in told}
    for rule in ("relative-margin:margin=0.1", "relative-margin:margin=-0.1"):
        seen = [(score, low) for found, low in full.values() for _, score in found[:num]]
        share = sum(not rules[rule](0, 0, 0, score, low) for score, low in seen) / len(seen)
        assert kept[rule] == pytest.approx(share, abs=1e-6)


def test_k_larger_than_the_gallery(oracle: Oracle, tmp_path: Path) -> None:
    given = uneven()
    folder = given.write(tmp_path / "vectors")
    texts = given.pairs.num_texts
    run("build-index", folder, "--out", tmp_path / "flat")
    run("build-index", folder, "--factory", "IVF4,Flat", "--out", tmp_path / "ivf")
    run("mine", folder, "--k", 5, "--num-candidates", 9, "--out", tmp_path / "mined")
    before = bytes_below(tmp_path)
    out = ["--out", tmp_path / "new"]
    for large, said in ((29, "28 images"), (texts + 1, f"{texts} texts")):
        way = ["--direction", "t2i" if large == 29 else "i2t"]
        for how in ([], ["--index", tmp_path / "flat"], ["--index", tmp_path / "ivf"], ["--rule", "default"]):
            assert said in run("mine", folder, "--k", large, *way, *how, *out, code=3)
        assert said in run("plan", folder, "--k", large, *way, code=3)
        candidates = ["--candidates", tmp_path / "mined" / "candidates"]
        assert said in run("filter", folder, *candidates, "--k", large, *way, *out, code=3)
        assert "9 candidates" in run("calibrate", folder, *candidates, "--k", large, code=3)
        table = tmp_path / "mined" / way[1]
        assert "holds 5 negatives" in run("diff", table, table, "--k", large, code=3)
        asked = ["--pairs", folder / "pairs.csv", "--negatives", large, "--format", "jsonl"]
        assert "holds 5 negatives" in run("export", table, *asked, "--out", tmp_path / "new.jsonl", code=3)
    (tmp_path / "data").mkdir()
    toml = write_toml(tmp_path / "run.toml", raw_settings(write_vectors(tmp_path / "data", num=24), mine={"k": 19}))
    assert "larger than the gallery" in run("plan", toml, "--run-dir", tmp_path / "run", code=3, command=pipelines_main)
    after = bytes_below(tmp_path)
    assert {name: data for name, data in after.items() if not name.startswith(("data/", "run"))} == before
    # As many as there are is no mistake, and neither are more candidates.
    run("mine", folder, "--k", 28, "--out", tmp_path / "all")
    run("mine", folder, "--k", 28, "--num-candidates", 1000, "--out", tmp_path / "more")
    for direction in BOTH:
        assert read(tmp_path / "all" / direction, given) == oracle(given, direction, 28)
        assert read(tmp_path / "more" / direction, given) == oracle(given, direction, 28)


def test_un_normalised_vectors(oracle: Oracle, tmp_path: Path) -> None:
    """Lengths from 0.01 to 100: the cosine must not see them, the inner product must, and it is said."""
    made = uneven(seed=3)
    rng = np.random.default_rng(3)
    lengths = [10.0 ** rng.uniform(-2, 2, (len(each), 1)) for each in (made.images, made.texts)]
    given = Problem(
        made.pairs, *((v * n).astype("f4") for v, n in zip((made.images, made.texts), lengths, strict=True))
    )
    wide = [each.astype("f8") for each in (given.images, given.texts)]
    angles = Problem(made.pairs, *((v / np.linalg.norm(v, axis=1, keepdims=True)).astype("f4") for v in wide))
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF4,Flat", "--metric", "cosine", "--out", tmp_path / "ivf")
    k, cos = 6, ["--metric", "cosine"]
    assert "do not all have length 1" in run("mine", folder, "--k", k, "--out", tmp_path / "ip")
    assert "do not all" not in run("mine", folder, "--k", k, *cos, "--out", tmp_path / "cosine")
    assert "do not all" not in run("mine", angles.write(tmp_path / "angles"), "--k", k, "--out", tmp_path / "of-angles")
    run("mine", folder, "--k", k, *cos, "--index", tmp_path / "ivf", "--nprobe", 4, "--out", tmp_path / "approximate")
    assert "another metric" in run(
        "mine", folder, "--k", k, "--index", tmp_path / "ivf", "--out", tmp_path / "no", code=3
    )
    near = "near-embedding:cosine=0.8"
    run("mine", folder, "--k", k, "--num-candidates", 10, "--rule", near, "--out", tmp_path / "near")
    for direction in BOTH:
        assert read(tmp_path / "ip" / direction, given) == oracle(given, direction, k)
        truth = oracle(angles, direction, k)
        for name in ("cosine", "approximate"):
            found = read(tmp_path / name / direction, given)
            assert only_rows(found) == only_rows(truth)
            for anchor, (_, scores, lowest) in found.items():
                assert [*scores, lowest] == pytest.approx([*truth[anchor][1], truth[anchor][2]], abs=1e-6)
        assert only_rows(truth) != only_rows(oracle(given, direction, k))
        # A rule that speaks of a cosine means one, also where the search goes by the inner product.
        text = by_text(given.pairs, direction, lambda t, u: cosine(given.texts, t, u) >= 0.8)
        image = by_image(given.pairs, direction, lambda i, j: cosine(given.images, i, j) >= 0.8)
        wanted = filtered(given, oracle, direction, [text, image], k, 10)
        assert sum(len(one.dropped) for one in wanted.values()) > 10
        assert only_rows(read(tmp_path / "near" / direction, given)) == negatives_of(wanted)
        for name in ("ip", "cosine", "approximate"):
            run("check", tmp_path / name / direction, "--vectors", folder)


def with_anchors_that_have_hardly_a_negative(images: int = 28) -> Problem:
    """The first image belongs to all texts, the second to all but two, and the first two texts likewise."""
    made = uneven(images, seed=4)
    texts = made.pairs.num_texts
    every_text, every_image = np.arange(texts), np.arange(images)
    first, second = (np.zeros(n, np.int64) for n in (texts, images))
    links = (
        np.concatenate([made.pairs.image_rows, first, 1 + first[2:], every_image, every_image[2:]]),
        np.concatenate([made.pairs.text_rows, every_text, every_text[2:], second, 1 + second[2:]]),
    )
    return Problem(pairs_of(images, texts, links), made.images, made.texts)


def test_rows_silently_dropped_for_shortage(oracle: Oracle, tmp_path: Path) -> None:
    given = with_anchors_that_have_hardly_a_negative()
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF4,Flat", "--out", tmp_path / "ivf")
    ways: list[list[object]] = [
        [],
        ["--index", tmp_path / "ivf", "--nprobe", 4],
        ["--rule", "max-score:score=1", "--num-candidates", 6],
        ["--rule", "max-score:score=-1e9", "--num-candidates", 6, "--max-candidates", 6],
    ]
    for number, how in enumerate(ways):
        run("mine", folder, "--k", 5, *how, "--out", tmp_path / f"{number}")
        for direction in BOTH:
            table = tmp_path / f"{number}" / direction
            found, truth = read(table, given), oracle(given, direction, 5)
            assert sorted(found) == sorted(truth)
            assert {anchor: low for anchor, (_, _, low) in found.items()} == {
                a: low for a, (_, _, low) in truth.items()
            }
            if number < 2:
                assert found == truth
            if number == 3:
                assert not any(rows for rows, _, _ in found.values())
            run("export", table, "--pairs", folder / "pairs.csv", "--format", "jsonl", "--out", table / "out.jsonl")
            lines = [json.loads(line) for line in (table / "out.jsonl").read_text().splitlines()]
            assert [len(line["negatives"]) for line in lines] == [
                len(found[row][0]) for row in given.pairs.order(sides(direction)[0]).tolist()
            ]
    empty = sum(not rows for rows, _, _ in read(tmp_path / "0" / "i2t", given).values())
    assert empty == 1
    asked = ["--pairs", folder / "pairs.csv", "--format", "sentence-transformers", "--out", tmp_path / "t.parquet"]
    assert "left out: 1 anchor(s) with no negative" in run("export", tmp_path / "0" / "i2t", *asked)
    # Training keeps the pairs of an anchor that has no negative: such a place is empty.
    tables: dict[Direction, NegativeTable] = {d: NegativeTable.open(tmp_path / "0" / d, given.pairs) for d in BOTH}
    drawn = sampling.draw(given.pairs, tables, pool_text=5, pool_image=5, ranks="tied", seed=0, epoch=0)
    assert len(drawn.text) == len(drawn.image) == given.pairs.num_pairs
    assert np.array_equal(drawn.text < 0, given.pairs.image_rows == 0)
    assert np.array_equal(drawn.image < 0, given.pairs.text_rows == 0)


def test_minus_infinity_kept_as_a_negative(oracle: Oracle, tmp_path: Path) -> None:
    """What is masked out scores -inf; with k as large as the gallery it is next in line. Ties take every path."""
    made = uneven(seed=5, grid=True)
    few = with_anchors_that_have_hardly_a_negative()
    given = Problem(few.pairs, made.images, np.resize(made.texts, (few.pairs.num_texts, made.texts.shape[1])))
    folder = given.write(tmp_path / "vectors")
    for name, factory in (("flat", "Flat"), ("ivf", "IVF4,Flat")):
        run("build-index", folder, "--factory", factory, "--out", tmp_path / name)
    ways: list[list[object]] = [
        [],
        ["--index", tmp_path / "flat"],
        ["--index", tmp_path / "ivf", "--nprobe", 4],
        ["--num-candidates", 1000],
    ]
    for number, how in enumerate(ways):
        for direction, k in itertools.product(BOTH, (6, 0)):
            k = k or size_of(given, direction)
            run("mine", folder, "--k", k, "--direction", direction, *how, "--out", tmp_path / f"{number}-{k}")
            found = read(tmp_path / f"{number}-{k}" / direction, given)
            assert all(np.isfinite(scores).all() for _, scores, _ in found.values())
            assert found == oracle(given, direction, k)
    candidates = tmp_path / "3-6" / "candidates" / "i2t"
    opened = Candidates.open(candidates, given.pairs)
    assert np.array_equal(np.isfinite(opened.scores), opened.positions >= 0)
    # Far more positives than are looked for at first, and hardly a negative.
    crowd = with_anchors_that_have_hardly_a_negative(120)
    run("mine", crowd.write(tmp_path / "crowd"), "--k", 6, "--direction", "t2i", "--out", tmp_path / "of-crowd")
    assert read(tmp_path / "of-crowd" / "t2i", crowd) == oracle(crowd, "t2i", 6)
    # Neither candidates nor a table from elsewhere may bring one in.
    planted = np.array(opened.scores)
    planted[3, 2:] = -np.inf
    draft = Draft(LocalStore(tmp_path / "planted"), "i2t", CANDIDATES, {})
    arrays = {"candidates": opened.positions, "scores": planted, "lowest_positive": opened.lowest_positive}
    files = {f"{name}.npy": draft.add(f"{name}.npy", npy_bytes(np.asarray(array))) for name, array in arrays.items()}
    draft.commit(files, open_artifact(candidates, CANDIDATES).manifest.meta)
    asked = ["--candidates", tmp_path / "planted", "--k", 4, "--out", tmp_path / "no"]
    assert "without a finite score" in run("filter", folder, *asked, code=4)
    rows = rows_of(tmp_path / "0-6" / "i2t" / "negatives.parquet")
    rows[6]["score"] = float("-inf")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bare.parquet")
    assert "BAD: non-finite scores" in run("check", tmp_path / "bare.parquet", code=3)


def test_a_margin_anchored_on_another_query_s_positive(oracle: Oracle, tmp_path: Path) -> None:
    """Anchors are of length 0.2 to 50, so that no bound fits another; some are searched deeper, and put back."""
    made = uneven(seed=6)
    rng = np.random.default_rng(6)
    scale = [10.0 ** rng.uniform(-0.7, 1.7, (len(each), 1)) for each in (made.images, made.texts)]
    k, num = 4, 7
    for direction in BOTH:
        by = (scale[0], 1) if direction == "i2t" else (1, scale[1])
        given = Problem(made.pairs, (made.images * by[0]).astype("f4"), (made.texts * by[1]).astype("f4"))
        for number, stored in enumerate((given, given.permuted(1))):
            folder = stored.write(tmp_path / f"{direction}-{number}")
            said = ["--direction", direction, "--k", k, "--num-candidates", num]
            out = tmp_path / f"mined-{direction}-{number}"
            shown = run("mine", folder, *said, "--rule", "relative-margin:margin=0.2", "--out", out)
            assert "deep\n" in shown
            found = read(out / direction, stored)
            wanted = filtered(
                stored, oracle, direction, [lambda a, g, rank, score, low: score > low - 0.2 * abs(low)], k, num
            )
            assert only_rows(found) == negatives_of(wanted)
            truth = oracle(stored, direction, 1)
            for anchor, (_, scores, lowest) in found.items():
                assert lowest == truth[anchor][2]
                assert all(score <= lowest - np.float64(0.2) * abs(lowest) for score in scores)


def test_only_the_last_positive_kept(oracle: Oracle, tmp_path: Path) -> None:
    given = uneven(seed=7)
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF4,Flat", "--out", tmp_path / "ivf")
    own = own_pairs(given.pairs)
    assert {len(texts_of(given.pairs, image)) for image in range(28)} >= {1, 2, 3, 4, 5, 6, 7}
    assert {len(images_of(given.pairs, text)) for text in range(given.pairs.num_texts)} == {1, 2}
    ways: list[list[object]] = [[], ["--index", tmp_path / "ivf", "--nprobe", 4], ["--num-candidates", 500]]
    for number, how in enumerate(ways):
        for direction in BOTH:
            size = size_of(given, direction)
            run("mine", folder, "--k", size, "--direction", direction, *how, "--out", tmp_path / f"{number}")
            table = tmp_path / f"{number}" / direction
            found = read(table, given)
            for anchor, (rows, _, _) in found.items():
                assert set(rows) == {g for g in range(size) if ends(direction, anchor, g) not in own}
            assert found == oracle(given, direction, size)
            run("export", table, "--pairs", folder / "pairs.csv", "--format", "jsonl", "--out", table / "out.jsonl")
            anchors, gallery = (given.pairs.ids(side) for side in sides(direction))
            for line in map(json.loads, (table / "out.jsonl").read_text().splitlines()):
                row = list(anchors).index(line["anchor_id"])
                belong = {gallery[g] for g in range(size) if ends(direction, row, g) in own}
                assert set(line["positives"]) == belong


def test_duplicate_query_ids_overwriting(oracle: Oracle, tmp_path: Path) -> None:
    made = uneven(images=12, seed=8)
    # "7", "07" and "007" are three anchors, in an order that does not depend on storage.
    image_ids = [*list(made.pairs.image_ids)[:-3], "7", "007", "07"]
    pairs = Pairs(Ids(image_ids), made.pairs.text_ids, made.pairs.image_rows, made.pairs.text_rows)
    given = Problem(pairs, made.images, made.texts)
    folder = given.write(tmp_path / "vectors")
    run("mine", folder, "--k", 4, "--direction", "i2t", "--out", tmp_path / "mined")
    found = read(tmp_path / "mined" / "i2t", given)
    assert found == oracle(given, "i2t", 4)
    assert len(rows_of(tmp_path / "mined" / "i2t" / "negatives.parquet")) == 12 * 4
    run("mine", given.permuted(1).write(tmp_path / "permuted"), "--k", 4, "--direction", "i2t", "--out", tmp_path / "p")
    assert rows_of(tmp_path / "p" / "i2t" / "negatives.parquet") == rows_of(
        tmp_path / "mined" / "i2t" / "negatives.parquet"
    )
    # The same pair twice is one pair.
    lines = (folder / "pairs.csv").read_text().splitlines()
    (folder / "pairs.csv").write_text("\n".join([*lines, *lines[5:9]]) + "\n")
    run("mine", folder, "--k", 4, "--direction", "i2t", "--out", tmp_path / "again")
    name = "i2t/negatives.parquet"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mined" / name).read_bytes()
    # The same id twice is refused, on either side, whatever is asked for.
    for side in ("image", "text"):
        ids = folder / f"{side}_ids.txt"
        whole = ids.read_text()
        names = whole.splitlines()
        ids.write_text("\n".join([*names[:-1], names[2]]) + "\n")
        for command in (["mine", "--k", 2], ["build-index"]):
            said = run(*command, folder, "--out", tmp_path / "no", code=3)
            assert f"{side} id {names[2]!r} occurs more than once" in said
        ids.write_text(whole)
    # A table from elsewhere with an anchor in two places.
    rows = rows_of(tmp_path / "mined" / name)
    pq.write_table(pa.Table.from_pylist([*rows, *rows[8:12]]), tmp_path / "bare.parquet")
    assert "BAD: scattered anchors" in run("check", tmp_path / "bare.parquet", code=3)
    said = run("calibrate", folder, "--candidates", tmp_path / "bare.parquet", code=3)
    assert rows[8]["anchor_id"] in said


def test_positives_excluded_by_id_while_text_or_picture_repeats(oracle: Oracle, tmp_path: Path) -> None:
    given = uneven(seed=9)
    folder = given.write(tmp_path / "vectors")
    words = [
        f"A dog, number {row % 37}" if row % 2 else f"a  DOG number {row % 37}!" for row in range(len(given.texts))
    ]
    spoken = [f"a dog number {row % 37}" for row in range(len(given.texts))]
    texts = write_table(tmp_path / "texts.csv", {"id": given.pairs.text_ids, "text": [f'"{each}"' for each in words]})
    for row in range(28):
        (tmp_path / f"{row}.png").write_bytes(b"picture" + bytes([row % 11]))
    images = write_table(
        tmp_path / "images.csv", {"id": given.pairs.image_ids, "path": [f"{row}.png" for row in range(28)]}
    )
    run("mine", folder, "--k", 5, "--num-candidates", 9, "--out", tmp_path / "by-id")
    rules = ["--rule", "same-text", "--rule", "same-image:match=bytes", "--texts", texts, "--images", images]
    run("mine", folder, "--k", 5, "--num-candidates", 9, *rules, "--out", tmp_path / "by-content")
    for direction in BOTH:
        text = by_text(given.pairs, direction, lambda t, u: spoken[t] == spoken[u])
        image = by_image(given.pairs, direction, lambda i, j: i % 11 == j % 11)
        wanted = filtered(given, oracle, direction, [text, image], 5, 9)
        found = only_rows(read(tmp_path / "by-content" / direction, given))
        assert found == negatives_of(wanted)
        assert not any(text(a, g, 0, 0, 0) or image(a, g, 0, 0, 0) for a, rows in found.items() for g in rows)
        run("check", tmp_path / "by-content" / direction, "--vectors", folder, "--texts", texts)
        # By ids alone some are left, and the check counts them.
        by_id = only_rows(read(tmp_path / "by-id" / direction, given))
        left = sum(text(a, g, 0, 0, 0) for a, rows in by_id.items() for g in rows)
        assert left > 0
        told = run("check", tmp_path / "by-id" / direction, "--vectors", folder, "--texts", texts, code=3)
        assert f"duplicates of positives: {left} row(s)" in told


def test_a_cache_reused_after_the_weights_change(tmp_path: Path) -> None:
    """Two models, one folder of vectors, one folder of tables: what the first left is never taken for the second's."""
    (tmp_path / "data").mkdir()
    data = ["--data", write_vectors(tmp_path / "data", num=48)]
    for seed in (0, 1):
        model = ["--model", "vsepp:dim=8,word_dim=4", "--epochs", 1, "--threads", 1, "--seed", seed]
        run("fit", *data, *model, "--out", tmp_path / f"model-{seed}", command=trainer_main)
    one, two = (["--checkpoint", tmp_path / f"model-{seed}"] for seed in (0, 1))
    vectors, tables = tmp_path / "vectors", tmp_path / "tables"
    run("encode", *data, *one, "--out", vectors, command=trainer_main)
    run("mine", vectors, "--k", 3, "--out", tables)
    run("build-index", vectors, "--out", tmp_path / "index")
    run("mine", vectors, "--k", 3, "--num-candidates", 6, "--out", tmp_path / "chosen")
    before = bytes_below(tmp_path)
    for overwritten in (False, True):
        # As it is, and where the first checkpoint's folder now holds the second model.
        if overwritten:
            (tmp_path / "model-0").rename(tmp_path / "old")
            (tmp_path / "model-1").rename(tmp_path / "model-0")
        asked = one if overwritten else two
        said = run("encode", *data, *asked, "--out", vectors, command=trainer_main, code=3)
        assert "made from other inputs" in said
    (tmp_path / "model-0").rename(tmp_path / "model-1")
    (tmp_path / "old").rename(tmp_path / "model-0")
    assert bytes_below(tmp_path) == before
    # The vectors of the second model in the same place.
    vectors.rename(tmp_path / "vectors-0")
    run("encode", *data, *two, "--out", vectors, command=trainer_main)
    for stale in (
        ["mine", vectors, "--k", 3, "--out", tables],
        ["build-index", vectors, "--out", tmp_path / "index"],
        ["mine", vectors, "--k", 3, "--index", tmp_path / "index", "--out", tmp_path / "new"],
        ["filter", vectors, "--candidates", tmp_path / "chosen" / "candidates", "--k", 3, "--out", tmp_path / "new"],
        ["mine", vectors, "--k", 3, "--num-candidates", 6, "--out", tmp_path / "chosen"],
    ):
        said = run(*stale, code=3)
        assert "other inputs" in said or "other vectors" in said or "vectors beside it are not those" in said
    assert "stale vectors" in run("check", tables / "i2t", "--vectors", vectors, code=3)
    assert not list((tmp_path / "new").rglob("manifest.json"))
    # Half of one and half of the other.
    (vectors / "text").rename(tmp_path / "text-1")
    (tmp_path / "vectors-0" / "text").rename(vectors / "text")
    assert "encode both with one checkpoint" in run("mine", vectors, "--k", 3, "--out", tmp_path / "new", code=3)
    # Shards that a search of the first model left when it was stopped.
    folder, out = stopped_search(tmp_path / "stopped")
    assert list(out.glob(".search/*/shard-*.npy"))
    np.save(folder / "images.npy", np.load(folder / "images.npy")[::-1])
    for place in (out, tmp_path / "fresh"):
        run("mine", folder, "--k", 5, "--memory", "1M", "--out", place)
    for direction in BOTH:
        name = f"{direction}/negatives.parquet"
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def stopped_search(folder: Path) -> tuple[Path, Path]:
    """(vectors, where a search of them was stopped when it had all its shards: files may not be large there)."""
    vectors, out = write_large(folder / "vectors"), folder / "tables"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, before[1]))
    try:
        run("mine", vectors, "--k", 5, "--memory", "1M", "--out", out, code=75)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(out.rglob("manifest.json"))
    return vectors, out


def write_large(folder: Path, kind: str = "f4") -> Path:
    """1,031 images and 1,100 texts: more than fit into one shard of the least memory, and one more than a prime."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for side, rows in (("image", 1031), ("text", 1100)):
        np.save(folder / f"{side}s.npy", rng.normal(size=(rows, 3)).astype(kind))
    write_table(folder / "pairs.csv", {"image_id": [row % 1031 for row in range(1100)], "text_id": range(1100)})
    return folder


def test_output_over_input(tmp_path: Path) -> None:
    """Whatever a command reads is as it was, and still of use, when --out is where it lies."""
    given = uneven(images=20, seed=10)
    folder, index_at, mined = given.write(tmp_path / "vectors"), tmp_path / "index", tmp_path / "mined"
    made = tmp_path / "encoded"
    (tmp_path / "data").mkdir()
    data = ["--data", write_vectors(tmp_path / "data", num=24)]
    model = ["--model", "vsepp:dim=8,word_dim=4", "--epochs", 1, "--threads", 1]
    run("fit", *data, *model, "--out", tmp_path / "model", command=trainer_main)
    run("encode", *data, "--checkpoint", tmp_path / "model", "--out", made, command=trainer_main)
    run("build-index", folder, "--out", index_at)
    run("mine", folder, "--k", 3, "--num-candidates", 6, "--rule", "max-score:score=2", "--out", mined)
    pairs, captions = tmp_path / "pairs.parquet", tmp_path / "captions.jsonl"
    links = zip(given.pairs.image_rows.tolist(), given.pairs.text_rows.tolist(), strict=True)
    columns = [{"image_id": given.pairs.image_ids[i], "text_id": given.pairs.text_ids[t]} for i, t in links]
    pq.write_table(pa.Table.from_pylist(columns), pairs)
    captions.write_text(
        "".join(json.dumps({"id": name, "text": f"about {name}"}) + "\n" for name in given.pairs.text_ids)
    )
    linked = tmp_path / "linked.jsonl"
    linked.symlink_to(captions)
    table, chosen = mined / "i2t", ["--candidates", mined / "candidates"]
    export = ["export", table, "--pairs", pairs, "--texts", captions, "--force", "--format"]
    onto_themselves: list[tuple[list[object], Path]] = [
        (["build-index", folder], folder),
        (["build-index", made], made),
        (["filter", folder, *chosen, "--k", 3], mined / "candidates"),
        (["filter", folder, *chosen, "--k", 3], mined),
        (["mine", folder, "--k", 2], mined),
        (["mine", folder, "--k", 2], mined / "candidates"),
        ([*export, "flagembedding"], captions),
        ([*export, "flagembedding"], linked),
        ([*export, "sentence-transformers"], pairs),
        ([*export, "sentence-transformers"], table / "negatives.parquet"),
        ([*export, "sentence-transformers"], table / "shortfalls.parquet"),
        ([*export, "nemo"], table / "manifest.json"),
        (["mine", folder, "--k", 2], folder / "pairs.csv"),
    ]
    before = bytes_below(tmp_path)
    for command, out in onto_themselves:
        run(*command, "--out", out, code=3)
        assert bytes_below(tmp_path) == before, command
    run("encode", *data, "--checkpoint", tmp_path / "model", "--out", tmp_path / "data", command=trainer_main, code=3)
    run("fit", *data, *model, "--start", tmp_path / "model", "--out", tmp_path / "model", command=trainer_main, code=3)
    assert bytes_below(tmp_path) == before
    # Beside its input there is room.
    for command, out in (
        (["mine", folder, "--k", 3], folder),
        (["mine", folder, "--k", 3, "--index", index_at], index_at),
        (["build-index", folder, "--factory", "IVF4,Flat"], mined),
        (["plan", folder, "--k", 3], folder),
        (["mine", made, "--k", 3], made),
    ):
        run(*command, "--out", out)
        after = bytes_below(tmp_path)
        assert {name: after[name] for name in before} == before, command
    for source in (folder, made):
        run("mine", source, "--k", 3, "--out", tmp_path / f"after-{source.name}")
        for direction in BOTH:
            where = f"{direction}/negatives.parquet"
            assert (source / where).read_bytes() == (tmp_path / f"after-{source.name}" / where).read_bytes()
    run("mine", folder, "--k", 3, "--index", mined, "--nprobe", 4, "--out", tmp_path / "through")
    run("filter", folder, *chosen, "--k", 3, "--out", tmp_path / "again")
    writing = {name for name, command in main.commands.items() if any(each.name == "out" for each in command.params)}
    assert writing == {str(command[0]) for command, _ in onto_themselves} | {"plan"}


@dataclass(frozen=True)
class Seen:
    """What a command did: its exit code, what it said, the files below its folder, and the threads it asked for."""

    code: int
    said: str
    files: dict[str, Any]
    threads: int

    def told(self, *names: str) -> Any:
        """Some of the JSON that it printed."""
        whole = json.loads(self.said.partition("\nerror: ")[0])
        if "directions" in whole:
            return {way: {name: each[name] for name in names} for way, each in whole["directions"].items()}
        return {name: whole[name] for name in names}


def content(path: Path) -> Any:
    """What a file holds, without what it says of the settings it was made with."""
    return rows_of(path) if path.suffix == ".parquet" else path.read_bytes()


def seen(arguments: Arguments, out: Path) -> Seen:
    """OUT stands for a fresh folder."""
    told = [str(argument).replace("OUT", str(out)) for argument in arguments]
    done = CliRunner().invoke(main, told)
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    held = {str(path.relative_to(out)): content(path) for path in files}
    return Seen(done.exit_code, done.output.replace(str(out), "OUT"), held, _faiss.set_threads(None))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands read."""
    at = tmp_path_factory.mktemp("shop")
    made = uneven(images=40, seed=11)
    given = Problem(made.pairs, made.images * np.linspace(1, 3, 40, dtype="f4")[:, None], made.texts)
    folder = given.write(at / "vectors")
    write_large(at / "half", "f2")
    for seed in (0, 1):
        run("build-index", folder, "--factory", "IVF8,Flat", "--seed", seed, "--out", at / f"ivf{seed}")
    run("build-index", folder, "--factory", "HNSW2", "--out", at / "graph")
    run("build-index", folder, "--factory", "PQ2x4fs", "--out", at / "codes")
    for metric in ("ip", "cosine"):
        run("mine", folder, "--k", 4, "--num-candidates", 10, "--metric", metric, "--out", at / metric)
    few = ["--k", 4, "--num-candidates", 10, "--index", at / "ivf0", "--nprobe", 4]
    run("mine", folder, *few, "--out", at / "through")
    texts, images = given.pairs.text_ids, given.pairs.image_ids
    for name, times in (("a", 1000), ("b", 5)):
        write_table(at / f"texts-{name}.csv", {"id": texts, "text": [f"words {r % times}" for r in range(len(texts))]})
        paths = [f"{row % times}.png" for row in range(len(images))]
        write_table(at / f"images-{name}.csv", {"id": images, "path": paths})
        write_table(at / f"names-{name}.csv", {"id": images, "text": [f"{name}{row}" for row in range(len(images))]})
    for row in range(40):
        (at / f"{row}.png").write_bytes(bytes([row]))
    rows = rows_of(at / "ip" / "i2t" / "negatives.parquet")
    pq.write_table(pa.Table.from_pylist(rows), at / "bare.parquet")
    wrong = [{**one, "score": one["score"] * (1.5 if at_row < len(rows) / 2 else 1)} for at_row, one in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(wrong), at / "wrong.parquet")
    hub = [
        {"anchor_id": f"{a}", "rank": r, "negative_id": "hub" if r == 0 and a < 30 else f"{a}-{r}"}
        for a in range(40)
        for r in (0, 1)
    ]
    pq.write_table(
        pa.Table.from_pylist([{**one, "score": 0.5, "lowest_positive": 0.6} for one in hub]), at / "hub.parquet"
    )
    judged = {"anchor_id": [one["anchor_id"] for one in rows], "negative_id": [one["negative_id"] for one in rows]}
    for name, period in (("a", 3), ("b", 7)):
        write_table(
            at / f"judged-{name}.csv", {**judged, "match": [int(row % period == 0) for row in range(len(rows))]}
        )
        said = ["false_negative" if row % period == 0 else "fine" for row in range(len(rows))]
        about = {"direction": ["i2t"] * len(rows), **judged, "verdict": said}
        write_table(at / f"verdicts-{name}.csv", about)
    write_table(at / "graded.csv", {**judged, "match": [row % 4 for row in range(len(rows))]})
    lines = (folder / "pairs.csv").read_text().splitlines()
    (at / "other-pairs.csv").write_text("\n".join([*lines, f"{images[0]},{texts[-1]}"]) + "\n")
    run("export", at / "ip" / "i2t", "--pairs", folder / "pairs.csv", "--format", "jsonl", "--out", at / "there.jsonl")
    return at


Look = Callable[[Seen], Any]
Arguments = Sequence[object]
Case = tuple[Arguments, Arguments, Look]


def files(what: Seen) -> Any:
    return what.files


def code(what: Seen) -> Any:
    return what.code


def threads(what: Seen) -> Any:
    return what.threads


def sizes_of_samples(what: Seen) -> Any:
    return re.findall(r"([0-9]+) anchors\)", what.said)


def stages(what: Seen) -> Any:
    """What is planned, but for the seconds."""
    return [(stage["name"], stage["memory"], stage["disk"]) for stage in what.told("stages")["stages"]]


def is_json(what: Seen) -> Any:
    return what.said.startswith("{")


def told(*names: str) -> Look:
    return lambda what: what.told(*names)


def cases(at: Path) -> dict[str, Case]:
    """By command and option: the same command twice, with the option and without it or with another value, and where
    the difference must show. Manifests, which list what was asked for, show nothing."""
    found: dict[str, Case] = {}

    def case(name: str, start: Arguments, one: Arguments, other: Arguments, look: Look = files) -> None:
        command, _, _ = name.partition(" ")
        found[name] = ([command, *start, *one], [command, *start, *other], look)

    vectors, out, pairs = at / "vectors", ["--out", "OUT"], ["--pairs", at / "vectors" / "pairs.csv"]
    mined = at / "ip" / "i2t"

    start = [vectors, *out]
    trained = [*start, "--factory", "IVF8,Flat"]
    case("build-index --out", [vectors], ["--out", "OUT/a"], ["--out", "OUT/b"])
    case("build-index --side", start, ["--side", "image"], ["--side", "text"])
    case("build-index --factory", start, [], ["--factory", "IVF8,Flat"])
    case("build-index --train-sample", trained, ["--train-sample", 20], ["--train-sample", 40])
    case("build-index --seed", trained, [], ["--seed", 1])
    case("build-index --metric", start, [], ["--metric", "cosine"])
    case("build-index --threads", start, ["--threads", 1], ["--threads", 2], threads)

    start = [vectors, *out, "--k", 4]
    few = [*start, "--num-candidates", 10]
    through = [*start, "--index", at / "ivf0"]
    case("mine --out", [vectors, "--k", 4], ["--out", "OUT/a"], ["--out", "OUT/b"])
    case("mine --k", [vectors, *out], ["--k", 3], ["--k", 4])
    case("mine --direction", start, ["--direction", "i2t"], ["--direction", "t2i"])
    case("mine --rule", few, ["--rule", "range-min:skip=1"], ["--rule", "range-min:skip=2"])
    case("mine --num-candidates", start, ["--num-candidates", 8], ["--num-candidates", 9])
    deep = [*few, "--rule", "percentile:above=30"]
    case("mine --max-candidates", deep, ["--max-candidates", 10], ["--max-candidates", 30])
    spoken = [*few, "--rule", "same-text"]
    case("mine --texts", spoken, ["--texts", at / "texts-a.csv"], ["--texts", at / "texts-b.csv"])
    drawn = [*few, "--rule", "same-image:match=bytes"]
    case("mine --images", drawn, ["--images", at / "images-a.csv"], ["--images", at / "images-b.csv"])
    case("mine --index", [*start, "--nprobe", 1], ["--index", at / "ivf0"], ["--index", at / "ivf1"])
    case("mine --recall", through, ["--recall", 0.3], ["--recall", 0.99])
    measured = [*through, "--nprobe", 2]
    case("mine --recall-sample", measured, ["--recall-sample", 5], ["--recall-sample", 9], sizes_of_samples)
    case("mine --nprobe", through, ["--nprobe", 1], ["--nprobe", 8])
    graph, codes = ([*start, "--direction", "i2t", "--index", at / name] for name in ("graph", "codes"))
    case("mine --ef-search", graph, ["--ef-search", 1], ["--ef-search", 100])
    case("mine --k-factor", codes, ["--k-factor", 1], ["--k-factor", 4])
    case("mine --metric", start, [], ["--metric", "cosine"])
    case("mine --threads", start, ["--threads", 1], ["--threads", 2], threads)
    # The table is the same by design; how many items were compared, in more shards, is counted on the way.
    large = [at / "half", *out, "--k", 2]
    case("mine --memory", large, ["--memory", "4G"], ["--memory", "1M"], lambda what: "2200/2200 items" in what.said)

    start = [at / "half", "--json"]
    case("plan --k", start, ["--k", 10], ["--k", 20], stages)
    case("plan --direction", start, ["--direction", "i2t"], ["--direction", "both"], stages)
    case("plan --metric", start, [], ["--metric", "cosine"], stages)
    case("plan --threads", start, ["--threads", 1], ["--threads", 2], stages)
    case("plan --memory", start, ["--memory", "4G"], ["--memory", "1M"], stages)
    case("plan --rule", start, [], ["--rule", "default"], stages)
    case("plan --num-candidates", start, ["--num-candidates", 60], ["--num-candidates", 70], stages)
    case("plan --factory", start, ["--factory", "IVF4,Flat"], ["--factory", "IVF4,SQ8"], stages)
    built = [vectors, "--k", 4, "--json"]
    case("plan --index", built, ["--index", at / "ivf0"], ["--index", at / "codes"], stages)
    # How hard tuning will look is not foretold: the recall wanted is refused where nothing is tuned.
    case("plan --recall", [*start, "--factory", "Flat"], [], ["--recall", 0.9], code)
    through = [*start, "--factory", "IVF4,SQ8"]
    case("plan --recall-sample", through, ["--recall-sample", 100], ["--recall-sample", 200], stages)
    case("plan --nprobe", through, [], ["--nprobe", 2], stages)
    case("plan --ef-search", [*start, "--factory", "HNSW4"], [], ["--ef-search", 20], stages)
    case("plan --k-factor", through, [], ["--k-factor", 60], stages)
    case("plan --out", start, ["--out", "OUT"], ["--out", "/proc/full"], code)  # nothing fits there
    case("plan --json", [at / "half"], [], ["--json"], is_json)

    chosen = ["--candidates", at / "ip" / "candidates"]
    start = [vectors, *out, "--k", 4, *chosen]
    case("filter --out", [vectors, "--k", 4, *chosen], ["--out", "OUT/a"], ["--out", "OUT/b"])
    one, other = (["--candidates", at / name / "candidates"] for name in ("ip", "cosine"))
    case("filter --candidates", [vectors, *out, "--k", 4], one, other)
    case("filter --rule", start, ["--rule", "range-min:skip=1"], ["--rule", "range-min:skip=2"])
    case("filter --k", [vectors, *out, *chosen], ["--k", 3], ["--k", 4])
    case("filter --direction", start, ["--direction", "i2t"], ["--direction", "t2i"])
    spoken = [*start, "--rule", "same-text"]
    case("filter --texts", spoken, ["--texts", at / "texts-a.csv"], ["--texts", at / "texts-b.csv"])
    drawn = [*start, "--rule", "same-image:match=bytes"]
    case("filter --images", drawn, ["--images", at / "images-a.csv"], ["--images", at / "images-b.csv"])
    deep = [*start, "--rule", "percentile:above=30"]
    case("filter --max-candidates", deep, ["--max-candidates", 10], ["--max-candidates", 30])
    case("filter --no-deepen", deep, [], ["--no-deepen"])
    through = [vectors, *out, "--k", 4, "--candidates", at / "through" / "candidates", "--rule", "percentile:above=30"]
    case("filter --index", through, [], ["--index", at / "ivf0"])
    case("filter --threads", start, ["--threads", 1], ["--threads", 2], threads)

    start = [vectors, "--json"]
    ladder = told("ladder", "proposal")
    of_people = told("ladder", "judged", "why")
    case("calibrate --candidates", start, one, other, ladder)
    start += chosen
    case("calibrate --direction", start, ["--direction", "i2t"], ["--direction", "t2i"], told())
    case("calibrate --k", start, ["--k", 2], ["--k", 5], ladder)
    start += ["--direction", "i2t"]
    one, other = (["--judgements", at / f"judged-{name}.csv"] for name in ("a", "b"))
    case("calibrate --judgements", start, one, other, of_people)
    one, other = (["--verdicts", at / f"verdicts-{name}.csv"] for name in ("a", "b"))
    case("calibrate --verdicts", start, one, other, of_people)
    graded = [*start, "--judgements", at / "graded.csv"]
    case("calibrate --match-at", graded, ["--match-at", 1], ["--match-at", 3], of_people)
    asked = [*start, "--judgements", at / "judged-a.csv"]
    case("calibrate --target", asked, ["--target", 0.01], ["--target", 0.9], of_people)
    case("calibrate --json", [vectors, *chosen], [], ["--json"], is_json)

    result = told("checked", "not_checked", "findings", "direction")
    start = [mined, "--json"]
    case("check --pairs", start, [], pairs, result)
    case("check --vectors", start, [], ["--vectors", vectors], result)
    one, other = (["--texts", at / f"texts-{name}.csv"] for name in ("a", "b"))
    case("check --texts", [*start, *pairs], one, other, result)
    bare = [at / "bare.parquet", "--json"]
    case("check --direction", [*bare, *pairs], ["--direction", "i2t"], ["--direction", "t2i"], result)
    scored = [*bare, "--vectors", vectors]
    case("check --metric", scored, ["--metric", "ip"], ["--metric", "cosine"], result)
    case("check --hub-share", [at / "hub.parquet", "--json"], ["--hub-share", 0.5], ["--hub-share", 0.9], result)
    wrong = [at / "wrong.parquet", "--json", "--vectors", vectors]
    case("check --sample", wrong, ["--sample", 5], ["--sample", 30], result)
    case("check --seed", [*wrong, "--sample", 5], ["--seed", 0], ["--seed", 1], result)
    case("check --json", [mined], [], ["--json"], is_json)

    both = [at / "ip", at / "cosine"]
    case("diff --k", [*both, "--json"], ["--k", 1], ["--k", 4], told("overlap", "rank_biased_overlap"))
    case("diff --json", both, [], ["--json"], is_json)

    plain, there = ["--format", "jsonl"], ["--out", "OUT/x.jsonl"]
    named = [mined, *pairs, "--format", "flagembedding", *there]
    others = ["--pairs", at / "other-pairs.csv"]
    case("export --pairs", [mined, *plain, *there], pairs, others, code)
    case("export --format", [mined, *pairs, *there], plain, ["--format", "flagembedding"])
    case("export --out", [mined, *pairs, *plain], there, ["--out", "OUT/y.jsonl"])
    case("export --negatives", [mined, *pairs, *plain, *there], ["--negatives", 2], ["--negatives", 3])
    one = [mined, *pairs, *plain, *there, "--negatives", 1]
    evenly, bell, soft = (["--sample", law] for law in ("uniform", "simans", "temperature"))
    case("export --sample", one, evenly, ["--sample", "log-uniform"])
    case("export --seed", [*one, *evenly], ["--seed", 1], ["--seed", 2])
    case("export --pool", [*one, *evenly], ["--pool", 1], ["--pool", 3])
    case("export --skip", one, ["--skip", 1], ["--skip", 2])
    case("export --simans-a", [*one, *bell], ["--simans-a", 1], ["--simans-a", 5000])
    case("export --simans-b", [*one, *bell, "--simans-a", 5000], ["--simans-b", 0.5], ["--simans-b", -0.5])
    case("export --temperature", [*one, *soft], ["--temperature", 0.001], ["--temperature", 5])
    case("export --texts", named, ["--texts", at / "texts-a.csv"], ["--texts", at / "texts-b.csv"])
    case("export --images", named, ["--images", at / "names-a.csv"], ["--images", at / "names-b.csv"])
    case("export --force", [mined, *pairs, *plain, "--out", at / "there.jsonl"], [], ["--force"], code)
    return found


OPTIONS = sorted(
    f"{name} {option.opts[0]}"
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_parsed_but_unused(option: str, shop: Path, tmp_path: Path) -> None:
    """Every option of every command; a new one is missing in `cases` until somebody says what it changes."""
    *commands, look = cases(shop)[option]
    one, other = (seen(command, tmp_path / name) for command, name in zip(commands, ("one", "other"), strict=True))
    assert {one.code, other.code} <= {0, 3, 75}, one.said + other.said
    assert look(one) != look(other)


def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    given = uneven(images=60, seed=13)
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF4,Flat", "--out", tmp_path / "index")
    run("mine", folder, "--k", 5, "--num-candidates", 10, "--out", tmp_path / "mined")
    index, texts = ["--index", tmp_path / "index"], ["--texts", tmp_path / "none.csv"]
    rule = ["--rule", "range-min:skip=1"]
    chosen = ["filter", folder, "--candidates", tmp_path / "mined" / "candidates"]
    plain = ["mine", folder, "--k", 5]
    export = ["export", tmp_path / "mined" / "i2t", "--pairs", folder / "pairs.csv", "--format", "jsonl"]
    for said, *command in (
        ("--memory bounds", *plain, *index, "--memory", "1K"),
        ("--memory bounds", "plan", folder, *index, "--memory", "1K"),
        ("--memory bounds", "plan", folder, "--factory", "IVF4,Flat", "--memory", "1K"),
        ("--texts are for rules", *plain, *rule, *texts),
        ("--images are for rules", *plain, "--images", tmp_path / "none.csv"),
        ("--texts are for rules", *chosen, *rule, *texts),
        ("--max-candidates bounds", *chosen, *rule, "--no-deepen", "--max-candidates", 20),
        ("--metric is for scores", "check", tmp_path / "mined" / "i2t", "--metric", "ip"),
        ("--sample is for scores", "check", tmp_path / "mined" / "i2t", "--sample", 3),
        ("--seed is for scores", "check", tmp_path / "mined" / "i2t", "--seed", 1),
        ("--pool is for what is drawn", *export, "--pool", 3),
        ("--seed is for what is drawn", *export, "--seed", 3),
        ("--simans-a is for --sample simans", *export, "--sample", "uniform", "--simans-a", 3),
        ("--simans-b is for --sample simans", *export, "--sample", "temperature", "--simans-b", 3),
        ("--temperature is for --sample temperature", *export, "--temperature", 3),
        ("--seed is for an approximate", "build-index", folder, "--seed", 1),
        ("--train-sample is for an approximate", "build-index", folder, "--factory", "Flat", "--train-sample", 50),
    ):
        out = [] if command[0] in ("plan", "check") else ["--out", tmp_path / "out"]
        shown = run(*command, *out, code=3)
        assert said in shown
        assert "leave it out" in shown
    assert not (tmp_path / "out" / "i2t").exists()


def test_no_case_of_an_option_that_is_gone(shop: Path) -> None:
    assert sorted(cases(shop)) == OPTIONS


LAWS: list[Law] = ["tied", "untied", "top", "log_uniform", Simans(5.0), Softmax(0.5)]


def unsettled(seed: int) -> None:
    """Leave every generator that the process shares somewhere else."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the shared generator is what is to be unsettled
    torch.manual_seed(seed)


def test_unseeded_sampling(tmp_path: Path) -> None:
    given = uneven(images=60, seed=12)
    folder = given.write(tmp_path / "vectors")
    run("mine", folder, "--k", 20, "--out", tmp_path / "mined")
    tables: dict[Direction, NegativeTable] = {d: NegativeTable.open(tmp_path / "mined" / d, given.pairs) for d in BOTH}

    def drawn(law: Law, seed: int = 0, epoch: int = 0) -> list[list[int]]:
        found = sampling.draw(given.pairs, tables, pool_text=20, pool_image=20, ranks=law, seed=seed, epoch=epoch)
        return [each.tolist() for each in (found.text, found.image, found.partner_image, found.partner_text)]

    for law in LAWS:
        times = []
        for state in (1, 2):
            unsettled(state)
            times.append([drawn(law), drawn(law, epoch=1), drawn(law, seed=1)])
        assert times[0] == times[1]
        first, second, third = times[0]
        assert (first[:2] == second[:2] == third[:2]) == (law == "top")
        assert first[2:] != second[2:]
        assert first[2:] != third[2:]
    batches = []
    for state in (1, 2):
        unsettled(state)
        found = [sampling.batches(given.pairs, 16, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
        batches.append([np.concatenate(each).tolist() for each in found])
        # k-means, its sample, and the samples that recall is tuned and measured on.
        out = tmp_path / f"{state}"
        for seed in (0, 1):
            built = ["--factory", "IVF8,Flat", "--train-sample", 60, "--seed", seed, "--out", out / f"index{seed}"]
            run("build-index", folder, *built)
        run("mine", folder, "--k", 5, "--index", out / "index0", "--recall", 0.6, "--out", out / "mined")
        run("check", out / "mined" / "i2t", "--vectors", folder, "--sample", 7)
    assert batches[0] == batches[1]
    assert len({tuple(each) for each in batches[0]}) == 3
    assert bytes_below(tmp_path / "1") == bytes_below(tmp_path / "2")
    indexes = [(tmp_path / "1" / f"index{seed}" / "text" / "index.bin").read_bytes() for seed in (0, 1)]
    assert indexes[0] != indexes[1]


def test_a_fall_back_to_the_cpu_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = uneven(images=20, seed=13).write(tmp_path / "vectors")
    device = "gpu" if _faiss.num_gpus() else "cpu"
    built = run("build-index", folder, "--factory", "IVF4,Flat", "--out", tmp_path / "index")
    assert built.count(f"searched on the {device}") == 2
    through = run("mine", folder, "--k", 3, "--index", tmp_path / "index", "--nprobe", 2, "--out", tmp_path / "a")
    assert through.count(f"on the {device}") == 2
    (tmp_path / "data").mkdir()
    data = ["--data", write_vectors(tmp_path / "data", num=24)]
    model = ["--model", "vsepp:dim=8,word_dim=4", "--epochs", 1, "--threads", 1]
    of_torch = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"{of_torch} (" in run("fit", *data, *model, "--out", tmp_path / "model", command=trainer_main)
    encoded = ["--checkpoint", tmp_path / "model", "--out", tmp_path / "encoded"]
    assert f"on the {of_torch}" in run("encode", *data, *encoded, command=trainer_main)
    if of_torch == "cpu":
        asked = write_toml(tmp_path / "gpu.toml", {"fit": {"device": "cuda"}})
        refused = ["--settings", asked, "--out", tmp_path / "no"]
        assert "torch sees no GPU here" in run("fit", *data, *model, *refused, command=trainer_main, code=3)
    exact = run("mine", folder, "--k", 3, "--out", tmp_path / "b")
    assert device == "gpu" or f"on the {'gpu' if of_torch == 'cuda' else 'cpu'}" in exact
    if device == "cpu":
        # A machine with a GPU, as far as its driver's file tells, and a faiss that sees none: why, too.
        monkeypatch.setattr(_faiss, "_DRIVER", tmp_path)
        commands: list[list[object]] = [["build-index"], ["mine", "--k", 3, "--index", tmp_path / "index"]]
        for number, command in enumerate(commands):
            assert "sees no GPU, though the machine has one" in run(*command, folder, "--out", tmp_path / f"{number}")


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("images", [1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 31])
def test_recall_collapse_at_odd_sizes(oracle: Oracle, images: int, grid: bool) -> None:
    """Galleries of one, two, a prime, k - 1, k, k + 1, a tile and one more, in dims that are no power of two."""
    given = uneven(images=images, dim=images % 6 + 1, seed=images, grid=grid)
    vectors: dict[Side, Any] = {"image": given.images, "text": given.texts}
    for direction in BOTH:
        size = size_of(given, direction)
        for k in sorted({1, 2, size - 1, size, 8} & set(range(1, size + 1))):
            truth = oracle(given, direction, k)
            anchors, gallery = given.vectors(direction)
            flat = index.build("flat", gallery)
            ways = {"flat": NegativeBlock.join(list(mine(anchors, flat, gallery, given.pairs, direction, k)))}
            for tile in ((8, 16), (1, 256), (1024, 4096)):
                ((_, blocks),) = mine_exhaustively(vectors, given.pairs, [direction], k, tile=tile)
                ways[f"{tile}"] = NegativeBlock.join(list(blocks))
            for name, block in ways.items():
                for at, anchor in enumerate(block.anchor_rows.tolist()):
                    rows = truth[anchor][0]
                    assert block.negatives[at].tolist() == rows + [-1] * (k - len(rows)), (name, k)


def test_recall_collapse_at_one_more_than_a_tile(tmp_path: Path) -> None:
    """The sizes that searches really use: 1,031 by 1,100, at once, in shards, and by an index with 7 lists."""
    folder = write_large(tmp_path / "vectors")
    images, texts = (np.load(folder / f"{side}s.npy").astype("f8") for side in ("image", "text"))
    scores = images @ texts.T
    scores[np.arange(1100) % 1031, np.arange(1100)] = -np.inf
    run("build-index", folder, "--factory", "IVF7,Flat", "--out", tmp_path / "ivf")
    ways: list[list[object]] = [[], ["--memory", "1M"], ["--index", tmp_path / "ivf", "--nprobe", 7]]
    for number, how in enumerate(ways):
        run("mine", folder, "--k", 3, *how, "--out", tmp_path / f"{number}")
        for direction, matrix in (("i2t", scores), ("t2i", scores.T)):
            best = np.argsort(-matrix, axis=1)[:, :3]
            found = rows_of(tmp_path / f"{number}" / direction / "negatives.parquet")
            assert [int(one["negative_id"]) for one in found] == best.ravel().tolist()


@pytest.mark.parametrize("images", [4, 7, 13, 31, 61])
def test_recall_collapse_of_an_index_at_odd_sizes(oracle: Oracle, tmp_path: Path, images: int) -> None:
    """The recall that a table states is the one that a loop measures, with several lists, k - 1, k and k + 1 images."""
    given = uneven(images=images, dim=5, seed=images)
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF4,Flat", "--out", tmp_path / "index")
    for k in sorted({1, images - 1, images}):
        for nprobe in (1, 2, 4):
            out = tmp_path / f"{k}-{nprobe}"
            run("mine", folder, "--k", k, "--index", tmp_path / "index", "--nprobe", nprobe, "--out", out)
            for direction in BOTH:
                found, truth = only_rows(read(out / direction, given)), only_rows(oracle(given, direction, k))
                shares = [len({*found[a]} & {*rows}) / len(rows) for a, rows in truth.items() if rows]
                stated = provenance(out / direction)["recall"]
                low, high = stated["interval"]
                assert low <= np.mean(shares) <= high
                assert low <= stated["recall"][str(k)] <= high
                if nprobe == 4:
                    assert found == truth
                    assert stated["recall"][str(k)] == 1


def test_a_wrong_shortage_count(oracle: Oracle, tmp_path: Path) -> None:
    given = with_anchors_that_have_hardly_a_negative()
    folder = given.write(tmp_path / "vectors")
    run("build-index", folder, "--factory", "IVF8,Flat", "--out", tmp_path / "ivf")
    rules = ["--rule", "max-score:score=8", "--rule", "min-score:score=3"]
    num, most = 8, 20
    ways: dict[str, tuple[list[object], int, int]] = {
        "exact": ([], 106, 25),
        "approximate": (["--index", tmp_path / "ivf", "--nprobe", 1], 56, 14),
        "rules": ([*rules, "--num-candidates", num, "--max-candidates", most], 7, 7),
    }
    for name, (how, *ks) in ways.items():
        for direction, k in zip(BOTH, ks, strict=True):
            out = tmp_path / name
            said = run("mine", folder, "--k", k, "--direction", direction, *how, "--out", out)
            table, size = out / direction, size_of(given, direction)
            found = {name_of(given, direction, row): rows for row, rows in only_rows(read(table, given)).items()}
            own = Counter(a for a, _ in linked(given, direction))
            listed = {one["anchor_id"]: one for one in rows_of(table / "shortfalls.parquet")}
            rows = Counter(one["anchor_id"] for one in rows_of(table / "negatives.parquet"))
            counts = {anchor: rows[anchor] for anchor in own}
            assert counts == {anchor: len(found[anchor]) for anchor in own}
            short = {anchor: count for anchor, count in counts.items() if count < k}
            assert 2 < len(short) < len(own)
            assert {anchor: one["found"] for anchor, one in listed.items()} == short
            assert {one["wanted"] for one in listed.values()} == {k}
            assert json.loads((table / "manifest.json").read_text())["meta"]["shortfalls"] == len(short)
            assert f"{len(own)} anchors x {k} negatives, {len(short)} shortfalls" in said
            dropped = rows_of(table / "dropped.parquet") if name == "rules" else []
            for anchor, one in listed.items():
                lost = Counter(each["rule"] for each in dropped if each["anchor_id"] == anchor)
                if name == "exact":
                    assert counts[anchor] == size - own[anchor]
                    assert one["reason"].startswith(f"{own[anchor]} of the {size} ")
                elif name == "approximate":
                    wanted = min(k, size - own[anchor])
                    missed = f"found {counts[anchor]} of {wanted} at nprobe 1 "
                    none_left = f"{own[anchor]} of the {size} "
                    assert (missed if counts[anchor] < wanted else none_left) in one["reason"]
                else:
                    searched = min(most, size - own[anchor])
                    assert counts[anchor] + sum(lost.values()) == searched
                    assert one["reason"].startswith(f"searched {searched} of {size} ")
                    for rule, count in lost.items():
                        assert f"{count} dropped by {rule}" in one["reason"]
            asked = ["--pairs", folder / "pairs.csv", "--format", "flagembedding", "--out", table / "x.jsonl"]
            told_by = run("export", table, *asked)
            none = sum(not count for count in counts.values())
            assert (f"left out: {none} anchor(s) with no negative" in told_by) == (none > 0)
            assert f"{len(short) - none} anchor(s) with fewer than {k} negatives" in told_by
            assert f"{len(short)} anchor(s) have fewer than {k} negatives" in run("check", table, "--vectors", folder)
    assert {len(rows) for rows, _, _ in oracle(given, "i2t", 106).values()} >= {0, 1, 106}


def linked(given: Problem, direction: Direction) -> list[tuple[str, str]]:
    """(id of an anchor, id of a positive), each once."""
    anchors, gallery = (given.pairs.ids(side) for side in sides(direction))
    found = own_pairs(given.pairs)
    return [(anchors[i], gallery[t]) if direction == "i2t" else (anchors[t], gallery[i]) for i, t in sorted(found)]


def name_of(given: Problem, direction: Direction, anchor: int) -> str:
    name: str = given.pairs.ids(sides(direction)[0])[anchor]
    return name
