"""The bundled set: 3,134 colour emoji of 48 x 48 pixels with English names and keywords (`emoji_files/`).

Captions are names and keywords, not sentences: 2 to 5 for a picture. Pictures with the same bytes are one image.
Natural hard negatives: skin tones, genders, clock faces.

The split is by *base emoji*: pictures that are siblings (same thing in another skin tone, gender, hair, direction or
colour, or on another clock face) fall into the same split. `fold` rotates the test set through all pictures in five.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.data import Dataset, Split

__all__ = ["Config", "Emoji", "bases", "pictures", "read"]

FOLDER = Path(__file__).parent / "emoji_files"
Language = Literal["es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar"]
SIDE, COLUMNS, NUM_BUCKETS, CHUNK = 48, 64, 10, 6

_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_DROPPED = _TONES | {"2640", "2642", "FE0F", "200D", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
_SAME = {"1F469": "1F468", "1F9D1": "1F468", "1F467": "1F466", "1F9D2": "1F466", "1F475": "1F474", "1F9D3": "1F474"}
_GENDERED = re.compile(r"\b(?:(?:wo)?m[ae]n(?:’s)?|person|people)\b")
_COLOURED = re.compile(
    r"(?:(?:red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink|large|medium|medium-small|small)"
    r" )+(heart|circle|square|diamond|question mark|exclamation mark)"
)
_FAMILIES = {
    "clock face": re.compile(r"\w+(?: o’clock|-thirty)"),
    "moon phase": re.compile(r"(?:\w+ )*moon(?: face)?"),
    "keycap": re.compile(r"keycap: .+"),
    "child": re.compile(r"(?:child|boy|girl)(?:: .+)?"),
    "Claus": re.compile(r"(?:Santa|Mrs\.|Mx) Claus(?:: .+)?"),
    "royalty": re.compile(r"(?:prince|princess|person with crown)(?:: .+)?"),
}


class Config(BaseModel):
    """`fold` 0..4 chooses the test pictures; `languages` adds the names in those languages to the captions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fold: int = Field(default=0, ge=0, le=4)
    languages: tuple[Language, ...] = ()


class Emoji(NamedTuple):
    """One picture: its id, names, English keywords, other-language names, and pixels (48, 48, 3) uint8."""

    hexcode: str
    name: str
    keywords: tuple[str, ...]
    translations: dict[str, str]
    pixels: npt.NDArray[np.uint8]


@lru_cache(maxsize=1)
def pictures() -> tuple[Emoji, ...]:
    """All 3,139 pictures in file order, twins with the same bytes included."""
    from PIL import Image

    with Image.open(FOLDER / "fluent_atlas48_p.png") as atlas:
        pixels = np.asarray(atlas.convert("RGB"))
    header, *lines = (FOLDER / "fluent_captions.tsv").read_text(encoding="utf8").splitlines()
    columns = header.split("\t")
    found = []
    for index, line in enumerate(lines):
        cells = dict(zip(columns, line.split("\t"), strict=True))
        top, left = index // COLUMNS * SIDE, index % COLUMNS * SIDE
        tile = pixels[top : top + SIDE, left : left + SIDE]
        keywords = tuple(word for word in cells["keywords_en"].split("|") if word)
        translations = {language: cells[language] for language in columns[7:] if cells[language]}
        found.append(Emoji(cells["hexcode"], cells["name_en"], keywords, translations, tile))
    return tuple(found)


def captions(emoji: Emoji, languages: tuple[str, ...] = ()) -> Iterator[str]:
    """The name; then, for every six keywords, the name with these before its qualifier.

    Every caption thus says all that tells the picture from its siblings: a keyword alone would be true of them too, and
    a hard negative mined for it would be a false one.
    """
    yield emoji.name
    head, colon, qualifier = emoji.name.partition(": ")
    for start in range(0, len(emoji.keywords), CHUNK):
        yield " ".join([head, *emoji.keywords[start : start + CHUNK]]) + colon + qualifier
    for language in languages:
        if language in emoji.translations:
            yield emoji.translations[language]


