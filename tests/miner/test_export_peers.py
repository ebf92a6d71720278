"""What is exported, read back by the loaders it is meant for. Those that are not installed are skipped."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, write_negatives
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore
from miner.commands.export import export

# By text: its images, its negatives hardest first, and its lowest positive. One text has two images, one few negatives.
WORLD = {
    "t1": (["a"], ["b", "c", "d"], 0.5),
    "t2": (["a", "b"], ["c", "d", "e"], 0.25),
    "t3": (["c"], ["e"], 0.75),
    "t4": (["d", "e"], [], 0.125),
}
SCORES = [0.5, 0.25, -0.125]  # of negatives, by rank; floats that float32 holds exactly
TEXTS = {text: f"a text, {text}" for text in WORLD}


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """Export the world's table of images for texts, and give the file."""
    pytest.importorskip("datasets")
    # A data set is cached by its files' names and times: every test has its own place.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    links = [(image, text) for text, (images, _, _) in WORLD.items() for image in images]
    pairs = Pairs.from_ids(list("abcde"), list(WORLD), links)
    negatives, scores = np.full((4, 3), -1, dtype=np.int32), np.full((4, 3), np.nan, dtype=np.float32)
    for row, (_, found, _) in enumerate(WORLD.values()):
        negatives[row, : len(found)] = ["abcde".index(image) for image in found]
        scores[row, : len(found)] = SCORES[: len(found)]
    lowest = np.array([low for _, _, low in WORLD.values()], dtype=np.float32)
    block = NegativeBlock(np.arange(4), negatives, scores, lowest, {2: "made so", 3: "made so"})
    write_negatives(Draft(LocalStore(tmp_path), "t2i", NEGATIVES, {}), [block], pairs, "t2i", 3, {})
    (tmp_path / "pairs.csv").write_text("image_id,text_id\n" + "".join(f"{i},{t}\n" for i, t in links))
    (tmp_path / "texts.csv").write_text("id,text\n" + "".join(f'{t},"{said}"\n' for t, said in TEXTS.items()))
    (tmp_path / "images.csv").write_text("id,text\n" + "".join(f"{i},image {i}\n" for i in "abcde"))

    def make(spoken: str, name: str, *, by_id: bool = False, images: str = "images.csv") -> Path:
        arguments = [tmp_path / "t2i", "--pairs", tmp_path / "pairs.csv", "--format", spoken, "--out", tmp_path / name]
        if not by_id:
            arguments += ["--texts", tmp_path / "texts.csv", "--images", tmp_path / images]
        CliRunner().invoke(export, [str(argument) for argument in arguments], catch_exceptions=False)
        assert (tmp_path / name).is_file()
        return tmp_path / name

    return make


def parquet(path: Path):
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset("parquet", data_files=str(path), split="train")


def test_datasets_reads_what_sentence_transformers_trains_on(exported):
    triplets = parquet(exported("sentence-transformers", "triplet.parquet"))
    assert triplets.column_names == ["anchor", "positive", "negative"]
    assert triplets[3] == {"anchor": "a text, t2", "positive": "image a", "negative": "image c"}
    assert len(triplets) == 3 + 2 * 3 + 1
    tuples = parquet(exported("sentence-transformers:layout=n-tuple,scores=true", "n.parquet"))
    assert tuples.to_list() == [
        {
            "anchor": "a text, t1",
            "positive": "image a",
            "negative_1": "image b",
            "negative_2": "image c",
            "negative_3": "image d",
            "scores": [0.5, 0.5, 0.25, -0.125],
        }
    ]
    lists = parquet(exported("sentence-transformers:layout=labeled-list", "list.parquet"))
    assert [row["labels"] for row in lists] == [[1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0]]
    assert lists[2]["documents"] == ["image c", "image e"]


