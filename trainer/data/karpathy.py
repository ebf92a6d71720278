"""Karpathy's splits: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`, and a folder of pictures.

    {"images": [{"filename", "filepath"?, "split", "imgid"?, "cocoid"?,
                 "sentences": [{"raw", "tokens"?, "sentid"?}, ...]}, ...]}

Source: Karpathy and Fei-Fei, CVPR 2015. Some COCO images have more than five captions: training takes all, evaluation
the first five, as the field does. An image lies at `images`/filepath/filename, or at `images`/filename. A sentid that
stands with several images, with the same caption each time, is one text of all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from miner.artifacts.errors import BadInput
from trainer.data import Dataset, Split
from trainer.data._lines import read_json
from trainer.data._links import SPLITS, Links, inside, split_named
from trainer.data._pictures import Pictures, PictureSettings
from trainer.data._places import Places

__all__ = ["SIGNS", "Config", "read", "recognise"]

SIGNS = "dataset_*.json, or a folder with one"


class Config(PictureSettings):
    """`annotations` is the JSON file, `images` the folder of pictures [default: images/ beside it].

    `restval`: whether COCO's 30,504 images of that name are trained on. `eval_captions` of an image count in dev and
    test, all if None. `text` takes captions as written or as the file tokenised them. `image_id` says which field is
    the id.
    """

    annotations: Path
    images: Path | None = None
    restval: bool = True
    eval_captions: int | None = Field(default=5, ge=1)
    text: Literal["raw", "tokens"] = "raw"
    image_id: Literal["filename", "imgid", "cocoid"] = "filename"


def recognise(path: Path) -> dict[str, Any] | None:
    files = sorted(path.glob("dataset_*.json")) if path.is_dir() else [path]
    found = [file for file in files if file.suffix == ".json" and file.is_file() and _looks_like_one(file)]
    if len(found) > 1:
        raise BadInput(
            f"{path}: several Karpathy splits here, {', '.join(file.name for file in found)}; say which: "
            f"karpathy:annotations={found[0]}."
        )
    return {"annotations": found[0]} if found else None


def _looks_like_one(path: Path) -> bool:
    with open(path, "rb") as file:
        return b'"sentences"' in file.read(2**16)


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for what is not such a file, an unknown split, ids that occur twice, or missing pictures."""
    path = config.annotations
    folder = config.images if config.images is not None else path.parent / "images"
    if path.is_file() and not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; set images to the folder of the pictures that {path.name} lists.")
    links = Links(split, config.exclude)
    files: dict[str, Path] = {}
    seen: set[str] = set()
    for number, image in enumerate(_images(path, config.text)):
        where = f"{path}, images[{number}]"
        in_split = _split(image, where)
        if image["split"] == "restval" and not config.restval:
            continue
        image_id = _name(image, config.image_id, where)
        if image_id in seen:
            raise BadInput(f"{where}: {config.image_id} {image_id!r} occurs more than once; ids must be unique.")
        seen.add(image_id)
        texts, ids = _captions(image, config, where)
        kept = None if in_split == "train" else config.eval_captions
        if links.add(in_split, image_id, texts, ids, where, kept):
            files[image_id] = _file(folder, image, where)
    pairs = links.pairs(path.stem, str(path))
    pictures = Pictures(
        Places.of_files([files[image_id] for image_id in pairs.image_ids]), config, f"{path.stem} {split}"
    )
    return Dataset(pairs, pictures, path.stem, split, tuple(links.notes()))


def _images(path: Path, text: str) -> list[dict[str, Any]]:
    def without_tokens(values: dict[str, Any]) -> dict[str, Any]:
        # Five times the captions themselves, for COCO more than a gigabyte: gone as soon as it is parsed.
        if text != "tokens":
            values.pop("tokens", None)
        return values

    found = read_json(path, "it must be a Karpathy split, dataset_*.json", "download it again", without_tokens)
    images = found.get("images") if isinstance(found, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise BadInput(f'{path}: no list "images" of objects; it must be a Karpathy split, dataset_*.json.')
    return images


def _field(values: dict[str, Any], key: str, where: str) -> Any:
    if key not in values:
        raise BadInput(f"{where}: no field {key!r} (found: {', '.join(values)}).")
    return values[key]


def _name(values: dict[str, Any], key: str, where: str) -> str:
    found = _field(values, key, where)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise BadInput(f"{where}: {key} is {str(found)[:60]!r}; it must be a string or a whole number.")
    return str(found)


def _split(image: dict[str, Any], where: str) -> Split:
    said = str(_field(image, "split", where))
    found = split_named(said)
    if found is None:
        raise BadInput(f"{where}: split {said!r}; it must be one of train, restval, val, {', '.join(SPLITS[1:])}.")
    return found


def _captions(image: dict[str, Any], config: Config, where: str) -> tuple[list[Any], list[str] | None]:
    """(captions, None for a missing one; their ids if the file gives any)."""
    sentences = _field(image, "sentences", where) or []
    if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
        raise BadInput(f"{where}: sentences must be a list of objects with the captions.")
    texts = [_text(_field(one, config.text, f"{where}.sentences")) for one in sentences]
    if any(one.get("sentid") is None for one in sentences):
        return texts, None
    ids = [_name(one, "sentid", f"{where}.sentences") for one in sentences]
    if len(set(ids)) != len(ids):
        raise BadInput(f"{where}: a sentid occurs twice among {', '.join(ids)}; ids must be unique.")
    return texts, ids


def _text(value: Any) -> Any:
    """A caption stripped, or put together of its tokens; whatever else it is, as it is."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    return value.strip() if isinstance(value, str) else value


def _file(folder: Path, image: dict[str, Any], where: str) -> Path:
    filename, filepath = _name(image, "filename", where), str(image.get("filepath") or "")
    flat = inside(folder, filename)
    nested = inside(folder, f"{filepath}/{filename}") if filepath else flat
    return nested if filepath and nested.exists() else flat
