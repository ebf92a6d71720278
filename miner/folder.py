"""A folder of vectors made by anybody:

    images.npy  texts.npy           (rows, dim) float16, float32 or float64
    image_ids.txt  text_ids.txt     optional, one id per line and row; without them the ids are 0, 1, 2, ...
    pairs.csv | .tsv | .parquet     columns image_id, text_id: who belongs to whom, many-to-many

In place of `images.npy` (`texts.npy`) and the ids there may be what `trainer encode` writes: `image/` (`text/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.embeddings import EMBEDDINGS, Embeddings, check_vectors
from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import MANIFEST, digest_file, open_artifact
from miner.artifacts.npy import map_npy, read_ids
from miner.artifacts.pairs import Pairs, Side
from miner.artifacts.parquet import arrow_source
from miner.scores import Unit, norms

__all__ = ["Folder", "checked", "open_folder"]

Vectors = npt.NDArray[np.floating[Any]]
_PAIRS = ("pairs.csv", "pairs.tsv", "pairs.parquet")
_COLUMNS = ["image_id", "text_id"]


@dataclass(frozen=True)
class Folder:
    """Vectors by row of `pairs`, float16 or float32, checked; `fingerprints` say which, by side.

    `checkpoint` is the fingerprint of the model that made both, None where nobody knows.
    """

    pairs: Pairs
    images: Vectors
    texts: Vectors
    fingerprints: dict[str, str]
    checkpoint: str | None = None

    def vectors(self, side: Side, metric: str) -> Any:
        """Vectors whose inner product is the metric: as they are for `ip`, for `cosine` scaled to length 1 as they are
        read (`Unit`)."""
        raw = self.images if side == "image" else self.texts
        return Unit(raw) if metric == "cosine" else raw

    def unit_length(self) -> bool:
        """Whether every vector has length 1, up to float16 rounding."""
        return all(bool((np.abs(norms(raw) - 1) < 1e-2).all()) for raw in (self.images, self.texts))


def open_folder(path: Path) -> Folder:
    """Read and check everything. Raises BadInput with one sentence for whatever is wrong, DamagedArtifact."""
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; give one that holds images.npy, texts.npy and pairs.csv.")
    images, image_ids, image_print, image_model = _side(path, "image")
    texts, text_ids, text_print, text_model = _side(path, "text")
    if image_model != text_model:
        raise BadInput(
            f"{path}: images were encoded by model {str(image_model)[:12]} and texts by {str(text_model)[:12]}; "
            "their similarities mean nothing: encode both with one checkpoint."
        )
    if images.shape[1] != texts.shape[1]:
        raise BadInput(
            f"{path}: images have dim {images.shape[1]} and texts dim {texts.shape[1]}; both must come from one model."
        )
    found = [name for name in _PAIRS if (path / name).exists()]
    if len(found) != 1:
        raise BadInput(
            f"{path}: found {' and '.join(found) or 'no pairs file'}; give exactly one of "
            f"{', '.join(_PAIRS)}, with the columns image_id and text_id."
        )
    pairs = Pairs.from_columns(image_ids, text_ids, *_links(path / found[0]), name=str(path / found[0]))
    return Folder(pairs, images, texts, {"image": image_print, "text": text_print}, image_model)


def _side(path: Path, side: Side) -> tuple[Vectors, Ids, str, str | None]:
    """(vectors, ids, fingerprint, checkpoint) of one side."""
    plain, made = path / f"{side}s.npy", path / side
    if plain.exists() and (made / MANIFEST).exists():
        raise BadInput(f"{path}: found both {plain.name} and {made.name}/; remove one, for it is unclear which counts.")
    if (made / MANIFEST).exists():
        embeddings = Embeddings.open(open_artifact(made, EMBEDDINGS))
        if embeddings.side != side:
            raise BadInput(f"{made}: these are embeddings of {embeddings.side}s, but {side}s were expected.")
        whole = embeddings.array() if len(embeddings.parts) > 1 else embeddings.parts[0]
        return checked(whole, made, embeddings.ids), embeddings.ids, embeddings.fingerprint, embeddings.checkpoint
    if not plain.exists():
        raise BadInput(f"{plain}: no such file; give the {side} vectors as a (rows, dim) .npy file.")
    vectors = map_npy(plain)
    ids = read_ids(path / f"{side}_ids.txt", len(vectors))
    return checked(vectors, plain, ids), ids, digest_file(plain), None


def checked(vectors: Vectors, path: Path | str, ids: Ids) -> Vectors:
    """The vectors as float16 or float32, without NaN, infinity or zeros also after that. Raises BadInput, which calls
    them by `path`."""
    check_vectors(vectors, str(path), ids)
    if vectors.dtype == np.float64:
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32)
        check_vectors(vectors, f"{path} rounded to float32", ids)
    return vectors


def _links(path: Path) -> list[Any]:
    """The two columns of a pairs file, image ids and text ids."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    source = arrow_source(path.read_bytes())
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(source, columns=_COLUMNS)
        else:
            table = pyarrow.csv.read_csv(
                source,
                parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ","),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(_COLUMNS, pa.string()), include_columns=_COLUMNS
                ),
            )
        if table.column_names != _COLUMNS:
            raise BadInput(f"{path}: columns {_COLUMNS} are needed, but only {table.column_names} are there.")
        columns = [pc.cast(table[name], pa.string()) for name in _COLUMNS]
    except (pa.ArrowException, OSError) as broken:
        what = str(broken).partition("\n")[0]
        raise BadInput(f"{path}: cannot be read as pairs ({what}); give the columns image_id and text_id.") from broken
    if any(column.null_count for column in columns):
        raise BadInput(f"{path}: a row lacks its image_id or text_id; give both in every row.")
    return columns
