"""Rules that look at texts and pictures against slow loops; and no setting of any rule without an effect."""

from __future__ import annotations

import builtins
import dataclasses
import random
import unicodedata

import numpy as np
import pytest
from PIL import Image

from miner import filters, spoken
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, sides
from miner.filters import chosen
from miner.filters._texts import Shingles, normalised
from miner.select import Selection
from tests.miner.filters_oracle import (
    assert_as_expected,
    by_image,
    by_text,
    deepener,
    expected,
    made,
    ranking,
    searched,
    selected,
    selection,
)

BOTH = pytest.mark.parametrize("direction", ["i2t", "t2i"])
N, K = 12, 5
WORDS = ["dog", "runs", "over", "the", "green", "grass", "while", "a", "man", "looks"]


def captions(pairs: Pairs, seed: int) -> list[str]:
    """Short texts of ten words, so that near and exact duplicates abound; spelt in several ways."""
    draw = random.Random(seed)
    texts = []
    for row in range(pairs.num_texts):
        words = WORDS[: draw.randint(1, 10)] if row % 3 else [draw.choice(WORDS) for _ in range(6)]
        text = " ".join(words)
        texts.append(draw.choice([text, text.upper(), text + ".", f"  {text} !"]))
    return texts


def check(problem, oracle, tmp_path, direction, said, drop, contents):
    candidates = searched(problem, direction, N, tmp_path / "candidates")
    full = ranking(problem, oracle, direction)
    size = len(problem.vectors(direction)[1])
    assert sum(
        drop(a, row, rank, s, low) for a, (found, low) in full.items() for rank, (row, s) in enumerate(found[:N])
    )
    for block in (7, None):
        chosen_by = selection(
            problem, candidates, [said], K, deepen=deepener(problem, direction), contents=contents, block=block,
            max_candidates=size,
        )  # fmt: skip
        assert_as_expected(chosen_by, expected(full, [drop], K, [N, 4 * N, size]))


def clean(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = [c if unicodedata.category(c)[0] not in "PSZC" else " " for c in folded]
    return " ".join("".join(kept).split()) or " ".join(folded.split())


@BOTH
@pytest.mark.parametrize("match", ["normalised", "exact"])
def test_same_text(problem, oracle, tmp_path, direction, match):
    given = problem(seed=1)
    texts = captions(given.pairs, 1)
    look = clean if match == "normalised" else str
    drop = by_text(given.pairs, direction, lambda a, b: look(texts[a]) == look(texts[b]))
    check(given, oracle, tmp_path, direction, f"same-text:match={match}", drop, {"text": texts}.__getitem__)


def test_captions_of_the_pairs_are_found_by_themselves(problem, oracle, tmp_path):
    given = problem(seed=1)
    texts = captions(given.pairs, 1)
    with_texts = dataclasses.replace(given, pairs=dataclasses.replace(given.pairs, texts=tuple(texts)))
    drop = by_text(given.pairs, "i2t", lambda a, b: clean(texts[a]) == clean(texts[b]))
    check(with_texts, oracle, tmp_path, "i2t", "same-text", drop, None)
    for said, option in (("same-text", "--texts"), ("near-image", "--images")):
        with pytest.raises(BadInput, match=option):
            selected(selection(given, searched(given, "t2i", N, tmp_path / option), [said], K))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A dog, running!", "a  DOG running"),
        ("ＦＵＬＬ width", "full width"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("it's", "it s"),
        ("tab\tand\nline", "tab and line"),
    ],
)
def test_spellings_of_the_same(text, same):
    assert normalised(text) == normalised(same)


def test_texts_of_symbols_alone_are_not_all_the_same():
    assert normalised("!!!") != normalised("???")
    assert normalised(" ! ! ") == normalised("! !")
    assert normalised("") == ""
    assert normalised("a b") != normalised("ab")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_double_of_any_positive_is_dropped(place):
    """Of three positives each counts, not the last alone; another image's positive counts for nothing."""
    texts = ["one", "two", "three", "another's", "x", "another's"]
    texts[4] = texts[place].upper()
    pairs = Pairs(("a", "b"), tuple("012345"), np.array([0, 0, 0, 1, 1, 1]), np.arange(6), texts=tuple(texts))
    candidates = made(pairs, "i2t", [[(4, 0.9), (3, 0.8), (5, 0.7)], [(0, 0.5)]], [1, 1])
    negatives, dropped, _ = selected(Selection(candidates, pairs, chosen(["same-text"]), 2))
    assert [row for row, _ in negatives[0]] == [3, 5]
    assert [one[1] for one in dropped[0]] == [4]
    assert dropped[1] == ([] if place else [(0, 0, 0.5, 0)])  # "x" is b's own


