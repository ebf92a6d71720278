"""`miner check`: a clean table passes, every defect that is planted is found, counted and named, and nothing else."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from miner import folder as folders
from miner import rows
from miner.artifacts.candidates import CANDIDATES
from miner.artifacts.command import CommandGroup
from miner.artifacts.manifest import Draft, canonical_json, digest_file
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, write_negatives
from miner.artifacts.pairs import PAIRS, Direction, Pairs, commit_pairs, sides
from miner.artifacts.store import LocalStore
from miner.commands.check import check

K = 6


def run(*arguments: object):
    group = CommandGroup("miner", commands=[check])
    return CliRunner().invoke(group, ["check", *map(str, arguments)])


def told(*arguments: object, code: int) -> dict[str, Any]:
    """What --json says."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    assert ("error: " in result.stderr) == (code != 0)
    return json.loads(result.stdout)


def found(said: dict[str, Any], bad: bool = True) -> dict[str, int]:
    return {each["name"]: each["count"] for each in said["findings"] if each["bad"] == bad}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Anchors lie across pieces and row groups."""
    monkeypatch.setattr(rows, "_AT_ONCE", 17)


@dataclass
class Given:
    """A folder of vectors, the true table of one direction as a frame and as an artifact, captions that all differ."""

    folder: Path
    table: Path
    pairs: Pairs
    direction: Direction
    frame: pd.DataFrame = field(repr=False)

    @property
    def pairs_file(self) -> Path:
        return self.folder / "pairs.csv"

    def captions(self, **changed: str) -> Path:
        """A file of texts; `changed` gives some other words."""
        path = self.folder.parent / "captions.csv"
        texts = {name: f"the words of {name}" for name in self.pairs.text_ids} | changed
        pd.DataFrame({"text_id": list(texts), "text": list(texts.values())}).to_csv(path, index=False)
        return path

    def foreign(self, frame: pd.DataFrame | None = None) -> Path:
        path = self.folder.parent / "theirs.parquet"
        (self.frame if frame is None else frame).to_parquet(path, index=False, row_group_size=23)
        return path

    def positives(self) -> set[tuple[str, str]]:
        """(anchor id, gallery id) of every pair."""
        links = zip(self.pairs.image_rows.tolist(), self.pairs.text_rows.tolist(), strict=True)
        named = {(self.pairs.image_ids[i], self.pairs.text_ids[t]) for i, t in links}
        return named if self.direction == "i2t" else {(t, i) for i, t in named}


@pytest.fixture
def given(problem, oracle, tmp_path) -> Callable[..., Given]:
    def make(direction: Direction = "i2t", k: int = K) -> Given:
        made = problem()
        folder = made.write(tmp_path / "vectors")
        order = made.pairs.order(sides(direction)[0])
        truth = oracle(made, direction, k)
        shape = (len(order), k)
        negatives, scores = np.full(shape, -1, dtype=np.int32), np.full(shape, np.nan, dtype=np.float32)
        for at, row in enumerate(order.tolist()):
            negatives[at, : len(truth[row][0])] = truth[row][0]
            scores[at, : len(truth[row][1])] = truth[row][1]
        lowest = np.array([truth[row][2] for row in order.tolist()], dtype=np.float32)
        block = NegativeBlock(order, negatives, scores, lowest, dict.fromkeys(order.tolist(), "too few others"))
        inputs = {
            "pairs": made.pairs.fingerprint,
            **{side: digest_file(folder / f"{side}s.npy") for side in ("image", "text")},
        }
        draft = Draft(LocalStore(tmp_path / "tables"), direction, NEGATIVES, inputs)
        write_negatives(draft, [block], made.pairs, direction, k, {"metric": "ip", "checkpoint": None})
        table = tmp_path / "tables" / direction
        return Given(folder, table, made.pairs, direction, pd.read_parquet(table / "negatives.parquet"))

    return make


def commit(
    folder: Path, frame: pd.DataFrame, provenance: dict[str, Any], short: pd.DataFrame | None = None, **inputs: Any
) -> Path:
    """A table that is committed as it is, whatever it holds."""
    draft = Draft(LocalStore(folder), "t", NEGATIVES, inputs)
    source = draft.scratch()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"quintain": canonical_json(provenance).decode()}), source)
    files = {"negatives.parquet": draft.adopt("negatives.parquet", source, len(frame))}
    empty = {"anchor_id": [], "found": [], "wanted": [], "lowest_positive": [], "reason": []}
    source = draft.scratch()
    pd.DataFrame(empty if short is None else short).to_parquet(source)
    files["shortfalls.parquet"] = draft.adopt("shortfalls.parquet", source)
    meta = {"anchors": 1, "k": provenance.get("k"), "negatives": len(frame), "shortfalls": 0, "hardness_mean": 0.0}
    meta |= {"share_above_lowest_positive": 0.0, "share_anchors_above_lowest_positive": 0.0, "provenance": provenance}
    draft.commit(files, meta)
    return folder / "t"


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_a_clean_table_passes_with_everything_given(given, direction):
    made = given(direction)
    for more in ([], ["--pairs", made.pairs_file], ["--vectors", made.folder]):
        for texts in [[]] if not more else [[], ["--texts", made.captions()]]:
            result = run(made.table, *more, *texts)
            assert result.exit_code == 0, result.output
            assert "every file is as it was committed" in result.output
            assert result.output.strip().endswith("nothing bad found")
            assert "BAD" not in result.output
    said = told(made.table, "--vectors", made.folder, "--texts", made.captions(), code=0)
    assert said["findings"] == []
    assert said["not_checked"] == []
    assert said["good"] is True
    assert said["committed"] is True
    assert (said["direction"], said["k"], said["negatives"]) == (direction, K, len(made.frame))
    assert said["anchors"] == made.frame.anchor_id.nunique()
    hardness = made.frame.score.astype(float) - made.frame.lowest_positive.astype(float)
    assert said["hardness_mean"] == pytest.approx(hardness.mean(), abs=1e-6)
    assert said["share_above_lowest_positive"] == pytest.approx((hardness > 0).mean(), abs=1e-6)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("writer", ["pandas", "polars", "whole"])
def test_a_clean_file_from_elsewhere_passes_and_is_called_unhashed(given, direction, writer):
    made = given(direction)
    path = made.foreign()
    if writer == "polars":
        polars.from_pandas(made.frame).write_parquet(path, row_group_size=31)
    if writer == "whole":
        made.frame.astype({"anchor_id": "category", "score": "f8", "rank": "u1"}).to_parquet(path)
    said = told(path, "--vectors", made.folder, "--texts", made.captions(), code=0)
    assert (said["committed"], said["fingerprint"], found(said)) == (False, None, {})
    assert "no hash" in said["notes"][0]
    assert said["direction"] == direction
    assert said["not_checked"] == ["fingerprints (the table does not say from which vectors it was mined)"]
    alone = run(path)
    assert alone.exit_code == 0
    assert "no hash says whether the file is whole" in alone.output
    assert "direction unknown" in alone.output
    assert alone.output.count("not checked: ") == 3


def test_the_file_inside_a_table_is_the_table(given):
    made = given()
    assert told(made.table / "negatives.parquet", code=0)["committed"] is True


def first_rows(frame: pd.DataFrame, at: int) -> pd.Index:
    """The rows of the anchor that stands at a place in the order of the file."""
    return frame.index[frame.anchor_id == frame.anchor_id.unique()[at]]


def planted(frame: pd.DataFrame, what: str, made: Given) -> pd.DataFrame:
    """A frame with one defect."""
    frame = frame.copy()
    ten, twenty = first_rows(frame, 10), first_rows(frame, 20)
    if what == "duplicates":
        frame.loc[ten[3], "negative_id"] = frame.loc[ten[1], "negative_id"]
        frame.loc[ten[5], "negative_id"] = frame.loc[ten[1], "negative_id"]
    elif what == "hole":
        frame = frame.drop(ten[2])
    elif what == "from one":
        frame["rank"] += 1
    elif what == "nan score":
        frame.loc[[ten[0], twenty[5]], "score"] = [np.nan, -np.inf]
    elif what == "null score":
        frame["score"] = pd.array(frame.score, dtype="Float32")
        frame.loc[ten[5], "score"] = pd.NA
    elif what == "rising":
        frame.loc[ten[4], "score"] = 1e6
    elif what == "distances":
        frame["score"] = -frame.score
    elif what == "nan lowest":
        frame.loc[ten, "lowest_positive"] = np.nan
    elif what == "lowest differs":
        frame.loc[ten[2:4], "lowest_positive"] += 1
    elif what == "scattered":
        frame = pd.concat([frame.drop(ten[3:]), frame.loc[ten[3:]]])
    elif what == "null id":
        frame.loc[ten[1], "negative_id"] = None
    elif what == "null anchor":
        frame.loc[twenty, "anchor_id"] = None
    elif what == "unknown negative":
        frame.loc[[*ten[:2], twenty[0]], "negative_id"] = ["who", "what", "who"]
    elif what == "unknown anchor":
        frame.loc[ten, "anchor_id"] = "whom"
    elif what == "positive":
        anchor = frame.loc[ten[0], "anchor_id"]
        frame.loc[ten[2], "negative_id"] = min(g for a, g in made.positives() if a == anchor)
    return frame


# What is planted: the bad findings without pairs, and those that pairs add; counts are of rows, or of anchors.
DEFECTS = {
    "nothing": ({}, {}),
    "duplicates": ({"duplicates": 2}, {}),
    "hole": ({"ranks": 3}, {}),
    "from one": ({"ranks": 40 * K}, {}),
    "nan score": ({"non-finite scores": 2}, {}),
    "null score": ({"non-finite scores": 1}, {}),
    "rising": ({"rising scores": 1}, {}),
    "distances": ({"rising scores": 40 * (K - 1)}, {}),
    "nan lowest": ({"non-finite lowest positives": K}, {}),
    "lowest differs": ({"several lowest positives": 2}, {}),
    "scattered": ({"scattered anchors": 1, "ranks": 3}, {}),
    "null id": ({"missing ids": 1}, {}),
    "null anchor": ({"missing ids": K}, {}),
    "unknown negative": ({}, {"unknown negatives": 3}),
    "unknown anchor": ({}, {"unknown anchors": K}),
    "positive": ({}, {"positives among negatives": 1}),
}


@pytest.mark.parametrize("what", DEFECTS)
def test_a_planted_defect_is_found_and_nothing_else(given, what):
    made = given()
    path = made.foreign(planted(made.frame, what, made))
    alone, more = DEFECTS[what]
    assert found(told(path, code=3 if alone else 0)) == alone
    said = told(path, "--pairs", made.pairs_file, code=3 if alone or more else 0)
    assert found(said) == alone | more
    text = run(path, "--pairs", made.pairs_file)
    for finding in said["findings"]:
        assert f"{'BAD' if finding['bad'] else 'warning'}: {finding['name']}: {finding['said']}" in text.output
        assert finding["advice"] in text.output
        assert 1 <= len(finding["examples"]) <= 3
    if alone or more:
        last = text.output.strip().splitlines()[-1]
        assert last.startswith(f"error: {path}: ")
        assert all(name in last for name in alone | more)


def test_examples_name_the_row_as_pandas_has_it(given):
    made = given()
    frame = planted(made.frame, "positive", made)
    at = int(np.flatnonzero((frame.negative_id != made.frame.negative_id).to_numpy())[0])
    said = told(made.foreign(frame), "--pairs", made.pairs_file, code=3)
    (example,) = said["findings"][0]["examples"]
    row = frame.iloc[at]
    assert example == {
        "anchor_id": row.anchor_id,
        "rank": row["rank"],
        "negative_id": row.negative_id,
        "score": float(str(row.score)),
        "lowest_positive": float(str(row.lowest_positive)),
        "row": at,
    }
    assert np.float32(example["score"]) == row.score


def slow_audit(frame: pd.DataFrame, made: Given) -> dict[str, int]:
    """The counts of the findings by loops over rows."""
    count: Counter[str] = Counter()
    positives, before, seen = made.positives(), None, {}
    galleries = set(made.pairs.text_ids if made.direction == "i2t" else made.pairs.image_ids)
    anchors = set(made.pairs.image_ids if made.direction == "i2t" else made.pairs.text_ids)
    for row in frame.to_dict("records"):
        new = before is None or row["anchor_id"] != before["anchor_id"]
        if new:
            place, held, first = 0, set(), row["lowest_positive"]
            seen[row["anchor_id"]] = seen.get(row["anchor_id"], 0) + 1
        count["ranks"] += row["rank"] != place
        count["non-finite scores"] += not np.isfinite(row["score"])
        count["rising scores"] += not new and row["score"] > before["score"]
        count["several lowest positives"] += row["lowest_positive"] != first
        count["duplicates"] += row["negative_id"] in held
        count["unknown negatives"] += row["negative_id"] not in galleries
        count["unknown anchors"] += row["anchor_id"] not in anchors
        count["positives among negatives"] += (row["anchor_id"], row["negative_id"]) in positives
        held.add(row["negative_id"])
        place, before = place + 1, row
    count["scattered anchors"] = sum(times > 1 for times in seen.values())
    return {name: many for name, many in count.items() if many}


@pytest.mark.parametrize("seed", range(6))
def test_many_defects_at_once_are_counted_as_by_a_slow_loop(given, seed):
    made = given("i2t" if seed % 2 else "t2i")
    rng = np.random.default_rng(seed)
    frame = made.frame.copy().astype({"rank": int})
    names = frame.negative_id.unique()
    for column, values in (
        ("negative_id", lambda n: rng.choice([*names, "who"], n)),
        ("score", lambda n: rng.choice([np.nan, np.inf, 0.5, 3.0], n).astype("f4")),
        ("rank", lambda n: rng.integers(0, 9, n)),
        ("lowest_positive", lambda n: rng.normal(size=n).astype("f4")),
        ("anchor_id", lambda n: rng.choice([*frame.anchor_id.unique(), "whom"], n)),
    ):
        at = rng.choice(frame.index, 7, replace=False)
        frame.loc[at, column] = values(len(at))
    said = told(made.foreign(frame), "--pairs", made.pairs_file, "--direction", made.direction, code=3)
    assert found(said) == slow_audit(frame, made)


def test_warnings_do_not_fail(given):
    made = given()
    frame = made.frame.drop(first_rows(made.frame, 39)[4:])
    gone = first_rows(frame, 3)
    unsorted = pd.concat([frame.iloc[60:], frame.iloc[:60].drop(gone)])
    said = told(made.foreign(unsorted), "--pairs", made.pairs_file, code=0)
    assert found(said, bad=False) == {"order of anchors": 39, "short rows": 1, "missing anchors": 1}
    assert said["good"] is True
    examples = {each["name"]: each["examples"][0] for each in said["findings"]}
    assert examples["missing anchors"] == {"anchor_id": frame.loc[gone[0], "anchor_id"]}
    assert examples["short rows"] == {"anchor_id": frame.anchor_id.iloc[-1], "negatives": 4}
    assert "3 warning(s)" in run(made.foreign(unsorted), "--pairs", made.pairs_file).output


def test_hubs_are_shown_and_warned_of(tmp_path):
    anchors, k = 300, 2
    common = [f"n{a}" for a in range(anchors)]
    frame = pd.DataFrame(
        {
            "anchor_id": np.repeat([f"{a:03}" for a in range(anchors)], k),
            "rank": np.tile(np.arange(k), anchors),
            "negative_id": np.ravel([("hub" if a % 5 == 0 else f"m{a}", common[a]) for a in range(anchors)]),
            "score": np.tile(np.float32([0.5, 0.4]), anchors),
            "lowest_positive": np.float32(0.6),
        }
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    said = told(path, code=0)
    assert said["hubs"][0] == {"negative_id": "hub", "anchors": 60, "share": 0.2}
    assert len(said["hubs"]) == 5
    assert found(said, bad=False) == {"hubs": 1}
    assert found(told(path, "--hub-share", 0.25, code=0), bad=False) == {}
    assert "'hub' 20.0%" in run(path).output


def test_same_side_tables_may_not_name_the_anchor(given, tmp_path):
    made = given()
    names = list(made.pairs.text_ids)
    frame = pd.DataFrame(
        {
            "anchor_id": np.repeat(names[:20], 3),
            "rank": np.tile(np.arange(3), 20),
            "negative_id": np.ravel([[names[(a + 30) % 60], names[a], names[(a + 40) % 60]] for a in range(20)]),
            "score": np.tile(np.float32([3, 2, 1]), 20),
            "lowest_positive": np.float32(0),
        }
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    assert found(told(path, "--direction", "t2t", code=3)) == {"anchors among their own negatives": 20}
    assert found(told(path, "--direction", "i2t", code=0)) == {}
    of_image: dict[str, set[str]] = {}
    links = zip(made.pairs.image_rows.tolist(), made.pairs.text_rows.tolist(), strict=True)
    for image, text in ((made.pairs.image_ids[i], names[t]) for i, t in links):
        of_image.setdefault(image, set()).add(text)
    shared = sum(
        a != n and any({a, n} <= texts for texts in of_image.values())
        for a, n in zip(frame.anchor_id, frame.negative_id, strict=True)
    )
    expected = {"anchors among their own negatives": 20} | ({"positives among negatives": shared} if shared else {})
    assert found(told(path, "--direction", "t2t", "--pairs", made.pairs_file, code=3)) == expected


def test_an_item_without_positives_on_its_own_side(given, tmp_path):
    made = given()
    frame = made.frame.assign(negative_id="i" + made.frame.negative_id)
    frame.loc[first_rows(frame, 10), "lowest_positive"] = np.nan
    said = told(commit(tmp_path / "a", frame, {"direction": "i2i", "k": K}), code=0)
    assert found(said) == {}
    known = frame.lowest_positive.notna()
    hardness = frame.score[known].astype(float) - frame.lowest_positive[known].astype(float)
    assert said["hardness_mean"] == pytest.approx(hardness.mean(), abs=1e-6)
    frame.loc[first_rows(frame, 10)[0], "lowest_positive"] = np.inf
    mixed = found(told(commit(tmp_path / "b", frame, {"direction": "i2i", "k": K}), code=3))
    assert mixed == {"non-finite lowest positives": 1, "several lowest positives": K - 1}


@pytest.mark.parametrize("direction", ["i2i", "t2t"])
def test_scores_and_positives_within_one_side(problem, tmp_path, direction):
    """Texts of one image are positives of each other; an image that shares no text with another has none."""
    made = problem()
    folder = made.write(tmp_path / "vectors")
    side = sides(direction)[0]
    names, vectors = list(made.pairs.ids(side)), (made.images if side == "image" else made.texts).astype(np.float64)
    links = set(zip(made.pairs.image_rows.tolist(), made.pairs.text_rows.tolist(), strict=True))
    of = [
        {(t if side == "image" else i) for i, t in links if (i if side == "image" else t) == a}
        for a in range(len(names))
    ]
    listed, alone = [], 0
    for a in made.pairs.order(side).tolist():
        score = {b: np.float32(math.fsum((vectors[a] * vectors[b]).tolist())) for b in range(len(names))}
        positives = [b for b in score if b != a and of[a] & of[b]]
        lowest = min((score[b] for b in positives), default=np.float32(np.nan))
        alone += not positives
        others = sorted((b for b in score if b != a and b not in positives), key=lambda b: -score[b])[:K]
        listed += [(names[a], rank, names[b], score[b], lowest) for rank, b in enumerate(others)]
    frame = pd.DataFrame(listed, columns=["anchor_id", "rank", "negative_id", "score", "lowest_positive"])
    provenance = {"direction": direction, "k": K, "metric": "ip"}
    table = commit(tmp_path / "a", frame, provenance)
    assert alone > 0
    assert found(told(table, "--vectors", folder, code=0)) == {}
    bare = tmp_path / "theirs.parquet"
    frame.to_parquet(bare)
    assert found(told(bare, "--vectors", folder, "--direction", direction, code=0)) == {}
    changed = frame.assign(lowest_positive=np.nextafter(frame.lowest_positive, np.float32(9)))
    said = found(told(commit(tmp_path / "b", changed, provenance), "--vectors", folder, code=3))
    assert said == {"lowest_positive is not that of the vectors": len(names) - alone}


def test_shortfalls_are_held_against_the_rows(given, tmp_path):
    made = given("t2i", k=39)
    counts = made.frame.anchor_id.value_counts()
    listed = pd.read_parquet(made.table / "shortfalls.parquet")
    assert len(listed) == (counts < 39).sum() > 0
    said = told(made.table, "--pairs", made.pairs_file, code=0)
    assert found(said, bad=False) == {"short rows": len(listed)}
    assert "too few others" in said["findings"][0]["said"]

    provenance = {"direction": "t2i", "k": 39}
    first = listed.anchor_id[0]
    for number, (frame, short, count) in enumerate(
        (
            (made.frame, listed.assign(found=listed.found + 1), len(listed)),
            (made.frame, listed.iloc[1:], 1),
            (made.frame[made.frame.anchor_id != first], listed, 1),
            (made.frame.drop(first_rows(made.frame, 0)[-1]), listed, 1),
        )
    ):
        table = commit(tmp_path / f"{number}", frame, provenance, short)
        assert found(told(table, code=3)) == {"unexplained short rows": count}
    nothing = listed.assign(found=np.where(listed.anchor_id == first, 0, listed.found))
    table = commit(tmp_path / "empty", made.frame[made.frame.anchor_id != first], provenance, nothing)
    assert found(told(table, "--pairs", made.pairs_file, code=0)) == {}
    long = commit(tmp_path / "long", made.frame, {"direction": "t2i", "k": 38}, listed[listed.found < 38])
    assert found(told(long, code=3)) == {"long rows": int((counts == 39).sum())}


def test_a_committed_table_must_be_in_order_and_whole(given, tmp_path):
    made = given()
    provenance = {"direction": "i2t", "k": K}
    shuffled = commit(tmp_path / "a", pd.concat([made.frame.iloc[60:], made.frame.iloc[:60]]), provenance)
    assert found(told(shuffled, code=3)) == {"order of anchors": 40}
    without = commit(tmp_path / "b", made.frame.iloc[: -2 * K], provenance)
    assert found(told(without, "--pairs", made.pairs_file, code=3)) == {"missing anchors": 2}


def test_other_pairs_are_noticed(given, tmp_path):
    made = given()
    provenance = {"direction": "i2t", "k": K, "pairs": "0" * 64}
    said = told(commit(tmp_path / "t", made.frame, provenance), "--pairs", made.pairs_file, code=3)
    assert found(said) == {"other pairs": 1}
    lines = made.pairs_file.read_text().splitlines()
    anchor, negative = made.frame.iloc[0][["anchor_id", "negative_id"]]
    made.pairs_file.write_text("\n".join([*lines, f"{anchor},{negative}"]) + "\n")
    said = told(made.table, "--pairs", made.pairs_file, code=3)
    assert found(said) == {"positives among negatives": 1, "other pairs": 1}


def test_stale_vectors_and_scores(given):
    made = given("t2i")
    images = np.load(made.folder / "images.npy")
    changed = images.copy()
    changed[3, 0] = np.nextafter(changed[3, 0], np.float32(9))
    np.save(made.folder / "images.npy", changed)
    said = told(made.table, "--vectors", made.folder, code=3)
    name = made.pairs.image_ids[3]
    # Some products round to the same score.
    changed_scores = found(said)["score is not that of the vectors"]
    assert 0 < changed_scores <= (made.frame.negative_id == name).sum()
    assert found(said)["stale vectors"] == 1
    np.save(made.folder / "images.npy", images.astype("f8"))
    assert found(told(made.table, "--vectors", made.folder, code=3)) == {"stale vectors": 1}
    permuted = np.roll(images, 1, axis=0)
    np.save(made.folder / "images.npy", permuted)
    (made.folder / "image_ids.txt").write_text("\n".join(np.roll(made.pairs.image_ids, 1)) + "\n")
    assert found(told(made.table, "--vectors", made.folder, code=3)) == {"stale vectors": 1}


def test_scores_are_compared_bit_for_bit_by_a_slow_loop(given, tmp_path):
    made = given()
    frame = made.frame.copy()
    rng = np.random.default_rng(1)
    at = rng.choice(len(frame), 9, replace=False)
    frame.loc[at, "score"] = np.nextafter(frame.score.to_numpy()[at], np.float32(np.inf))
    rising = sum(
        frame.score[i] > frame.score[i - 1] and frame.anchor_id[i] == frame.anchor_id[i - 1]
        for i in range(1, len(frame))
    )
    for place in (4, 30):
        frame.loc[first_rows(frame, place), "lowest_positive"] *= np.float32(0.5)
    provenance = {"direction": "i2t", "k": K, "metric": "ip"}
    table = commit(tmp_path / "t", frame, provenance, image="x", text="y")
    expected = {
        "score is not that of the vectors": 9,
        "lowest_positive is not that of the vectors": 2,
        "stale vectors": 1,
    } | ({"rising scores": rising} if rising else {})
    said = told(table, "--vectors", made.folder, code=3)
    assert found(said) | {"stale vectors": 1} == expected
    assert [each["name"] for each in said["findings"]].count("stale vectors") == 2
    example = next(each for each in said["findings"] if each["name"].startswith("score is"))["examples"][0]
    assert np.float32(example["score_of_the_vectors"]) == made.frame.score[example["row"]]
    few = told(table, "--vectors", made.folder, "--sample", 3, "--seed", 5, code=3)
    assert few == told(table, "--vectors", made.folder, "--sample", 3, "--seed", 5, code=3)
    assert found(few).get("score is not that of the vectors", 0) < 9
    # A file from elsewhere may round otherwise, but not by more.
    theirs = made.foreign(frame.assign(lowest_positive=made.frame.lowest_positive, score=made.frame.score * 1.0001))
    assert found(told(theirs, "--vectors", made.folder, code=0)) == {}
    theirs = made.foreign(made.frame.assign(score=made.frame.score * 1.01))
    assert found(told(theirs, "--vectors", made.folder, code=3)) == {"score is not that of the vectors": len(frame)}


def test_the_metric_is_that_of_the_table(given, tmp_path):
    made = given()
    unit = {s: np.load(made.folder / f"{s}s.npy").astype("f8") for s in ("image", "text")}
    unit = {side: (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("f4") for side, v in unit.items()}
    rows_of = {side: {name: row for row, name in enumerate(made.pairs.ids(side))} for side in ("image", "text")}
    frame = made.frame.copy()
    frame["score"] = [
        np.float32(unit["image"][rows_of["image"][a]].astype("f8") @ unit["text"][rows_of["text"][n]].astype("f8"))
        for a, n in zip(frame.anchor_id, frame.negative_id, strict=True)
    ]
    frame = frame.sort_values("score", ascending=False, kind="stable")
    theirs = made.foreign(frame)
    names = {"score is not that of the vectors", "lowest_positive is not that of the vectors"}
    product = found(told(theirs, "--vectors", made.folder, code=3))
    assert names & set(product) == {"score is not that of the vectors"}
    cosine = found(told(theirs, "--vectors", made.folder, "--metric", "cosine", code=3))
    assert names & set(cosine) == {"lowest_positive is not that of the vectors"}
    conflict = run(made.table, "--vectors", made.folder, "--metric", "cosine")
    assert (conflict.exit_code, "metric 'ip'" in conflict.output) == (3, True)
    scan = commit(tmp_path / "scan", made.frame, {"direction": "i2t", "k": K, "metric": "scan"})
    said = told(scan, "--vectors", made.folder, code=0)
    assert "scores (they are those of the model 'scan', not of vectors)" in said["not_checked"]


def test_fingerprints_of_a_run_and_its_pairs_with_captions(given, tmp_path):
    made = given()
    texts = tuple(f"words {row}" for row in range(made.pairs.num_texts))
    pairs = replace(made.pairs, texts=texts)
    commit_pairs(Draft(LocalStore(tmp_path), "pairs", PAIRS, {}), pairs, {})
    provenance = {"direction": "i2t", "k": K, "metric": "ip", "pairs": pairs.unordered_fingerprint}
    prints = {side: digest_file(made.folder / f"{side}s.npy") for side in ("image", "text")}
    table = commit(tmp_path / "a", made.frame, provenance, parents={**prints, "index": "z"})
    said = told(table, "--pairs", tmp_path / "pairs", code=0)
    assert said["findings"] == []
    assert said["not_checked"] == ["fingerprints and scores (give --vectors)"]
    assert found(told(table, "--vectors", made.folder, code=3)) == {"other pairs": 1}
    selected = commit(tmp_path / "c", made.frame, provenance | {"pairs": None, "vectors": prints | {"image": "old"}})
    assert found(told(selected, "--vectors", made.folder, code=3)) == {"stale vectors": 1}
    stale = commit(tmp_path / "b", made.frame, provenance | {"pairs": None}, parents={**prints, "text": "old"})
    said = told(stale, "--vectors", made.folder, code=3)
    assert found(said) == {"stale vectors": 1}
    assert "text vectors with fingerprint old" in said["findings"][0]["said"]


def test_a_stale_checkpoint(given, tmp_path, monkeypatch):
    made = given()
    table = commit(tmp_path / "t", made.frame, {"direction": "i2t", "k": K, "metric": "ip", "checkpoint": "a" * 64})
    opened = replace(folders.open_folder(made.folder), checkpoint="b" * 64)
    monkeypatch.setattr(folders, "open_folder", lambda path: opened)
    said = told(table, "--vectors", made.folder, code=3)
    assert found(said) == {"stale checkpoint": 1}


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_positives_in_the_same_words(given, direction):
    made = given(direction)
    positives = made.positives()
    frame = made.frame
    row = frame.iloc[40]
    if direction == "i2t":
        own = min(text for anchor, text in positives if anchor == row.anchor_id)
        changed = {row.negative_id: "  A dog,  RUNS ", own: "a dog, runs."}
    else:
        own = min(text for text, image in positives if image == row.negative_id)
        changed = {row.anchor_id: "Über-dog!", own: "u\u0308ber-DOG"}
    same = set(changed)
    expected = 0
    for anchor, negative in zip(frame.anchor_id, frame.negative_id, strict=True):
        if direction == "i2t":
            hit = negative in same and any((anchor, other) in positives for other in same)
        else:
            hit = anchor in same and any((other, negative) in positives for other in same)
        expected += hit and (anchor, negative) not in positives
    assert expected >= 1
    for beside in (["--pairs", made.pairs_file], ["--vectors", made.folder]):
        said = told(made.table, *beside, "--texts", made.captions(**changed), code=3)
        assert found(said) == {"duplicates of positives": expected}


def test_wrong_use_and_wrong_files(given, tmp_path):
    made = given()
    assert run(made.table, "--pairs", made.pairs_file, "--vectors", made.folder).exit_code == 2
    assert run(made.table, "--texts", made.captions()).exit_code == 2
    assert run(made.table, "--sample", 0).exit_code == 2
    assert run(made.table, "--hub-share", 2).exit_code == 2
    text = tmp_path / "notes.txt"
    text.write_text("not a table")
    frame = made.frame
    bare = tmp_path / "bare"
    bare.mkdir()
    frame.to_parquet(bare / "negatives.parquet")
    other = Draft(LocalStore(tmp_path), "candidates", CANDIDATES, {}).commit({}, {})
    paths = pd.DataFrame({"text_id": list(made.pairs.text_ids), "path": "x.jpg"})
    paths.to_csv(tmp_path / "paths.csv", index=False)
    damaged = tmp_path / "cut.parquet"
    damaged.write_bytes(made.foreign().read_bytes()[:-20])
    middle = tmp_path / "middle.parquet"
    whole = bytearray(made.foreign().read_bytes())
    whole[8:400] = b"\xff" * 392
    middle.write_bytes(bytes(whole))
    sentences: list[tuple[list[object], str]] = [
        ([tmp_path / "nowhere"], "no such file or folder"),
        ([made.table.parent], "a table is of one direction; give "),
        ([tmp_path], "manifest.json is missing"),
        ([bare], "was never finished or came without it"),
        ([tmp_path / "candidates"], "this is a 'candidates' artifact"),
        ([text], "cannot be read as Parquet"),
        ([damaged], "cannot be read as Parquet"),
        ([middle], "cannot be read as Parquet"),
        ([made.table, "--pairs", tmp_path / "none.csv"], "no such file"),
        ([made.table, "--vectors", tmp_path / "none"], "no such folder"),
        ([made.table, "--pairs", made.pairs_file, "--texts", tmp_path / "paths.csv"], "paths in place of texts"),
        ([made.table, "--direction", "t2i"], "of direction i2t, but t2i was asked for"),
    ]
    assert other.manifest.kind == CANDIDATES
    for arguments, sentence in sentences:
        result = run(*arguments)
        assert (result.exit_code, sentence in result.output) == (3, True), result.output
        assert result.output.strip().splitlines()[-1].startswith("error: ")


COLUMNS = {
    "no score": (lambda f: f.drop(columns="score"), "no column score; found anchor_id, rank, negative_id"),
    "words as scores": (lambda f: f.assign(score="high"), "the column score is"),
    "fractions as ranks": (lambda f: f.assign(rank=f["rank"] + 0.5), "the column rank is double; write it as int16"),
    "lists of negatives": (lambda f: f.assign(negative_id=[["a"]] * len(f)), "the column negative_id is list"),
    "floats as ids": (lambda f: f.assign(anchor_id=0.5), "the column anchor_id is double; write it as string"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_no_use(given, name):
    made = given()
    change, sentence = COLUMNS[name]
    result = run(made.foreign(change(made.frame)))
    assert (result.exit_code, sentence in result.output) == (3, True), result.output


def test_ids_that_are_no_text_and_no_rows_at_all(given, tmp_path):
    made = given()
    table = pa.Table.from_pandas(made.frame, preserve_index=False)
    raw = pa.array([b"\xff\xfe"] * len(made.frame), pa.binary()).view(pa.string())
    path = tmp_path / "raw.parquet"
    pq.write_table(table.set_column(2, "negative_id", raw), path)
    result = run(path)
    assert (result.exit_code, "cannot be read as Parquet" in result.output) == (3, True), result.output
    empty = made.foreign(made.frame.iloc[:0].astype({"anchor_id": str, "negative_id": str}))
    assert told(empty, code=0)["anchors"] == 0
    result = run(empty, "--pairs", made.pairs_file)
    assert (result.exit_code, "say --direction" in result.output) == (3, True), result.output
    said = told(empty, "--pairs", made.pairs_file, "--direction", "i2t", code=0)
    assert found(said, bad=False) == {"missing anchors": 40}


def test_the_direction_of_a_bare_file_is_seen_or_asked_for(given, tmp_path):
    made = given("t2i")
    assert told(made.foreign(), "--pairs", made.pairs_file, code=0)["direction"] == "t2i"
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("image_id,text_id\n" + "".join(f"{i},{i}\n" for i in range(50)))
    same = made.frame.assign(anchor_id=made.frame.anchor_id.factorize()[0] % 50, negative_id="7")
    result = run(made.foreign(same), "--pairs", numbers)
    assert (result.exit_code, "its ids fit both directions" in result.output) == (3, True), result.output
    result = run(made.foreign(made.frame.assign(negative_id="who")), "--pairs", made.pairs_file)
    assert (result.exit_code, "its ids fit neither side" in result.output) == (3, True), result.output
    kept = made.foreign()
    kept.write_bytes((made.table / "negatives.parquet").read_bytes())
    assert told(kept, code=0)["direction"] == "t2i"


@pytest.mark.parametrize("flips", [60, pytest.param(1500, marks=pytest.mark.heavy)])
def test_a_damaged_file_without_a_hash_is_read_or_refused_in_a_sentence(given, flips):
    made = given()
    path = made.foreign()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), flips):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        for more in ([], ["--pairs", made.pairs_file, "--direction", "i2t"]):
            result = run(path, *more)
            assert result.exit_code in (0, 3), (bit, result.output, result.exception)
            assert isinstance(result.exception, SystemExit | None)


def test_damage_is_another_exit_code(given):
    made = given()
    for name in ("negatives.parquet", "shortfalls.parquet", "manifest.json"):
        path = made.table / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        result = run(made.table, "--json")
        assert result.exit_code == 4, result.output
        assert "Traceback" not in result.output
        path.write_bytes(whole)
    assert run(made.table).exit_code == 0
