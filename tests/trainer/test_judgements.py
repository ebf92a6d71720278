"""What a source makes of its files, against loops; ids in every spelling; one sentence for whatever is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from tests.trainer import ranking_oracle as oracle
from trainer import data, judgements
from trainer.judgements import Judgements, eccv


def read(source: str, pairs: Pairs, **settings: Any) -> Judgements:
    return judgements.read(judgements.configure(source, settings), pairs)


def named(found: Judgements, pairs: Pairs) -> set[tuple[str, str]]:
    """All positives, by id."""
    rows = zip(found.image_rows.tolist(), found.text_rows.tolist(), strict=True)
    return {(pairs.image_ids[image], pairs.text_ids[text]) for image, text in rows}


def linked(pairs: Pairs) -> set[tuple[str, str]]:
    return {(pairs.image_ids[image], pairs.text_ids[text]) for image, text in oracle.links_of(pairs)}


# Judgements themselves


def test_positives_are_own_and_added_without_refuted(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(20)
    own = oracle.links_of(pairs)
    refuted = set(sorted(own)[::7])
    added = {(3, 0), (3, 9), (17, 2), min(own)}  # what is both is a positive
    found = Judgements.of(pairs, "toy", added=[*added, (3, 0)], refuted=refuted, judged_texts=[9, 2, 2, 30])
    links = (own - refuted) | added
    assert named(found, pairs) == {(pairs.image_ids[image], pairs.text_ids[text]) for image, text in links}
    for side, queries in (("image", range(20)), ("text", (2, 9, 30))):
        rows, offsets, positives = found.positives(side)
        got = {int(row): positives[offsets[n] : offsets[n + 1]].tolist() for n, row in enumerate(rows)}
        expected = {
            query: sorted(link[side == "image"] for link in links if link[side == "text"] == query) for query in queries
        }
        assert got == {query: others for query, others in expected.items() if others}
    assert found.changes(pairs) == (len(links - own), len(own - links))


def test_the_fingerprint_tells_all_of_it(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(20)
    base = Judgements.of(pairs, "toy", added=[(0, 9)], judged_images=[0, 1], judged_texts=[0, 1])
    same = Judgements.of(pairs, "another name", added=[(0, 9), (0, 9)], judged_images=[1, 0], judged_texts=[0, 1])
    others = [
        Judgements.of(pairs, "toy", added=[(0, 8)], judged_images=[0, 1], judged_texts=[0, 1]),
        Judgements.of(pairs, "toy", added=[(0, 9)], judged_images=[0], judged_texts=[0, 1]),
        Judgements.of(pairs, "toy", added=[(0, 9)], judged_images=[0, 1], judged_texts=[0, 2]),
        replace(base, judged_images=np.array([0, 1, 2]), judged_texts=np.array([0])),
    ]
    assert base.fingerprint == same.fingerprint
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_no_query_at_all_is_refused(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(20)
    with pytest.raises(BadInput, match="no image was judged"):
        Judgements.of(pairs, "toy", added=[], judged_images=[])
    with pytest.raises(BadInput, match="no text was judged that has a positive"):
        Judgements.of(pairs, "toy", added=[], refuted=oracle.links_of(pairs) - {(0, 0)}, judged_texts=[1, 2])


def test_a_source_is_said_in_one_word() -> None:
    assert judgements.sources() == ["cxc", "eccv", "flickr8k", "pairs"]
    assert judgements.spoken("eccv") == ("eccv", {})
    assert judgements.spoken("cxc:a/b.csv,min_score=4") == ("cxc", {"path": "a/b.csv", "min_score": 4})
    assert judgements.spoken("cxc:2020") == ("cxc", {"path": "2020"})
    assert judgements.spoken('pairs:path="c=1,2.csv", min_score = 2') == (
        "pairs",
        {"path": "c=1,2.csv", "min_score": 2},
    )
    with pytest.raises(BadInput, match=r"'b\.csv' is not KEY=VALUE"):
        judgements.spoken("cxc:a.csv,b.csv")
    for source, settings, sentence in (
        ("eccvv", {}, "Did you mean 'eccv'"),
        ("cxc", {"path": "a", "min_scor": "1"}, "did you mean 'min_score'"),
        ("cxc", {"path": "a", "min_score": "6"}, "less than or equal to 5"),
        ("pairs", {}, "path"),
        ("eccv", {"labels": "ecc"}, "'eccv' or 'cxc'"),
    ):
        with pytest.raises(BadInput, match=sentence):
            judgements.configure(source, settings)


# pairs: anybody's own


@pytest.mark.parametrize("comma", [",", "\t"])
def test_own_positives_with_scores_and_queries(toys: SimpleNamespace, tmp_path: Path, comma: str) -> None:
    pairs = toys.pairs(20)
    table, queries = tmp_path / "more.txt", tmp_path / "queries.txt"
    rows = [
        ("i3", "t0", 2.5),
        ("i3", "t9", 2.4),
        ("i5", "t9", 9),
        ("i0", "t0", 1),
        ("train", "t1", 5),
        ("i1", "dev", 5),
    ]
    head = ("text_id", "score", "image_id", "remark")
    lines = [head, *((text, score, image, "") for image, text, score in rows)]
    table.write_text("\n".join(comma.join(map(str, line)) for line in lines) + "\n", encoding="utf-8-sig")
    found = read("pairs", pairs, path=table, min_score=2.5)
    assert named(found, pairs) == linked(pairs) | {("i3", "t0"), ("i5", "t9")}  # a low score refutes nothing
    assert (len(found.judged_images), len(found.judged_texts)) == (20, pairs.num_texts)
    queries.write_text("i3\r\ni7\nnot here\n")
    found = read("pairs", pairs, path=table, min_score=2.5, judged_images=queries)
    assert [pairs.image_ids[row] for row in found.judged_images] == ["i3", "i7"]
    assert len(found.judged_texts) == pairs.num_texts


def test_own_positives_need_no_scores(toys: SimpleNamespace, tmp_path: Path) -> None:
    pairs = toys.pairs(20)
    (tmp_path / "more.csv").write_text('image_id,text_id\ni3,t0\n"i5","t9"\n')
    assert named(read("pairs", pairs, path=tmp_path / "more.csv"), pairs) - linked(pairs) == {
        ("i3", "t0"),
        ("i5", "t9"),
    }


@pytest.mark.parametrize(
    ("text", "settings", "sentence"),
    [
        ("image_id,text\ni1,t1\n", {}, "no column text_id in the first line; it must be a table with the columns"),
        ("", {}, "no column image_id, text_id"),
        ("image_id,text_id\n", {}, "none of 0 lines is about"),
        ("image_id,text_id\ni1,nope\nnope,t1\n", {}, "none of 2 lines .* like 'i0' and 't0'"),
        ("image_id,text_id\ni1\n", {}, "line 2: fewer columns"),
        ("image_id,text_id,score\ni1,t1,5\n", {}, "say from where on .* min_score"),
        ("image_id,text_id\ni1,t1\n", {"min_score": 1}, "no column score"),
        ("image_id,text_id,score\ni1,t1,high\n", {"min_score": 1}, "line 2: score 'high' is not a number"),
        ("image_id,text_id,score\ni1,t1,nan\n", {"min_score": 1}, "line 2: score 'nan' is not a number"),
        (
            "image_id,text_id\ni1,t1\n",
            {"judged_texts": "nowhere"},
            "nowhere: no such file; it must hold one text id per line",
        ),
    ],
)
def test_wrong_own_positives_get_a_sentence(
    toys: SimpleNamespace, tmp_path: Path, text: str, settings: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "more.csv").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        read("pairs", toys.pairs(20), path=tmp_path / "more.csv", **settings)


def test_a_file_that_is_no_text_gets_a_sentence(toys: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_bytes(b"image_id,text_id\n\xff,t1\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        read("pairs", toys.pairs(20), path=tmp_path / "more.csv")
    for path in (tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(BadInput, match="it must be a table with the columns image_id, text_id"):
            read("pairs", toys.pairs(20), path=path)


# COCO: CxC and ECCV Caption


def coco(images: dict[int, list[int]], image_name: str = "{}", text_name: str = "{}") -> Pairs:
    links = [(image_name.format(image), text_name.format(text)) for image, own in images.items() for text in own]
    return Pairs.from_ids([image_name.format(i) for i in images], [text for _, text in links], links, name="coco")


CAPTIONS = {391895: [11, 12, 13], 60623: [21], 9: [31, 32]}
SPELLINGS = [("{}", "{}"), ("COCO_val2014_{:012d}.jpg", "{:09d}"), ("val2014/{:012d}.jpg", "COCO_val2014:sentid:{}")]


def write_cxc(path: Path, rows: list[tuple[int, int, float]], original: str = "c2i_original") -> Path:
    lines = ["caption,image,agg_score,sampling_method"]
    for image, caption, score in rows:
        method = original if caption in CAPTIONS.get(image, []) else "c2i_intrasim"
        lines.append(f"COCO_val2014:sentid:{caption},COCO_val2014_{image:012d}.jpg,{score},{method}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("image_name", "text_name"), SPELLINGS)
def test_cxc_ratings_add_and_refute(tmp_path: Path, image_name: str, text_name: str) -> None:
    pairs = coco(CAPTIONS, image_name, text_name)
    rows = [(391895, 11, 5.0), (391895, 12, 2.9), (391895, 21, 3.0), (60623, 12, 4.2), (60623, 21, 4), (9, 31, 4)]
    rows += [(60623, 13, 2.99), (777, 11, 5), (60623, 999, 5)]
    path = write_cxc(tmp_path / "sits_test.csv", rows)
    found = read("cxc", pairs, path=path)
    expected = {(391895, 11), (391895, 13), (391895, 21), (60623, 12), (60623, 21), (9, 31), (9, 32)}
    assert named(found, pairs) == {(image_name.format(image), text_name.format(text)) for image, text in expected}
    assert found.changes(pairs) == (2, 1)
    assert [note.partition(": ")[2] for note in found.notes] == [f"7 of 9 lines are about {pairs.name}."]
    assert {pairs.text_ids[row] for row in found.judged_texts} == {text_name.format(t) for t in (11, 12, 13, 21, 31)}
    assert len(read("cxc", pairs, path=path, min_score=4.1).image_rows) == 4
    with pytest.raises(BadInput, match="no column agg_score"):
        read("cxc", pairs, path=_replaced(path, "agg_score", "score"))


def _replaced(path: Path, old: str, new: str) -> Path:
    other = path.with_name("other.csv")
    other.write_text(path.read_text().replace(old, new))
    return other


def test_cxc_of_other_ids_is_refused(tmp_path: Path) -> None:
    path = write_cxc(tmp_path / "sits.csv", [(391895, 11, 5.0), (60623, 12, 4)])
    with pytest.raises(BadInput, match="no rated pair is of coco"):
        read("cxc", coco({1: [2]}), path=path)
    with pytest.raises(BadInput, match="text id 'r11' is not COCO's number"):
        read("cxc", coco(CAPTIONS, text_name="r{}"), path=path)
    with pytest.raises(BadInput, match="image id '00009' is not COCO's number"):
        read("cxc", Pairs.from_ids(["9", "00009"], ["1", "2"], [("9", "1"), ("00009", "2")]), path=path)
    with pytest.raises(
        BadInput, match=r"line 2: .* not pair '391895' with '11'; its ids are not COCO's: .*order=testall"
    ):
        read("cxc", coco({391895: [12], 60623: [11]}), path=path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small package of the same name and form as ECCV Caption's, found first."""
    files = tmp_path / "site" / "eccv_caption" / "data"
    files.mkdir(parents=True)
    (files.parent / "__init__.py").write_text("raise RuntimeError('nobody needs to import this')\n")
    of_image = {str(image): texts for image, texts in CAPTIONS.items()}
    lists = {
        "original_caption_to_image": {str(text): [int(image)] for image, own in of_image.items() for text in own},
        "eccv_image_to_caption": {"391895": [11, 13, 21, 4711], "9": [31, 32]},
        "eccv_caption_to_image": {"21": [60623, 391895], "12": [9]},
        "cxc_image_to_caption": {"391895": [11, 12, 13, 31], "60623": [21], "9": [31, 32]},
        "cxc_caption_to_image": {"11": [391895], "12": [391895], "13": [391895], "21": [60623], "31": [9, 391895]},
    }
    for name, found in lists.items():
        (files / f"{name}.json").write_text(json.dumps(found))
    np.save(files / "coco_test_ids.npy", np.array([11, 12, 13, 14, 15, 21, 22, 23, 24, 25]))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    eccv._lists.cache_clear()
    yield files
    eccv._lists.cache_clear()


