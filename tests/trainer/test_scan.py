"""SCAN's own settings: directions, their published constants, norms and poolings."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from tests.trainer import attention_oracle as oracle
from trainer import models
from trainer.models import Elements
from trainer.models._attention import Pooling, RawNorm
from trainer.models.scan import Scan
from trainer.text import Vocabulary


def built(**settings: Any) -> Scan:
    config = models.configure("scan", {"dim": 8, "word_dim": 5, **settings})
    found = models.build(config, Vocabulary.build(["red cat"]), (4, 9))
    assert isinstance(found, Scan)
    return found


def elements(lengths: list[int], seed: int) -> Elements:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), 8, generator=random, dtype=torch.float64)
    return Elements(normalize(values + 0.4, dim=2), torch.tensor(lengths))


IMAGES, TEXTS = elements([4, 2, 3], 0), elements([1, 5, 3, 2], 1)


@pytest.mark.parametrize(
    "settings",
    [
        *({"attention": attention, "raw_norm": norm} for attention in ("t2i", "i2t") for norm in get_args(RawNorm)),
        *(
            {"attention": attention, "pooling": pooling}
            for attention in ("t2i", "both")
            for pooling in get_args(Pooling)
        ),
        {"attention": "both", "lambda_softmax": 2.5, "lambda_lse": 20},
    ],
)
def test_every_setting_is_what_the_loop_does_with_it(settings: dict[str, Any]) -> None:
    model = built(**settings)
    wanted = oracle.matrix(model.config, IMAGES, TEXTS)
    torch.testing.assert_close(model.scores(IMAGES, TEXTS), wanted)
    some = torch.tensor([0, 2, 1])
    torch.testing.assert_close(model.pair_scores(IMAGES, TEXTS.take(some)), wanted[torch.arange(3), some])


def test_two_regions_and_two_words_by_hand() -> None:
    """Words are the regions themselves, at right angles: each attends with e^lambda / (e^lambda + 1) to its own."""
    same = Elements(torch.eye(2, 8)[None], torch.tensor([2]))
    for attention, softmax, lse in (("t2i", 9, 6), ("i2t", 4, 5)):
        own = math.exp(softmax) / (math.exp(softmax) + 1)
        cosine = own / math.hypot(own, 1 - own)
        expected = cosine + math.log(2) / lse
        assert built(attention=attention).scores(same, same).item() == pytest.approx(expected, abs=1e-6)
        assert built(attention=attention, pooling="mean").scores(same, same).item() == pytest.approx(cosine, abs=1e-6)


def test_both_is_the_mean_of_the_directions() -> None:
    alone = [built(attention=attention).scores(IMAGES, TEXTS) for attention in ("t2i", "i2t")]
    torch.testing.assert_close(built(attention="both").scores(IMAGES, TEXTS), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize(
    "settings",
    [{"raw_norm": "l3norm"}, {"attention": "i2i"}, {"pooling": "LogSumExp"}, {"lambda_softmax": 0}, {"memory_mib": 0}],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(settings))):
        built(**settings)
