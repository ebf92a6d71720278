"""Any dual encoder of the `transformers` library: CLIP (Radford et al., ICML 2021, arXiv 2103.00020), SigLIP (Zhai et
al., ICCV 2023, arXiv 2303.15343), and whatever else has image and text features.

The features are the library's own, `get_image_features` and `get_text_features`, scaled to length 1. Pictures are
resized and normalised here as the model's image processor says (see `trainer.pixels`, how close that is to it); where
that makes a square of any picture, as SigLIP's does, the data have to be read with `image_mode = "squeeze"`, which the
commands of `trainer` and `pipelines init` see to: otherwise the middle alone is left. Texts are read by the model's
tokenizer. What lies beyond a caption's length does not contribute: CLIP takes the state at the first end-of-text token;
SigLIP reads padding as text, so its captions are all of full length.

    [model]
    name = "clip"
    path = "clip-vit-base-patch32"     # a folder, or a name on the Hugging Face hub
    tuning = "lora"
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from trainer.models import Encoder
from trainer.models._pretrained import Pretrained, find, library, processor
from trainer.pixels import Preprocessing
from trainer.pretrained_text import PretrainedTokenizer
from trainer.text import Tokenizer

__all__ = ["Clip", "Config", "build", "load_pretrained", "resolve", "tokenizer"]

Tuning = Literal["full", "frozen_towers", "frozen_image", "frozen_text", "lora"]
_FROZEN = {
    "frozen_towers": ("vision_model", "text_model"),
    "frozen_image": ("vision_model",),
    "frozen_text": ("text_model",),
}
_READS_PADDING = ("siglip",)  # the text vector is the state at the last position, whatever is there


class Config(Pretrained):
    """`tuning`: which weights are trained. A frozen tower keeps every weight up to its projection (in SigLIP, up to its
    head); "lora" trains low-rank adapters alone (Hu et al., ICLR 2022), in the layers whose names end in one of
    `lora_targets`.

    `dim` and `pixels` are filled in from the model.
    """

    path: str = Field(min_length=1)
    tuning: Tuning = "full"
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16.0, gt=0, description="adapters are scaled by lora_alpha / lora_rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    gradient_checkpointing: bool = Field(default=False, description="less memory, a third more time")
    dim: int = Field(default=0, ge=0)
    pixels: Preprocessing | None = None


class Clip(Encoder):
    """Images (B, height, width, 3) uint8; texts as tokens."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        model: Any = config.bare()
        assert config.pixels is not None
        self.tokenizer, self.dim, self.pixels = tokenizer, config.dim, config.pixels
        for name, parameter in model.named_parameters():
            if name.startswith("logit_"):  # temperature and bias belong to the loss that it was pretrained with
                parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if config.tuning == "lora":
            _adapt(model, config)
        self.frozen = [_tower(model, name) for name in _FROZEN.get(config.tuning, ())]
        self.model = model

    def encode_images(self, images: Tensor) -> Tensor:
        found = self.model.get_image_features(pixel_values=self.pixels(images))
        return normalize(found.pooler_output.float(), dim=1)

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max())
        read = torch.arange(longest, device=tokens.device) < lengths.to(tokens.device)[:, None]
        tokens = tokens[:, :longest].masked_fill(~read, 0)
        found = self.model.get_text_features(input_ids=tokens, attention_mask=read.long())
        return normalize(found.pooler_output.float(), dim=1)

    def train(self, mode: bool = True) -> Self:
        """A frozen tower stays in eval mode: no dropout, and statistics as they were."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self


def resolve(config: Config, base: Path = Path()) -> Config:
    """With the model, its fingerprint, its preprocessing and `dim` filled in from the folder.

    Raises BadInput when the folder holds no dual encoder, or none that takes pictures of one size.
    """
    if config.pixels is not None:
        return config
    config = config.resolved(base)
    folder = find(config.path)
    about = config.config()
    dual = library().MODEL_MAPPING.get(type(about), None)
    image, text = (getattr(dual, f"get_{side}_features", None) for side in ("image", "text"))
    towers = [getattr(about, f"{side}_config", None) for side in ("vision", "text")]
    if image is None or text is None or None in towers or "spatial_shapes" in inspect.signature(image).parameters:
        raise BadInput(
            f"{folder}: {about.model_type!r} is not a dual encoder of pictures of one size and texts "
            "(get_image_features, get_text_features); give a CLIP, SigLIP or similar model."
        )
    pixels = Preprocessing.of_processor(processor(folder), str(folder))
    side = about.vision_config.image_size
    if pixels.size != (side, side):
        raise BadInput(f"{folder}: the preprocessing makes {pixels.size} pixels, but the model takes {side} x {side}.")
    inner = about.text_config
    dim = int(getattr(about, "projection_dim", None) or getattr(inner, "projection_size", None) or inner.hidden_size)
    if config.dim not in (0, dim):
        raise BadInput(f"{folder}: dim = {config.dim}, but the model's embeddings have {dim} numbers; leave dim out.")
    return config.model_copy(update={"dim": dim, "pixels": pixels})


def tokenizer(config: Config, texts: Sequence[str], min_count: int) -> PretrainedTokenizer:
    """The model's own, whatever the captions. Raises BadInput when it has none."""
    kind = str(config.config().model_type)
    return config.tokenizer(fixed=kind in _READS_PADDING)


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Clip:
    """Needs no file. Raises BadInput unless an image is (height, width, 3), and for adapters without a layer."""
    if len(image_shape) != 3 or image_shape[2] != 3:
        raise BadInput(
            f"model clip takes pictures of shape (height, width, 3), but these images are {image_shape}; "
            "for precomputed vectors take the model vsepp or vse_inf."
        )
    model = Clip(config, tokenizer)
    model.pixels.scaled(image_shape[0], image_shape[1])
    return model


def load_pretrained(config: Config, model: Clip) -> None:
    """Raises BadInput when the files have changed since `resolve`, or do not make embeddings of `dim` numbers."""
    config.load_into(model.model)
    training = model.training
    with torch.no_grad():
        found = model.eval().encode_images(torch.zeros(1, *model.pixels.size, 3, dtype=torch.uint8)).shape[1]
    model.train(training)
    if found != config.dim:
        raise BadInput(f"{config.path}: an image gives {found} numbers, but dim = {config.dim} was expected.")


def _adapt(model: nn.Module, config: Config) -> None:
    peft = library("peft")
    adapters = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
    )
    try:
        peft.inject_adapter_in_model(adapters, model)
    except ValueError as error:
        raise BadInput(f"model clip: lora_targets = {list(config.lora_targets)}: {error}") from error
    for side in ("vision", "text"):
        tower = getattr(model, f"{side}_model", None)
        if tower is not None and not any("lora_" in name for name, _ in tower.named_parameters()):
            raise BadInput(
                f"model clip: lora_targets = {list(config.lora_targets)} name no layer of the {side} tower, which "
                'would not learn; add its own ("query", "value" in BERT), or take another tuning.'
            )


def _tower(model: nn.Module, name: str) -> nn.Module:
    tower: nn.Module | None = getattr(model, name, None)
    if tower is None:
        raise BadInput(f"model clip: the pretrained model has no {name} to freeze; take tuning full or lora.")
    for inner, parameter in tower.named_parameters():
        parameter.requires_grad_(inner.startswith("head."))
    return tower
