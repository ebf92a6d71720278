"""Verdicts: the file, the rule against a slow loop, and what `miner filter` and `calibrate` make of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.errors import BadInput
from miner.cli import main
from miner.filters import by_verdicts, chosen
from miner.verdicts import VERDICTS, judged, read_verdicts
from tests.miner.filters_oracle import assert_as_expected, deepener, expected, ranking, searched, selected, selection

N, K = 12, 5
BOTH = pytest.mark.parametrize("direction", ["i2t", "t2i"])


def write(path: Path, rows) -> Path:
    """(direction, anchor id, negative id, verdict) as JSON lines."""
    names = ("direction", "anchor_id", "negative_id", "verdict")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def drawn(pairs, seed=0, share=0.4):
    """Verdicts of both directions, many given again and taken back."""
    draw = random.Random(seed)
    rows = []
    for direction, anchors, items in (
        ("i2t", pairs.image_ids, pairs.text_ids),
        ("t2i", pairs.text_ids, pairs.image_ids),
    ):
        rows += [(direction, a, b, draw.choice([*VERDICTS, "none"])) for a in anchors for b in items for _ in range(2)]
    return draw.sample(rows, int(share * len(rows)))


def holding(rows, direction):
    """{(anchor id, negative id): verdict}, by a slow loop over the lines."""
    own, other = {}, {}
    for said, anchor, negative, verdict in rows:
        where, pair = (own, (anchor, negative)) if said == direction else (other, (negative, anchor))
        where.pop(pair, None)
        if verdict != "none":
            where[pair] = verdict
    return {**{pair: v for pair, v in other.items() if v != "too_easy"}, **own}


@BOTH
def test_what_holds_is_the_last_word_and_belonging_holds_both_ways(problem, tmp_path, direction):
    pairs = problem(seed=1).pairs
    rows = drawn(pairs)
    found = read_verdicts(write(tmp_path / "v.jsonl", rows), pairs, direction)
    sides = (pairs.image_ids, pairs.text_ids) if direction == "i2t" else (pairs.text_ids, pairs.image_ids)
    said = {
        (sides[0][a], sides[1][n]): VERDICTS[v]
        for a, n, v in zip(found.anchors.tolist(), found.negatives.tolist(), found.verdict.tolist(), strict=True)
    }
    assert said == holding(rows, direction)
    assert len(said) == len(found) > 100


@BOTH
@pytest.mark.parametrize("only", ["both", "false_negative", "too_easy"])
def test_the_rule_drops_what_people_called_false_or_too_easy(problem, oracle, tmp_path, direction, only):
    given = problem(seed=2)
    rows = drawn(given.pairs, seed=3)
    path = write(tmp_path / "v.jsonl", rows)
    ids = given.pairs.image_ids, given.pairs.text_ids
    anchors, items = ids if direction == "i2t" else ids[::-1]
    said = holding(rows, direction)
    reasons = ["false_negative", "too_easy"] if only == "both" else [only]
    drops = [lambda a, g, rank, s, low, reason=reason: said.get((anchors[a], items[g])) == reason for reason in reasons]
    candidates = searched(given, direction, N, tmp_path / "candidates")
    full, size = ranking(given, oracle, direction), len(items)
    rules = f"verdicts:file={path}" + ("" if only == "both" else f",only={only}")
    deep = {"deepen": deepener(given, direction), "max_candidates": size}
    for block in (7, None):
        found = selection(given, candidates, [rules], K, block=block, **deep)
        assert_as_expected(found, expected(full, drops, K, [N, 48, size] if size > 48 else [N, size]))
        assert all(found.counts.values())


def test_each_reason_is_a_rule_and_a_comma_in_the_path_is_no_setting(tmp_path):
    path = write(tmp_path / "a,b=c.jsonl", [("i2t", "a", "b", "fine")])
    rules = by_verdicts(path)
    assert [rule.name for rule in rules] == ["verdicts:false_negative", "verdicts:too_easy"]
    assert [rule.settings()["only"] for rule in rules] == ["false_negative", "too_easy"]
    assert rules[0].settings()["file"]["name"] == "a,b=c.jsonl"
    plain = tmp_path / "v.jsonl"
    assert [rule.name for rule in chosen([f"verdicts:file={plain},only=too_easy"])] == ["verdicts"]
    assert [rule.name for rule in chosen([f"verdicts:file={plain}", "hub-cap:most=3"])][:2] == [r.name for r in rules]


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_tables_are_read_as_the_lines_are(problem, tmp_path, form):
    pairs = problem(seed=1).pairs
    rows = drawn(pairs, share=0.1)
    table = pd.DataFrame(rows, columns=["direction", "anchor_id", "negative_id", "verdict"]).assign(by="me", at="now")
    path = tmp_path / f"v.{form}"
    if form == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    one, other = (read_verdicts(each, pairs, "t2i") for each in (path, write(tmp_path / "v.jsonl", rows)))
    assert one.verdict.tolist() == other.verdict.tolist()
    assert one.anchors.tolist() == other.anchors.tolist()


LINE = {"direction": "i2t", "anchor_id": "1", "negative_id": "2", "verdict": "fine"}
BAD = {
    "empty": ("", "cannot be read"),
    "no line": ("direction,anchor_id,negative_id,verdict\n", "no verdict is in it"),
    "cut": ('{"direction": "i2t", "anchor_id": "1", "neg', "cannot be read"),
    "cut at the end": (f"{json.dumps(LINE)}\n{json.dumps(LINE)[:-9]}", "line 2 is no JSON; mend or remove it"),
    "another word": ("direction,anchor_id,negative_id,verdict\ni2t,1,2,wrong\n", "row 1 has verdict 'wrong'"),
    "another way": ("direction,anchor_id,negative_id,verdict\ni2x,1,2,fine\n", "row 1 has direction 'i2x'"),
    "no column": ("anchor_id,negative_id,verdict\n1,2,fine\n", "found the columns"),
    "other items": ("direction,anchor_id,negative_id,verdict\ni2t,?,!,fine\n", "not one of its 1 verdicts"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_of_no_use_are_refused(problem, tmp_path, name):
    text, sentence = BAD[name]
    path = tmp_path / ("v.jsonl" if name in ("cut", "cut at the end", "empty") else "v.csv")
    path.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        read_verdicts(path, problem(seed=1).pairs, "i2t")


def test_a_file_about_the_other_direction_alone_drops_nothing(problem, tmp_path):
    given = problem(seed=1)
    pairs = given.pairs
    path = write(tmp_path / "v.jsonl", [("i2t", pairs.image_ids[0], pairs.text_ids[-1], "too_easy")])
    candidates = searched(given, "t2i", N, tmp_path / "candidates")
    found = selection(given, candidates, [f"verdicts:file={path}"], K)
    assert not any(selected(found)[1].values())


def test_filter_says_how_many_verdicts_are_about_other_items(problem, tmp_path):
    given = problem(seed=1)
    folder, pairs = given.write(tmp_path / "vectors"), given.pairs
    mined = ["mine", folder, "--k", 5, "--num-candidates", 12, "--out", tmp_path / "mined"]
    assert CliRunner().invoke(main, list(map(str, mined))).exit_code == 0
    known = ("i2t", pairs.image_ids[0], pairs.text_ids[-1], "too_easy")
    said = ["filter", folder, "--candidates", tmp_path / "mined" / "candidates", "--k", 5]
    for name, rows, count in (
        ("all", [known], 0),
        ("one", [known, ("i2t", "gone", "too", "fine")], 1),
    ):
        path = write(tmp_path / f"{name}.jsonl", rows)
        asked = [*said, "--rule", f"verdicts:file={path}", "--out", tmp_path / name]
        done = CliRunner().invoke(main, list(map(str, asked)))
        assert done.exit_code == 0, done.output
        assert done.output.count(f"warning: {path}: 1 verdict is about other items and left out") == count


def test_filter_and_calibrate_by_the_same_file(problem, tmp_path):
    given = problem(seed=4)
    folder = given.write(tmp_path / "vectors")
    mined = [str(each) for each in ("mine", folder, "--k", 5, "--num-candidates", 12, "--out", tmp_path / "mined")]
    done = CliRunner().invoke(main, mined)
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "mined" / "i2t" / "negatives.parquet")
    hardest = table[table["rank"] < 2]
    words = ["false_negative", "fine", "too_easy"]
    rows = [
        ("i2t", anchor, negative, words[number % 3])
        for number, (anchor, negative) in enumerate(zip(hardest.anchor_id, hardest.negative_id, strict=True))
    ]
    path = write(tmp_path / "v.jsonl", rows)
    said = ["--candidates", tmp_path / "mined" / "candidates", "--direction", "i2t", "--k", 5]
    filtered = CliRunner().invoke(
        main, list(map(str, ["filter", folder, *said, "--rule", f"verdicts:file={path}", "--out", tmp_path / "t"]))
    )
    assert filtered.exit_code == 0, filtered.output
    assert "dropped by verdicts:false_negative" in filtered.output
    dropped = pd.read_parquet(tmp_path / "t" / "i2t" / "dropped.parquet")
    told = {(a, n): r for a, n, r in zip(dropped.anchor_id, dropped.negative_id, dropped.rule, strict=True)}
    assert told == {(a, n): f"verdicts:{v}" for _, a, n, v in rows if v != "fine"}
    judged_csv = tmp_path / "judged.csv"
    lines = [f"{a},{n},{int(v == 'false_negative')}" for _, a, n, v in rows]
    judged_csv.write_text("\n".join(["anchor_id,negative_id,match", *lines]) + "\n")
    shown = []
    for option in (["--verdicts", path], ["--judgements", judged_csv]):
        done = CliRunner().invoke(main, list(map(str, ["calibrate", folder, *said, *option, "--json"])))
        assert done.exit_code == 0, done.output
        shown.append(json.loads(done.output)["directions"]["i2t"])
    assert shown[0] == shown[1]
    assert shown[0]["ladder"][0]["false_negatives"]["low"] > 0
    both = CliRunner().invoke(
        main, list(map(str, ["calibrate", folder, *said, "--verdicts", path, "--judgements", judged_csv]))
    )
    assert both.exit_code == 2
    assert "give one of them" in both.output


def test_a_verdict_on_a_positive_judges_nothing(problem, tmp_path):
    pairs = problem(seed=1).pairs
    image, text = pairs.image_ids[int(pairs.image_rows[0])], pairs.text_ids[int(pairs.text_rows[0])]
    other = next(
        t for t in pairs.text_ids if t != text and not pairs.linked(pairs.image_rows[:1], pairs.text_ids.rows([t]))[0]
    )
    path = write(tmp_path / "v.jsonl", [("i2t", image, text, "fine"), ("i2t", image, other, "false_negative")])
    found = judged(path, pairs, "i2t")
    assert len(found) == 1
    assert found.match.all()
    assert "positives" in found.notes[0]
