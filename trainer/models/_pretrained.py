"""Pretrained checkpoints of the `transformers` library: found, described in the settings, built, loaded.

Safe to open whoever wrote them: weights are read from safetensors files alone, never from a pickle (`.bin`), and no
code that lies beside them is run. What a checkpoint of this project needs to be built again, `architecture` and a
tokenizer, is written into it; the folder they came from is read for a fresh model only.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors import SafetensorError
from torch import Tensor, nn

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import canonical_json, digest_file
from trainer.pretrained_text import PretrainedTokenizer

__all__ = ["BertWords", "Pretrained", "find", "library", "load", "processor"]

_FILES = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors")
_NO_LIMIT = 10**6  # a tokenizer without a longest text says 1e30
_NOT_SETTINGS = ("transformers_version", "torch_dtype", "dtype", "auto_map")


class Pretrained(BaseModel):
    """`path` is a folder as `save_pretrained` writes it, or the name of a model on the Hugging Face hub.

    Captions are cut to `max_tokens`, special tokens included; 0 is as many as the model reads. What the path refers to
    is filled in: `architecture`, its config.json, and `fingerprint`, the SHA-256 of weights, settings and tokenizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: str = ""
    max_tokens: int = Field(default=0, ge=0)
    architecture: dict[str, JsonValue] = {}
    fingerprint: str = ""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose version shapes what the model computes."""
        return "transformers", "tokenizers", "peft"

    def resolved(self, base: Path = Path()) -> Self:
        """With what the path refers to filled in, once; a folder's path is made absolute, from `base` on.

        Raises BadInput when it is not there or cannot be used.
        """
        if self.architecture:
            return self
        here = base / Path(self.path).expanduser()
        path = str(here.resolve()) if self.path and here.is_dir() else self.path
        folder = find(path)
        filled = {"path": path, "architecture": _config_of(folder), "fingerprint": _fingerprint(folder)}
        return self.model_copy(update=filled)

    def config(self) -> Any:
        """The architecture as `transformers` holds it. Raises BadInput for one it does not know."""
        if not self.architecture:
            raise BadInput(
                f"pretrained model {self.path!r}: not looked at yet; call trainer.models.resolved on its settings."
            )
        known = library().CONFIG_MAPPING
        kind = self.architecture.get("model_type")
        if kind not in known:
            raise BadInput(
                f"{self.path}: model type {kind!r} is not one that this version of transformers knows; code that comes "
                "with a model is never run."
            )
        return known[kind].from_dict(dict(self.architecture))

    def bare(self) -> nn.Module:
        """The model with weights from torch's generator; needs no file. Raises BadInput."""
        config = self.config()
        try:
            model: nn.Module = library().AutoModel.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"{self.path}: transformers cannot build this model: {_first_line(error)}") from error
        if len(list(model.parameters())) != len(list(model.named_parameters(remove_duplicate=False))):
            raise BadInput(f"{self.path}: two parts of this model share weights, which is not supported; give another.")
        return model

    def load_into(self, model: nn.Module) -> None:
        """Fill what `bare` made, wrapped in adapters or not. Raises BadInput when the folder has changed since."""
        folder = find(self.path)
        if _fingerprint(folder) != self.fingerprint:
            raise BadInput(f"{folder}: the files have changed since the settings were read; run the command again.")
        source = load(folder).state_dict()
        for name, weight in model.state_dict().items():
            plain = name.replace(".base_layer.", ".")
            if plain in source:  # an adapter is not: it starts as it was built
                weight.copy_(source[plain])

    def tokenizer(self, *, fixed: bool = False) -> PretrainedTokenizer:
        """Its tokenizer; see PretrainedTokenizer for `fixed`. Raises BadInput when it has none that fits the model."""
        folder = find(self.path)
        try:
            found = library().AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            source = found.backend_tokenizer.to_str()
        except (ValueError, OSError, AttributeError, ImportError, KeyError) as error:
            raise BadInput(
                f"{folder}: no tokenizer that the tokenizers library reads ({_first_line(error)}); save the model's "
                "tokenizer beside it (tokenizer.json)."
            ) from error
        text = getattr(self.config(), "text_config", self.config())
        longest = min(found.model_max_length, getattr(text, "max_position_embeddings", _NO_LIMIT))
        asked = self.max_tokens or longest
        if asked > longest or asked >= _NO_LIMIT:
            raise BadInput(
                f"{folder}: max_tokens = {self.max_tokens}, but the model reads texts of at most {longest} tokens; "
                "ask for fewer (0 is as many as it reads)."
            )
        pad = found.pad_token_id if found.pad_token_id is not None else 0
        masks = (found.mask_token_id, found.unk_token_id, pad)
        mask = next(number for number in masks if number is not None)
        made = PretrainedTokenizer(source, asked, pad, fixed, mask)
        if len(made) > text.vocab_size:
            raise BadInput(
                f"{folder}: the tokenizer has {len(made)} tokens, but the model knows {text.vocab_size}; it is of "
                "another model."
            )
        return made


