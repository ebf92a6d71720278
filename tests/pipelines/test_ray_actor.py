"""What an actor takes of a node, and what it makes of that, without a cluster."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import miner.nearest
from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore
from miner.index._faiss import set_threads
from pipelines import loop
from pipelines.executors import ray as ray_executor
from pipelines.executors.ray_actor import Shape, Shards, title
from pipelines.jobs import Task, job_of, settings_json
from pipelines.progress import open_progress
from pipelines.resources import ExecutorConfig
from pipelines.settings import Settings


def mining(root: Path, run_file: Path) -> Task:
    """Mining of the first round of a finished run, undone, as the loop would ask for it."""
    shutil.rmtree(next(root.glob("rounds/001/mine-i2t/*")))
    settings, store = Settings.load(run_file), LocalStore(root)
    steps = loop.steps_of(settings, loop.describe(settings), store)
    step = next(step for step in steps if step.stage.name == "r1/mine-i2t")
    where = {step.stage.name: step.prefix for step in steps if step.inputs is not None}
    parents = tuple((role, where[name]) for role, name in step.stage.parents)
    draft = Draft(store, step.prefix, step.stage.kind, dict(step.inputs or {}))
    return Task(step.stage, draft, parents, settings_json(settings))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [(Shape(1, 0), 19), (Shape(3, 0), 5), (Shape(1, 1), 3), (Shape(1, 0.5), 6), (Shape(4, 0.5), 3), (Shape(64, 0), 0)],
)
def test_how_many_fit(shape: Shape, wanted: int) -> None:
    nodes = [{"Resources": {"CPU": 8.0, "GPU": 2.0}}, {"Resources": {"CPU": 7.0}}, {"Resources": {"GPU": 1.0}}]
    nodes += [{"Resources": {"CPU": 4.0, "GPU": 1.0}}, {}]
    assert shape.room(nodes) == wanted


def test_a_miner_searches_on_as_many_threads_as_it_has_cpus_and_sees_no_gpu_it_was_not_given(
    finished_run: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0")
    task = mining(copy_of(finished_run), finished_run / "run.toml")
    assert title(task) == "copy/r1/mine-i2t"
    seen, search = [], miner.nearest.mine_block

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(set_threads(None))
        return search(*arguments, **named)

    monkeypatch.setattr(miner.nearest, "mine_block", watched)
    before = set_threads(None)
    for cpus in (3, 2):
        Shards(Shape(cpus, 0)).part(task, cpus - 1)
        assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == (str(cpus), "")
    assert seen == [3, 2]
    assert set_threads(None) == before
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    Shards(Shape(1, 1))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_part_says_which_anchors_it_is_made_of(finished_run: Path, copy_of: Callable[[Path], Path]) -> None:
    job: Any = job_of(mining(copy_of(finished_run), finished_run / "run.toml"))
    ids = sorted(job.pairs.image_ids)
    assert job.where(1) == f"image anchors in order of ids 32 to 63 (ids {ids[32]} to {ids[63]})"


@pytest.mark.parametrize("address", ["10.0.0.1", ":6379", "10.0.0.1:ray", "http://10.0.0.1:8265", "10.0.0.1:0"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="is no address of a Ray cluster; give HOST:PORT"):
        ray_executor.RayExecutor(ExecutorConfig(address=address), open_progress())


@pytest.mark.parametrize("variable", [False, True])
def test_a_head_that_is_not_there_is_not_waited_for(variable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client asks for a quarter of an hour."""
    monkeypatch.setattr(ray_executor, "_HEAD_SECONDS", 0.5)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{held.getsockname()[1]}"
        if variable:
            monkeypatch.setenv("RAY_ADDRESS", address)
        began = time.monotonic()
        with pytest.raises(Retryable, match=r"no Ray cluster at .*nobody listens there .*refused.*; is its head up"):
            ray_executor.RayExecutor(ExecutorConfig(address="auto" if variable else address), open_progress())
        assert time.monotonic() - began < 20
        held.listen()
        ray_executor._find_head(address)
