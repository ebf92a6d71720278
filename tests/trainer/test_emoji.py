"""The bundled set: sizes, captions, merged twins, and a split no sibling crosses (by the test's own definitions)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from trainer import data
from trainer.data import emoji

SPLITS = ("train", "dev", "test")


def loaded(fold: int = 0, languages: tuple[str, ...] = ()) -> dict[str, data.Dataset]:
    config = data.configure("emoji", {"fold": fold, "languages": languages})
    return {split: data.load(config, split) for split in SPLITS}


def things(hexcode: str) -> str:
    """What is depicted, from Unicode's own character names: without skin tone, joiner, sign, hair, arrow and sex."""
    left = []
    for code in hexcode.split("-"):
        name = unicodedata.name(chr(int(code, 16)), code)
        if re.search(r"EMOJI MODIFIER|JOINER|VARIATION|EMOJI COMPONENT|^(FE)?MALE SIGN$|RIGHTWARDS ARROW$", name):
            continue
        name = re.sub(r"^(BOY|GIRL|CHILD)$", "YOUNG", name)
        left.append(re.sub(r"^(WOMAN|MAN|ADULT)$", "GROWN", re.sub(r"^OLDER (WOMAN|MAN|ADULT)$", "OLD", name)))
    return " ".join(left) or hexcode


def plain(name: str) -> tuple[str, ...]:
    """A name's words without what tells siblings apart."""
    words = re.findall(r"[a-z’]+", name.split(":")[0].lower())
    dropped = {"man", "woman", "person", "men", "women", "people"}
    return tuple(word.replace("older", "old") for word in words if word not in dropped)


@pytest.mark.parametrize("fold", range(5))
def test_no_sibling_of_a_test_or_dev_image_is_elsewhere(fold: int) -> None:
    """Skin tones, genders, hair, clock faces, colours, equal pixels: none crosses from one split into another."""
    split_of = {row: split for split, d in loaded(fold).items() for row in d.pairs.image_ids}
    by_code = {picture.hexcode: picture for picture in emoji.pictures()}
    where: dict[object, set[str]] = defaultdict(set)
    for hexcode, split in split_of.items():
        picture = by_code[hexcode]
        where["thing", things(hexcode)].add(split)
        where["pixels", hashlib.sha256(picture.pixels.tobytes()).hexdigest()].add(split)
        where["words", plain(picture.name)].add(split)
        if re.search(r"o’clock|thirty", picture.name):
            where["clock"].add(split)
        if picture.name.startswith("keycap"):
            where["keycap"].add(split)
        if picture.name.split()[-1] == "moon":
            where["moon"].add(split)
    assert {key: splits for key, splits in where.items() if len(splits) > 1} == {}


def test_coloured_shapes_are_one_base_each() -> None:
    base = {picture.name: base for picture, base in zip(emoji.pictures(), emoji.bases(), strict=True)}
    for shape, colours in (
        ("heart", "red pink orange yellow green blue purple brown black grey white"),
        ("circle", "red orange yellow green blue purple brown black white"),
        ("square", "red orange yellow green blue purple brown"),
    ):
        assert len({base[f"{colour} {shape}"] for colour in colours.split()}) == 1
    assert base["judge"] == base["man judge"] == base["woman judge: dark skin tone"]
    assert base["child"] == base["boy"] == base["girl: light skin tone"]
    assert base["older person"] == base["old man"]
    assert base["woman dancing"] == base["man dancing"]
    assert base["cat"] != base["dog"]


def test_the_split_is_the_fixed_one() -> None:
    """A change of any of these changes every published figure: never change them."""
    sizes = {split: (d.pairs.num_images, d.pairs.num_texts, d.pairs.num_pairs) for split, d in loaded().items()}
    assert sizes == {"train": (2192, 5575, 5575), "dev": (314, 821, 821), "test": (628, 1563, 1563)}
    digest = hashlib.sha256("".join(d.pairs.fingerprint for d in loaded().values()).encode()).hexdigest()
    assert digest[:16] == "20d32e11e6a11e02"


def test_folds_test_every_image_once_and_share_none() -> None:
    tested: list[str] = []
    for fold in range(5):
        splits = loaded(fold)
        ids = [set(splits[split].pairs.image_ids) for split in SPLITS]
        assert (
            sum(map(len, ids)) == len(set().union(*ids)) == 3134
        )  # 3,139 pictures, five of them with the bytes of another
        assert 600 < len(ids[2]) < 650
        assert 290 < len(ids[1]) < 330
        tested += ids[2]
    assert len(tested) == len(set(tested)) == 3134


def test_captions_carry_the_qualifier_and_are_unequal_in_number() -> None:
    d = loaded()["train"]
    walkers = next(p for p in emoji.pictures() if p.name == "man walking: medium-light skin tone")
    assert next(emoji.captions(walkers)) == "man walking: medium-light skin tone"
    assert all(caption.endswith(": medium-light skin tone") for caption in emoji.captions(walkers))
    assert all(caption.startswith("man walking") for caption in emoji.captions(walkers))
    offsets, _ = d.pairs.positives("image")
    assert len(set(np.diff(offsets).tolist())) >= 4
    assert len(set(d.pairs.texts)) == d.pairs.num_texts


def test_twins_are_one_image_with_both_captions() -> None:
    by_pixels: dict[bytes, list[emoji.Emoji]] = defaultdict(list)
    for picture in emoji.pictures():
        by_pixels[picture.pixels.tobytes()].append(picture)
    twins = [group for group in by_pixels.values() if len(group) > 1]
    assert sum(len(group) - 1 for group in twins) == 5
    everything = list(loaded().values())
    for group in twins:
        d = next(d for d in everything if group[0].hexcode in d.pairs.image_ids)
        row = d.pairs.image_ids.index(group[0].hexcode)
        offsets, positives = d.pairs.positives("image")
        own = {d.pairs.texts[text] for text in positives[offsets[row] : offsets[row + 1]]}
        assert own == {caption for picture in group for caption in emoji.captions(picture)}


def test_a_shared_caption_keeps_its_id_in_every_split() -> None:
    splits = loaded()
    ids = {split: dict(zip(d.pairs.texts, d.pairs.text_ids, strict=True)) for split, d in splits.items()}
    shared = set(ids["train"]) & set(ids["test"])
    assert shared
    assert all(ids["train"][text] == ids["test"][text] for text in shared)


def test_languages_add_names() -> None:
    plain_texts, more = loaded()["test"].pairs, loaded(languages=("de", "ja"))["test"].pairs
    assert set(plain_texts.texts) < set(more.texts)
    assert plain_texts.image_ids == more.image_ids


def test_images_are_the_pictures() -> None:
    d = loaded()["dev"]
    assert d.image_shape == (48, 48, 3)
    assert np.asarray(d.images).dtype == np.uint8
    by_code = {picture.hexcode: picture for picture in emoji.pictures()}
    for row in (0, 7, 100):
        assert np.array_equal(d.images[np.array([row])][0], by_code[d.pairs.image_ids[row]].pixels)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="fold"):
        data.configure("emoji", {"fold": 5})
    with pytest.raises(BadInput, match="no split 'tset'"):
        data.load(data.configure("emoji"), "tset")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="Did you mean 'emoji'"):
        data.configure("emojis")
