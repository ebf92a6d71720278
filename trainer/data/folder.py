"""A folder of pictures and their captions, in whichever of these forms it comes:

    captions.csv, captions.txt, metadata.csv   image,caption[,split][,text_id] by any usual column names, separated by
                                               commas, bars or tabs (Flickr8k and Flickr30k on Kaggle)
    captions.token, *.token.txt, *.token       name#0<tab>caption, one per line (Flickr8k and Flickr30k, original)
    a.jpg and a.txt beside each other          one caption per line

Pictures lie in a folder below (images/, Images/, ...) or in the folder itself. Splits: a column `split`; else the lists
of picture names train.txt, dev.txt or val.txt, and test.txt (or Flickr_8k.trainImages.txt and so on); else folders of
pictures train/, dev/ or val/, and test/; else a hash of the picture's name decides, 80% train, 10% dev, 10% test, which
is said. An image's id is its name below the folder of the pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from miner.artifacts.errors import BadInput
from trainer.data import Dataset, Split
from trainer.data._lines import read_lines, read_table, read_text
from trainer.data._links import BY_HASH, SPLITS, Links, by_hash, inside, split_named
from trainer.data._pictures import Pictures, PictureSettings
from trainer.data._places import Places
from trainer.data._spec import glance

__all__ = ["SIGNS", "Config", "read", "recognise"]

SIGNS = "a folder with captions.csv, captions.txt, *.token or pictures with a .txt each"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_TABLES = (
    "captions.csv", "captions.tsv", "captions.txt", "metadata.csv", "results.csv", "captions.token",
    "*.token.txt", "*.token",
)  # fmt: skip
_PICTURES = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images")
_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.txt", "*trainImages.txt"),
    "dev": ("dev.txt", "val.txt", "*devImages.txt"),
    "test": ("test.txt", "*testImages.txt"),
}
_IMAGE = ("image", "image_name", "file_name", "filename", "file", "image_id")
_CAPTION = ("caption", "text", "comment", "captions")
_EVERY_SPLIT = (
    "Say in a column split of captions.csv which pictures are train, dev and test, or bring more pictures: by a hash "
    "of their names a tenth goes to dev and to test each."
)
_NUMBERED = re.compile(r"(.+)#\d+")


class Config(PictureSettings):
    """`captions` and `images` are the table of captions and the folder of pictures, named from `folder` on
    [default: the usual names]. `split_by` "hash" ignores what the folder says about splits, "column", "lists" and
    "folders" insist on it.
    """

    folder: Path
    captions: str | None = None
    images: str | None = None
    split_by: Literal["auto", "column", "lists", "folders", "hash"] = "auto"


class _Line(NamedTuple):
    where: str
    image: str
    caption: str
    split: str | None
    text_id: str | None


def recognise(path: Path) -> dict[str, Any] | None:
    if not path.is_dir():
        return None
    beside = any(one.suffix.lower() in EXTENSIONS and one.with_suffix(".txt").is_file() for one in glance(path))
    return {"folder": path} if beside or _first(path, _TABLES) else None


def read(config: Config, split: Split) -> Dataset:
    """Raises BadInput for a folder without captions, a line that cannot be read, or pictures that are not there."""
    folder = config.folder
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give one that holds pictures and captions.csv (image,caption).")
    table = folder / config.captions if config.captions else _first(folder, _TABLES)
    lines = _lines(table) if table is not None else list(_from_sidecars(folder / (config.images or ".")))
    if not any(line.caption for line in lines):
        raise BadInput(
            f"{table or folder}: no captions found; write captions.csv with the columns image,caption, or a .txt "
            "beside every picture."
        )
    split_of, notes = _splits(config, lines)
    pictures = folder / config.images if config.images else _pictures(folder, table)
    links = Links(split, config.exclude)
    for line in lines:
        in_split = split_of(line)
        if in_split is None:
            continue
        ids = None if line.text_id is None else [line.text_id]
        links.add(in_split, line.image, [line.caption], ids, line.where)
    name = folder.resolve().name
    pairs = links.pairs(name, str(table or folder), _EVERY_SPLIT)
    places = Places.of_files([inside(pictures, image) for image in pairs.image_ids])
    return Dataset(pairs, Pictures(places, config, f"{name} {split}"), name, split, (*notes, *links.notes()))


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()), None)


def _pictures(folder: Path, table: Path | None) -> Path:
    named = (folder / name for name in _PICTURES if table is not None)
    return next((path for path in named if path.is_dir()), folder)


def _sidecars(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures at any depth that have a .txt of the same name, by name."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path.with_suffix(".txt").is_file():
            yield path, path.with_suffix(".txt")


def _from_sidecars(folder: Path) -> Iterator[_Line]:
    for picture, beside in _sidecars(folder):
        lines = [(number, caption) for number, caption in enumerate(read_lines(beside, ""), 1) if caption]
        for number, caption in lines or [(1, "")]:
            yield _Line(f"{beside}, line {number}", picture.relative_to(folder).as_posix(), caption, None, None)


def _lines(path: Path) -> list[_Line]:
    head = read_text(path, "it must hold the captions: image,caption").partition("\n")[0]
    delimiter = next((sign for sign in "\t|," if sign in head), ",")
    columns = [cell.strip().strip('"').lower() for cell in head.split(delimiter)]
    image, caption = (next((name for name in known if name in columns), None) for known in (_IMAGE, _CAPTION))
    if image is not None and caption is not None:
        return list(_from_table(path, delimiter, image, caption))
    if delimiter == "\t":
        return list(_from_tokens(path))
    raise BadInput(
        f"{path}: the first line is {head.strip()[:80]!r}; it must name the columns image,caption (and split, "
        "text_id if there are any), or every line be name#number<tab>caption."
    )


def _from_table(path: Path, delimiter: str, image: str, caption: str) -> Iterator[_Line]:
    for number, raw in read_table(path, (), "", delimiter):
        cells = {key.strip().lower(): (value or "").strip() for key, value in raw.items() if isinstance(key, str)}
        where = f"{path}, line {number}"
        if not cells.get(image):
            raise BadInput(f"{where}: no picture is named in the column {image!r}.")
        # A comma too many, unquoted, would shorten the caption unseen.
        if raw.get(None) is not None:  # type: ignore[call-overload]
            raise BadInput(
                f"{where}: more columns than the first line has; put captions with a {delimiter!r} in quotes."
            )
        yield _Line(
            where, cells[image], cells.get(caption, ""), cells.get("split") or None, cells.get("text_id") or None
        )


def _from_tokens(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(read_lines(path, ""), 1):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise BadInput(f"{path}, line {number}: {line[:60]!r} is not name#number<tab>caption.")
        numbered = _NUMBERED.fullmatch(name)
        yield _Line(f"{path}, line {number}", numbered[1] if numbered else name, caption.strip(), None, None)


def _splits(config: Config, lines: list[_Line]) -> tuple[Callable[[_Line], Split | None], list[str]]:
    """The function from a line to its split, None for a picture in no split, and what should be said about it."""
    if config.split_by in ("auto", "column") and any(line.split for line in lines):
        bare = sum(not (line.caption or line.split) for line in lines)
        notes = [f"{config.folder}: {bare} line(s) with neither a caption nor a split are left out."] * bool(bare)
        return _by_column, notes
    if config.split_by == "column":
        raise BadInput(f"{config.folder}: split_by = 'column', but the captions have no column split.")
    lists = {split: _first(config.folder, patterns) for split, patterns in _LISTS.items()}
    if config.split_by == "lists" or (config.split_by == "auto" and any(lists.values())):
        return _by_lists(config.folder, lists, lines)
    if config.split_by == "hash" or (config.split_by == "auto" and not any(_by_folder(line) for line in lines)):
        return (lambda line: by_hash(line.image)), [f"{config.folder}: {BY_HASH}."]
    unused = {line.image for line in lines if _by_folder(line) is None}
    return _by_folder, [f"{config.folder}: {len(unused)} picture(s) in no split's folder are left out."] * bool(unused)


def _by_folder(line: _Line) -> Split | None:
    first, slash, _ = line.image.partition("/")
    return split_named(first) if slash else None


def _by_lists(
    folder: Path, lists: dict[Split, Path | None], lines: list[_Line]
) -> tuple[Callable[[_Line], Split | None], list[str]]:
    of: dict[str, Split] = {}
    for split, path in lists.items():
        if path is None:
            raise BadInput(
                f"{folder}: no list of pictures for {split} ({' or '.join(_LISTS[split])}); add the file, or "
                "set split_by = 'hash'."
            )
        for name in filter(None, read_lines(path, "")):
            if of.setdefault(name, split) != split:
                raise BadInput(f"{path}: {name!r} is in the list for {of[name]} as well; a picture has one split.")
    # Flickr30k's lists have no extensions. Of pictures of one name in several folders, none is meant by the name alone.
    bare = {name: split for name, split in of.items() if not name.lower().endswith(EXTENSIONS)}
    times = Counter(Path(image).stem for image in {line.image for line in lines})

    def by_list(line: _Line) -> Split | None:
        path = Path(line.image)
        own = of.get(line.image) or bare.get(path.with_suffix("").as_posix())
        return own or (bare.get(path.stem) if times[path.stem] == 1 else None)

    unused = {line.image for line in lines if by_list(line) is None}
    return by_list, [f"{folder}: {len(unused)} picture(s) in none of the lists are left out."] * bool(unused)


def _by_column(line: _Line) -> Split | None:
    if not (line.caption or line.split):
        return None
    found = split_named(line.split or "")
    if found is None:
        raise BadInput(f"{line.where}: split {line.split!r}; it must be one of {', '.join(SPLITS)} or val.")
    return found