def test_sentence_transformers_columns(exported):
    """The columns are those of `mine_hard_negatives`, and the trainer's collators take them."""
    pytest.importorskip("sentence_transformers", minversion="6.2")
    torch = pytest.importorskip("torch")
    from sentence_transformers.base.data_collator import BaseDataCollator
    from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
    from sentence_transformers.util import resolve_ids

    seen = []

    def preprocess(inputs, **_):
        seen.append(inputs)
        return {"input_ids": torch.zeros(len(inputs), 1)}

    rows = parquet(exported("sentence-transformers:layout=n-tuple,scores=true", "n.parquet")).to_list()
    batch = BaseDataCollator(preprocess_fn=preprocess)(rows)
    assert batch["label"].tolist() == [[0.5, 0.5, 0.25, -0.125]]
    assert seen == [["a text, t1"], ["image a"], ["image b"], ["image c"], ["image d"]]
    pairs = parquet(exported("sentence-transformers:layout=labeled-pair", "p.parquet")).to_list()
    assert BaseDataCollator(preprocess_fn=preprocess)(pairs[:5])["label"].tolist() == [1, 0, 0, 0, 1]
    lists = parquet(exported("sentence-transformers:layout=labeled-list", "l.parquet")).to_list()
    batch = CrossEncoderDataCollator(preprocess_fn=preprocess)(lists)
    assert [labels.tolist() for labels in batch["label"]] == [[1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0]]
    assert list(batch) == ["label", "anchor", "documents"]

    by_id = parquet(exported("sentence-transformers:layout=n-tuple", "ids.parquet", by_id=True))
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"id": list(TEXTS), "text": list(TEXTS.values())})
    images = datasets.Dataset.from_dict({"id": list("abcde"), "image": [f"image {i}" for i in "abcde"]})
    lookups = {name: texts if name == "anchor_id" else images for name in by_id.column_names}
    by_id.set_transform(resolve_ids(lookups))
    plain = parquet(exported("sentence-transformers:layout=n-tuple", "texts.parquet"))
    assert by_id[:] == plain[:]


