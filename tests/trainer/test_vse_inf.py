"""VSE∞ against a slow loop: generalised pooling, and regions and words that are lost in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from tests.trainer import models_oracle as oracle
from trainer import models
from trainer.models._pooling import GeneralizedPooling, position_codes
from trainer.models.vse_inf import Config, VseInf, edited
from trainer.text import UNKNOWN, Vocabulary

POOLING = {"position_dim": 6, "temperature": 0.5}
SMALL = {"dim": 12, "word_dim": 6, "mlp_hidden": 5, "pool_hidden": 4, **POOLING}


def made(shape: tuple[int, ...] = (4, 9), **settings: Any) -> VseInf:
    model = oracle.used(models.build(models.configure("vse_inf", {**SMALL, **settings}), oracle.VOCABULARY, shape))
    assert isinstance(model, VseInf)
    return model


def regions(shape: tuple[int, ...] = (4, 9), count: int = 5) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def pooled(model: VseInf, side: str, elements: list[np.ndarray]) -> np.ndarray:
    weights = oracle.under(oracle.weights_of(model), f"{side}_pooling")
    return oracle.unit(np.array([oracle.pooled(weights, each, **POOLING) for each in elements]))


@pytest.mark.parametrize("shape", [(4, 9), (9,)])
@pytest.mark.parametrize("training", [False, True])
def test_images_are_the_slow_loop(shape: tuple[int, ...], training: bool) -> None:
    model, images = made(shape, drop_regions=0), regions(shape).half()
    wanted = oracle.vse_inf_regions(oracle.weights_of(model), list(images.double().numpy()), training)
    found = model.train(training).encode_images(images)
    np.testing.assert_allclose(found.detach(), pooled(model, "region", wanted), atol=1e-5)


def test_texts_are_the_slow_loop() -> None:
    model = made()
    states = [oracle.vse_inf_word_states(oracle.weights_of(model), tokens) for tokens in oracle.captions()]
    for garbage in (0, 5):
        found = model.encode_texts(*oracle.padded(garbage))
        np.testing.assert_allclose(found.detach(), pooled(model, "word", states), atol=1e-5)


def test_pooling_is_over_the_elements_that_count_and_in_any_order() -> None:
    pooling = GeneralizedPooling(6, 4, 0.5)
    weights = {name: value.double().numpy() for name, value in pooling.state_dict().items()}
    values = torch.randn(6, 5, 3)
    mask = torch.tensor(
        [[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 1, 0, 0]],
        dtype=torch.bool,
    )
    wanted = [
        oracle.pooled(weights, row[keep].double().numpy(), **POOLING) for row, keep in zip(values, mask, strict=True)
    ]
    np.testing.assert_allclose(pooling(values, mask).detach(), wanted, atol=1e-5)
    for nothing in (1e9, torch.nan):
        torch.testing.assert_close(pooling(values.masked_fill(~mask[:, :, None], nothing), mask), pooling(values, mask))
    shuffled = torch.randperm(5)
    torch.testing.assert_close(pooling(values[:, shuffled], mask[:, shuffled]), pooling(values, mask))


def test_the_weights_of_ranks_depend_on_the_length_alone() -> None:
    pooling = GeneralizedPooling(6, 4, 0.5)
    weights = {name: value.double().numpy() for name, value in pooling.state_dict().items()}
    lengths = torch.tensor([3, 1, 7, 3])
    found = pooling.weights(lengths, 7)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    assert torch.equal(found[0], found[3])
    for row, length in zip(found, lengths.tolist(), strict=True):
        np.testing.assert_allclose(row[:length].detach(), oracle.rank_weights(weights, length, **POOLING), atol=1e-6)
        assert not row[length:].any()


def test_masked_elements_get_no_gradient() -> None:
    values = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]])
    (pooling := GeneralizedPooling())(values, mask).square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert torch.equal(values.grad.any(2), mask)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pooling.parameters())


def test_position_codes() -> None:
    codes = position_codes(5, 4)
    torch.testing.assert_close(codes[3], torch.tensor([np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)]).float())


def test_a_share_of_the_regions_is_dropped_in_training_and_never_all() -> None:
    """Each embedding is that of the regions that the drawn numbers keep."""
    model, images = made((3, 9), drop_regions=0.6).train(), regions((3, 9), 40)
    torch.manual_seed(5)
    found = model.encode_images(images).detach()
    torch.manual_seed(5)
    kept = torch.rand(40, 3).numpy() >= 0.6
    kept[~kept.any(1)] = True
    assert {1, 2, 3} == set(kept.sum(1).tolist())
    every = oracle.vse_inf_regions(oracle.weights_of(model), list(images.double().numpy()), training=True)
    wanted = [each[keep] for each, keep in zip(every, kept, strict=True)]
    np.testing.assert_allclose(found, pooled(model, "region", wanted), atol=1e-5)
    torch.manual_seed(6)
    assert not torch.allclose(model.encode_images(images), found)
    alone = made((9,)).train()
    with torch.no_grad():
        torch.testing.assert_close(alone.encode_images(regions((9,))), alone.encode_images(regions((9,))))


def test_zeros_that_fill_up_count_in_the_published_batch_statistics() -> None:
    model, images = made((3, 9), drop_regions=0.6, zeros_in_batch_norm=True).train(), regions((3, 9), 7)
    torch.manual_seed(8)
    found = model.encode_images(images).detach()
    torch.manual_seed(8)
    kept = torch.rand(7, 3).numpy() >= 0.6
    kept[~kept.any(1)] = True
    counts = kept.sum(1)
    assert 1 <= counts.min() < counts.max()
    filled = np.zeros((7, counts.max(), 9))
    for image, keep in enumerate(kept):
        filled[image, : counts[image]] = images[image].double().numpy()[keep]
    every = oracle.vse_inf_regions(oracle.weights_of(model), list(filled), training=True)
    wanted = [each[:count] for each, count in zip(every, counts, strict=True)]
    np.testing.assert_allclose(found, pooled(model, "region", wanted), atol=1e-5)


def test_the_pieces_of_a_word_share_its_fate_as_published() -> None:
    """Every caption is of words in three pieces; a piece's word and place are told by its number."""

    class Pieces:  # of a tokenizer, what `edited` asks for
        continuations = tuple(number for number in range(4, 604) if (number - 4) % 3)
        mask = 3

        def __len__(self) -> int:
            return 604

    tokens = torch.cat([torch.full((200, 1), 1), torch.arange(4, 64).expand(200, -1), torch.full((200, 1), 2)], 1)
    lengths = torch.full((200,), 62)
    together = {}
    for whole in (False, True):
        torch.manual_seed(0)
        config = Config(edit_words=0.5, edit_masked=0.5, edit_random=0.0, edit_whole_words=whole)
        found, left = edited(tokens, lengths, config, Pieces())  # type: ignore[arg-type]
        stayed = [set(row[:length].tolist()) for row, length in zip(found, left, strict=True)]
        words = [[first + piece in row for piece in range(3)] for row in stayed for first in range(4, 64, 3)]
        together[whole] = sum(all(word) or not any(word) for word in words) / len(words)
        assert sum(map(sum, words)) / (3 * len(words)) == pytest.approx(0.5, abs=0.03)
    assert together[True] == 1
    assert together[False] < 0.5