@pytest.mark.parametrize(("image_name", "text_name"), SPELLINGS)
def test_eccv_lists_are_all_that_belongs_to_a_judged_query(package: Path, image_name: str, text_name: str) -> None:
    pairs = coco(CAPTIONS, image_name, text_name)
    found = read("eccv", pairs)
    # (391895, 12) is listed neither for the image nor for the caption, both judged; 4711 is no caption of the test.
    expected = {(391895, 11), (391895, 13), (391895, 21), (60623, 21), (9, 31), (9, 32), (9, 12)}
    assert named(found, pairs) == {(image_name.format(image), text_name.format(text)) for image, text in expected}
    assert [pairs.image_ids[row] for row in found.judged_images] == [image_name.format(i) for i in (391895, 9)]
    assert {pairs.text_ids[row] for row in found.judged_texts} == {text_name.format(t) for t in (21, 12)}
    assert read("eccv", pairs, labels="cxc").changes(pairs) == (1, 0)


def test_eccv_takes_rows_of_the_published_files(package: Path) -> None:
    (package / "original_caption_to_image.json").write_text(
        json.dumps({str(text): [391895 if text < 20 else 60623] for text in (*range(11, 16), *range(21, 26))})
    )
    rows = Pairs.from_ids("01", [f"row {r}" for r in range(10)], [(str(r // 5), f"row {r}") for r in range(10)])
    found = read("eccv", rows, order="testall")
    by_id = read("eccv", coco({391895: list(range(11, 16)), 60623: list(range(21, 26))}))
    assert found.fingerprint == by_id.fingerprint
    assert found.changes(rows) == (1, 3)
    with pytest.raises(BadInput, match="say order=testall"):
        read("eccv", rows)
    for wrong in (coco(CAPTIONS), Pairs.from_ids("01", rows.text_ids, [(str(r % 2), f"row {r}") for r in range(10)])):
        with pytest.raises(BadInput, match="leave order=testall out"):
            read("eccv", wrong, order="testall")


def test_cxc_takes_rows_of_the_published_files(package: Path, tmp_path: Path) -> None:
    (package / "original_caption_to_image.json").write_text(
        json.dumps({str(text): [391895 if text < 20 else 60623] for text in (*range(11, 16), *range(21, 26))})
    )
    ratings = [(391895, 11, 5.0), (391895, 12, 1), (391895, 21, 4), (60623, 25, 5), (9, 31, 5)]
    path = write_cxc(tmp_path / "sits_test.csv", ratings)
    rows = Pairs.from_ids("01", [f"row {r}" for r in range(10)], [(str(r // 5), f"row {r}") for r in range(10)])
    found = read("cxc", rows, path=path, order="testall")
    by_id = read("cxc", coco({391895: list(range(11, 16)), 60623: list(range(21, 26))}), path=path)
    assert found.fingerprint == by_id.fingerprint
    assert found.changes(rows) == (1, 1)
    with pytest.raises(BadInput, match="say order=testall"):
        read("cxc", rows, path=path)


def test_published_features_need_no_more_than_their_order(package: Path, tmp_path: Path) -> None:
    """The 5K test as published, here of one image: vectors, captions, and no ids that anybody could match."""
    np.save(tmp_path / "testall_ims.npy", np.ones((1, 4), dtype=np.float32))
    (tmp_path / "testall_caps.txt").write_text("a\nb\nc\nd\ne\n")
    np.save(package / "coco_test_ids.npy", np.array([11, 12, 13, 14, 15]))
    (package / "original_caption_to_image.json").write_text(
        json.dumps({caption: [391895] for caption in range(11, 16)})
    )
    (package / "eccv_caption_to_image.json").write_text('{"13": [391895]}')
    split = data.load(data.configure("precomp", {"folder": tmp_path, "test": "testall"}), "test").pairs
    found = read("eccv", split, order="testall")
    assert found.text_rows.tolist() == [0, 2]  # 11 and 13
    assert (found.judged_images.tolist(), found.judged_texts.tolist()) == ([0], [2])


def test_eccv_of_other_ids_is_refused(package: Path) -> None:
    with pytest.raises(BadInput, match=r"none of its texts, the first '1', is of the COCO test; .* order=testall"):
        read("eccv", coco({0: [1], 2: [3]}))
    with pytest.raises(BadInput, match=r"annotation 21 is of image 60623; its ids are not COCO's: .* order=testall"):
        read("eccv", coco({391895: [11, 21], 60623: [31]}))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    eccv._lists.cache_clear()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "eccv_caption", raising=False)
    with pytest.raises(BadInput, match="run `pip install eccv-caption`"):
        read("eccv", coco(CAPTIONS))


# Flickr8k, by row and as published

NAMES = ["100_a", "20_b", "3_c"]
WORDS = [
    "A dog runs .", "A dog , running", "a DOG runs", "Two dogs", "dog !",
    "A child's hat", "red hat", "hat", "a hat .", "the hat",
    "sea", "a sea", "the Sea", "Two dogs", "blue sea",
]  # fmt: skip
# image, caption row, grades, yes of three
GRADED = [
    (0, 7, (3, 3, 3), None), (0, 10, (3, 3, 2), None), (1, 0, (1, 1, 1), 2), (1, 2, None, 3), (2, 2, None, 1),
    (1, 3, (4, 4, 4), 0), (0, 3, (1, 1, 1), 0), (1, 13, None, 0),
]  # fmt: skip


def write_flickr(folder: Path, published: bool) -> Path:
    folder.mkdir(parents=True)
    keys = [f"{NAMES[row // 5]}.jpg#{row % 5}" for row in range(15)]
    if published:
        experts = [(f"{NAMES[i]}.jpg", keys[c], *grades) for i, c, grades, _ in GRADED if grades]
        crowd = [(f"{NAMES[i]}.jpg", keys[c], f"{y / 3:.3f}", y, 3 - y) for i, c, _, y in GRADED if y is not None]
        tables = {
            "ExpertAnnotations.txt": experts,
            "CrowdFlowerAnnotations.txt": crowd,
            "Flickr8k.token.txt": [*zip(keys, WORDS, strict=True), ("2258277193_5.jpg.1#0", "of no image")],
        }
    else:
        head = ("image_row", "caption_row", "own", "expert_mean_1to4", "crowd_frac_yes", "crowd_n")
        rows = [
            (i, c, int(c // 5 == i), f"{sum(g) / 3:.3f}" if g else "", "" if y is None else f"{y / 3:.3f}", 3)
            for i, c, g, y in GRADED
        ]
        tables = {
            "human_judgments.tsv": [head, *rows],
            "ids.txt": [(f"{name}.jpg",) for name in NAMES],
            "captions.txt": [(words,) for words in WORDS],
        }
    for name, lines in tables.items():
        (folder / name).write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return folder


def flickr(image_name: str = "{name}.jpg", images: tuple[int, ...] = (2, 0, 1), edit: Any = str) -> Pairs:
    """Five captions each, in another order; the one on two images is one text."""
    ids = {image: image_name.format(name=NAMES[image], row=image) for image in images}
    links, texts = [], {}
    for image in images:
        for row in range(5 * image + 4, 5 * image - 1, -1):
            text = "shared" if WORDS[row] == "Two dogs" else f"r{row}"
            links.append((ids[image], text))
            texts[text] = edit(WORDS[row])
    return Pairs.from_ids(list(ids.values()), list(texts), links, texts=list(texts.values()), name="flickr8k")


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("image_name", ["{name}.jpg", "Images/{name}.png", "{name}", "{row}"])
@pytest.mark.parametrize("edit", [str, lambda words: words.lower().replace("'", " '").replace(".", "")])
def test_flickr8k_is_found_by_name_and_words(tmp_path: Path, published: bool, image_name: str, edit: Any) -> None:
    pairs = flickr(image_name, edit=edit)
    folder = write_flickr(tmp_path / "flickr8k", published)
    if published and image_name == "{row}":
        with pytest.raises(BadInput, match="no image id, the first '2', is one of the 4 images"):
            read("flickr8k", pairs, path=folder)
        return
    found = read("flickr8k", pairs, path=folder)
    # Caption 2 says the same as caption 0 of its image: its texts, which come in the order r4 .. r0, share out the two.
    added = {(0, "r7"), (1, "r2"), (1, "r0"), (1, "shared")}
    ids = {image: image_name.format(name=NAMES[image], row=image) for image in range(3)}
    assert named(found, pairs) - linked(pairs) == {(ids[image], text) for image, text in added}
    assert found.changes(pairs)[1] == 0
    assert {pairs.text_ids[row] for row in found.judged_texts} == {"r7", "r10", "r0", "r2", "shared"}
    assert len(found.judged_images) == 3


def test_flickr8k_may_be_a_part_and_has_thresholds(tmp_path: Path) -> None:
    folder = write_flickr(tmp_path / "flickr8k", False)
    part = flickr(images=(1, 0))
    assert read("flickr8k", part, path=folder / "human_judgments.tsv").changes(part) == (4, 0)
    assert read("flickr8k", part, path=folder, min_expert=2.6).changes(part) == (4, 0)  # caption 10 is of image 2
    assert read("flickr8k", flickr(), path=folder, min_expert=2.6).changes(flickr()) == (5, 0)
    assert read("flickr8k", part, path=folder, min_crowd=0.7, min_expert=3.5).changes(part) == (2, 0)
    with pytest.raises(BadInput, match="no image was judged"):
        read("flickr8k", flickr(), path=_emptied(folder))


def _emptied(folder: Path) -> Path:
    head = (folder / "human_judgments.tsv").read_text().splitlines()[0]
    (folder / "human_judgments.tsv").write_text(head + "\n")
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("human_judgments.tsv", "crowd_frac_yes", "crowd", "no column crowd_frac_yes"),
        ("human_judgments.tsv", "0\t7\t", "0\t15\t", "line 2: caption_row 15; captions.txt has 15 lines"),
        ("human_judgments.tsv", "0\t7\t", "3\t7\t", "line 2: rows .* must be rows of ids.txt"),
        ("human_judgments.tsv", "0\t7\t", "-1\t7\t", "line 2: rows .* must be rows of ids.txt"),
        ("human_judgments.tsv", "3.000", "three", "line 2: expert_mean_1to4 'three' is not a number"),
        ("captions.txt", "blue sea\n", "", "14 captions for 3 images in ids.txt; give five each"),
        ("captions.txt", "red hat", "green hat", "'red hat' is no caption of 20_b in Flickr8k"),
        ("ids.txt", None, None, "ids.txt: no such file; it must hold one image name per line"),
        ("ExpertAnnotations.txt", "\t3\n", "\n", "line 1: 4 columns between tabs; 5 are expected"),
        ("ExpertAnnotations.txt", "#2", "-2", "line 1: caption '20_b.jpg-2'; it must be"),
        ("CrowdFlowerAnnotations.txt", "0.667", "most", "line 1: share of yes 'most' is not a number"),
        ("CrowdFlowerAnnotations.txt", None, None, "CrowdFlowerAnnotations.txt: no such file"),
        ("Flickr8k.token.txt", "#4", "#", "caption '100_a.jpg#'; it must be"),
    ],
)
def test_a_wrong_flickr8k_file_gets_a_sentence(
    tmp_path: Path, name: str, old: str | None, new: str | None, sentence: str
) -> None:
    folder = write_flickr(tmp_path / "flickr8k", name[0].isupper())
    text = (folder / name).read_text()
    if old is None or new is None:
        (folder / name).unlink()
    else:
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=sentence):
        read("flickr8k", flickr(), path=folder)


def test_other_data_than_flickr8k_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    folder = write_flickr(tmp_path / "flickr8k", False)
    with pytest.raises(
        BadInput, match=r"no image id, the first 'i0', is one of the 3 images .* or all of them rows of"
    ):
        read("flickr8k", toys.pairs(20), path=folder)
    pairs = flickr()
    bare = Pairs(pairs.image_ids, pairs.text_ids, pairs.image_rows, pairs.text_rows, name="bare")
    with pytest.raises(BadInput, match="bare: no captions, only ids"):
        read("flickr8k", bare, path=folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"Flickr8k.token.txt: no such file"):
        read("flickr8k", pairs, path=tmp_path / "empty")
    with pytest.raises(BadInput, match=r"nowhere: no such folder; give that of .* human_judgments.tsv"):
        read("flickr8k", pairs, path=tmp_path / "nowhere")
