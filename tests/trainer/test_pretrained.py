"""Pretrained checkpoints: tokenizers as the library's, kept whole; weights complete, and never from a pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from miner.artifacts.errors import BadInput
from tests.trainer import pretrained_models
from tests.trainer.pretrained_models import CAPTIONS, SMALL
from trainer.models._pretrained import Pretrained, find, library, load
from trainer.pretrained_text import PretrainedTokenizer
from trainer.text import Vocabulary, tokenizer_from_json

BERT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 12, "pad_token_id": 1}


def bert(folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(folder)
    pretrained_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bert(tmp_path / "bert")


@pytest.mark.parametrize("max_tokens", [0, 5, 12])
def test_tokens_are_the_librarys_own(folder: Path, max_tokens: int) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = Pretrained(path=str(folder), max_tokens=max_tokens).resolved().tokenizer()
    texts = [*CAPTIONS, "", "RED Cat", "неизвестно", "cat " * 40]
    tokens, lengths = tokenizer.encode(texts)
    expected = [theirs(text, truncation=True, max_length=max_tokens or 12)["input_ids"] for text in texts]
    assert [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)] == expected
    assert (tokens[1, lengths[1] :] == theirs.pad_token_id).all()
    assert tokens.shape[1] == lengths.max() == (max_tokens or 12)
    for text, row, length in zip(texts, tokens, lengths, strict=True):
        alone, alone_length = tokenizer.encode([text])
        assert (alone[0].tolist(), alone_length[0]) == (row[:length].tolist(), length)
    assert len(tokenizer) == len(theirs)
    assert tokenizer.encode([])[0].shape[0] == 0


def test_fixed_rows_count_their_padding(folder: Path) -> None:
    pretrained = Pretrained(path=str(folder), max_tokens=8).resolved()
    tokens, lengths = pretrained.tokenizer(fixed=True).encode(["cat", CAPTIONS[3]])
    assert tokens.shape == (2, 8)
    assert lengths.tolist() == [8, 8]
    plain, plain_lengths = pretrained.tokenizer().encode(["cat", CAPTIONS[3]])
    assert (plain == tokens).all()
    assert plain_lengths.tolist() == [3, 8]


def test_a_tokenizer_needs_no_folder(folder: Path) -> None:
    tokenizer = Pretrained(path=str(folder)).resolved().tokenizer()
    shutil.rmtree(folder)
    found = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert isinstance(found, PretrainedTokenizer)
    assert found == tokenizer
    assert (found.encode(CAPTIONS)[0] == tokenizer.encode(CAPTIONS)[0]).all()
    vocabulary = Vocabulary.build(CAPTIONS)
    assert tokenizer_from_json(vocabulary.to_json()) == vocabulary


def test_word_pieces_from_a_list_of_words(folder: Path) -> None:
    """BERT's older folders have no tokenizer.json, only vocab.txt; [MASK] is what hides a word."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = Pretrained(path=str(folder)).resolved().tokenizer()
    assert tokenizer.encode(["Red cats dog"])[0].tolist() == [[2, 5, 6, 7, 1, 3]]
    assert (tokenizer.mask, tokenizer.pad) == (4, 0)


def test_pieces_that_go_on_with_a_word_are_told() -> None:
    from tokenizers import Tokenizer, models

    numbers = {"[UNK]": 0, "##s": 4, "cat": 1, "#": 2, "##ing": 3}
    made = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    assert PretrainedTokenizer(made.to_str(), 4, 0).continuations == (3, 4)


def test_an_empty_caption_without_start_and_end_is_one_padding_token() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"cat": 0, "<unk>": 1, "<pad>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens, lengths = PretrainedTokenizer(made.to_str(), 4, 2).encode(["", "cat dog"])
    assert tokens.tolist() == [[2, 2], [0, 1]]
    assert lengths.tolist() == [1, 2]


def test_the_fingerprint_is_of_weights_settings_and_tokenizer(folder: Path) -> None:
    found = {Pretrained(path=str(folder)).resolved().fingerprint}
    (folder / "README.md").write_text("not read by anything")
    assert {Pretrained(path=str(folder)).resolved().fingerprint} == found
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found.add(Pretrained(path=str(folder)).resolved().fingerprint)
    pretrained_models.tokenizer(11).save_pretrained(folder)
    found.add(Pretrained(path=str(folder)).resolved().fingerprint)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "layer_norm_eps": 1e-3}))
    found.add(Pretrained(path=str(folder)).resolved().fingerprint)
    assert len(found) == 4


def test_weights_in_several_files_are_one_model(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    pretrained = Pretrained(path=str(tmp_path / "shards")).resolved()
    again = pretrained.bare()
    pretrained.load_into(again)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_half_precision_weights_become_float32(folder: Path) -> None:
    load(folder).half().save_pretrained(folder)
    assert {p.dtype for p in load(folder).parameters()} == {torch.float32}
    assert {p.dtype for p in Pretrained(path=str(folder)).resolved().bare().parameters()} == {torch.float32}


def test_missing_weights_are_said(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for pooler in ("pooler.dense.weight", "pooler.dense.bias"):
        del tensors[pooler]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    load(folder)  # the pooler is not used
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"1 weights are missing, encoder\.layer\.1\.output\.dense\.weight"):
        load(folder)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    """It would run code of whoever wrote it; here, one that leaves a file behind."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    (folder / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"only pytorch_model\.bin, a pickle, which is never opened"):
        find(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_a_hub_model_of_pickles_alone_is_said_to_be_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is asked for is fetched, so that its pickles are not there to be named."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find("owner/name").name == snapshot.name
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no safetensors of owner/name were found; a pickle \(\*\.bin\) is neither"):
        find("owner/name")


def test_code_beside_a_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="code that comes with a model is never run"):
        Pretrained(path=str(folder)).resolved().bare()
    with pytest.raises(BadInput, match="cannot load this model"):
        load(folder)
    assert not (tmp_path / "exploded").exists()


def test_no_path_and_no_json(folder: Path) -> None:
    with pytest.raises(BadInput, match="needs a path"):
        Pretrained().resolved()
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(BadInput, match="not a JSON object"):
        Pretrained(path=str(folder)).resolved()


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(BadInput, match=r"needs? the package no_such_library.*pip install 'quintain\[pretrained\]'"):
        library("no_such_library")