def jaccard(a: str, b: str, size: int, unit: str) -> float:
    def pieces(text: str) -> set[tuple[str, ...]]:
        units = clean(text).split() if unit == "word" else list(clean(text))
        return {tuple(units[at : at + size]) for at in range(max(1, len(units) - size + 1))} if units else set()

    first, second = pieces(a), pieces(b)
    return len(first & second) / len(first | second) if first and second else 0.0


@BOTH
@pytest.mark.parametrize(
    ("bound", "size", "unit"), [(0.8, 2, "word"), (0.5, 1, "word"), (1.0, 3, "word"), (0.6, 3, "character")]
)
def test_near_text(problem, oracle, tmp_path, direction, bound, size, unit):
    given = problem(seed=2)
    texts = captions(given.pairs, 2)
    drop = by_text(given.pairs, direction, lambda a, b: jaccard(texts[a], texts[b], size, unit) >= bound)
    said = f"near-text:jaccard={bound},size={size},unit={unit}"
    check(given, oracle, tmp_path, direction, said, drop, {"text": texts}.__getitem__)


def test_an_empty_text_is_near_nothing_and_sifting_loses_nothing():
    assert not Shingles(["", "", "a"], 2, "word").alike(np.array([0, 0]), np.array([1, 2]), 0.1).any()
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(200)]
    texts = []
    for _ in range(60):
        words = [draw.choice(vocabulary) for _ in range(20)]
        texts += [" ".join(words), " ".join([*words[:-1], "other"]), " ".join([*words[5:], "a", "b"])]
    shingles = Shingles(texts, 1, "word")
    rows, others = (axis.ravel() for axis in np.meshgrid(np.arange(30), np.arange(180)))
    for bound in (0.1, 0.3, 0.5, 0.8, 0.9):
        truth = [
            jaccard(texts[a], texts[b], 1, "word") >= bound for a, b in zip(rows.tolist(), others.tolist(), strict=True)
        ]
        assert shingles.alike(rows, others, bound).tolist() == truth


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Smooth, so that it survives scaling and compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(problem, tmp_path):
    """A problem, and paths of its pictures: every fifth is the one before in another format, every seventh a small and
    compressed one, every eleventh shares its file."""
    given = problem(seed=3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = []
    for row in range(given.pairs.num_images):
        path = folder / f"{row}.png"
        if row % 11 == 10:
            path = paths[row - 1]
        elif row % 5 == 4:
            path = folder / f"{row}.bmp"
            Image.open(paths[row - 1]).save(path)
        elif row % 7 == 6:
            path = folder / f"{row}.jpg"
            Image.open(paths[row - 1]).resize((30, 24)).save(path, quality=80)
        else:
            picture(row).save(path)
        paths.append(path)
    return given, [str(path) for path in paths]


@BOTH
@pytest.mark.parametrize("match", ["pixels", "bytes"])
def test_same_image(pictures, oracle, tmp_path, direction, match):
    given, paths = pictures

    def look(row):
        if match == "bytes":
            with open(paths[row], "rb") as file:
                return file.read()
        found = Image.open(paths[row]).convert("RGB")
        return found.size, found.tobytes()

    drop = by_image(given.pairs, direction, lambda a, b: look(a) == look(b))
    check(given, oracle, tmp_path, direction, f"same-image:match={match}", drop, {"image": paths}.__getitem__)


def gradient(path) -> list[bool]:
    small = Image.open(path).convert("RGB").convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    return [small.getpixel((x, y)) > small.getpixel((x + 1, y)) for y in range(8) for x in range(8)]


def frequency(path) -> list[bool]:
    small = Image.open(path).convert("RGB").convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    grey = np.array([[float(small.getpixel((x, y))) for x in range(32)] for y in range(32)])
    wave = [[np.cos(np.pi * (n + 0.5) * f / 32) for n in range(32)] for f in range(8)]
    low = [
        [round(sum(wave[v][y] * (grey[y] @ np.array(wave[u])) for y in range(32)), 6) for u in range(8)]
        for v in range(8)
    ]
    flat = [value for row in low for value in row]
    return [value > np.median(flat[1:]) for value in flat]


@BOTH
@pytest.mark.parametrize(("name", "bits"), [("gradient", 4), ("gradient", 20), ("frequency", 8)])
def test_near_image(pictures, oracle, tmp_path, direction, name, bits):
    given, paths = pictures
    look = {"gradient": gradient, "frequency": frequency}[name]
    codes = [look(path) for path in paths]
    assert sum(a != b for a, b in zip(codes[5], codes[6], strict=True)) <= bits  # the small, compressed double
    drop = by_image(
        given.pairs, direction, lambda a, b: sum(x != y for x, y in zip(codes[a], codes[b], strict=True)) <= bits
    )
    said = f"near-image:bits={bits},hash={name}"
    check(given, oracle, tmp_path, direction, said, drop, {"image": paths}.__getitem__)


def test_the_double_of_any_picture_is_dropped(tmp_path):
    """A text of three images: the twin of any of them is a positive, whichever way the search goes."""
    paths = []
    for number, seed in enumerate([0, 1, 2, 3, 1]):
        picture(seed).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    pairs = Pairs(tuple("01234"), ("a", "b"), np.array([0, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 1]))
    t2i = made(pairs, "t2i", [[(4, 0.9), (3, 0.8)], [(1, 0.5), (0, 0.4), (2, 0.3)]], [1, 1])
    for said in ("same-image", "near-image", "same-image:match=bytes"):
        negatives, _, _ = selected(Selection(t2i, pairs, chosen([said]), 1, contents={"image": paths}.__getitem__))
        assert [row for row, _ in negatives[0]] == [3]
        assert [row for row, _ in negatives[1]] == [0]
    lists = [[(1, 0.5)], [(1, 0.5)], [(1, 0.5)], [(0, 0.5)], [(0, 0.5)]]
    i2t = made(pairs, "i2t", lists, [1] * 5)
    negatives, _, _ = selected(Selection(i2t, pairs, chosen(["same-image"]), 1, contents={"image": paths}.__getitem__))
    assert [bool(negatives[row]) for row in range(5)] == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"no picture", "cannot be read as a picture"), (b"", "cannot be read"), (None, "no such picture")],
)
def test_a_broken_picture_is_named(pictures, tmp_path, content, sentence):
    given, paths = pictures
    broken = tmp_path / "broken.png"
    if content is not None:
        broken.write_bytes(content)
    paths[3] = str(broken)
    candidates = searched(given, "i2t", N, tmp_path)
    for rule in ("same-image", "near-image"):
        with pytest.raises(BadInput, match=f"broken.png.*{sentence}"):
            selected(selection(given, candidates, [rule], K, contents={"image": paths}.__getitem__))
    truncated = (tmp_path / "pictures" / "0.png").read_bytes()[:-40]
    broken.write_bytes(truncated)
    with pytest.raises(BadInput, match=r"broken\.png"):
        selected(selection(given, candidates, ["near-image"], K, contents={"image": paths}.__getitem__))


