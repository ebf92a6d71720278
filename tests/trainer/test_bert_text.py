"""Words of BERT and its relatives: the library's states, whatever fills up the batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import pad

from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore
from tests.trainer import pretrained_models
from tests.trainer.pretrained_models import CAPTIONS, SMALL
from trainer import losses, models
from trainer.checkpoint import CHECKPOINT, Checkpoint
from trainer.models._pretrained import BertWords, Pretrained
from trainer.training import FitConfig, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {**SMALL, "vocab_size": 60, "max_position_embeddings": 16, "pad_token_id": 1}
DISTIL = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 60, "max_position_embeddings": 16}
FAMILIES: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "bert for masked words, no pooler": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "roberta, positions counted from the padding": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(**SIZES)
    ),
    "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)),
}


def saved(folder: Path, family: str) -> Any:
    """(the library's model in eval mode, the settings of what lies in the folder)."""
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(folder)
    pretrained_models.tokenizer().save_pretrained(folder)
    return transformers.AutoModel.from_pretrained(folder).eval(), Pretrained(path=str(folder)).resolved()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_states_are_the_librarys_own(tmp_path: Path, family: str) -> None:
    theirs, pretrained = saved(tmp_path, family)
    words = BertWords(pretrained).eval()
    pretrained.load_into(words.encoder)
    assert words.hidden == 16
    tokens, lengths = (torch.from_numpy(array) for array in pretrained.tokenizer().encode(CAPTIONS))
    beyond = torch.arange(tokens.shape[1] + 2) >= lengths[:, None]
    with torch.no_grad():
        for filling in (0, 1, 3, 59):
            states = words(pad(tokens, (0, 2)).masked_fill(beyond, filling), lengths)
            assert states.shape == (len(CAPTIONS), tokens.shape[1] + 2, 16)
            for row, length, found in zip(tokens, lengths, states, strict=True):
                alone = theirs(input_ids=row[None, :length]).last_hidden_state[0]
                torch.testing.assert_close(found[:length], alone)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_every_weight_learns(tmp_path: Path, family: str) -> None:
    _, pretrained = saved(tmp_path, family)
    words = BertWords(pretrained)
    tokens, lengths = (torch.from_numpy(array) for array in pretrained.tokenizer().encode(CAPTIONS))
    words(tokens, lengths)[:, 0].square().sum().backward()
    assert [name for name, parameter in words.named_parameters() if parameter.grad is None] == []


def test_vse_infinity_on_bert_from_fit_to_checkpoint(tmp_path: Path, toys: SimpleNamespace) -> None:
    """Trained, killed and resumed, saved, and read back after the folder of BERT is gone."""
    _, pretrained = saved(tmp_path / "bert", "bert")
    settings = {"dim": 16, "mlp_hidden": 8, "position_dim": 6, "pool_hidden": 4, "text": "bert"}
    config = models.resolved(models.configure("vse_inf", {**settings, "bert": {"path": str(tmp_path / "bert")}}))
    dataset, loss = toys.dataset(20), losses.configure("triplet")
    training = FitConfig(epochs=2, batch_size=16, threads=1, lr=1e-3, weight_decay=1e-4)
    whole = fit(dataset, config, loss, training)

    def killed(log: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(dataset, config, loss, training, scratch=tmp_path / "scratch", progress=killed)
    assert fit(dataset, config, loss, training, scratch=tmp_path / "scratch").fingerprint == whole.fingerprint
    shutil.rmtree(tmp_path / "bert")
    whole.commit(Draft(LocalStore(tmp_path / "c"), ".", CHECKPOINT, {}))
    found = Checkpoint.load(tmp_path / "c")
    assert found.model_config == config
    assert found.tokenizer == whole.tokenizer
    after = found.model().state_dict()
    assert all(torch.equal(value, whole.weights[name]) for name, value in after.items())
    source = transformers.AutoModel.from_config(pretrained.config()).state_dict()
    assert {name.removeprefix("words.encoder.") for name in after if name.startswith("words.")} == {
        name for name in source if not name.startswith("pooler.")
    }
