"""JSON and a corpus for NVIDIA NeMo AutoModel's training of bi-encoders and cross-encoders.

    NAME.json                {"corpus": [{"path": "NAME_corpus"}], "data": [...]}, and in `data` one object per anchor:
        question_id          id of the anchor
        question             its text
        corpus_id            which corpus its documents are in
        pos_doc, neg_doc     [{"id"}]: all its positives, and its negatives, hardest first
    NAME_corpus/             the whole gallery once
        merlin_metadata.json class and corpus_id
        train.parquet        of texts: id, text (class TextQADataset)
                             of pictures: image_filename, which is the id, and image by path (class ColPaliDataset)

Training takes the first of `pos_doc`, or with `cycle_positive_docs` another one every epoch, and the first
`n_passages` - 1 of `neg_doc`, from the start again where there are fewer; an anchor without one would stop it and is
left out. Paths of corpora are meant from where NAME.json lies, paths of pictures from where training runs.

Source: NVIDIA-NeMo/Automodel 0.7.0, nemo_automodel/components/datasets/llm/retrieval_dataset.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.export._json import text
from miner.export._mined import Anchor, Mined, Needs

__all__ = ["SUFFIX", "Config", "files", "read_with", "write"]

SUFFIX = ".json"
_DOCUMENTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Config:
    """`corpus_id` names the corpus [default: NAME_corpus]; corpora that are trained on together need different ones."""

    corpus_id: str = ""


def files(config: Config, out: Path) -> tuple[Path, ...]:
    corpus = out.with_name(f"{out.stem}_corpus")
    return corpus / "train.parquet", corpus / "merlin_metadata.json", out


def write(config: Config, mined: Mined, drafts: Mapping[Path, Path]) -> int:
    mined.warn_of_paths("NeMo AutoModel, for its questions,", mined.anchors)
    documents, metadata, out = drafts
    corpus_id = config.corpus_id or documents.parent.name
    _write_documents(mined, drafts[documents])
    kind = "ColPaliDataset" if mined.gallery.kind == "path" else "TextQADataset"
    drafts[metadata].write_text(text({"class": kind, "corpus_id": corpus_id}) + "\n", encoding="utf-8")
    rows = 0
    with open(drafts[out], "w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"corpus": {text([{"path": documents.parent.name}])},\n"data": [')
        for anchor in mined.each(Needs()):
            file.write((",\n" if rows else "\n") + text(_record(mined, anchor, corpus_id)))
            rows += 1
        file.write("\n]}\n")
    return rows


def read_with(config: Config, out: Path) -> str:
    return f"nemo_automodel.components.datasets.llm.make_retrieval_dataset(data_dir_list={str(out)!r})"


def _record(mined: Mined, anchor: Anchor, corpus_id: str) -> dict[str, Any]:
    return {
        "question_id": mined.anchor_ids[anchor.row],
        "question": mined.anchors.values[anchor.row],
        "corpus_id": corpus_id,
        "pos_doc": [{"id": mined.gallery_ids[row]} for row in anchor.positives],
        "neg_doc": [{"id": mined.gallery_ids[row]} for row in anchor.negatives],
    }


def _write_documents(mined: Mined, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = mined.gallery.kind == "path"
    names = ("image_filename", "image") if pictures else ("id", "text")
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(names[0], pa.string()), (names[1], picture if pictures else pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        if pictures:
            # Without this, `datasets` gives the path and not the picture.
            features = {names[0]: {"dtype": "string", "_type": "Value"}, names[1]: {"_type": "Image"}}
            writer.add_key_value_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        for start in range(0, len(mined.gallery_ids), _DOCUMENTS_AT_ONCE):
            at = slice(start, start + _DOCUMENTS_AT_ONCE)
            values = mined.gallery.values[at]
            held = [{"bytes": None, "path": value} for value in values] if pictures else values
            columns = [mined.gallery_ids[at].arrow, pa.array(held, schema.field(1).type)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
