"""Tiny pretrained models with random weights, saved as `transformers` saves its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from miner.artifacts.pairs import Pairs
from trainer.data import Dataset

CAPTIONS = ["red cat", "a blue dog sits here", "bird", "the small house by a tall tree and the boat", "cat"]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDE = 16


def tokenizer(max_length: int = 12) -> Any:
    """Byte pairs learnt from CAPTIONS, <s> first and </s> last."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    made.train_from_iterator(CAPTIONS * 3, trainers.BpeTrainer(special_tokens=special, vocab_size=60))
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_max_length=max_length,
    )  # fmt: skip


def clip(folder: Path, seed: int = 0) -> Path:
    """CLIP of 16 x 16 pictures, 12 numbers per embedding, captions of at most 12 tokens."""
    torch.manual_seed(seed)
    text = {**SMALL, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 3, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**SMALL, "image_size": SIDE, "patch_size": 8}, projection_dim=12
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """SigLIP of 16 x 16 pictures, 16 numbers per embedding, captions of 9 tokens, padding included."""
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 60, "max_position_embeddings": 9, "pad_token_id": 1, "eos_token_id": 3}
    config = transformers.SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": SIDE, "patch_size": 8})
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer(9).save_pretrained(folder)
    return folder


def pictures(count: int, height: int = 24, width: int = 24, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: smooth colours with noise."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (count, 2, 2, 3))
    down, right = np.linspace(0, 1, height)[None, :, None, None], np.linspace(0, 1, width)[None, None, :, None]
    rows = [corners[:, i, None, j, None] * 1.0 for i in range(2) for j in range(2)]
    smooth = (1 - down) * ((1 - right) * rows[0] + right * rows[1]) + down * ((1 - right) * rows[2] + right * rows[3])
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def photos(pairs: Pairs, side: int = 24) -> Dataset:
    """The pairs with a picture for every image."""
    return Dataset(pairs, pictures(pairs.num_images, side, side), "photos", "train")
