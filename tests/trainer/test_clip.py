"""Dual encoders of transformers: the library's own features, padding without effect, what is trained and what kept."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import normalize, pad

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore
from tests.trainer import pretrained_models
from tests.trainer.pretrained_models import CAPTIONS, SIDE, pictures
from trainer import losses, models
from trainer.checkpoint import CHECKPOINT, Checkpoint
from trainer.data._decode import decode_all
from trainer.encode import encode_rows
from trainer.training import FitConfig, fit

pytestmark = pytest.mark.usefixtures("one_thread")
TUNINGS = ["full", "frozen_towers", "frozen_image", "frozen_text", "lora"]
FIT = FitConfig(epochs=2, batch_size=16, threads=1, lr=1e-2, ema_decay=0.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Callable[[Path], Path]] = {"clip": pretrained_models.clip, "siglip": pretrained_models.siglip}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in made.items()}


def configured(folder: Path, **settings: Any) -> Any:
    return models.resolved(models.configure("clip", {"path": str(folder), **settings}))


def fresh(config: Any) -> Any:
    torch.manual_seed(0)
    return models.fresh(config, models.tokenizer_of(config, [], 1), (24, 24, 3)).eval()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_features_are_the_librarys_own(folders: dict[str, Path], name: str) -> None:
    """Against a model, tokenizer and image processor opened by transformers alone, one caption at a time."""
    folder = folders[name]
    model = fresh(configured(folder))
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    images = pictures(5)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    prepared = processor(list(images), return_tensors="pt")["pixel_values"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 9} if name == "siglip" else {}
    with torch.no_grad():
        found = model.encode_images(torch.from_numpy(images))
        # One grey level of rounding, see trainer.pixels.
        expected = normalize(theirs.get_image_features(pixel_values=prepared).pooler_output, dim=1)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        exact = normalize(theirs.get_image_features(pixel_values=model.pixels(torch.from_numpy(images))).pooler_output)
        torch.testing.assert_close(found, exact)
        tokens, lengths = (torch.from_numpy(array) for array in model.tokenizer.encode(CAPTIONS))
        texts = model.encode_texts(tokens, lengths)
        for text, caption in zip(texts, CAPTIONS, strict=True):
            ids = tokenizer(caption, return_tensors="pt", truncation=True, **padding)["input_ids"]
            alone = normalize(theirs.get_text_features(input_ids=ids).pooler_output, dim=1)[0]
            torch.testing.assert_close(text, alone)
    assert (found.dtype, texts.dtype, found.shape[1], texts.shape[1]) == (*(torch.float32,) * 2, model.dim, model.dim)
    assert (texts @ texts.T).fill_diagonal_(0).max() < 0.9999  # captions differ


@pytest.mark.parametrize(("name", "mode", "other"), [("clip", "crop", "squeeze"), ("siglip", "squeeze", "crop")])
def test_photos_that_are_no_squares_are_seen_as_the_library_sees_them(
    folders: dict[str, Path], name: str, mode: str, other: str
) -> None:
    """CLIP cuts the middle out of them, SigLIP makes squares of them; from the file on."""
    config = configured(folders[name])
    assert config.pixels.squeezes == (mode == "squeeze")
    photos = [Image.fromarray(photo) for photo in pictures(6, 40, 100)]
    stored = []
    for photo in photos:
        photo.save(file := io.BytesIO(), "PNG")
        stored.append(file.getvalue())
    theirs = transformers.AutoModel.from_pretrained(folders[name]).eval()
    prepared = transformers.AutoImageProcessor.from_pretrained(folders[name])(photos, return_tensors="pt")
    with torch.no_grad():
        wanted = normalize(theirs.get_image_features(**prepared).pooler_output)
        found = {
            each: fresh(config).encode_images(torch.from_numpy(decode_all(stored, SIDE, each, 10**6).pixels))
            for each in (mode, other)
        }
    alike = {each: (vectors * wanted).sum(1) for each, vectors in found.items()}
    assert alike[mode].min() > 0.999
    assert alike[other].min() < 0.99


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_what_lies_beyond_a_captions_length_does_not_contribute(folders: dict[str, Path], name: str) -> None:
    model = fresh(configured(folders[name]))
    tokens, lengths = (torch.from_numpy(array) for array in model.tokenizer.encode(CAPTIONS))
    beyond = torch.arange(tokens.shape[1] + 4) >= lengths[:, None]
    with torch.no_grad():
        expected = model.encode_texts(tokens, lengths)
        for filling in (0, 1, 3, 59):  # unknown, padding, end of text, the largest number
            noisy = pad(tokens, (0, 4)).masked_fill(beyond, filling)
            torch.testing.assert_close(model.encode_texts(noisy, lengths), expected)


def test_clips_of_old_end_of_text_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    """Checkpoints from before 2023 say end-of-text is 2 and mean the largest token; padding may be end-of-text too."""
    folder = shutil.copytree(folders["clip"], tmp_path / "old")
    about = json.loads((folder / "config.json").read_text())
    tokens = torch.tensor([[2, 7, 9, 58, 59, 58], [2, 8, 30, 31, 32, 58]])
    lengths = torch.tensor([4, 6])
    found = []
    for end, padding in ((2, 1), (58, 58), (58, 1)):
        about["text_config"].update(eos_token_id=end, pad_token_id=padding)
        (folder / "config.json").write_text(json.dumps(about))
        with torch.no_grad():
            found.append(fresh(configured(folder)).encode_texts(tokens, lengths))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_only_what_the_tuning_names_is_trained(
    folders: dict[str, Path], toys: SimpleNamespace, tmp_path: Path, name: str, tuning: str
) -> None:
    """Two epochs, on disk and back with the folder gone: frozen weights keep every bit, the rest of the heads move."""
    folder = shutil.copytree(folders[name], tmp_path / "model")
    config = configured(folder, tuning=tuning, lora_rank=2)
    dataset = pretrained_models.photos(toys.pairs(20))
    made = fresh(config)
    assert not any(p.requires_grad for key, p in made.named_parameters() if "logit_" in key)
    before = made.state_dict()
    trained = fit(dataset, config, losses.configure("triplet"), FIT)
    shutil.rmtree(folder)
    trained.commit(Draft(LocalStore(tmp_path / "c"), ".", CHECKPOINT, {}))
    found = Checkpoint.load(tmp_path / "c")
    model = found.model()
    assert found.model_config == config
    assert model.tokenizer == trained.tokenizer
    after = model.state_dict()
    assert all(torch.equal(after[key], trained.weights[key]) for key in after)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    towers = {side: f"model.{side}_model." for side in ("vision", "text")}
    if tuning == "lora":
        assert moved == {key for key in before if ".lora_" in key}
        assert len(moved) == 2 * 2 * 2 * 2  # A and B of two projections in two layers of two towers
        return
    for side, prefix in towers.items():
        inner = {key for key in moved if key.startswith(prefix) and not key.startswith(prefix + "head.")}
        frozen = tuning in ("frozen_towers", {"vision": "frozen_image", "text": "frozen_text"}[side])
        assert bool(inner) != frozen
        heads = {"clip": {"vision": "model.visual_projection.", "text": "model.text_projection."}}
        assert any(key.startswith(heads.get(name, {}).get(side, prefix + "head.")) for key in moved)


def test_a_frozen_tower_keeps_its_dropout_off(folders: dict[str, Path]) -> None:
    model = fresh(configured(folders["clip"], tuning="frozen_image")).train()
    assert model.training
    assert not model.model.vision_model.training
    assert model.model.text_model.training
    assert not model.eval().model.text_model.training


def test_fresh_adapters_change_nothing(folders: dict[str, Path]) -> None:
    plain, adapted = (fresh(configured(folders["clip"], tuning=tuning)) for tuning in ("full", "lora"))
    images = torch.from_numpy(pictures(3))
    with torch.no_grad():
        assert torch.equal(plain.encode_images(images), adapted.encode_images(images))


def test_gradient_checkpointing_changes_no_gradient(folders: dict[str, Path]) -> None:
    images = torch.from_numpy(pictures(3))
    found = []
    for kept in (False, True):
        model = fresh(configured(folders["clip"], gradient_checkpointing=kept)).train()
        model.encode_images(images)[:, 0].sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_a_killed_training_goes_on_bit_by_bit(folders: dict[str, Path], toys: SimpleNamespace, tmp_path: Path) -> None:
    config = configured(folders["clip"], tuning="lora", lora_dropout=0.2)
    dataset, loss = pretrained_models.photos(toys.pairs(20)), losses.configure("triplet")
    whole = fit(dataset, config, loss, FIT)

    def killed(log: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(dataset, config, loss, FIT, scratch=tmp_path, progress=killed)
    resumed = fit(dataset, config, loss, FIT, scratch=tmp_path)
    assert resumed.fingerprint == whole.fingerprint
    further = fit(dataset, config, loss, FIT, start=whole, first_epoch=2)
    assert further.updates == 2 * whole.updates


def test_shards_do_not_change_a_bit(folders: dict[str, Path], toys: SimpleNamespace) -> None:
    model = fresh(configured(folders["clip"]))
    dataset = pretrained_models.photos(toys.pairs(20))
    for side, size in (("image", dataset.pairs.num_images), ("text", dataset.pairs.num_texts)):
        whole = encode_rows(model, dataset, side, np.arange(size), batch_size=8)  # type: ignore[arg-type]
        some = np.array([size - 1, 3, 11])
        assert np.array_equal(encode_rows(model, dataset, side, some, batch_size=8), whole[some])  # type: ignore


def test_other_weights_are_another_setting(folders: dict[str, Path], tmp_path: Path) -> None:
    """The fingerprint is in the settings, hence in every key made from them; a folder that changed is not mixed in."""
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    one = configured(folder)
    assert models.resolved(one) == one == configured(folder)
    pretrained_models.clip(folder, seed=1)
    two = configured(folder)
    assert one.fingerprint != two.fingerprint
    assert one.architecture == two.architecture
    with pytest.raises(BadInput, match="changed since"):
        fresh(one)
    shutil.rmtree(folder)
    assert models.resolved(two) == two
    again = models.configure("clip", json.loads(two.model_dump_json()))
    assert again == two


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**about, **changes}))

    return edit


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def other_size(folder: Path) -> None:
    transformers.CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}).save_pretrained(
        folder
    )


@pytest.mark.parametrize(
    ("spoil", "settings", "sentence"),
    [
        (without("config.json"), {}, "no config.json"),
        (without("model.safetensors"), {}, "no weights"),
        (pickled, {}, "a pickle, which is never opened"),
        (cut, {}, "cannot load this model"),
        (without("preprocessor_config.json"), {}, "no image processor"),
        (without("tokenizer.json"), {}, "no tokenizer"),
        (other_size, {}, "the model takes 16 x 16"),
        (edited(model_type="no_such_model"), {}, "is not one that this version of transformers knows"),
        (edited(model_type="vit"), {}, "not a dual encoder"),
        (edited(projection_dim=13), {}, "cannot load this model"),
        (None, {"dim": 13}, "leave dim out"),
        (None, {"max_tokens": 13}, "at most 12 tokens"),
        (None, {"tuning": "lora", "lora_targets": ("no_such_layer",)}, "lora_targets"),
        (None, {"tuning": "lora", "lora_targets": ("visual_projection",)}, "no layer of the vision tower"),
        (None, {"tuning": "lora", "lora_rank": 0}, "lora_rank"),
        (None, {"tuning": "half"}, "tuning"),
    ],
)
def test_what_is_wrong_is_said(
    folders: dict[str, Path],
    tmp_path: Path,
    spoil: Callable[[Path], None] | None,
    settings: dict[str, Any],
    sentence: str,
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    if spoil is not None:
        spoil(folder)
    with pytest.raises(BadInput, match=sentence) as said:
        fresh(configured(folder, **settings))
    assert "\n" not in str(said.value)


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    tokenizer = pretrained_models.tokenizer()
    tokenizer.add_tokens([f"extra{number}" for number in range(40)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="it is of another model"):
        fresh(configured(folder))


@pytest.mark.parametrize("path", ["no-such-owner/no-such-model", "./no/such/folder", "two words"])
def test_a_name_that_is_nowhere_is_one_sentence(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="no such folder, and no model of that name"):
        models.resolved(models.configure("clip", {"path": path}))


def test_settings_that_were_not_resolved_are_refused(folders: dict[str, Path]) -> None:
    config = models.configure("clip", {"path": str(folders["clip"])})
    with pytest.raises(BadInput, match=r"trainer\.models\.resolved"):
        models.tokenizer_of(config, [], 1)


@pytest.mark.parametrize("shape", [(9,), (36, 9), (8, 8, 4)])
def test_vectors_are_refused(folders: dict[str, Path], shape: tuple[int, ...]) -> None:
    config = configured(folders["clip"])
    with pytest.raises(BadInput, match="take the model vsepp"):
        models.build(config, models.tokenizer_of(config, [], 1), shape)