def test_a_caption_may_lose_all_its_words_as_published() -> None:
    tokens, lengths = torch.tensor([[1, 4, 2, 0], [1, 4, 5, 2]] * 50), torch.tensor([3, 4] * 50)
    least = {}
    for may in (False, True):
        torch.manual_seed(0)
        config = Config(edit_words=0.9, edit_masked=0, edit_random=0, may_lose_all_words=may)
        least[may] = int(edited(tokens, lengths, config, oracle.VOCABULARY)[1].min())
    assert least == {False: 3, True: 2}
    model = made(edit_words=0.99, edit_masked=0.0, edit_random=0.0, may_lose_all_words=True).train()
    assert model.encode_texts(tokens, lengths).isfinite().all()


@pytest.mark.parametrize("random", [0.0, 0.2])
def test_words_are_edited_by_the_given_shares(random: float) -> None:
    config = Config(edit_words=0.3, edit_masked=0.5, edit_random=random)
    words = Vocabulary(("<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(1000))))
    lengths = torch.tensor([42, 3, 2, 12] * 250)
    numbers = 4 + torch.arange(41)  # every word of a caption is another, so that what became of it can be told
    tokens = torch.zeros(1000, 45, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        tokens[row, :length] = torch.cat([torch.tensor([1]), numbers[: length - 2], torch.tensor([2])])
    torch.manual_seed(0)
    found, found_lengths = edited(tokens, lengths, config, words)
    assert found.shape[1] == found_lengths.max()
    fates: Counter[str] = Counter()
    for row, length in enumerate(lengths.tolist()):
        before, after = tokens[row, :length].tolist(), found[row, : found_lengths[row]].tolist()
        assert (after[0], after[-1]) == (1, 2)
        assert 1 not in after[1:]
        assert 2 not in after[:-1]
        assert len(after) > 2 or len(before) == 2
        if not random:
            stayed = [word for word in after[1:-1] if word != UNKNOWN]
            assert stayed == sorted(set(stayed) & set(before))
        if length == 42:
            fates["words"] += 40
            fates["masked"] += after.count(UNKNOWN)
            fates["random"] += sum(word > 44 for word in after)
            fates["dropped"] += length - len(after)
    shares = {fate: fates[fate] / fates["words"] for fate in ("masked", "random", "dropped")}
    assert shares == pytest.approx({"masked": 0.15, "random": 0.3 * random, "dropped": 0.15 - 0.3 * random}, abs=0.015)


def test_edits_are_drawn_from_torchs_generator_and_made_in_training_alone() -> None:
    model = made()
    tokens, lengths = oracle.padded()
    still = model.encode_texts(tokens, lengths)
    torch.testing.assert_close(still, model.encode_texts(tokens, lengths))
    model.train()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(model.encode_texts(tokens, lengths))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    torch.manual_seed(3)
    words, left = edited(tokens, lengths, model.config, model.tokenizer)
    torch.testing.assert_close(model.eval().encode_texts(words, left), found[0])


def test_edits_of_a_vocabulary_without_words() -> None:
    torch.manual_seed(0)
    empty = Vocabulary.build([])
    tokens, lengths = (torch.from_numpy(array) for array in empty.encode(["all of it unknown"] * 20))
    found, _ = edited(tokens, lengths, Config(edit_words=0.9, edit_random=0.5), empty)
    assert found.max() < len(empty)


def test_gradients_reach_every_weight() -> None:
    model, images = made(), regions()
    (model.encode_images(images) @ model.encode_texts(*oracle.padded()).T * torch.randn(5, 4)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_wrong_settings() -> None:
    with pytest.raises(BadInput, match=r"edit_masked \+ edit_random is above 1"):
        models.configure("vse_inf", {"edit_masked": 0.6, "edit_random": 0.5})
    with pytest.raises(BadInput, match="position_dim = 7"):
        models.configure("vse_inf", {"position_dim": 7})
    with pytest.raises(BadInput, match="take the model cnn_gru"):
        made((8, 8, 3))
    for wrong in ({"text": "bert"}, {"bert": {"path": "some/folder"}}):
        with pytest.raises(BadInput, match="belong together"):
            models.configure("vse_inf", wrong)


def test_words_can_be_berts(tmp_path: Path) -> None:
    """Its last layer and a Linear instead of the GRU; it starts as it was saved and learns at a tenth of the rate."""
    transformers = pytest.importorskip("transformers")
    from tests.trainer import pretrained_models

    sizes = {**pretrained_models.SMALL, "vocab_size": 60, "max_position_embeddings": 12}
    bert = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    bert.save_pretrained(tmp_path)
    pretrained_models.tokenizer().save_pretrained(tmp_path)
    settings = {**SMALL, "text": "bert", "bert": {"path": str(tmp_path)}}
    config = models.resolved(models.configure("vse_inf", settings))
    assert models.configure("vse_inf", config.model_dump(mode="json")) == config
    tokenizer = models.tokenizer_of(config, [], 1)
    model = models.fresh(config, tokenizer, (4, 9)).eval()
    assert isinstance(model, VseInf)
    tokens, lengths = (torch.from_numpy(array) for array in tokenizer.encode(pretrained_models.CAPTIONS))
    assert len(set(lengths.tolist())) > 2
    states = [bert(row[None, :length]).last_hidden_state[0] for row, length in zip(tokens, lengths, strict=True)]
    wanted = [model.word_head(each).detach().double().numpy() for each in states]
    np.testing.assert_allclose(model.encode_texts(tokens, lengths).detach(), pooled(model, "word", wanted), atol=1e-5)
    scales = {name.split(".")[0]: model.learning_rate_scale(name) for name, _ in model.named_parameters()}
    assert scales == {"words": 0.1, **dict.fromkeys(set(scales) - {"words"}, 1.0)}
    assert {made().learning_rate_scale(name) for name, _ in made().named_parameters()} == {1.0}
    torch.manual_seed(0)
    found, _ = edited(tokens, lengths, config.model_copy(update={"edit_words": 0.9, "edit_masked": 1.0}), tokenizer)
    assert (found == tokenizer.mask).any()
