"""What people said about captions of other images in the Flickr8k test (Hodosh, Young, Hockenmaier, JAIR 47, 2013).

PATH is a folder, or a file in it, that holds either the published files

    ExpertAnnotations.txt         image, caption as image#number, three grades from 1 to 4
    CrowdFlowerAnnotations.txt    image, caption as image#number, share of yes, number of yes, number of no
    Flickr8k.token.txt            caption as image#number, its words

or the same by row, with a header: human_judgments.tsv (image_row, caption_row, expert_mean_1to4, crowd_frac_yes; an
empty cell where nobody was asked), ids.txt (image names by row) and captions.txt (caption c of image c // 5).

A caption is positive for an image from a mean grade of `min_expert` or a share of yes of `min_crowd` on; an image's own
captions always are. Image ids of the data set are file names, with or without folder and extension, or rows of ids.txt.
Its text ids do not matter: a caption is found among its image's by its letters and digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer.data._lines import read_lines
from trainer.judgements import Judgements
from trainer.judgements._tables import number, table

__all__ = ["Config", "read"]

COLUMNS = ("image_row", "caption_row", "expert_mean_1to4", "crowd_frac_yes")
CAPTIONS_PER_IMAGE = 5
Caption = tuple[str, int]  # of which image, and which of its captions


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: Path
    min_expert: float = Field(3.0, ge=1, le=4)
    min_crowd: float = Field(0.66, ge=0, le=1)

    @property
    def folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path


@dataclass(frozen=True)
class _Corpus:
    """`names` by row, where there are rows; the captions of every image; the verdicts."""

    names: list[str]
    captions: dict[str, dict[int, str]]
    verdicts: list[tuple[str, Caption, bool]]


def read(config: Config, pairs: Pairs) -> Judgements:
    """Raises BadInput for missing or wrong files, or images and captions that are not Flickr8k's."""
    folder = config.folder
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: no such folder; give that of Flickr8k.token.txt, ExpertAnnotations.txt and "
            "CrowdFlowerAnnotations.txt as published, or of human_judgments.tsv, ids.txt and captions.txt."
        )
    corpus = _by_row(config) if (folder / "human_judgments.tsv").is_file() else _published(config)
    images = _images(pairs, corpus, folder)
    texts = _texts(pairs, corpus, {row: name for name, row in images.items()})
    links: dict[tuple[int, int], bool] = {}
    for image, caption, positive in corpus.verdicts:
        if image in images and caption in texts:
            link = images[image], texts[caption]
            links[link] = positive or links.get(link, False)
    return Judgements.of(
        pairs,
        "Flickr8k human judgements",
        added=[link for link, positive in links.items() if positive],
        judged_images={image for image, _ in links},
        judged_texts={text for _, text in links},
    )


def _images(pairs: Pairs, corpus: _Corpus, folder: Path) -> dict[str, int]:
    """Image name -> row of the data set."""
    found = {_name(own): row for row, own in enumerate(pairs.image_ids) if _name(own) in corpus.captions}
    rows = {str(row): name for row, name in enumerate(corpus.names)}
    if not found and all(own in rows for own in pairs.image_ids):
        found = {rows[own]: row for row, own in enumerate(pairs.image_ids)}
    if not found:
        raise BadInput(
            f"{pairs.name}: no image id, the first {pairs.image_ids[0]!r}, is one of the {len(corpus.captions)} images "
            f"in {folder}; ids must be file names like {next(iter(corpus.captions), 'image')}.jpg"
            + (", or all of them rows of ids.txt." if rows else ".")
        )
    return found


