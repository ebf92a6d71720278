"""Every layout against a slow loop over the table, and what `miner export` refuses, counts and leaves on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from miner import export as layouts
from miner.artifacts import negatives as negatives_module
from miner.artifacts.command import CommandGroup
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, NegativeTable, write_negatives
from miner.artifacts.pairs import PAIRS, Direction, Pairs, commit_pairs, sides
from miner.artifacts.store import LocalStore
from miner.cli import main
from miner.commands.export import export
from miner.export import _mined

K = 5


@dataclass(frozen=True)
class Given:
    """A table on disk whose anchors have K, 2, 1 and 0 negatives, the pairs it was mined for, and both read slowly."""

    table: Path
    pairs_file: Path
    pairs: Pairs
    direction: Direction

    def __iter__(self):
        """(anchor id, ids of its positives, [(negative id, score)], lowest positive) of every anchor, in id order."""
        anchors, gallery = sides(self.direction)
        names, others = self.pairs.ids(anchors), self.pairs.ids(gallery)
        in_order = self.pairs.order(gallery).tolist()
        links = set(zip(self.pairs.image_rows.tolist(), self.pairs.text_rows.tolist(), strict=True))
        table = NegativeTable.open(self.table, self.pairs)
        for a in self.pairs.order(anchors).tolist():
            positives = [others[g] for g in in_order if ((a, g) if anchors == "image" else (g, a)) in links]
            found = [(others[g], float(s)) for g, s in zip(table.negatives[a], table.scores[a], strict=True) if g >= 0]
            yield names[a], positives, found, float(table.lowest_positive[a])


def write_pairs(path: Path, pairs: Pairs) -> Path:
    rows = zip(pairs.image_rows, pairs.text_rows, strict=True)
    lines = [f"{pairs.image_ids[i]},{pairs.text_ids[t]}" for i, t in rows]
    path.write_text("\n".join(["image_id,text_id", *lines]) + "\n")
    return path


def write_table(folder: Path, pairs: Pairs, direction: Direction) -> Path:
    """Negatives and scores are arithmetic on ids; every seventh anchor in id order has 2, 1 or none."""
    anchors, gallery = sides(direction)
    order, others = pairs.order(anchors), pairs.order(gallery)
    offsets, positives = pairs.positives(anchors)
    negatives = np.full((len(order), K), -1, dtype=np.int32)
    for at, row in enumerate(order.tolist()):
        own = set(positives[offsets[row] : offsets[row + 1]].tolist())
        wanted = {0: 2, 1: 1, 2: 0}.get(at % 7, K)
        start = 11 * at
        found = [g for g in np.roll(others, -start).tolist() if g not in own][:wanted]
        negatives[at, : len(found)] = found
    scores = np.where(negatives >= 0, 0.9 - 0.1 * np.arange(K) - 0.001 * np.arange(len(order))[:, None], np.nan)
    lowest = (0.3 + 0.01 * np.arange(len(order))).astype("f4")
    reasons = dict.fromkeys(order.tolist(), "made so")
    block = NegativeBlock(order, negatives, scores.astype("f4"), lowest, reasons)
    draft = Draft(LocalStore(folder), direction, NEGATIVES, {})
    write_negatives(draft, [block], pairs, direction, K, {})
    return folder / direction


@pytest.fixture
def given(problem, tmp_path, monkeypatch):
    # Several row groups, and several blocks per row group.
    monkeypatch.setattr(negatives_module, "_GROUP", 16)
    monkeypatch.setattr(_mined, "_NEGATIVES_AT_ONCE", 6 * K)

    def make(direction: Direction = "i2t") -> Given:
        pairs = problem().pairs
        table = write_table(tmp_path / "tables", pairs, direction)
        return Given(table, write_pairs(tmp_path / "pairs.csv", pairs), pairs, direction)

    return make


def run(*arguments: object):
    group = CommandGroup("miner", commands=[export])
    return CliRunner().invoke(group, ["export", *map(str, arguments)])


def exported(given: Given, spoken: str, out: Path, *more: object):
    result = run(given.table, "--pairs", given.pairs_file, "--format", spoken, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return result


def refused(given: Given, spoken: str, out: Path, *more: object, code: int = 3) -> str:
    result = run(given.table, "--pairs", given.pairs_file, "--format", spoken, "--out", out, *more)
    assert result.exit_code == code, result.output
    assert not out.is_file()
    return result.output


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def only(given: Given) -> list:
    """Those whose positive has a known score: it is the only one."""
    return [anchor for anchor in given if len(anchor[1]) == 1 and anchor[2]]


DIRECTIONS = pytest.mark.parametrize("direction", ["i2t", "t2i"])


@DIRECTIONS
@pytest.mark.parametrize("n", [K, 2])
def test_jsonl(given, tmp_path, direction, n):
    made = given(direction)
    exported(made, "jsonl", tmp_path / "out.jsonl", "--negatives", n)
    expected = []
    for anchor, positives, negatives, _ in made:
        ranked = [{"id": i, "score": s, "rank": rank} for rank, (i, s) in enumerate(negatives[:n])]
        expected.append({"anchor_id": anchor, "positives": positives, "negatives": ranked})
    assert lines(tmp_path / "out.jsonl") == expected
    assert [] in [line["negatives"] for line in expected]
    assert len({len(line["positives"]) for line in expected}) > 1


@DIRECTIONS
def test_flagembedding(given, tmp_path, direction):
    made = given(direction)
    exported(made, "flagembedding", tmp_path / "a.jsonl", "--negatives", 3)
    assert lines(tmp_path / "a.jsonl") == [
        {"query": anchor, "pos": positives, "neg": [i for i, _ in negatives[:3]]}
        for anchor, positives, negatives, _ in made
        if negatives
    ]
    exported(made, "flagembedding:scores=true", tmp_path / "b.jsonl", "--negatives", 3)
    assert lines(tmp_path / "b.jsonl") == [
        {
            "query": anchor,
            "pos": positives,
            "neg": [i for i, _ in negatives[:3]],
            "pos_scores": [lowest],
            "neg_scores": [s for _, s in negatives[:3]],
        }
        for anchor, positives, negatives, lowest in only(made)
    ]


@DIRECTIONS
def test_tevatron(given, tmp_path, direction):
    made = given(direction)
    exported(made, "tevatron", tmp_path / "a.jsonl")
    assert lines(tmp_path / "a.jsonl") == [
        {
            "query_id": anchor,
            "query": anchor,
            "positive_passages": [{"docid": i, "text": i} for i in positives],
            "negative_passages": [{"docid": i, "text": i} for i, _ in negatives],
        }
        for anchor, positives, negatives, _ in made
        if negatives
    ]
    result = exported(made, "tevatron:layout=documents", tmp_path / "b.jsonl")
    assert f"--corpus_path {tmp_path}/b_corpus.jsonl" in result.output
    assert lines(tmp_path / "b.jsonl") == [
        {
            "query_id": anchor,
            "query_text": anchor,
            "positive_document_ids": positives,
            "negative_document_ids": [i for i, _ in negatives],
        }
        for anchor, positives, negatives, _ in made
        if negatives
    ]
    gallery = made.pairs.ids(sides(direction)[1])
    assert sorted(line["docid"] for line in lines(tmp_path / "b_corpus.jsonl")) == sorted(gallery)


@DIRECTIONS
def test_nemo(given, tmp_path, direction):
    made = given(direction)
    exported(made, "nemo", tmp_path / "train.json")
    whole = json.loads((tmp_path / "train.json").read_text())
    assert whole["corpus"] == [{"path": "train_corpus"}]
    assert whole["data"] == [
        {
            "question_id": anchor,
            "question": anchor,
            "corpus_id": "train_corpus",
            "pos_doc": [{"id": i} for i in positives],
            "neg_doc": [{"id": i} for i, _ in negatives],
        }
        for anchor, positives, negatives, _ in made
        if negatives
    ]
    corpus = tmp_path / "train_corpus"
    known = json.loads((corpus / "merlin_metadata.json").read_text())
    assert known == {"class": "TextQADataset", "corpus_id": "train_corpus"}
    documents = pq.read_table(corpus / "train.parquet").to_pydict()
    gallery = sides(direction)[1]
    ids = made.pairs.ids(gallery)
    assert documents["id"] == documents["text"] == [ids[row] for row in made.pairs.order(gallery)]
    exported(made, "nemo:corpus_id=other", tmp_path / "train.json", "--force")
    assert json.loads((corpus / "merlin_metadata.json").read_text())["corpus_id"] == "other"


@DIRECTIONS
def test_sentence_transformers(given, tmp_path, direction):
    made = given(direction)
    expected: dict[str, list[dict]] = {"triplet": [], "n-tuple": [], "labeled-pair": [], "labeled-list": []}
    for anchor, positives, negatives, _ in made:
        ids = [i for i, _ in negatives[:3]]
        for positive in positives:
            row = {"anchor_id": anchor, "positive_id": positive}
            expected["triplet"] += [{**row, "negative_id": i} for i in ids]
            if len(ids) == 3:
                expected["n-tuple"] += [{**row, **{f"negative_{at + 1}_id": i for at, i in enumerate(ids)}}]
        documents, labels = positives + ids, [1] * len(positives) + [0] * len(ids)
        if ids:
            each = zip(documents, labels, strict=True)
            expected["labeled-pair"] += [{"anchor_id": anchor, "document_id": i, "label": x} for i, x in each]
            expected["labeled-list"] += [{"anchor_id": anchor, "document_ids": documents, "labels": labels}]
    for name, rows in expected.items():
        out = tmp_path / f"{name}.parquet"
        exported(made, f"sentence-transformers:layout={name}", out, "--negatives", 3)
        assert pq.read_table(out).to_pylist() == rows
        assert list(rows[0]) == pq.read_schema(out).names


@DIRECTIONS
def test_sentence_transformers_with_scores(given, tmp_path, direction):
    made = given(direction)
    expected: dict[str, list] = {"triplet": [], "n-tuple": [], "labeled-pair": [], "labeled-list": []}
    for _, _, negatives, lowest in only(made):
        found = [score for _, score in negatives[:3]]
        expected["triplet"] += [[lowest, score] for score in found]
        expected["n-tuple"] += [[lowest, *found]] if len(found) == 3 else []
        expected["labeled-pair"] += [lowest, *found]
        expected["labeled-list"] += [[lowest, *found]]
    for name, scores in expected.items():
        out = tmp_path / f"{name}.parquet"
        result = exported(made, f"sentence-transformers:layout={name},scores=true", out, "--negatives", 3)
        enough = 3 if name == "n-tuple" else 1
        several = sum(len(positives) > 1 and len(negatives) >= enough for _, positives, negatives, _ in made)
        assert f"left out: {several} anchor(s) with several positives, whose scores" in result.output
        table = pq.read_table(out)
        assert not {"label", "labels"} & set(table.column_names)
        assert table.column(table.column_names[-1]).to_pylist() == scores


def test_who_is_left_out_is_counted(given, tmp_path):
    made = given()
    sizes = [len(negatives) for _, _, negatives, _ in made]
    short = sum(size < K for size in sizes)
    result = exported(made, "sentence-transformers:layout=n-tuple", tmp_path / "a.parquet")
    assert f"from {len(sizes) - short} of {len(sizes)} anchors" in result.output
    assert f"left out: {short} anchor(s) with fewer than {K} negatives" in result.output
    result = exported(made, "flagembedding", tmp_path / "b.jsonl")
    assert f"left out: {sizes.count(0)} anchor(s) with no negative" in result.output
    assert f"{short - sizes.count(0)} anchor(s) with fewer than {K} negatives gave what they have" in result.output
    assert f"--train_data {tmp_path / 'b.jsonl'}" in result.output
    assert f"b.jsonl: {len(sizes)}/{len(sizes)} anchors" in result.output


@pytest.mark.parametrize("direction", ["i2i", "t2t"])
@pytest.mark.parametrize("layout", [
    "jsonl", "flagembedding", "nemo", "tevatron", "sentence-transformers:layout=triplet",
    "sentence-transformers:layout=labeled-list", "sentence-transformers:layout=n-tuple",
])  # fmt: skip
def test_a_side_with_itself(problem, tmp_path, direction, layout):
    """The positives are the other items of the side that share a partner with the anchor; who has none is counted."""
    given = problem(images=40)
    folder = given.write(tmp_path / "vectors")
    mining = ["mine", str(folder), "--k", "3", "--direction", direction, "--out", str(tmp_path / "mined")]
    assert CliRunner().invoke(main, mining).exit_code == 0
    where = [tmp_path / "mined" / direction, "--pairs", folder / "pairs.csv", "--format", layout]
    suffix = {"nemo": ".json", "sentence-transformers": ".parquet"}.get(layout.partition(":")[0], ".jsonl")
    out = tmp_path / f"out{suffix}"
    done = run(*where, "--out", out)
    side, own, other = ("image", given.pairs.image_rows, given.pairs.text_rows)
    if direction == "t2t":
        side, own, other = "text", other, own
    ids = given.pairs.ids(side)
    linked = [set(other[own == row].tolist()) for row in range(len(ids))]
    expected = {ids[a]: {ids[b] for b in range(len(ids)) if b != a and linked[a] & linked[b]} for a in range(len(ids))}
    lonely = sum(not found for found in expected.values())
    assert 0 < lonely < len(ids)
    assert done.exit_code == 0, done.output
    if layout == "jsonl":
        assert {line["anchor_id"]: set(line["positives"]) for line in lines(out)} == expected
        return
    assert f"{lonely} anchor(s) with no positive" in done.output
    if layout == "flagembedding":
        assert {line["query"]: set(line["pos"]) for line in lines(out)} == {
            anchor: found for anchor, found in expected.items() if found
        }


def test_nothing_left_is_refused(tmp_path):
    pairs = Pairs.from_ids(["i"], ["t", "u"], [("i", "t"), ("i", "u")])
    table = write_table(tmp_path / "tables", pairs, "i2t")
    made = Given(table, write_pairs(tmp_path / "pairs.csv", pairs), pairs, "i2t")
    for spoken, name in (("flagembedding", "a.jsonl"), ("sentence-transformers", "a.parquet"), ("nemo", "a.json")):
        assert "nothing is left to export: 1 anchor(s) with no negative" in refused(made, spoken, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv", "tables"]


def write_contents(path: Path, key: str, column: str, contents: dict[str, str]) -> Path:
    """As a table of whatever kind the name says, with a column more and a row more than needed."""
    rows = [{key: i, "more": 1, column: said} for i, said in [("nobody", "else"), *contents.items()]]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        numbers = [{**row, key: int(row[key]) if row[key].isdigit() else row[key]} for row in rows]
        path.write_text("\n".join(json.dumps(row) for row in numbers), encoding="utf-8")
    else:
        cut = "\t" if path.suffix == ".tsv" else ","
        quoted = [cut.join([row[key], "1", '"' + row[column].replace('"', '""') + '"']) for row in rows]
        path.write_text("\n".join([cut.join([key, "more", column]), *quoted]), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_contents_stand_in_for_ids(given, tmp_path, suffix):
    made = given("t2i")
    said = {i: f'«{i}», "a\nb"\t\u2028' for i in made.pairs.text_ids}
    where = {i: f"pictures/{i}.jpg" for i in made.pairs.image_ids}
    texts = write_contents(tmp_path / f"texts{suffix}", "text_id", "text", said)
    images = write_contents(tmp_path / f"images{suffix}", "id", "path", where)
    both = ("--texts", texts, "--images", images, "--negatives", 1)
    result = exported(made, "flagembedding", tmp_path / "a.jsonl", *both)
    assert "warning: FlagEmbedding takes texts there" in result.output
    assert lines(tmp_path / "a.jsonl") == [
        {"query": said[anchor], "pos": [where[i] for i in positives], "neg": [where[negatives[0][0]]]}
        for anchor, positives, negatives, _ in made
        if negatives
    ]
    exported(made, "sentence-transformers", tmp_path / "a.parquet", *both)
    columns = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert list(columns) == ["anchor", "positive", "negative"]
    assert set(columns["anchor"]) <= set(said.values())
    assert set(columns["negative"]) <= set(where.values())
    exported(made, "sentence-transformers:layout=labeled-list", tmp_path / "b.parquet", "--texts", texts)
    assert pq.read_schema(tmp_path / "b.parquet").names == ["anchor", "document_ids", "labels"]
    exported(made, "tevatron:layout=documents", tmp_path / "b.jsonl", *both)
    assert lines(tmp_path / "b.jsonl")[0]["query_text"] in said.values()
    where = {i: where[i] for i in sorted(where, key=int)}
    assert lines(tmp_path / "b_corpus.jsonl") == [{"docid": i, "image": path} for i, path in where.items()]
    exported(made, "nemo", tmp_path / "c.json", *both)
    assert json.loads((tmp_path / "c_corpus" / "merlin_metadata.json").read_text())["class"] == "ColPaliDataset"
    pictures = pq.read_table(tmp_path / "c_corpus" / "train.parquet").to_pylist()
    assert pictures == [{"image_filename": i, "image": {"bytes": None, "path": path}} for i, path in where.items()]
    result = exported(given("i2t"), "tevatron:layout=documents", tmp_path / "d.jsonl", *both)
    assert "warning" not in result.output
    assert lines(tmp_path / "d.jsonl")[0]["query_image"] in where.values()
    assert lines(tmp_path / "d_corpus.jsonl")[0].keys() == {"docid", "text"}


def test_a_run_keeps_pairs_and_texts(given, tmp_path):
    made = given("t2i")
    told = tuple(f"caption of {i}" for i in made.pairs.text_ids)
    pairs = Pairs(made.pairs.image_ids, made.pairs.text_ids, made.pairs.image_rows, made.pairs.text_rows, told)
    commit_pairs(Draft(LocalStore(tmp_path), "pairs", PAIRS, {}), pairs, {})
    table = write_table(tmp_path / "run", pairs, "t2i")
    # A table that was mined with captions, and one that knows of none.
    for number, each in enumerate((table, made.table)):
        run_of = Given(each, tmp_path / "pairs", pairs, "t2i")
        out = tmp_path / f"{number}.jsonl"
        exported(run_of, "flagembedding", out, "--texts", tmp_path / "pairs" / "texts.parquet")
        assert lines(out)[0]["query"] in told
    assert "other pairs" in refused(Given(table, made.pairs_file, pairs, "t2i"), "jsonl", tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("spoken", "said"),
    [
        ("flagembeding", "Did you mean 'flagembedding'?"),
        ("sentence_transformer", "Did you mean 'sentence-transformers'?"),
        ("sentence-transformers:layot=triplet", "did you mean 'layout'?"),
        ("sentence-transformers:layout=tripplet", "Did you mean 'triplet'?"),
        ("sentence-transformers:scores=yes", "is not one of true, false"),
        ("sentence-transformers:scores", "is not KEY=VALUE"),
        ("sentence-transformers:scores=true,scores=true", "set twice"),
        ("jsonl:scores=true", "known: none."),
        ("jsonl", "ends in .jsonl"),
    ],
)
def test_unknown_formats_and_settings(given, tmp_path, spoken, said):
    assert said in refused(given(), spoken, tmp_path / "out.what")


def test_wrong_contents(given, tmp_path):
    made = given("t2i")
    said = {i: f"text of {i}" for i in made.pairs.text_ids}
    last = next(reversed(said))
    file = tmp_path / "texts.csv"
    out = tmp_path / "out.parquet"
    for written, sentence in (
        ("", "cannot be read"),
        ("id,words\n1,2\n", "found the columns id, words; give id (or text_id) and text or path"),
        ("id,text\n1,2,3\n", "cannot be read"),
        ("id,text\n" + "".join(f"{i},{t}\n" for i, t in said.items() if i != last), f"first {last!r}"),
        ("id,text\n" + "".join(f"{i},{t if i != last else ''}\n" for i, t in said.items()), f"first {last!r}"),
        ("id,text\n" + "".join(f"{i},{t}\n{i},another\n" for i, t in said.items()), "rows that differ"),
    ):
        file.write_text(written)
        assert sentence in refused(made, "sentence-transformers", out, "--texts", file), written
    for name, data in (
        ("a.jsonl", b'{"id": "a", "text": "b"}\n{'),
        ("b.jsonl", b"[1]\n"),
        ("c.jsonl", b'{"id": "a", "text": "\\ud800"}\n'),
        ("d.jsonl", b"\xff\n"),
        ("e.parquet", b"PAR1"),
    ):
        (tmp_path / name).write_bytes(data)
        assert "cannot be read" in refused(made, "sentence-transformers", out, "--texts", tmp_path / name), name
    assert "no such file" in refused(made, "sentence-transformers", out, "--texts", tmp_path / "none.csv")
    assert "give the contents" in refused(made, "sentence-transformers", out, "--texts", tmp_path / "texts.txt")
    good = write_contents(tmp_path / "good.jsonl", "id", "text", said)
    assert "leave --texts and --images out" in refused(made, "jsonl", tmp_path / "out.jsonl", "--texts", good)
    before = good.read_bytes()
    result = run(
        made.table, "--pairs", made.pairs_file, "--format", "flagembedding", "--texts", good, "--out", good, "--force"
    )
    assert result.exit_code == 3
    assert "cannot be written too" in result.output
    assert good.read_bytes() == before


def test_wrong_tables_and_pairs(given, tmp_path):
    made = given()
    out = tmp_path / "out.jsonl"

    def of(table: Path = made.table, pairs: Path = made.pairs_file, *more: object, code: int = 3) -> str:
        return refused(Given(table, pairs, made.pairs, "i2t"), "jsonl", out, *more, code=code)

    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(made.pairs_file.read_text().splitlines(keepends=True)[:-1]))
    assert "this table was mined for other pairs" in of(pairs=fewer)
    assert "no such file" in of(pairs=tmp_path / "none.csv")
    assert f"give {made.table}" in of(table=made.table.parent)
    assert "no negatives artifact" in of(table=tmp_path)
    assert "holds 5 negatives per anchor, but 6" in of(made.table, made.pairs_file, "--negatives", K + 1)
    file = made.table / "negatives.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    assert "is not the file that was committed" in of(code=4)
    file.unlink()
    assert "is missing" in of(code=4)


def test_what_exists_is_kept_unless_forced(given, tmp_path, monkeypatch):
    made = given()
    out = tmp_path / "new" / "out.json"
    exported(made, "nemo", out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("out.json", "out_corpus/train.parquet", "out_corpus/merlin_metadata.json"):
        result = run(made.table, "--pairs", made.pairs_file, "--format", "nemo", "--out", out)
        assert result.exit_code == 3
        assert f"{out.parent / name}: this file exists" in result.output or name == "out.json"
        (out.parent / name).unlink() if name == "out_corpus/train.parquet" else None
    exported(made, "nemo", out, "--force")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # A disk that fills up in the middle of it leaves what was there, and nothing else.
    module = sys.modules["miner.export.nemo"]
    monkeypatch.setattr(module, "_record", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    result = run(made.table, "--pairs", made.pairs_file, "--format", "nemo", "--out", out, "--force")
    assert result.exit_code == 75
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in refused(made, "jsonl", tmp_path / "folder.jsonl", "--force")


@pytest.mark.parametrize(
    ("spoken", "name"), [("jsonl", "a.jsonl"), ("sentence-transformers", "a.parquet"), ("nemo", "a.json")]
)
def test_bytes_do_not_depend_on_storage(given, problem, tmp_path, monkeypatch, spoken, name):
    made = given()
    exported(made, spoken, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    moved = write_pairs(tmp_path / "moved.csv", problem().permuted(3).pairs)
    assert moved.read_bytes() != made.pairs_file.read_bytes()
    exported(Given(made.table, moved, made.pairs, "i2t"), spoken, tmp_path / name, "--force")
    assert (tmp_path / name).read_bytes() == first
    monkeypatch.setattr(negatives_module, "_GROUP", 1000)
    other = Given(write_table(tmp_path / "other", made.pairs, "i2t"), made.pairs_file, made.pairs, "i2t")
    exported(other, spoken, tmp_path / name, "--force")
    if spoken != "sentence-transformers":  # row groups of Parquet follow those of the table
        assert (tmp_path / name).read_bytes() == first


def test_every_layout_is_whole():
    assert layouts.names() == ["flagembedding", "jsonl", "nemo", "sentence-transformers", "tevatron"]
    for name in layouts.names():
        chosen, config = layouts.configured(name)
        assert chosen.__all__ == ["SUFFIX", "Config", "files", "read_with", "write"]
        assert chosen.files(config, Path(f"out{chosen.SUFFIX}"))[-1] == Path(f"out{chosen.SUFFIX}")
        with pytest.raises(FrozenInstanceError):
            config.anything = 1


def test_help_teaches_and_is_light():
    code = """
import sys
from miner.commands.export import export
try:
    export(["--help"])
finally:
    heavy = {"torch", "faiss", "ray", "numpy", "pyarrow", "pydantic", "pandas", "miner.export"} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True
    )
    assert "heavy: []" in result.stdout
    said = " ".join(result.stdout.split())
    assert "Examples:" in said
    for name in layouts.names():
        assert f" {name} " in said
    assert "[layout=triplet|n-tuple|labeled-pair|labeled-list, default triplet]" in said
