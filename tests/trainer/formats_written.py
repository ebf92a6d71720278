"""One tiny set of pairs and a writer for every format: pictures or vectors, unequal captions, one of two images."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from miner.artifacts.pairs import Pairs

SIDE, REGIONS, DIM = 8, 3, 5
SPLITS = {"train": "train", "dev": "val", "test": "test"}
# split -> image -> (text id, caption). Caption 2 is of two images; the rest has what text files trip over.
SET: dict[str, dict[str, list[tuple[str, str]]]] = {
    "train": {
        "a.png": [("1", "a red, round thing"), ("2", 'it is "shared"'), ("3", "déjà vu")],
        "b.png": [("4", "one caption only")],
        "c.png": [("2", 'it is "shared"'), ("5", "line\u2028separator, inside")],
    },
    "dev": {"d.png": [("6", "dogs"), ("7", "more dogs")], "e.png": [("8", "an eel")]},
    "test": {"f.png": [("9", "a fox"), ("10", "foxes | bars")], "g.png": [("11", "geese"), ("12", "g"), ("13", "goo")]},
}


def pixels(image: str) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    return np.random.default_rng(ord(image[0])).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def vector(image: str, ndim: int = 2) -> np.ndarray:
    """(REGIONS, DIM) or (DIM,) float32."""
    shape = (REGIONS, DIM) if ndim == 2 else (DIM,)
    return np.random.default_rng(ord(image[0])).normal(size=shape).astype(np.float32)


def png(image: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(image)).save(file, "PNG")
    return file.getvalue()


def expected(split: str) -> Pairs:
    """The pairs as every format that has ids gives them."""
    images = SET[split]
    texts = {text_id: text for captions in images.values() for text_id, text in captions}
    links = [(image, text_id) for image, captions in images.items() for text_id, _ in captions]
    return Pairs.from_ids(list(images), list(texts), links, texts=list(texts.values()))


def rows() -> list[tuple[str, str, str, str]]:
    """(image, text id, caption, what the split is called) of every pair."""
    return [
        (image, text_id, text, SPLITS[split])
        for split, images in SET.items()
        for image, captions in images.items()
        for text_id, text in captions
    ]


def _write_csv(path: Path, head: list[str], lines: list[list[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([head, *lines])


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for images in SET.values():
        for image in images:
            (folder / image).write_bytes(png(image))


def write_vectors(folder: Path) -> Path:
    images = [image for split in SET.values() for image in split]
    np.save(folder / "images.npy", np.stack([vector(image) for image in images]))
    (folder / "image_ids.txt").write_text("\n".join(images))
    lines = [[image, text_id, text, "dev" if split == "val" else split] for image, text_id, text, split in rows()]
    _write_csv(folder / "pairs.csv", ["image_id", "text_id", "text", "split"], lines)
    return folder


def write_precomp(folder: Path) -> Path:
    for split, images in SET.items():
        captions = [(image, text) for image, own in images.items() for _, text in own]
        np.save(folder / f"{split}_ims.npy", np.stack([vector(image) for image in images]))
        for what, column in (("ids", 0), ("caps", 1)):
            (folder / f"{split}_{what}.txt").write_text(
                "".join(f"{caption[column]}\n" for caption in captions), "utf-8"
            )
    return folder


def write_folder(folder: Path) -> Path:
    _write_pictures(folder / "images")
    lines = [[image, text, split, text_id] for image, text_id, text, split in rows()]
    _write_csv(folder / "captions.csv", ["image", "caption", "split", "text_id"], lines)
    return folder


def write_karpathy(folder: Path) -> Path:
    _write_pictures(folder / "images")
    images = []
    for split, own in SET.items():
        for image, captions in own.items():
            sentences = [{"raw": text, "tokens": text.split(), "sentid": int(text_id)} for text_id, text in captions]
            images.append({"filename": image, "split": SPLITS[split], "imgid": len(images), "sentences": sentences})
    (folder / "dataset_tiny.json").write_text(json.dumps({"images": images, "dataset": "tiny"}))
    return folder


def write_parquet(folder: Path) -> Path:
    found = rows()
    columns = {
        "image_id": [row[0] for row in found],
        "text_id": [row[1] for row in found],
        # The picture stands with the first of an image's rows.
        "image": [
            png(row[0]) if row[0] not in [other[0] for other in found[:at]] else None for at, row in enumerate(found)
        ],
        "text": [row[2] for row in found],
        "split": [row[3] for row in found],
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet", row_group_size=4)
    return folder


def write_hf(folder: Path) -> Path:
    """What DatasetDict.save_to_disk writes, two shards a split and two record batches a shard."""
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        (folder / name).mkdir()
        table = pa.table(
            {
                "image": pa.array([{"bytes": png(image), "path": image} for image in SET[split]]),
                "image_id": list(SET[split]),
                "captions": [[text for _, text in own] for own in SET[split].values()],
                "text_ids": [[int(text_id) for text_id, _ in own] for own in SET[split].values()],
            }
        )
        files = []
        for shard in range(2):
            part = table.slice(shard * 2, 2)
            files.append({"filename": f"data-{shard:05d}-of-00002.arrow"})
            with pa.ipc.new_stream(folder / name / files[-1]["filename"], table.schema) as stream:
                stream.write_table(part, max_chunksize=1)
        (folder / name / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    return folder


def write_webdataset(folder: Path) -> Path:
    for split, name in SPLITS.items():
        with tarfile.open(folder / f"{name}-000.tar", "w") as tar:
            for image, captions in SET[split].items():
                about = {"captions": [text for _, text in captions], "text_ids": [text_id for text_id, _ in captions]}
                add(tar, image, png(image))
                add(tar, image.replace(".png", ".json"), json.dumps({**about, "image_id": image}).encode())
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class Written(NamedTuple):
    """A format: its writer, what holds its path, whether its images are pictures, whether it has the set's ids."""

    write: Callable[[Path], Path]
    key: str
    pictures: bool = True
    with_ids: bool = True


FORMATS = {
    "vectors": Written(write_vectors, "folder", pictures=False),
    "precomp": Written(write_precomp, "folder", pictures=False, with_ids=False),
    "folder": Written(write_folder, "folder"),
    "karpathy": Written(write_karpathy, "annotations"),
    "parquet": Written(write_parquet, "path"),
    "hf": Written(write_hf, "folder"),
    "webdataset": Written(write_webdataset, "path"),
}