def test_sentence_transformers_mines_the_same_columns(exported):
    """What the peer's own miner gives for as many negatives, by its column names."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.2")
    datasets = pytest.importorskip("datasets")

    class Model:
        """Just enough of a model for `mine_hard_negatives`."""

        similarity = staticmethod(sentence_transformers.util.cos_sim)
        similarity_pairwise = staticmethod(sentence_transformers.util.pairwise_cos_sim)
        device = "cpu"

        def encode_query(self, texts, **_):
            return np.array([[len(text), sum(map(ord, text)) % 7, 1.0] for text in texts], dtype=np.float32)

        encode = encode_document = encode_query

    given = datasets.Dataset.from_dict(
        {"anchor": [f"q {i}" * i for i in range(1, 9)], "positive": [f"d{i}" * i for i in range(1, 9)]}
    )
    for layout in ("triplet", "n-tuple", "labeled-pair", "labeled-list"):
        for scores in (False, True):
            theirs = sentence_transformers.util.mine_hard_negatives(
                given, Model(), num_negatives=3, output_format=layout, output_scores=scores, verbose=False
            )
            spoken = f"sentence-transformers:layout={layout},scores={str(scores).lower()}"
            ours = parquet(exported(spoken, f"{layout}-{scores}.parquet"))
            # The second column holds documents of both kinds in the labeled layouts; its name is free.
            renamed = {"document": "positive", "documents": "positive"}
            assert [renamed.get(name, name) for name in ours.column_names] == theirs.column_names
            kinds = [(str(a), str(b)) for a, b in zip(ours.features.values(), theirs.features.values(), strict=True)]
            assert all(a.replace("float32", "float64") == b for a, b in kinds)


def test_flagembedding_trains_on_it(exported):
    pytest.importorskip("FlagEmbedding")
    module = pytest.importorskip("FlagEmbedding.abc.finetune.embedder.AbsDataset")
    arguments = {
        "cache_path": None, "max_example_num_per_dataset": 100, "shuffle_ratio": 0.0, "train_group_size": 4,
        "query_instruction_for_retrieval": None, "passage_instruction_for_retrieval": None,
    }  # fmt: skip
    path = exported("flagembedding", "a.jsonl")
    read = module.AbsEmbedderTrainDataset(
        SimpleNamespace(train_data=[str(path)], knowledge_distillation=False, **arguments), None
    )
    assert len(read) == 3
    for row, (text, (images, found, _)) in zip(range(3), WORLD.items(), strict=False):
        query, passages, scores = read[row]
        assert (query, scores) == (TEXTS[text], None)
        assert passages[0] in [f"image {image}" for image in images]
        assert set(passages[1:]) == {f"image {image}" for image in found}
    path = exported("flagembedding:scores=true", "b.jsonl")
    read = module.AbsEmbedderTrainDataset(
        SimpleNamespace(train_data=[str(path)], knowledge_distillation=True, **arguments), None
    )
    query, passages, scores = read[0]
    known = {"image a": 0.5, "image b": 0.5, "image c": 0.25, "image d": -0.125}
    assert len(read) == 2
    assert scores == [known[passage] for passage in passages]


def tevatron_arguments(path: Path, corpus: Path | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        dataset_name="json", dataset_config=None, dataset_path=str(path), dataset_split="train",
        dataset_cache_dir=None, num_proc=None, corpus_name="json" if corpus else None, corpus_config=None,
        corpus_path=str(corpus), corpus_split="train", assets_path=None, query_prefix="", passage_prefix="",
        train_group_size=4, encode_text=True, encode_image=True, encode_video=True, encode_audio=True,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["passages", "documents"])
def test_tevatron_trains_on_it(exported, layout):
    module = pytest.importorskip("tevatron.retriever.dataset", reason="Tevatron 2 is not on PyPI")
    path = exported(f"tevatron:layout={layout}", "a.jsonl")
    corpus = path.with_name("a_corpus.jsonl") if layout == "documents" else None
    trainer = SimpleNamespace(state=SimpleNamespace(epoch=0), args=SimpleNamespace(seed=1))
    read = module.TrainDataset(tevatron_arguments(path, corpus), trainer)
    assert len(read) == 3
    for row, (text, (images, found, _)) in zip(range(3), WORLD.items(), strict=False):
        query, passages = read[row]
        assert query == (TEXTS[text], None, None, None)
        assert passages[0][0] in [f"image {image}" for image in images]
        assert {said for said, *_ in passages[1:]} == {f"image {image}" for image in found}


def test_tevatron_0_1_preprocesses_it(exported):
    module = pytest.importorskip("tevatron.datasets.dataset", reason="tevatron 0.1 is not installed")
    path = exported("tevatron", "a.jsonl")
    tokenizer = SimpleNamespace(encode=lambda text, **_: list(text.encode()))
    arguments = SimpleNamespace(
        train_path=str(path), dataset_split="train", dataset_name="json", dataset_language=None, q_max_len=9,
        p_max_len=9, dataset_proc_num=None, train_n_passages=4, passage_field_separator=" ",
    )  # fmt: skip
    read = module.HFTrainDataset(tokenizer, arguments, None)
    read.preprocessor = module.DEFAULT_PROCESSORS[0]
    rows = read.process().to_list()
    assert [bytes(text).decode() for text in rows[1]["positives"]] == ["image a", "image b"]
    assert [bytes(text).decode() for text in rows[2]["negatives"]] == ["image e"]


def test_nemo_trains_on_it(exported):
    module = pytest.importorskip("nemo_automodel.components.datasets.llm.retrieval_dataset")
    path = exported("nemo", "train.json")
    read = module.make_retrieval_dataset(str(path), n_passages=4)
    assert len(read) == 3
    assert read[0]["question"] == "a text, t1"
    assert read[0]["doc_text"] == ["image a", "image b", "image c", "image d"]
    assert read[2]["doc_text"] == ["image c", "image e", "image e", "image e"]
    assert read[1]["doc_id"] == ["a", "c", "d", "e"]
    read = module.make_retrieval_dataset(str(path), n_passages=4, cycle_positive_docs=True)
    read.set_epoch(1)
    assert read[1]["doc_id"][0] == "b"


def test_nemo_sees_the_pictures(exported, tmp_path):
    module = pytest.importorskip("nemo_automodel.components.datasets.llm.retrieval_dataset")
    image = pytest.importorskip("PIL.Image")
    for at, name in enumerate("abcde"):
        image.new("RGB", (4, 4), (40 * at, 0, 0)).save(tmp_path / f"{name}.png")
    table = "id,path\n" + "".join(f"{i},{tmp_path}{os.sep}{i}.png\n" for i in "abcde")
    (tmp_path / "paths.csv").write_text(table)
    read = module.make_retrieval_dataset(str(exported("nemo", "train.json", images="paths.csv")), n_passages=3)
    assert [picture.getpixel((0, 0))[0] for picture in read[0]["doc_image"]] == [0, 40, 80]
    assert read[0]["doc_text"] == ["", "", ""]
