"""SmoothAP: the literal three loops, chunks, and memory that does not grow with the cube of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer import losses_oracle as oracle
from tests.trainer.losses_batches import (
    LAYOUTS,
    agree,
    close,
    gradients,
    image_step,
    total,
)
from trainer import losses
from trainer.losses import smoothap
from trainer.similarities import Similarities

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = [{"mask": mask, "reduction": how} for mask in ("valid", "diagonal") for how in ("sum", "mean")]
MODES: list[dict[str, Any]] = [
    {},
    {"offline": "OffTri", "margin_offline": 0.3, "offline_weight": 0.5},
    {"offline": "OffQuin", "margin_offline": 0.1},
]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@layouts
@pytest.mark.parametrize("mode", MODES, ids=lambda found: found.get("offline", "none"))
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_it_is_the_three_loops(mode: dict[str, Any], tau: float, layout: str) -> None:
    for number, shared in enumerate(SHARED):
        config = losses.configure("smoothap", {"tau": tau, **mode, **shared})
        for ties in (False, True):  # a tie is worth half a rank, smoothly
            agree(config, oracle.smoothap, LAYOUTS[layout](number, ties=ties))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 6),
    layout=st.sampled_from(sorted(LAYOUTS)),
    shared=st.sampled_from(SHARED),
    tau=st.floats(0.01, 2.0),
    chunk=st.sampled_from([1, 17, 1 << 21]),
)
def test_any_step_and_settings(
    seed: int, size: int, layout: str, shared: dict[str, Any], tau: float, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothap, "_CHUNK", chunk)
        agree(losses.configure("smoothap", {"tau": tau, **shared}), oracle.smoothap, LAYOUTS[layout](seed, size))


@layouts
@pytest.mark.parametrize("chunk", [1, 20, 37])
def test_chunks_change_nothing(chunk: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        return whole(*arguments, **settings)

    whole = smoothap.checkpoint
    monkeypatch.setattr(smoothap, "checkpoint", counted)
    for seed, shared in enumerate(SHARED):
        step = LAYOUTS[layout](seed)
        config = losses.configure("smoothap", {"tau": 0.05, **shared})
        results = []
        for size in (smoothap._CHUNK, chunk):
            monkeypatch.setattr(smoothap, "_CHUNK", size)
            parts = losses.parts(config, step.similarities())
            results.append([*parts.values(), *gradients(total(parts), step.leaves)])
        monkeypatch.undo()
        monkeypatch.setattr(smoothap, "checkpoint", counted)
        close([one.detach() for one in results[1]], [one.detach() for one in results[0]], torch.double, config)
    assert calls


def test_counts_read_off_by_hand() -> None:
    """Image 0 has texts 0, 1, 2 ranked 1, 3, 4; image 1 has text 3 ranked 2. At a small tau this is AP itself."""
    scores = torch.tensor([[0.9, 0.5, 0.3, 0.7], [0.8, 0.1, 0.2, 0.6]], dtype=torch.double)
    valid = torch.tensor([[False, False, False, True], [True, True, True, False]])
    step = Similarities(scores, valid, None, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 3]))
    found = losses.parts(smoothap.Config(tau=1e-3), step)
    images = [(1 / 1 + 2 / 3 + 3 / 4) / 3, 1 / 2]
    assert found["online_text"].item() == pytest.approx(0.5 * (1 - sum(images) / 2), abs=1e-10)
    assert found["online_image"].item() == pytest.approx(0.5 * (1 - (1 + 1 + 1 + 1 / 2) / 4), abs=1e-10)
    summed = losses.parts(smoothap.Config(tau=1e-3, reduction="sum"), step)
    assert summed["online_text"].item() == pytest.approx(2 * found["online_text"].item())
    assert summed["online_image"].item() == pytest.approx(4 * found["online_image"].item())


@pytest.mark.parametrize("ahead", [0.0, 0.05, 0.11, 0.15])
def test_float32_is_precise_before_and_after_learning(ahead: float) -> None:
    """From a random ranking to one without mistakes, a loss of 2e-5: never the difference of two large numbers."""
    random = torch.Generator().manual_seed(0)
    images, texts = 40, 200
    owner = torch.arange(texts) // 5
    own = owner[None, :] == torch.arange(images)[:, None]
    scores = torch.rand(images, texts, generator=random) * 0.02 + own * ahead
    results = []
    for dtype in (torch.double, torch.float32):
        leaf = scores.to(dtype).requires_grad_()
        parts = losses.parts(smoothap.Config(), Similarities(leaf, ~own, None, owner, torch.arange(texts)))
        results.append([*(part.detach() for part in parts.values()), *gradients(total(parts), [leaf])])
    for expected, found in zip(*results, strict=True):
        assert (found.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_exponents_are_clamped() -> None:
    """Beyond 50 temperatures apart there is exactly no gradient."""
    for apart, flat in ((0.499, False), (0.501, True)):
        scores = torch.tensor([[apart, 0.0]], dtype=torch.double, requires_grad=True)
        places = torch.zeros(1, dtype=torch.long)
        step = Similarities(scores, torch.tensor([[False, True]]), None, places, places)
        (slope,) = gradients(total(losses.parts(smoothap.Config(), step)), [scores])
        assert (not slope.any()) == flat


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_perfect_ranking_is_worth_nothing(reduction: str) -> None:
    step = image_step(1)
    scores = torch.zeros_like(step.scores)
    for place in step.belong:
        scores[place] = 1.0
    parts = losses.parts(
        losses.configure("smoothap", {"reduction": reduction}), replace(step, scores=scores).similarities()
    )
    assert all(abs(part.item()) < 1e-12 for part in parts.values())


class Watch(TorchDispatchMode):
    """The largest tensor made, and the most entries alive at once in storages made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for made in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(made, Tensor):
                self.largest = max(self.largest, made.numel())
                storage = made.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {place: one for place, one in self.alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return found


@pytest.mark.parametrize("chunk", [None, 1 << 16])
def test_memory_stays_near_images_times_texts(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 images with 5 captions each: forward and backward, against (5 * 128)^3 = 262 million differences."""
    if chunk is not None:
        monkeypatch.setattr(smoothap, "_CHUNK", chunk)
    images, texts = 128, 640
    owner = torch.arange(texts) // 5
    scores = torch.rand(images, texts, requires_grad=True)
    valid = owner[None, :] != torch.arange(images)[:, None]
    with Watch() as watch:
        parts = losses.parts(smoothap.Config(), Similarities(scores, valid, None, owner, torch.arange(texts)))
        total(parts).backward()
    assert scores.grad is not None
    assert scores.grad.any()
    # One row of candidates for every positive if it fits into a chunk: 5 I T entries; else little more than the chunk.
    assert watch.largest <= (5 * images * texts if chunk is None else images * texts)
    # In bytes; (5B)^3 differences would be 1 GB.
    assert watch.peak <= 4 * (40 if chunk is None else 12) * images * texts
