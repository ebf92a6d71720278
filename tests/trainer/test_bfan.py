"""BFAN: what focal attention leaves of a score, and its range."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from trainer import models
from trainer.models import Elements
from trainer.models._attention import Focal
from trainer.models.bfan import Bfan
from trainer.text import Vocabulary


def built(**settings: Any) -> Bfan:
    config = models.configure("bfan", {"dim": 6, "word_dim": 5, **settings})
    found = models.build(config, Vocabulary.build(["red cat"]), (4, 9))
    assert isinstance(found, Bfan)
    return found


@pytest.mark.parametrize("focal", get_args(Focal))
def test_the_score_goes_from_minus_two_to_two(focal: Focal) -> None:
    """Words that are the regions, at right angles, attend to themselves alone, however soft the attention was."""
    same, opposite = (Elements(sign * torch.eye(4, 6)[None], torch.tensor([4])) for sign in (1, -1))
    for smooth in (1, 20):
        model = built(focal=focal, lambda_softmax=smooth)
        assert model.scores(same, same).item() == pytest.approx(2, abs=1e-6)
    one, against = (Elements(elements.values[:, :1], torch.tensor([1])) for elements in (same, opposite))
    assert built(focal=focal).scores(one, against).item() == pytest.approx(-2, abs=1e-6)
    random = torch.Generator().manual_seed(0)
    images, texts = (
        Elements(normalize(torch.randn(30, 5, 6, generator=random), dim=2), torch.arange(30) % 5 + 1) for _ in range(2)
    )
    scores = built(focal=focal).scores(images, texts)
    assert scores.abs().max() <= 2 + 1e-6
    assert scores.std() > 0.3


def test_one_word_keeps_all_regions_it_leans_to() -> None:
    """One query alone gives every region on its side the same weight, up to rounding, which must not choose among them.

    Regions 0 and 1 are on the word's side, 2 is opposite: e^20 against e^-20, so c is the mean of 0 and 1.
    """
    regions = normalize(torch.tensor([[0.9, 0.4, 0.0], [0.3, 0.0, 1.0], [-1.0, 0.5, 0.0]]), dim=1)
    word = torch.tensor([[1.0, 0.0, 0.0]])
    attended = regions[:2].mean(0)
    to_regions = (word[0] @ attended / attended.norm()).item()
    to_word = (regions @ word[0]).mean().item()
    for focal in get_args(Focal):
        found = built(focal=focal).scores(
            *(Elements(side[None], torch.tensor([len(side)])) for side in (regions, word))
        )
        assert found.item() == pytest.approx(to_regions + to_word, abs=1e-6)


@pytest.mark.parametrize("settings", [{"focal": "none"}, {"lambda_softmax": -1}, {"attention": "t2i"}])
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(settings))):
        built(**settings)