def _sibling_keys(emoji: Emoji) -> Iterator[str]:
    """Two pictures that share one of these keys are siblings."""
    codes = [_SAME.get(code, code) for code in emoji.hexcode.split("-") if code not in _DROPPED]
    yield "code " + ("-".join(codes) or emoji.hexcode)  # the signs themselves (arrow, female sign) have no other code
    bare = " ".join(_GENDERED.sub(" ", emoji.name.partition(":")[0]).split())
    yield "name " + (bare.replace("older", "old") or "person")
    coloured = _COLOURED.fullmatch(emoji.name)
    if coloured:
        yield "shape " + coloured[1]
    for family, pattern in _FAMILIES.items():
        if pattern.fullmatch(emoji.name):
            yield "family " + family
    yield "pixels " + hashlib.sha256(emoji.pixels.tobytes()).hexdigest()


@lru_cache(maxsize=1)
def bases() -> tuple[str, ...]:
    """Base emoji of every picture, as the smallest hexcode among its siblings (union-find over shared keys)."""
    parent = list(range(len(pictures())))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    for row, emoji in enumerate(pictures()):
        for key in _sibling_keys(emoji):
            parent[root(row)] = root(first.setdefault(key, row))
    smallest: dict[int, str] = {}
    for row, emoji in enumerate(pictures()):
        smallest[root(row)] = min(smallest.get(root(row), emoji.hexcode), emoji.hexcode)
    return tuple(smallest[root(row)] for row in range(len(parent)))


@lru_cache(maxsize=1)
def _buckets() -> dict[str, int]:
    """Base -> one of ten buckets of equal size: largest base first, into the emptiest bucket.

    Hashing alone would put 168 and 1 picture bases anywhere and give buckets of 200 to 450 pictures. Bases of one size
    go in the order of their SHA-256, so the assignment never changes while the pictures do not.
    """
    sizes: dict[str, int] = {}
    for base in bases():
        sizes[base] = sizes.get(base, 0) + 1
    order = sorted(sizes, key=lambda base: (-sizes[base], hashlib.sha256(base.encode()).hexdigest()))
    filled = [0] * NUM_BUCKETS
    bucket: dict[str, int] = {}
    for base in order:
        bucket[base] = filled.index(min(filled))
        filled[bucket[base]] += sizes[base]
    return bucket


def split_of(bucket: int, fold: int) -> Split:
    """Test is two buckets, dev the one after, train the other seven.

    Fold 0 leaves bucket 0, which one family of 126 fills by a third, to the last fold's test set.
    """
    place = (bucket - 1 - 2 * fold) % NUM_BUCKETS
    return "test" if place < 2 else "dev" if place == 2 else "train"


def read(config: Config, split: Split) -> Dataset:
    """Images uint8 (n, 48, 48, 3), id = hexcode; a text's id is a hash of the caption, so it is the same in all splits.

    Pictures with the same bytes are one image (the first's id) with both sets of captions. A caption whose images lie
    in several splits is a text of each, there with that split's images alone as positives.
    """
    if split not in ("train", "dev", "test"):
        raise BadInput(f"emoji: there is no split {split!r}; take train, dev or test.")
    images: dict[bytes, Emoji] = {}
    links: dict[tuple[str, str], None] = {}
    texts: dict[str, str] = {}
    for emoji, base in zip(pictures(), bases(), strict=True):
        if split_of(_buckets()[base], config.fold) != split:
            continue
        image = images.setdefault(emoji.pixels.tobytes(), emoji)
        for caption in captions(emoji, config.languages):
            text_id = hashlib.sha256(caption.encode()).hexdigest()[:16]
            texts[text_id] = caption
            links[image.hexcode, text_id] = None
    pairs = Pairs.from_ids(
        [emoji.hexcode for emoji in images.values()],
        list(texts),
        list(links),
        texts=list(texts.values()),
        name=f"emoji {split}",
    )
    return Dataset(pairs, np.stack([emoji.pixels for emoji in images.values()]), "emoji", split)
