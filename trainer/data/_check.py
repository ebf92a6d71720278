"""What is in a set of pairs, and what is wrong with it: all splits, every image read once, a block at a time.

Severities: an *error* stops a training or makes its figures worthless; a *warning* is something that a person should
have decided; a *note* is what large sets of captions are like.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput, DamagedArtifact
from trainer.data import Dataset, blocks, load, name_of
from trainer.data._links import SPLITS
from trainer.data._pictures import Pictures
from trainer.text import SPECIAL, Vocabulary, tokenize

__all__ = ["Finding", "Report", "SplitReport", "examine"]

Severity = Literal["error", "warning", "note"]
Progress = Callable[[str, int, int], None]  # split, images seen, of how many
_SHOWN = 3
_SMALL = 11  # images; a gallery of ten has every item within the first ten


class Finding(NamedTuple):
    severity: Severity
    sentence: str


@dataclass
class SplitReport:
    """Figures of one split. Histograms are value -> count; `broken` is image id -> reason; `handled` counts pictures
    that are read, but not as they lie there ("CMYK", "animated": the first frame, "turned by EXIF", ...)."""

    images: int
    captions: int
    pairs: int
    shape: tuple[int, ...]
    dtype: str
    captions_per_image: dict[int, int]
    images_per_caption: dict[int, int]
    words_per_caption: dict[int, int]
    out_of_vocabulary: float | None = None
    duplicate_captions: int = 0
    duplicate_images: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    handled: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """What was found; `vocabulary` is how many words of the training captions occur `min_count` times."""

    format: str
    settings: dict[str, Any]
    min_count: int
    splits: dict[str, SplitReport] = field(default_factory=dict)
    vocabulary: int | None = None
    findings: list[Finding] = field(default_factory=list)

    def says(self, severity: Severity) -> list[str]:
        return [finding.sentence for finding in self.findings if finding.severity == severity]


@dataclass
class _Seen:
    """Where a caption or an image was seen first, over all splits: hash -> (split, id)."""

    captions: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    images: dict[bytes, tuple[str, str]] = field(default_factory=dict)


def examine(config: Any, min_count: int = 1, progress: Progress = lambda split, done, total: None) -> Report:
    """Read and judge every split that the settings describe. A split that cannot be read is an error among others."""
    report = Report(name_of(config), config.model_dump(mode="json"), min_count)
    # A set with too many broken pictures is to be described, not refused.
    lenient = config.model_copy(update={"max_broken": 1.0}) if "max_broken" in type(config).model_fields else config
    seen, vocabulary = _Seen(), None
    unread: dict[str, str] = {}
    try:
        getattr(sys.modules[type(config).__module__], "verify", lambda config: None)(config)
    except DamagedArtifact as damaged:
        report.findings.append(Finding("error", str(damaged)))
    for split in SPLITS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of broken pictures, which are about to be listed
                dataset = load(lenient, split)
        except (BadInput, DamagedArtifact) as wrong:
            unread[split] = str(wrong)
            continue
        report.findings += [Finding("note", note) for note in dataset.notes if note not in report.says("note")]
        if split == "train" and dataset.pairs.texts:
            vocabulary = Vocabulary.build(dataset.pairs.texts, min_count)
            report.vocabulary = len(vocabulary) - len(SPECIAL)
        report.splits[split] = _figures(dataset, vocabulary)
        report.findings += _about_captions(dataset, report.splits[split], seen)
        report.findings += _about_images(
            dataset, report.splits[split], seen, getattr(config, "max_broken", 0.0), progress
        )
    if len(unread) == len(SPLITS) and len(set(unread.values())) == 1:
        report.findings.append(Finding("error", unread["train"]))
    else:
        report.findings += [Finding("error", f"{split}: {wrong}") for split, wrong in unread.items()]
    shapes = {(found.shape, found.dtype) for found in report.splits.values()}
    if len(shapes) > 1:
        said = "; ".join(f"{split} {found.shape} {found.dtype}" for split, found in report.splits.items())
        report.findings.append(
            Finding("error", f"the splits have different images: {said}; one model takes one shape.")
        )
    report.findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    return report


def _figures(dataset: Dataset, vocabulary: Vocabulary | None) -> SplitReport:
    pairs = dataset.pairs
    lengths: Counter[int] = Counter()
    words = unknown = 0
    known = set(vocabulary.words) if vocabulary is not None else set()
    for text in pairs.texts:
        tokens = tokenize(text)
        lengths[len(tokens)] += 1
        words += len(tokens)
        unknown += sum(token not in known for token in tokens)
    return SplitReport(
        pairs.num_images,
        pairs.num_texts,
        pairs.num_pairs,
        dataset.image_shape,
        str(dataset.images.dtype),
        _histogram(np.bincount(pairs.image_rows)),
        _histogram(np.bincount(pairs.text_rows)),
        dict(sorted(lengths.items())),
        unknown / words if vocabulary is not None and words else None,
    )


def _histogram(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    values, times = np.unique(counts, return_counts=True)
    return dict(zip(values.tolist(), times.tolist(), strict=True))


def _about_captions(dataset: Dataset, found: SplitReport, seen: _Seen) -> Iterator[Finding]:
    pairs, split = dataset.pairs, dataset.split
    if not pairs.texts:
        yield Finding("error", f"{split}: no captions, only ids; training needs the texts themselves.")
        return
    empty = [text_id for text_id, text in zip(pairs.text_ids, pairs.texts, strict=True) if not tokenize(text)]
    if empty:
        yield Finding("warning", f"{split}: {len(empty)} caption(s) hold no word{_examples(empty)}.")
    cut = sum(count for length, count in found.words_per_caption.items() if length > Vocabulary.max_words)
    if cut:
        yield Finding(
            "note", f"{split}: {cut} caption(s) have more than {Vocabulary.max_words} words, and are cut there."
        )
    offsets, images = pairs.positives("text")
    of_string: dict[str, tuple[str, set[int]]] = {}
    twice: list[str] = []
    elsewhere: list[str] = []
    for row, text in enumerate(pairs.texts):
        own = set(images[offsets[row] : offsets[row + 1]].tolist())
        first, others = of_string.setdefault(" ".join(text.lower().split()), (pairs.text_ids[row], set()))
        if first != pairs.text_ids[row]:
            (twice if own & others else elsewhere).append(pairs.text_ids[row])
        others |= own
    found.duplicate_captions = len(twice) + len(elsewhere)
    if twice:
        yield Finding(
            "warning", f"{split}: {len(twice)} caption(s) repeat another of the same image{_examples(twice)}."
        )
    if elsewhere:
        yield Finding(
            "note",
            f"{split}: {len(elsewhere)} caption(s) say the same as one of another image{_examples(elsewhere)}; as a "
            "negative, such a caption is a false one.",
        )
    yield from _across("caption", "note", split, ((text.encode(), text) for text in of_string), seen.captions)


def _about_images(
    dataset: Dataset, found: SplitReport, seen: _Seen, max_broken: float, progress: Progress
) -> Iterator[Finding]:
    split, ids, done = dataset.split, dataset.pairs.image_ids, 0
    own: dict[bytes, str] = {}
    twice: list[str] = []
    for rows in blocks(dataset.images):
        values, broken, kinds = _read(dataset, rows)
        for kind in (kind for row in sorted(kinds) for kind in sorted(kinds[row])):
            found.handled[kind] = found.handled.get(kind, 0) + 1
        found.broken |= {ids[row]: reason for row, reason in broken.items()}
        for row, value in zip(rows.tolist(), values, strict=True):
            if row in broken:
                continue
            digest = hashlib.sha256(np.ascontiguousarray(value).data).digest()[:16]
            if own.setdefault(digest, ids[row]) != ids[row]:
                twice.append(ids[row])
        done += len(rows)
        progress(split, done, len(ids))
    found.duplicate_images = len(twice)
    if split != "train" and len(ids) < _SMALL:
        yield Finding("warning", f"{split}: {len(ids)} image(s) are too few to rank; R@10 is 100 for any model.")
    if found.broken:
        severity: Severity = "error" if len(found.broken) > max_broken * len(ids) else "warning"
        some = "; ".join(f"{image_id}: {reason}" for image_id, reason in itertools.islice(found.broken.items(), _SHOWN))
        yield Finding(severity, f"{split}: {len(found.broken)} of {len(ids)} images cannot be used ({some}).")
    if twice:
        yield Finding("warning", f"{split}: {len(twice)} image(s) look the same as another one{_examples(twice)}.")
    yield from _across("image", "warning", split, own.items(), seen.images)


def _read(
    dataset: Dataset, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], dict[int, str], dict[int, set[str]]]:
    """Images; row -> reason of the broken ones among them; row -> what was done to see a picture."""
    if isinstance(dataset.images, Pictures):
        return dataset.images.decode(rows, look=True)
    try:
        return dataset.images[rows], {}, {}
    except BadInput:
        parts, broken = [], {}
        for row in rows.tolist():
            try:
                parts.append(dataset.images[np.array([row])])
            except BadInput as wrong:
                parts.append(np.zeros((1, *dataset.image_shape), dataset.images.dtype))
                broken[row] = str(wrong)
        return np.concatenate(parts), broken, {}


def _across(
    what: str, severity: Severity, split: str, items: Iterable[tuple[bytes, str]], seen: dict[bytes, tuple[str, str]]
) -> Iterator[Finding]:
    """What of this split is in an earlier one as well; `items` are (hash, id)."""
    shared: dict[str, list[str]] = {}
    for key, name in items:
        before, _ = seen.setdefault(hashlib.sha256(key).digest()[:16], (split, name))
        if before != split:
            shared.setdefault(before, []).append(name)
    for before, names in shared.items():
        yield Finding(severity, f"{split}: {len(names)} {what}(s) are in {before} as well{_examples(names)}.")


def _examples(names: list[str]) -> str:
    return f" (first {', '.join(repr(name) for name in names[:_SHOWN])})"
