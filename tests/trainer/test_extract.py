"""Features of pictures: pooled as a loop would, the same bits after any kill, and read back as the same data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore
from tests.trainer.pretrained_models import pictures
from trainer import data, registry
from trainer.backbones import Backbone, Features
from trainer.data import Dataset
from trainer.extract import ExtractConfig, captions, extract, pooled
from trainer.pixels import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 12


class Counting(nn.Module):
    """A convolution of stride 2 that counts the pictures it has seen."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.scale, self.seen = scale, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        found: Tensor = self.conv(images) * self.scale
        return found


def backbone(scale: float = 1.0) -> Backbone:
    return Backbone(Counting(scale), Preprocessing(size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3), "counting")


def split_of(pairs: Pairs, split: str, seed: int = 0) -> Dataset:
    return Dataset(pairs, pictures(pairs.num_images, 16, 16, seed), "photos", split)


def sets(toys: SimpleNamespace) -> list[Dataset]:
    """Unequal numbers of captions, and captions on several images."""
    return [split_of(toys.pairs(count, seed), split, seed) for split, count, seed in (("train", 23, 0), ("test", 9, 1))]


def links(pairs: Pairs) -> list[tuple[str, str, str]]:
    return sorted(
        (pairs.image_ids[image], pairs.text_ids[text], pairs.texts[text])
        for image, text in zip(pairs.image_rows, pairs.text_rows, strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, (5,)), ({"regions": 3}, (9, 5)), ({"pool": "map"}, (36, 5)), ({"regions": 1}, (1, 5))]
)
def test_what_is_written_reads_as_the_same_pairs(
    toys: SimpleNamespace, tmp_path: Path, settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Against the map of every picture alone, its cells averaged one by one."""
    made, datasets = backbone(), sets(toys)
    extract(datasets, made, registry.validated(ExtractConfig, {"batch_size": 4, **settings}, ""), LocalStore(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            "manifest.json",
            *(
                f"{split}_{end}"
                for split in ("test", "train")
                for end in ("caps.txt", "ids.txt", "ims.npy", "text_ids.txt")
            ),
        ]
    )
    for before in datasets:
        after = data.load(data.spoken(str(tmp_path)), before.split)  # type: ignore[arg-type]
        assert links(after.pairs) == links(before.pairs)
        assert after.pairs.image_ids == before.pairs.image_ids
        assert sorted(after.pairs.text_ids) == sorted(before.pairs.text_ids)
        assert after.pairs.num_texts < after.pairs.num_pairs
        assert (after.image_shape, after.images.dtype) == (shape, np.float32)
        found = after.images[np.arange(len(after.images))]
        for row, picture in enumerate(before.images):  # type: ignore[arg-type, var-annotated]
            with torch.no_grad():
                pixels = made.pixels(torch.from_numpy(picture)[None])
                last = made.network(pixels)[0].double().numpy()
            cells = {(5,): 1, (1, 5): 1, (9, 5): 3, (36, 5): 6}[shape]
            step = 6 // cells
            expected = [
                last[:, y : y + step, x : x + step].mean((1, 2)) for y in range(0, 6, step) for x in range(0, 6, step)
            ]
            np.testing.assert_allclose(found[row].reshape(-1, 5), expected, atol=1e-5)


@pytest.mark.parametrize("stop_at", [1, 9, 17, 31])
def test_a_killed_extraction_goes_on(toys: SimpleNamespace, tmp_path: Path, stop_at: int) -> None:
    """Whole shards are kept, and where it went on does not show; files of a half-made end are made again."""
    datasets, config = sets(toys), ExtractConfig(batch_size=4)
    whole = backbone()
    extract(datasets, whole, config, LocalStore(tmp_path / "whole"))
    assert whole.network.seen == 23 + 9 + 2  # a black picture for each split tells the shape

    def killed(split: str, done: int, total: int) -> None:
        if done + 23 * (split == "test") >= stop_at:
            raise KeyboardInterrupt

    shards: dict[str, Any] = {"shard_bytes": 8 * 5 * 4}  # of two batches
    with pytest.raises(KeyboardInterrupt):
        extract(datasets, backbone(), config, LocalStore(tmp_path / "killed"), killed, **shards)
    finished = {1: 0, 9: 8, 17: 16, 31: 23}[stop_at]
    if finished:
        (tmp_path / "killed" / "train_ims.npy").write_bytes(b"half")
    resumed = backbone()
    extract(datasets, resumed, config, LocalStore(tmp_path / "killed"), **shards)
    assert resumed.network.seen == 23 + 9 + 2 - finished
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "killed").iterdir())) == len(list((tmp_path / "whole").iterdir()))
    again = backbone()
    extract(datasets, again, config, LocalStore(tmp_path / "killed"), **shards)
    assert again.network.seen == 0


def test_damaged_and_foreign_shards_are_made_again(toys: SimpleNamespace, tmp_path: Path) -> None:
    datasets, config = sets(toys), ExtractConfig(batch_size=4)
    shards: dict[str, Any] = {"shard_bytes": 8 * 5 * 4}

    def killed(split: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(datasets, backbone(), config, LocalStore(tmp_path / "a"), killed, **shards)
    part = tmp_path / "a" / ".parts" / "train-part-00000.npy"
    damaged = bytearray(part.read_bytes())
    damaged[-1] ^= 1
    part.write_bytes(damaged)
    again = backbone()
    extract(datasets, again, config, LocalStore(tmp_path / "a"), **shards)
    assert again.network.seen == 23 + 9 + 2 - 8  # the second shard alone was whole and finished
    with pytest.raises(KeyboardInterrupt):
        extract(datasets, backbone(), config, LocalStore(tmp_path / "b"), killed, **shards)
    other = backbone()
    extract(datasets, other, ExtractConfig(batch_size=4, dtype="float16"), LocalStore(tmp_path / "b"), **shards)
    assert other.network.seen == 23 + 9 + 2
    assert np.load(tmp_path / "b" / "train_ims.npy").dtype == np.float16


def test_nothing_of_anybodys_is_overwritten(toys: SimpleNamespace, tmp_path: Path) -> None:
    datasets = sets(toys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test_caps.txt").write_text("my own\n")
    with pytest.raises(BadInput, match=r"test_caps\.txt: there already"):
        extract(datasets, backbone(), ExtractConfig(), LocalStore(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["test_caps.txt"]
    extract(datasets, backbone(), ExtractConfig(), LocalStore(tmp_path / "other"))
    for made, config in ((backbone(2.0), ExtractConfig()), (backbone(), ExtractConfig(pool="map"))):
        made.network.conv.weight.data *= made.network.scale
        with pytest.raises(BadInput, match="made from other inputs is here already"):
            extract(datasets, made, config, LocalStore(tmp_path / "other"))


def test_pictures_are_read_in_the_same_batches_whatever_a_shard_is(toys: SimpleNamespace, tmp_path: Path) -> None:
    datasets = sets(toys)
    for name, shard_bytes in (("a", 1), ("b", 3 * 5 * 4), ("c", 13 * 5 * 4), ("d", 2**20)):
        extract(datasets, backbone(), ExtractConfig(batch_size=3), LocalStore(tmp_path / name), shard_bytes=shard_bytes)
    for other in "bcd":
        for path in (tmp_path / "a").iterdir():
            assert (tmp_path / other / path.name).read_bytes() == path.read_bytes()


def test_captions_become_one_line_each() -> None:
    pairs = Pairs.from_ids(
        ["b", "a c"],
        ["t0", "t1", "t2"],
        [("b", "t1"), ("a c", "t0"), ("a c", "t1"), ("a c", "t2")],
        texts=["  two\r\n\nlines ", "both", "a\u2028b\x0bc"],
    )
    lines, ids, text_ids = captions(split_of(pairs, "train"))
    assert lines == ["both", "two lines", "both", "a\u2028b\x0bc"]
    assert ids == ["b", "a c", "a c", "a c"]
    assert text_ids == ["t1", "t0", "t1", "t2"]
    links = [("x", "t"), ("x\n", "t")]
    with pytest.raises(BadInput, match="differ in spaces"):
        captions(split_of(Pairs.from_ids(["x", "x\n"], ["t"], links, texts=["t"]), "train"))
    with pytest.raises(BadInput, match="no captions, only ids"):
        captions(split_of(Pairs.from_ids(["x"], ["t"], links[:1]), "train"))


@pytest.mark.parametrize("twins", [[], [0, 1], [0, 1, 2, 3, 4, 5]])
def test_one_caption_for_every_image(tmp_path: Path, twins: list[int]) -> None:
    """Equal pictures, the first two or all of them by twos, are images of their own."""
    ids = [f"i{row}" for row in range(6)]
    texts = [f"t{row}" for row in range(6)]
    pairs = Pairs.from_ids(ids, texts, list(zip(ids, texts, strict=True)), texts=texts)
    photos = pictures(6, 16, 16)
    for row in twins:
        photos[row] = photos[row // 2 * 2]
    extract([Dataset(pairs, photos, "photos", "train")], backbone(), ExtractConfig(), LocalStore(tmp_path))
    found = data.load(data.spoken(str(tmp_path)), "train")
    assert links(found.pairs) == links(pairs)
    assert len(found.images) == 6


def test_a_kill_costs_at_most_1024_pictures(tmp_path: Path) -> None:
    ids = [str(row) for row in range(2500)]
    pairs = Pairs.from_ids(ids, ids, list(zip(ids, ids, strict=True)), texts=ids)
    dataset = Dataset(pairs, np.zeros((2500, 4, 4, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None], "p", "train")

    def killed(split: str, done: int, total: int) -> None:
        if done >= 2200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract([dataset], backbone(), ExtractConfig(batch_size=100), LocalStore(tmp_path), killed)
    resumed = backbone()
    extract([dataset], resumed, ExtractConfig(batch_size=100), LocalStore(tmp_path))
    assert resumed.network.seen == 2500 - 2000 + 1
    larger = backbone()  # a batch is never cut
    extract([dataset], larger, ExtractConfig(batch_size=1500), LocalStore(tmp_path / "larger"))
    assert larger.network.seen == 2500 + 1


def test_features_too_large_for_half_precision_are_said(toys: SimpleNamespace, tmp_path: Path) -> None:
    datasets = sets(toys)
    extract(datasets, backbone(1e6), ExtractConfig(), LocalStore(tmp_path / "a"))
    with pytest.raises(BadInput, match="image 'i0' are not finite as float16; take --dtype float32"):
        extract(datasets, backbone(1e6), ExtractConfig(dtype="float16"), LocalStore(tmp_path / "b"))


@pytest.mark.parametrize(
    ("features", "settings", "sentence"),
    [
        (Features(None, torch.ones(1, 4)), {"regions": 2}, "no map"),
        (Features(None, torch.ones(1, 4)), {"pool": "map"}, "no map"),
        (Features(torch.ones(1, 4, 2, 3), None), {"pool": "cls"}, "no class token"),
        (Features(torch.ones(1, 4, 2, 3), None), {"regions": 3}, "at most 2"),
    ],
)
def test_what_a_network_does_not_give_is_said(features: Features, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        pooled(features, ExtractConfig(**settings), "network")


def test_class_tokens_and_vectors() -> None:
    both = Features(torch.ones(2, 4, 2, 3), torch.arange(8.0).reshape(2, 4))
    assert torch.equal(pooled(both, ExtractConfig(pool="cls"), ""), torch.arange(8.0).reshape(2, 4))
    assert torch.equal(pooled(both, ExtractConfig(), ""), torch.ones(2, 4))
    assert torch.equal(pooled(Features(None, torch.ones(1, 4)), ExtractConfig(), ""), torch.ones(1, 4))


def test_uneven_cells_overlap_as_adaptive_pooling_says() -> None:
    """Cell i of n over a side of s covers the places floor(i s / n) up to ceil((i + 1) s / n)."""
    values = torch.rand(1, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    found = pooled(Features(values, None), ExtractConfig(regions=3), "")
    rows, columns = ([(i * side // 3, -(-(i + 1) * side // 3)) for i in range(3)] for side in (7, 5))
    expected = [values[0, :, a:b, c:d].mean((1, 2)) for a, b in rows for c, d in columns]
    torch.testing.assert_close(found[0], torch.stack(expected))


def test_two_ways_of_pooling_are_refused() -> None:
    with pytest.raises(BadInput, match="leave pool out"):
        registry.validated(ExtractConfig, {"pool": "cls", "regions": 2}, "here")