class BertWords(nn.Module):
    """The last layer of a text encoder such as BERT: a state per token, `hidden` numbers each."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        config = pretrained.config()
        hidden = getattr(config, "hidden_size", None)
        if not isinstance(hidden, int):
            raise BadInput(
                f"{pretrained.path}: {config.model_type!r} is not a text encoder; give one such as BERT, or take "
                "the model clip for a dual encoder."
            )
        self.hidden = hidden
        encoder: Any = pretrained.bare()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # one vector per text, which nothing here would train
        self.encoder = encoder

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, L) int64, lengths (B,) -> (B, L, hidden); what lies beyond a length changes no state before it."""
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
        tokens = tokens.masked_fill(~mask, 0)
        states: Tensor = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return states


def library(name: str = "transformers") -> Any:
    """`transformers`, or another library of the same extra. Raises BadInput when it is not installed."""
    try:
        module = importlib.import_module(name)
    except ImportError as missing:
        raise BadInput(
            f"pretrained models need the package {name}, which does not import here ({_first_line(missing)}); "
            "pip install 'quintain[pretrained]'."
        ) from missing
    if name == "transformers":
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
    return module


def find(path: str) -> Path:
    """The folder of a checkpoint: `path` itself, or the local copy of a hub model, fetched if need be.

    Raises BadInput when there is none, and for one without settings or without safetensors.
    """
    folder = Path(path).expanduser()
    if not path:
        raise BadInput("a pretrained model needs a path: the folder it lies in, or its name on the Hugging Face hub.")
    if not folder.is_dir():
        folder = _fetched(path)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json; give a folder that save_pretrained of transformers wrote.")
    if not _weights_of(folder):
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {pickles[0]}, a pickle, which is never opened" if pickles else "no weights"
        if not Path(path).expanduser().is_dir():
            found = f"no safetensors of {path} were found; a pickle (*.bin) is neither fetched nor opened"
        raise BadInput(
            f"{folder}: {found}; save the model as safetensors (model.save_pretrained of a recent transformers does)."
        )
    return folder


def load(folder: Path) -> Any:
    """The model in a folder, float32, on the CPU. Raises BadInput when its weights are not complete."""
    try:
        model, told = library().AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(f"{folder}: transformers cannot load this model: {_first_line(error)}") from error
    # A pooled vector on top of the states is left out of many checkpoints, and used nowhere here.
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise BadInput(f"{folder}: {len(missing)} weights are missing, {missing[0]} first; the files are not complete.")
    return model


def processor(folder: Path) -> Any:
    """The image processor in a folder. Raises BadInput when there is none."""
    try:
        return library().AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, ImportError) as error:
        raise BadInput(
            f"{folder}: no image processor ({_first_line(error)}); save the model's beside it "
            "(preprocessor_config.json): it says how pictures are normalised."
        ) from error


def _fetched(name: str) -> Path:
    hub = library("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[*_FILES, *_WEIGHTS]))
    except (hub.errors.HFValidationError, hub.errors.HfHubHTTPError, OSError) as error:
        raise BadInput(
            f"{name}: no such folder, and no model of that name could be fetched from the Hugging Face hub or found in "
            f"its local cache ({type(error).__name__}); check the spelling, or copy the model here and give its folder."
        ) from error


def _weights_of(folder: Path) -> list[Path]:
    return sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_bytes())
        return {key: value for key, value in found.items() if key not in _NOT_SETTINGS and not key.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{folder / 'config.json'}: not a JSON object ({_first_line(error)}).") from error


def _fingerprint(folder: Path) -> str:
    files = {file for pattern in _FILES for file in folder.glob(pattern)} | set(_weights_of(folder))
    return hashlib.sha256(canonical_json({file.name: digest_file(file) for file in files})).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
