"""One artifact of every kind, and the readers that consume it, each giving bytes that can be compared.

`declared` finds the kinds that the source can write, so that a new one without an entry here is noticed.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from torch import nn

from miner import index
from miner.artifacts.candidates import Candidates, write_candidates
from miner.artifacts.elements import ElementLists
from miner.artifacts.embeddings import Embeddings
from miner.artifacts.manifest import Artifact, Draft, find_artifact
from miner.artifacts.negatives import NegativeBlock, NegativeTable
from miner.artifacts.pairs import Pairs, open_pairs
from miner.artifacts.store import LocalStore
from miner.kept import Kept
from miner.rows import open_rows
from pipelines.cli import main
from pipelines.compare import results
from pipelines.jobs.analyze import counted
from pipelines.removed import recorded
from pipelines.report import PAGE
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from trainer import data as formats
from trainer.backbones import Backbone
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset
from trainer.extract import ExtractConfig, extract
from trainer.pixels import Preprocessing

ROOT = Path(__file__).parents[2]
# Where the kind stands in a call that makes an artifact, and what stands there for a kind that a caller gives.
_CALLS = {"Draft": 2, "draft_at": 2, "_draft": 1, "Stage": 3}
_PASSED_ON = {"source.manifest.kind", "kind", "stage.kind", "filtering"}


@dataclass(frozen=True)
class Piece:
    """A committed artifact at `folder`, or what lies in a draft, and one reader of it."""

    kind: str
    folder: Path
    read: Callable[[], object]


def declared() -> set[str]:
    """Every kind that a call in the source names."""
    found = set()
    for package in ("miner", "trainer", "pipelines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree, module = ast.parse(file.read_text()), ".".join(file.relative_to(ROOT).with_suffix("").parts)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            owner = {alias.name: str(node.module) for node in imports for alias in node.names}
            elsewhere = {"Stage"} if owner.get("Stage", module) != "pipelines.stages" else set()
            for kind in _named(tree, set(_CALLS) - elsewhere):
                name = ast.unparse(kind)
                if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
                    found.add(kind.value)
                elif name.isupper():
                    found.add(getattr(importlib.import_module(owner.get(name, module)), name))
                else:
                    assert name in _PASSED_ON, f"{file}: whose kind is {name}?"
    return found


def _named(tree: ast.Module, calls: set[str]) -> Iterator[ast.expr]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            yield from (word.value for word in call.keywords if word.arg == "kind" and name == "replace")
            if name in calls and len(call.args) > _CALLS[name]:
                yield call.args[_CALLS[name]]


def make(base: Path) -> list[Piece]:
    """A run with everything on: regions, an approximate index, rules, an analysis; and what only commands write."""
    (base / "data").mkdir()
    regions = write_vectors(base / "data", num=48)
    np.save(regions / "images.npy", np.load(regions / "images.npy").reshape(48, 3, 8))
    raw = raw_settings(
        regions,
        run={"rounds": 1, "first_epochs": 1, "epochs": 1},
        analyze={"rounds": "last"},
        encode={"element_dtype": "float32"},
        index={"factory": "IVF2,SQ8"},
        mine={"k": 5, "num_candidates": 12, "recall_sample": 5, "recall": 0.5, "rules": ["relative-margin:margin=0.2"]},
    )
    raw["model"] = {"name": "scan", "attention": "t2i", "dim": 16, "word_dim": 8}
    run = base / "run"
    _pipelines("run", write_toml(base / "run.toml", raw), "--run-dir", run)
    pieces = _of_a_run(run)
    pieces += _removed(base, run)
    pairs = open_pairs(_at(run / "pairs"))
    pieces.append(_candidates(base, pairs))
    pieces.append(_search(base))
    pieces.append(_features(base, pairs))
    return pieces


def _pipelines(*arguments: object) -> None:
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output


def _at(folder: Path) -> Artifact:
    found = find_artifact(LocalStore(folder), ".")
    assert found is not None, folder
    return found


def _of_a_run(run: Path) -> list[Piece]:
    def one(pattern: str) -> Path:
        return sorted((run / "rounds").glob(pattern))[0]

    folder = {
        "checkpoint": one("001/fit/*"),
        "embeddings": one("001/encode-image/*"),
        "index": one("001/index-text/*"),
        "tuned": one("001/tune-i2t/*"),
        "negatives": one("001/mine-i2t/*"),
        "metrics": one("001/evaluate/*"),
        "counts": one("001/analyze/*"),
        "report": one("001/report/*"),
        "pairs": run / "pairs",
    }
    pairs = open_pairs(_at(run / "pairs"))
    assert (folder["negatives"] / "dropped.parquet").exists()

    def table() -> bytes:
        found = NegativeTable.open(_at(folder["negatives"]), pairs)
        return _bytes(found.negatives, found.scores, found.lowest_positive, found.num_negatives)

    def rows() -> object:
        found = open_rows(folder["negatives"])
        return found.path.read_bytes(), found.provenance

    def vectors() -> bytes:
        found = Embeddings.open(_at(folder["embeddings"]))
        return _bytes(found.array(), np.array(list(found.ids)))

    def elements() -> bytes:
        found = ElementLists.open(_at(folder["embeddings"]))
        return _bytes(*found.values, *found.offsets)

    def history() -> object:
        artifact = _at(folder["checkpoint"])
        step: Any = SimpleNamespace(prefix=".", manifest=artifact.manifest)
        return results._history(LocalStore(folder["checkpoint"]), step)

    readers: list[tuple[str, Callable[[], object]]] = [
        ("pairs", lambda: open_pairs(_at(folder["pairs"])).fingerprint),
        ("checkpoint", lambda: Checkpoint.open(_at(folder["checkpoint"])).fingerprint),
        ("checkpoint", history),
        ("embeddings", vectors),
        ("embeddings", elements),
        ("index", lambda: index.load(_at(folder["index"])).dumps()),
        ("tuned", lambda: _at(folder["tuned"]).manifest.meta),
        ("negatives", table),
        ("negatives", rows),
        ("metrics", lambda: _at(folder["metrics"]).manifest.meta["metrics"]),
        ("counts", lambda: counted(_at(folder["counts"]))),
        ("report", lambda: _at(folder["report"]).read(PAGE)),
    ]
    return [Piece(kind, folder[kind], read) for kind, read in readers]


def _removed(base: Path, run: Path) -> list[Piece]:
    """What `gc` leaves of embeddings: in a copy, since it removes them."""
    import shutil

    copy = shutil.copytree(run, base / "collected")
    _pipelines("gc", copy, "--keep-rounds", 0, "--delete")
    record = sorted(copy.glob("rounds/001/encode-image/removed-*"))[0]

    def read() -> object:
        held = recorded(_at(record).manifest)
        assert held is not None
        return held.dumps()

    return [Piece("removed", record, read)]


def _candidates(base: Path, pairs: Pairs) -> Piece:
    rng = np.random.default_rng(0)
    store, order = LocalStore(base / "searched"), pairs.order("image")
    found = rng.integers(0, pairs.num_texts, (len(order), 4)).astype(np.int32)
    block = NegativeBlock(
        order, found, rng.random(found.shape).astype(np.float32), rng.random(len(order)).astype(np.float32)
    )
    for _ in write_candidates(Draft(store, "i2t", "candidates", {}), [block], pairs, "i2t", 4, {}):
        pass

    def read() -> bytes:
        opened = Candidates.open(base / "searched" / "i2t", pairs).block(0, len(order))
        return _bytes(opened.negatives, opened.scores, opened.lowest_positive)

    return Piece("candidates", base / "searched" / "i2t", read)


def _search(base: Path) -> Piece:
    """A shard that a killed search kept: never committed; what is damaged is not found, and is searched again."""
    draft = Draft(LocalStore(base / "kept"), "shards", "search", {"k": 3})
    with Kept(draft).room(range(9), range(20), 3) as lists:
        lists.positions[:] = np.arange(27).reshape(9, 3)
        lists.scores[:] = np.linspace(1, 0, 27).reshape(9, 3)

    def read() -> bytes | None:
        kept = Kept(draft)
        return _bytes(*(vars(kept.lists[0, 0])[n] for n in ("positions", "scores"))) if _found(kept) else None

    def _found(kept: Kept) -> bool:
        return kept.find(range(9), range(20))

    return Piece("search", base / "kept" / "shards", read)


def _features(base: Path, pairs: Pairs) -> Piece:
    pictures = np.random.default_rng(1).integers(0, 256, (pairs.num_images, 12, 12, 3), dtype=np.uint8)
    torch.manual_seed(0)
    network = Backbone(
        nn.Conv2d(3, 4, 3, stride=2), Preprocessing(size=(12, 12), mean=(0.5,) * 3, std=(0.5,) * 3), "small"
    )
    extract([Dataset(pairs, pictures, "photos", "train")], network, ExtractConfig(), LocalStore(base / "features"))

    def read() -> str:
        return formats.load(formats.spoken(str(base / "features")), "train").fingerprint

    return Piece("features", base / "features", read)


def _bytes(*arrays: Any) -> bytes:
    return json.dumps([list(a.shape) for a in arrays]).encode() + b"".join(np.ascontiguousarray(a) for a in arrays)