def test_without_pillow_it_says_what_to_install(pictures, tmp_path, monkeypatch):
    given, paths = pictures
    real = builtins.__import__

    def without(name, *more):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *more)

    candidates = searched(given, "i2t", N, tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match="pip install pillow"):
        selected(selection(given, candidates, ["near-image"], K, contents={"image": paths}.__getitem__))
    selected(selection(given, candidates, ["same-image:match=bytes"], K, contents={"image": paths}.__getitem__))


def test_transparent_and_turned_pictures(tmp_path):
    from miner.filters._pictures import opened

    clear = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert opened(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    turned = picture(0)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert opened(tmp_path / "turned.jpg").size == (30, 40)


# For every setting of every rule, two ways to say it that must not give the same table.
OTHERWISE = {
    "absolute-margin": {"margin": ("margin=0", "margin=3")},
    "relative-margin": {"margin": ("margin=0.05", "margin=2")},
    "max-score": {"score": ("score=5", "score=6")},
    "min-score": {"score": ("score=6", "score=7")},
    "range-min": {"skip": ("skip=1", "skip=2")},
    "percentile": {
        "above": ("above=90", "above=50"),
        "below": ("below=0", "below=60"),
        "of": ("above=60,of=score", "above=60,of=hardness"),
        "among": ("above=60", "above=60,among=negatives"),
    },
    "near-embedding": {
        "cosine": ("cosine=0.9", "cosine=0.3"),
        "side": ("cosine=0.5,side=text", "cosine=0.5,side=image"),
    },
    "look-alike": {
        "share": ("share=0.25", "share=0.5"),
        "texts": ("texts=1", "texts=0"),
        "images": ("images=0.5", "images=5"),
    },
    "agreement": {"within": ("within=4", "within=9"), "drop": ("within=6", "within=6,drop=mutual")},
    "hub-cap": {"most": ("most=8", "most=4")},
    "scorer": {
        "file": ("file={scores},max_score=0.5", "file={other_scores},max_score=0.5"),
        "max_score": ("file={scores},max_score=0.5", "file={scores},max_score=0"),
        "min_score": ("file={scores},max_score=2", "file={scores},max_score=2,min_score=0"),
        "unscored": ("file={scores},max_score=0.5", "file={scores},max_score=0.5,unscored=drop"),
    },
    "block-list": {"file": ("file={blocked}", "file={other_blocked}")},
    "verdicts": {"file": ("file={said}", "file={other_said}"), "only": ("file={said}", "file={said},only=too_easy")},
    "same-group": {
        "images": ("images={image_groups},texts={text_groups}", "texts={text_groups}"),
        "texts": ("images={image_groups},texts={text_groups}", "images={image_groups}"),
    },
    "same-text": {"match": ("match=normalised", "match=exact")},
    "near-text": {
        "jaccard": ("jaccard=0.9", "jaccard=0.2"),
        "size": ("size=1", "size=5"),
        "unit": ("size=2,unit=word", "size=2,unit=character"),
    },
    "same-image": {"match": ("match=pixels", "match=bytes")},
    "near-image": {"bits": ("bits=0", "bits=24"), "hash": ("bits=20,hash=gradient", "bits=20,hash=frequency")},
}  # fmt: skip


def test_no_setting_of_any_rule_is_without_effect(pictures, tmp_path):
    given, paths = pictures
    texts = captions(given.pairs, 5)
    candidates = {each: searched(given, each, N, tmp_path / "candidates") for each in ("i2t", "t2i")}
    draw = random.Random(7)
    files = {}
    images, own = given.pairs.image_ids, given.pairs.text_ids
    for name in ("scores", "other_scores"):
        rows = [f"{i},{t},{draw.gauss(0, 1):.3f}" for i in images for t in own if draw.random() < 0.7]
        files[name] = ["image_id,text_id,score", *rows]
    for name in ("blocked", "other_blocked"):
        files[name] = ["text_id", *draw.sample(list(own), 30)]
    for name in ("said", "other_said"):
        words = [(i, t, draw.choice(["false_negative", "fine", "too_easy"])) for i in images for t in own]
        rows = [f"i2t,{i},{t},{word}" for i, t, word in words if draw.random() < 0.5]
        files[name] = ["direction,anchor_id,negative_id,verdict", *rows]
    files["image_groups"] = ["id,group", *(f"{i},g{draw.randrange(8)}" for i in images)]
    files["text_groups"] = ["id,group", *(f"{t},g{draw.randrange(8)}" for t in own)]
    places = {}
    for name, lines in files.items():
        places[name] = tmp_path / f"{name}.csv"
        places[name].write_text("\n".join(lines) + "\n")

    def table(name, settings):
        said = f"{name}:{settings.format(**places)}"
        result = []
        for direction in ("i2t", "t2i"):
            more = {"opposite": candidates["t2i" if direction == "i2t" else "i2t"]}
            contents = {"image": paths, "text": texts}.__getitem__
            deep = deepener(given, direction)
            found = selection(given, candidates[direction], [said], K, deepen=deep, contents=contents, **more)
            result.append(selected(found)[0])
        return result

    assert sorted(OTHERWISE) == spoken.names(filters)
    for name, settings in OTHERWISE.items():
        config = spoken.module(filters, "rule", name).Config
        assert sorted(settings) == sorted(field.name for field in dataclasses.fields(config)), name
        for setting, (one, other) in settings.items():
            assert table(name, one) != table(name, other), f"{name}: {setting} changes nothing"
    assert sides("i2t") == ("image", "text")
