"""The judgements as they were published, where they are at hand; and ECCV Caption's own evaluator beside ours."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from miner.artifacts.pairs import Direction, Pairs, Side
from trainer import judgements
from trainer.evaluate import Scores, extended_metrics
from trainer.judgements import Judgements, eccv

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
COCO, FLICKR8K = DATA / "coco_fn", DATA / "flickr8k"


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def read(source: str, pairs: Pairs, **settings: object) -> Judgements:
    return judgements.read(judgements.configure(source, settings), pairs)


@pytest.fixture(scope="module")
def coco() -> Pairs:
    """The 5K test in the order of the published files, by COCO's ids."""
    if not COCO.is_dir():
        pytest.skip(f"the COCO test ids are not at hand ({COCO.name} is missing)")
    images, texts = lines(COCO / "coco_image_ids.txt"), lines(COCO / "coco_caption_ids.txt")
    captions = lines(COCO / "coco5k_testall_caps.txt")
    links = [(images[row // 5], text) for row, text in enumerate(texts)]
    return Pairs.from_ids(images, texts, links, texts=captions, name="coco test")


@pytest.fixture(scope="module")
def package_data() -> Path:
    pytest.importorskip("eccv_caption", reason="the package eccv-caption is not installed")
    return eccv._folder()


def links(found: Judgements) -> set[tuple[int, int]]:
    return set(zip(found.image_rows.tolist(), found.text_rows.tolist(), strict=True))


def test_all_29157_positives_of_the_coco_test(coco: Pairs, package_data: Path, tmp_path: Path) -> None:
    assert (coco.num_images, coco.num_texts) == (5000, 25000)
    extra = rows(COCO / "extra_positives.tsv")
    table = ["image_id\ttext_id"]
    table += [f"{coco.image_ids[int(r['image_row'])]}\t{coco.text_ids[int(r['caption_row'])]}" for r in extra]
    (tmp_path / "extra.tsv").write_text("\n".join(table) + "\n")
    for side in ("images", "captions"):
        ids = coco.image_ids if side == "images" else coco.text_ids
        queries = [ids[int(row)] for row in lines(COCO / f"eccv_query_{side}.txt")]
        (tmp_path / side).write_text("\n".join(queries) + "\n")
    own = read(
        "pairs",
        coco,
        path=tmp_path / "extra.tsv",
        judged_images=tmp_path / "images",
        judged_texts=tmp_path / "captions",
    )
    assert own.changes(coco) == (29157, 0)
    listed, rated = read("eccv", coco), read("eccv", coco, labels="cxc")
    refuted = {(row // 5, row) for row in range(25000)}  # by one or the other; the file has additions alone
    assert links(own) == links(listed) | links(rated) | refuted
    np.testing.assert_array_equal(own.judged_images, listed.judged_images)
    np.testing.assert_array_equal(own.judged_texts, listed.judged_texts)
    assert (len(own.judged_images), len(own.judged_texts)) == (1261, 1332)


def test_rows_of_the_published_files_need_no_ids(coco: Pairs, package_data: Path) -> None:
    by_row = Pairs(
        tuple(map(str, range(5000))),
        tuple(f"r{r}" for r in range(25000)),
        coco.image_rows,
        coco.text_rows,
        name="precomp",
    )
    assert read("eccv", by_row, order="testall").fingerprint == read("eccv", coco).fingerprint


def test_cxc_is_what_eccv_caption_made_of_it(coco: Pairs, package_data: Path, tmp_path: Path) -> None:
    """The ratings in the form they are distributed in: three and more is positive."""
    path = tmp_path / "sits_test.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "image", "agg_score", "sampling_method"])
        for row in rows(COCO / "cxc_sits_test.tsv"):
            caption, image = coco.text_ids[int(row["caption_row"])], coco.image_ids[int(row["image_row"])]
            method = "c2i_original" if row["own"] == "1" else "c2i_intrasim"
            names = f"COCO_val2014:sentid:{caption}", f"COCO_val2014_{int(image):012d}.jpg"
            writer.writerow([*names, row["score_0to5"], method])
    found, packaged = read("cxc", coco, path=path), read("eccv", coco, labels="cxc")
    assert found.changes(coco) == packaged.changes(coco) == (10614, 29)
    assert links(found) == links(packaged)
    for side in ("image", "text"):
        for ours, theirs in zip(found.positives(side), packaged.positives(side), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@dataclass(frozen=True)
class Retrieved:
    """Scores of given retrievals: the first places of every query by its row, all else behind; nothing is equal."""

    shape: tuple[int, int]
    first: dict[str, dict[int, np.ndarray]]
    tie: float = 0.1

    def block(self, direction: Direction, anchors: np.ndarray) -> np.ndarray:
        scores = np.tile(-np.arange(self.shape[direction == "i2t"], dtype=np.float32) - 1000, (len(anchors), 1))
        for row, anchor in zip(scores, anchors.tolist(), strict=True):
            first = self.first[direction][anchor]
            row[first] = -np.arange(len(first))
        return scores

    def within(self, image_rows: np.ndarray, text_rows: np.ndarray) -> Scores:
        raise NotImplementedError


def at_random(found: Judgements, side: Side, num_gallery: int, seed: int) -> dict[int, np.ndarray]:
    """60 to 150 places of every judged query: some of its positives, rather ahead of what else was found."""
    rng = np.random.default_rng(seed)
    queries, offsets, positives = found.positives(side)
    retrieved = {}
    for query, begin, end in zip(queries.tolist(), offsets[:-1], offsets[1:], strict=True):
        own = positives[begin:end][rng.random(end - begin) < 0.8]
        items = np.union1d(own, rng.integers(num_gallery, size=int(rng.integers(70, 90))))
        retrieved[query] = items[np.argsort(rng.random(len(items)) - rng.random() * np.isin(items, own))]
    return retrieved


@pytest.mark.parametrize("labels", ["eccv", "cxc"])
def test_the_figures_are_those_of_the_package(coco: Pairs, package_data: Path, labels: str) -> None:
    from eccv_caption import Metrics

    found = read("eccv", coco, labels=labels)
    theirs = Metrics()
    known = set(map(int, coco.text_ids))
    lists = theirs.eccv_gts if labels == "eccv" else theirs.cxc_gts
    unknown = [caption for captions in lists["i2t"].values() for caption in captions if caption not in known]
    assert len(unknown) == (2 if labels == "eccv" else 0)  # listed, but no caption of the test: nobody can find them
    lists["i2t"] = {image: [c for c in captions if c in known] for image, captions in lists["i2t"].items()}
    images, texts = np.array(coco.image_ids, dtype=int), np.array(coco.text_ids, dtype=int)
    first = {"i2t": at_random(found, "image", len(texts), 0), "t2i": at_random(found, "text", len(images), 1)}
    i2t = {int(images[row]): texts[items].tolist() for row, items in first["i2t"].items()}
    t2i = {int(texts[row]): images[items].tolist() for row, items in first["t2i"].items()}
    if labels == "eccv":
        names = {"eccv_map_at_r": "map_at_r", "eccv_rprecision": "r_precision", "eccv_r1": "extended_r1"}
        expected = theirs.compute_all_metrics(i2t, t2i, target_metrics=tuple(names))
    else:
        names = {f"cxc_r{cutoff}": f"extended_r{cutoff}" for cutoff in (1, 5, 10)}
        expected = theirs.compute_all_metrics(i2t, t2i, target_metrics=("cxc_recalls",))
    ours = extended_metrics(Retrieved((len(images), len(texts)), first), found)
    for name, own in names.items():
        for direction in ("i2t", "t2i"):
            assert ours[f"{direction}_{own}"] == pytest.approx(100 * expected[name][direction], rel=1e-12), name
            assert 5 < ours[f"{direction}_{own}"] < 99


def test_human_judgements_of_flickr8k() -> None:
    if not (FLICKR8K / "human_judgments.tsv").is_file():
        pytest.skip(f"the Flickr8k judgements are not at hand ({FLICKR8K.name} is missing)")
    names, captions = lines(FLICKR8K / "ids.txt"), lines(FLICKR8K / "captions.txt")
    test = [names.index(name) for name in lines(FLICKR8K / "test.txt")]
    seen = []
    for image_id in (names.__getitem__, str, lambda row: names[row].removesuffix(".jpg")):
        pairs = [(image_id(row), f"{row}:{place}") for row in test for place in range(5)]
        texts = [captions[5 * row + place] for row in test for place in range(5)]
        split = Pairs.from_ids([image_id(row) for row in test], [t for _, t in pairs], pairs, texts=texts, name="test")
        found = read("flickr8k", split, path=FLICKR8K)
        assert found.changes(split) == (2233, 0)
        assert (len(found.judged_images), len(found.judged_texts)) == (1000, 1000)
        seen.append(found.fingerprint)
    assert len(set(seen)) == 1
