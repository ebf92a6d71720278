"""Which columns of a table are what, and what the data call our splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from miner.artifacts.errors import BadInput
from trainer.data import Split
from trainer.data._arrow import Table, vector_type
from trainer.data._links import SPLITS, split_named
from trainer.data._pictures import PictureSettings

__all__ = ["Columns", "TableSettings"]

_USUAL = {
    "image": ("image", "img", "picture", "vector"),
    "text": ("text", "texts", "caption", "captions", "sentence", "sentences"),
    "image_id": ("image_id", "img_id"),
    "text_id": ("text_id", "text_ids", "caption_id", "sentid", "sentids"),
    "split": ("split",),
}


class TableSettings(PictureSettings):
    """`image`, `text`, `image_id`, `text_id` and `split` name columns [default: the usual names].

    `images` is the folder that paths are meant from [default: where the table lies]. Splits come from the column, from
    the names of the files, or from a hash of the image's id; `split_by` "auto" takes the first of the first two that
    says anything. `train`, `dev` and `test` are what the data call them, several names joined by + [default: the usual
    names]. `cache_mib` bounds what is kept of images that have to be unpacked (Parquet, compressed Arrow).
    """

    image: str | None = None
    text: str | None = None
    image_id: str | None = None
    text_id: str | None = None
    split: str | None = None
    images: Path | None = None
    split_by: Literal["auto", "column", "files", "hash"] = "auto"
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    cache_mib: int = Field(default=256, ge=1)

    def split_called(self, name: str) -> Split | None:
        """The split that `name` stands for, None if it stands for none."""
        for split in SPLITS:
            given = getattr(self, split)
            if given is not None and name in given.split("+"):
                return split
        usual = split_named(name)
        return usual if usual is not None and getattr(self, usual) is None else None


class Columns(NamedTuple):
    """The columns of the tables by what they are for; `vector` is (dtype, shape) when images are vectors."""

    image: str
    text: str
    image_id: str | None
    text_id: str | None
    split: str | None
    is_path: bool
    vector: tuple[np.dtype[Any], tuple[int, ...] | None] | None

    @classmethod
    def of(cls, config: TableSettings, table: Table) -> Columns:
        found = {role: _column(role, getattr(config, role), table) for role in _USUAL}
        image, text = found["image"], found["text"]
        for role in ("image", "text"):
            if found[role] is None:
                raise BadInput(
                    f"{table.path}: no column {' or '.join(_USUAL[role])} (columns: {', '.join(table.schema.names)}); "
                    f"set {role} to the name of the one with the {'images' if role == 'image' else 'captions'}."
                )
        assert image is not None
        assert text is not None
        kind = table.schema.field(image).type
        vector = vector_type(kind)
        is_path, is_struct = _is_text(kind), pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
        if vector is None and not (is_path or is_struct or is_bytes):
            raise BadInput(
                f"{table.path}: column {image!r} is of type {kind}; images must be paths, bytes, {{bytes, path}}, "
                "or lists of floats (of fixed size for regions)."
            )
        kind = table.schema.field(text).type
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not _is_text(kind.value_type if listed else kind):
            raise BadInput(
                f"{table.path}: column {text!r} is of type {kind}; captions must be strings or lists of strings."
            )
        return cls(image, text, found["image_id"], found["text_id"], found["split"], is_path, vector)


def _column(role: str, asked: str | None, table: Table) -> str | None:
    names = table.schema.names
    if asked is not None:
        if asked not in names:
            raise BadInput(f"{table.path}: {role} = {asked!r} is not a column (columns: {', '.join(names)}).")
        return asked
    found = [name for name in _USUAL[role] if name in names]
    if len(found) > 1 and role in ("image", "text"):
        raise BadInput(f"{table.path}: columns {' and '.join(found)} could be the {role}; set {role} to one of them.")
    return found[0] if found else None


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