def _texts(pairs: Pairs, corpus: _Corpus, name_of: dict[int, str]) -> dict[Caption, int]:
    """Caption -> row of the data set; captions of one image in the same words go to its texts in order."""
    if not pairs.texts:
        raise BadInput(f"{pairs.name}: no captions, only ids; these judgements are found by the words of a caption.")
    free: dict[tuple[str, str], list[int]] = {}
    for name in name_of.values():
        for place, words in corpus.captions[name].items():
            free.setdefault((name, _letters(words)), []).append(place)
    found: dict[Caption, int] = {}
    for image, text in zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True):
        if image not in name_of:
            continue
        same = free.get((name_of[image], _letters(pairs.texts[text])))
        if same is None:
            raise BadInput(
                f"{pairs.name}: {pairs.texts[text]!r} is no caption of {name_of[image]} in Flickr8k; the judgements "
                "are about the captions as they were published, for the images that these ids name."
            )
        found[(name_of[image], same.pop(0) if len(same) > 1 else same[0])] = text
    return found


def _by_row(config: Config) -> _Corpus:
    folder = config.folder
    names = [_name(line) for line in read_lines(folder / "ids.txt", "it must hold one image name per line")]
    words = read_lines(folder / "captions.txt", "it must hold one caption per line, five for each image of ids.txt")
    if len(words) != CAPTIONS_PER_IMAGE * len(names):
        raise BadInput(
            f"{folder / 'captions.txt'}: {len(words)} captions for {len(names)} images in ids.txt; give five each."
        )
    keys = [(name, place) for name in names for place in range(CAPTIONS_PER_IMAGE)]
    captions: dict[str, dict[int, str]] = {name: {} for name in names}
    for (name, place), caption in zip(keys, words, strict=True):
        captions[name][place] = caption
    path = folder / "human_judgments.tsv"
    verdicts = []
    for line, cells in table(path, COLUMNS):
        rows = [cells[column] for column in COLUMNS[:2]]
        if not all(row.isascii() and row.isdigit() for row in rows) or int(rows[0]) >= len(names):
            raise BadInput(f"{path}, line {line}: rows {rows}; they must be rows of ids.txt and of captions.txt.")
        if int(rows[1]) >= len(keys):
            raise BadInput(f"{path}, line {line}: caption_row {rows[1]}; captions.txt has {len(keys)} lines.")
        scores = [(column, least) for column, least in zip(COLUMNS[2:], _least(config), strict=True) if cells[column]]
        positive = any(number(path, line, column, cells[column]) >= least for column, least in scores)
        verdicts.append((names[int(rows[0])], keys[int(rows[1])], positive))
    return _Corpus(names, captions, verdicts)


def _published(config: Config) -> _Corpus:
    folder = config.folder
    captions: dict[str, dict[int, str]] = {}
    for path, line, cells in _cells(folder / "Flickr8k.token.txt", 2):
        image, place = _caption(path, line, cells[0])
        captions.setdefault(image, {})[place] = cells[1]
    min_expert, min_crowd = _least(config)
    verdicts = []
    for path, line, cells in _cells(folder / "ExpertAnnotations.txt", 5):
        grades = [number(path, line, "grade", cell) for cell in cells[2:]]
        verdicts.append((_name(cells[0]), _caption(path, line, cells[1]), sum(grades) / len(grades) >= min_expert))
    for path, line, cells in _cells(folder / "CrowdFlowerAnnotations.txt", 5):
        share = number(path, line, "share of yes", cells[2])
        verdicts.append((_name(cells[0]), _caption(path, line, cells[1]), share >= min_crowd))
    return _Corpus([], captions, verdicts)


def _least(config: Config) -> tuple[float, float]:
    return config.min_expert, config.min_crowd


def _cells(path: Path, width: int) -> Iterator[tuple[Path, int, list[str]]]:
    for line, text in enumerate(read_lines(path, f"it must hold {width} columns between tabs"), 1):
        cells = text.split("\t")
        if len(cells) != width:
            raise BadInput(f"{path}, line {line}: {len(cells)} columns between tabs; {width} are expected.")
        yield path, line, cells


def _caption(path: Path, line: int, text: str) -> Caption:
    image, _, place = text.partition("#")
    if not (place.isascii() and place.isdigit()):
        raise BadInput(f"{path}, line {line}: caption {text!r}; it must be the image's name, # and a number.")
    return _name(image), int(place)


def _name(text: str) -> str:
    return PurePath(text).stem


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))
