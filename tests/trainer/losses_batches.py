"""Random steps with known truth, and the comparison of a loss with its slow loop on them.

A `Step` lists its pairs and says which text belongs to which image, so that a slow loop never reads `Similarities`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trainer import losses
from trainer.similarities import Offline, Similarities

SCORES = ("text", "image", "negatives", "partners")
FLAGS = ("has_text", "has_image", "true_negatives", "true_partners")
Parts = dict[str, Tensor]
Entry = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """`pairs` are (row, column) in `scores`; `belong` holds every (row, column) whose text belongs to the image."""

    scores: Tensor  # (I, T) double
    pairs: list[Entry]
    belong: frozenset[Entry]
    offline: dict[str, Tensor]  # SCORES, (P,) double
    flags: dict[str, list[bool]]  # FLAGS, one per pair
    shares: dict[str, list[float]]  # "text", "image": pool size as a share of all negatives
    leaves: list[Tensor]  # what gradients are taken by
    diagonal: bool  # pair i is the entry (i, i), and `Similarities` is not told

    @cached_property
    def entries(self) -> dict[Entry, Tensor]:
        """Every score by itself."""
        rows = [row.unbind() for row in self.scores.unbind()]
        return {(i, j): score for i, row in enumerate(rows) for j, score in enumerate(row)}

    @cached_property
    def offline_entries(self) -> dict[str, tuple[Tensor, ...]]:
        return {name: values.unbind() for name, values in self.offline.items()}

    def similarities(self, *, offline: bool = True) -> Similarities:
        """What the loss sees."""
        images, texts = self.scores.shape
        valid = torch.tensor([[(i, j) not in self.belong for j in range(texts)] for i in range(images)])
        found = None
        if offline:
            flags = {name: torch.tensor(values, dtype=torch.bool) for name, values in self.flags.items()}
            shares = {f"share_{name}": torch.tensor(values) for name, values in self.shares.items()}
            found = Offline(**self.offline, **flags, **shares)
        if self.diagonal:
            return Similarities(self.scores, valid, found)
        rows, columns = (torch.tensor(places) for places in zip(*self.pairs, strict=True))
        return Similarities(self.scores, valid, found, rows, columns)

    def cast(self, dtype: torch.dtype) -> Step:
        """The same numbers as new leaves of another type."""
        scores = self.scores.detach().to(dtype).requires_grad_()
        offline = {name: values.detach().to(dtype).requires_grad_() for name, values in self.offline.items()}
        return replace(self, scores=scores, offline=offline, leaves=[scores, *offline.values()])

    def filled(self, value: float) -> Step:
        """Every score the same."""
        same = replace(self, scores=torch.full_like(self.scores, value))
        return replace(same, offline={k: torch.full_like(v, value) for k, v in self.offline.items()}).cast(torch.double)

    def having(self, flag: bool) -> Step:
        """Every pair with offline negatives, or none."""
        has = {name: [flag] * len(self.pairs) for name in ("has_text", "has_image")}
        return replace(self, flags={**self.flags, **has})


def uniform(random: torch.Generator, *shape: int, ties: bool = False) -> Tensor:
    """In [-1, 1], exact in float32; with `ties` multiples of 1/8."""
    drawn = torch.rand(*shape, generator=random) * 2 - 1
    return ((drawn * 8).round() / 8 if ties else drawn).double()


def pick(random: torch.Generator, stop: int) -> int:
    return int(torch.randint(stop, (), generator=random))


def finished(
    random: torch.Generator, scores: Tensor, pairs: list[Entry], belong: set[Entry], diagonal: bool, ties: bool
) -> Step:
    chances = dict(zip(FLAGS, (0.75, 0.75, 0.3, 0.3), strict=True))
    offline = {name: uniform(random, len(pairs), ties=ties) for name in SCORES}
    flags = {name: (torch.rand(len(pairs), generator=random) < chances[name]).tolist() for name in FLAGS}
    shares = {name: (torch.rand(len(pairs), generator=random) * 0.9 + 0.01).tolist() for name in ("text", "image")}
    return Step(scores, pairs, frozenset(belong), offline, flags, shares, [], diagonal).cast(torch.double)


def relation(random: torch.Generator, images: int, texts: int) -> list[Entry]:
    """Every text has an image, every third on average a second one: unequal captions, shared texts."""
    found = set()
    for text in range(texts):
        found.add((pick(random, images), text))
        if pick(random, 3) == 0:
            found.add((pick(random, images), text))
    return sorted(found)


def pair_step(seed: int, batch: int = 6, *, ties: bool = False) -> Step:
    """B x B, pairs on the diagonal. Images and texts repeat; every third seed has an image that owns every text."""
    random = torch.Generator().manual_seed(seed)
    links = relation(random, max(batch - 2, 1), batch + 1)
    chosen = [links[place] for place in torch.randperm(len(links), generator=random)[:batch].tolist()]
    owned = set(links)
    belong = {
        (i, j) for i, (image, _) in enumerate(chosen) for j, (_, text) in enumerate(chosen) if (image, text) in owned
    }
    if seed % 3 == 0:
        belong |= {(0, j) for j in range(batch)}
    scores = uniform(random, batch, batch, ties=ties)
    return finished(random, scores, [(i, i) for i in range(batch)], belong, True, ties)


def image_step(seed: int, images: int = 4, *, ties: bool = False) -> Step:
    """I x T with unequal captions, pairs in any order; a few links of shared texts are left out of the pairs."""
    random = torch.Generator().manual_seed(seed)
    texts = images + 3
    belong = {(image, image) for image in range(images)} | set(relation(random, images, texts))
    if seed % 3 == 0:
        belong |= {(0, j) for j in range(texts)}
    links = sorted(belong)
    pairs: list[Entry] = []
    for place in torch.randperm(len(links), generator=random).tolist():
        image, text = links[place]
        if image == text or text not in [column for _, column in pairs] or pick(random, 2):
            pairs.append((image, text))
    return finished(random, uniform(random, images, texts, ties=ties), pairs, belong, False, ties)


LAYOUTS: dict[str, Callable[..., Step]] = {"pairs": pair_step, "images": image_step}


def embedded_step(seed: int, batch: int = 7, dim: int = 5) -> Step:
    """A pair batch whose repeated images and texts have equal embeddings, so that rows and columns repeat exactly."""
    random = torch.Generator().manual_seed(seed)
    num = batch - 3
    links = relation(random, num, num)
    chosen = [links[place] for place in torch.randperm(len(links), generator=random)[:batch].tolist()]
    step = pair_step(seed, len(chosen))
    owned = set(links)
    belong = {
        (i, j) for i, (image, _) in enumerate(chosen) for j, (_, text) in enumerate(chosen) if (image, text) in owned
    }
    sides = [torch.nn.functional.normalize(uniform(random, num, dim), dim=1).requires_grad_() for _ in range(2)]
    scores = (sides[0][[i for i, _ in chosen], None] * sides[1][None, [j for _, j in chosen]]).sum(2)
    return replace(step, scores=scores, belong=frozenset(belong), leaves=[*sides, *step.leaves[1:]])


def total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """By every leaf; zeros where it does not matter."""
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True) if value.requires_grad else ()
    filled = found or [None] * len(leaves)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(filled, leaves, strict=True)]


def close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype, what: object) -> None:
    """In double to 1e-10; in float32 to 1e-5 of the largest number."""
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in zip(found, expected, strict=True))
    largest = max(float(b.abs().max()) for b in expected)
    assert worst <= (1e-10 if dtype == torch.double else 1e-5 * max(largest, 1e-3)), (what, dtype, worst, largest)


def agree(config: Any, slow: Callable[[Any, Step], Parts], step: Step, *, gradient: bool = True) -> None:
    """Parts and gradient of `config` against those of `slow`: in double, and of the same leaves in float32."""
    expected = slow(config, step)
    for dtype in (torch.double, torch.float32) if step.leaves[0] is step.scores else (torch.double,):
        seen = step if dtype == torch.double else step.cast(dtype)
        found = losses.parts(config, seen.similarities())
        assert found.keys() == expected.keys()
        close([found[k].detach() for k in expected], [v.detach() for v in expected.values()], dtype, config)
        if gradient:
            slopes = gradients(total(expected), step.leaves)
            close(gradients(total(found), seen.leaves), slopes, dtype, config)


def finite(config: Any, step: Step, *, offline: bool = True) -> None:
    """The loss and its gradient are numbers, and at least float32."""
    found = losses.parts(config, step.similarities(offline=offline))
    for name, part in found.items():
        assert part.shape == (), (config, name)
        assert part.dtype == (torch.double if step.scores.dtype == torch.double else torch.float32), (config, name)
        assert part.isfinite(), (config, name, part)
    for grad in gradients(total(found), step.leaves):
        assert grad.isfinite().all(), (config, grad)


def hard_cases() -> dict[str, Step]:
    """Steps that tempt a loss into NaN."""
    alone = {name: make(1, 1) for name, make in (("one pair", pair_step), ("one image", image_step))}
    found = {name: replace(step, belong=frozenset(everywhere(step))) for name, step in alone.items()}
    for name, make in LAYOUTS.items():
        step = make(1)
        found[f"{name}, no negatives"] = replace(step, belong=frozenset(everywhere(step)))
        found[f"{name}, some without negatives"] = make(3)
        found[f"{name}, identical"] = step.filled(1.0)
        found[f"{name}, far"] = step.filled(-1.0)
        found[f"{name}, huge"] = step.filled(1e4)
        found[f"{name}, huge below"] = step.filled(-1e4)
        wild = {k: v.detach().sign() * 1e4 for k, v in step.offline.items()}
        found[f"{name}, huge mixed"] = replace(step, scores=step.scores.detach().sign() * 1e4, offline=wild)
    for name, sign in (("ahead", -1e4), ("behind", 1e4)):
        two = pair_step(1, 2)
        scores = sign * (1 - 2 * torch.eye(2, dtype=torch.double))
        one_negative = replace(two, scores=scores, belong=frozenset(two.pairs))
        found[f"two pairs, far {name}"] = one_negative
        found[f"two pairs, huge, far {name}"] = replace(one_negative, scores=scores + 1e4)
    return {name: step.cast(torch.float32) for name, step in found.items()}


def everywhere(step: Step) -> set[Entry]:
    return {(i, j) for i in range(step.scores.shape[0]) for j in range(step.scores.shape[1])}
