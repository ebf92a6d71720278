"""WebDataset: tar shards whose members belong together when they share a name up to its first dot.

    000017.jpg     the picture (also png, webp, gif, bmp, tif, ppm)
    000017.txt     its captions, one per line
    000017.json    optional: "captions" [...], perhaps "text_ids" [...], or "caption" or "text"; "image_id", "split"

Captions are those of the JSON's list, else of the text file, else the JSON's one caption. Nothing is unpacked: the
shards are gone through once to learn where every picture lies, and a member's name is an id, never a path. Shards must
not be compressed, which pictures do not profit from.

Source of the layout: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

from miner.artifacts.errors import BadInput
from trainer.data import Dataset, Split
from trainer.data._links import BY_HASH, SPLITS, Links, by_hash, split_named
from trainer.data._pictures import Pictures, PictureSettings
from trainer.data._places import Places
from trainer.data._shards import Sample, expanded, samples

__all__ = ["SIGNS", "Config", "read", "recognise"]

SIGNS = "a shard *.tar, or a folder of them"
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_USUAL: dict[Split, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "val"), "test": ("test",)}


class Config(PictureSettings):
    """`path` is a shard or a folder of them. `train`, `dev` and `test` are patterns of shards below it, with * and
    {000..012} [default: train*.tar and train/*.tar, and so on; dev may be called val].

    `split_by` "json" takes the split from each sample's JSON, "hash" from a hash of the image's id, over all shards.
    `ids` "shard" puts a shard's name before its keys, for sets whose shards all begin with the same key.
    `caption_per_line`: whether each line of a text file is a caption of its own.
    """

    path: Path
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    split_by: Literal["shards", "json", "hash"] = "shards"
    ids: Literal["key", "shard"] = "key"
    caption_per_line: bool = True


def recognise(path: Path) -> dict[str, Any] | None:
    found = path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))
    return {"path": path} if found or (path.is_dir() and any(path.glob("*/*.tar"))) else None


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for no shards, a shard that is compressed, damaged or cut, and samples whose ids do not fit."""
    shards = _shards(config, split)
    links = Links(split, config.exclude, whole=config.split_by != "shards")
    places: dict[str, tuple[int, int, int]] = {}
    shard_of: dict[str, Path] = {}
    incomplete = 0
    for number, shard in enumerate(shards):
        for sample in samples(shard):
            about = _about(sample)
            captions, text_ids = _captions(sample, about, config)
            picture = _picture(sample)
            if picture is None:
                incomplete += 1
                continue
            given = about.get("image_id")
            image_id = _own_id(sample, config, shard_of) if given is None else str(given)
            of = _split(sample, about, image_id, config, split)
            if links.add(of, image_id, captions, text_ids, sample.where):
                places.setdefault(image_id, (number, *picture))
    _refuse_ambiguous(config, split, set(shards), links.exclude & shard_of.keys())
    name = config.path.resolve().stem
    pairs = links.pairs(name, str(config.path), "Set split_by, or train, dev and test to patterns of shards.")
    notes = [*links.notes(), *([f"{config.path}: {BY_HASH}."] if config.split_by == "hash" else [])]
    if incomplete:
        notes.append(f"{config.path}: {incomplete} sample(s) without a picture are left out.")
    stored = Places.of([str(shard) for shard in shards], [places[image_id] for image_id in pairs.image_ids])
    return Dataset(pairs, Pictures(stored, config, f"{name} {split}"), name, split, tuple(notes))


def _shards(config: Config, split: Split) -> list[Path]:
    if config.path.is_file():
        if config.split_by == "shards":
            raise BadInput(f"{config.path}: one shard, which has to be split: set split_by = 'hash' (or 'json').")
        return [config.path]
    if config.split_by != "shards":
        patterns: tuple[str, ...] = ("*.tar", "*/*.tar")
    else:
        usual = tuple(f"{name}{rest}.tar" for name in _USUAL[split] for rest in ("*", "/*"))
        asked: str | None = getattr(config, split)
        patterns = usual if asked is None else (asked,)
    found: list[Path] = []
    for pattern in (choice for given in patterns for choice in expanded(given)):
        if Path(pattern).is_absolute():
            raise BadInput(f"{config.path}: the pattern {pattern!r} is absolute; write it relative to path.")
        shards = sorted(config.path.glob(pattern))
        if not shards and "*" not in pattern:
            raise BadInput(f"{config.path / pattern}: no such shard, though {split} names it.")
        found += shards
    if not found:
        there = ", ".join(sorted(path.name for path in config.path.glob("*.tar"))[:5]) or "no *.tar"
        raise BadInput(
            f"{config.path}: no shard for {split} ({' or '.join(patterns)}); found {there}. Set "
            f"{split} to a pattern such as 'part-{{000..012}}.tar', or split_by = 'hash'."
        )
    return list(dict.fromkeys(found))


def _about(sample: Sample) -> dict[str, Any]:
    text = sample.text("json")
    try:
        found = {} if text is None else json.loads(text)
    except ValueError as broken:
        raise BadInput(f"{sample.where}.json: not JSON ({broken}).") from broken
    return found if isinstance(found, dict) else {}


def _picture(sample: Sample) -> tuple[int, int] | None:
    found = [extension for extension in PICTURES if extension in sample.members]
    if len(found) > 1:
        raise BadInput(f"{sample.where}: more than one picture ({', '.join(found)}); leave one in the shard.")
    return sample.members[found[0]] if found else None


def _captions(sample: Sample, about: dict[str, Any], config: Config) -> tuple[list[Any], list[str] | None]:
    """(captions, None for a missing one; their ids if the JSON gives any)."""
    listed, ids = about.get("captions"), about.get("text_ids")
    if listed is not None:
        if not isinstance(listed, list) or not (ids is None or (isinstance(ids, list) and len(ids) == len(listed))):
            raise BadInput(f"{sample.where}.json: captions must be a list, and text_ids, if given, one as long.")
        return listed, None if ids is None else [str(one) for one in ids]
    text = sample.text("txt")
    if text is None:
        text = about.get("caption") or about.get("text")
    if not isinstance(text, str):
        return [text], None
    lines = text.split("\n") if config.caption_per_line else [" ".join(text.split("\n"))]
    return [line.strip() for line in lines if line.strip()], None


def _own_id(sample: Sample, config: Config, shard_of: dict[str, Path]) -> str:
    """The id of an image that the JSON gives none. Raises BadInput for a key that another shard has too."""
    image_id = sample.key if config.ids == "key" else f"{_below(config, sample.shard)}/{sample.key}"
    before = shard_of.setdefault(image_id, sample.shard)
    if before != sample.shard:
        raise BadInput(f"{sample.shard}: the key {image_id!r} is in {before} as well; set ids = 'shard'.")
    return image_id


def _below(config: Config, shard: Path) -> str:
    """A shard's name, with the folders between `config.path` and it: train/0.tar and val/0.tar are not the same."""
    inner = shard.relative_to(config.path) if config.path.is_dir() else Path(shard.name)
    return inner.with_suffix("").as_posix()


def _refuse_ambiguous(config: Config, split: Split, own: set[Path], keys: Set[str]) -> None:
    """Refuse to leave out an image by a key that is in shards of another split too: nobody knows which one is meant."""
    if not keys or config.split_by != "shards" or config.ids == "shard":
        return
    for other in SPLITS:
        try:
            shards = _shards(config, other) if other != split else []
        except BadInput:
            continue  # there is no such split
        for sample in (sample for shard in shards if shard not in own for sample in samples(shard)):
            if sample.key in keys and _about(sample).get("image_id") is None:
                raise BadInput(
                    f"{config.exclude}: the key {sample.key!r} is in shards of {split} and in {sample.shard}, so that "
                    "it does not say which picture to leave out; set ids = 'shard', and write the list again."
                )


def _split(sample: Sample, about: dict[str, Any], image_id: str, config: Config, split: Split) -> Split:
    if config.split_by == "shards":
        return split
    if config.split_by == "hash":
        return by_hash(image_id)
    found = split_named(str(about.get("split", "")))
    if found is None:
        said = about.get("split")
        raise BadInput(f"{sample.where}.json: split {said!r}; it must be one of {', '.join(SPLITS)} or val.")
    return found
