"""A real cluster of three nodes: actors and nodes die, nodes join, a shard is poison, a training loses its start."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from miner.artifacts.store import LocalStore
from pipelines import log
from pipelines.cli import main
from pipelines.settings import Settings
from tests.pipelines import trapped
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.chaos import Chaos, committed
from tests.pipelines.nodes import DEADLINE, Nodes, kill, said, wait_until
from tests.pipelines.test_loop import hashes
from trainer.data import load

_ROWS = 8  # of a shard, and of a batch: who dies of a row dies of its shard


@dataclass(frozen=True)
class Bench:
    """A finished run `inline`, its run file, and a cluster of a head without CPUs and two nodes with one each."""

    base: Path
    nodes: Nodes
    raylets: list[int]
    wanted: dict[str, str]
    num_images: int

    @property
    def run_file(self) -> Path:
        return self.base / "run.toml"

    def unmined(self, name: str) -> Path:
        """A copy of the finished run of which encode, index and mine are still to do; what follows is then reused."""
        return self.without(name, "encode-*", "index-*", "mine-*")

    def without(self, name: str, *stages: str) -> Path:
        root = self.base / name
        shutil.copytree(self.base / "inline", root)
        for folder in [folder for stage in stages for folder in root.glob(f"rounds/001/{stage}")]:
            shutil.rmtree(folder)
        return root

    def put(self, trap: Path, text: str = "") -> Path:
        """Set a trap of the model's; the file, to be taken away again."""
        file = self.base / trap.name
        file.write_text(text)
        return file


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    base = tmp_path_factory.mktemp("cluster")
    (base / "vectors").mkdir()
    shutil.copy(trapped.__file__, base / "trapped_towers.py")
    raw = raw_settings(
        write_vectors(base / "vectors"),
        run={"rounds": 1, "first_epochs": 1, "epochs": 1},
        encode={"shard_rows": _ROWS, "batch_size": _ROWS},
        executor={"patience": 2.0},
    )
    run_file = base / "run.toml"
    model = '[model]\nname = "custom"\nfactory = "trapped_towers:build"\ndim = 16\nsettings = { dim = 16 }\n'
    raw.pop("model")
    write_toml(run_file, raw)
    run_file.write_text(run_file.read_text() + model)
    with pytest.MonkeyPatch.context() as here:
        here.syspath_prepend(str(base))
        result = CliRunner().invoke(main, ["run", str(run_file), "--run-dir", str(base / "inline")])
        assert result.exit_code == 0, result.output
        num = len(load(Settings.load(run_file).data, "train").images)
        with Nodes(base) as nodes:
            raylets = [nodes.add()[1] for _ in range(2)]
            yield Bench(base, nodes, raylets, hashes(base / "inline"), num)


def test_actors_and_a_node_die_and_a_node_joins(bench: Bench) -> None:
    root, nodes = bench.unmined("disturbed"), bench.nodes
    held = bench.put(trapped.HELD)
    process = nodes.run(bench.run_file, root)
    try:
        # What the dashboard shows, and `ps`.
        wait_until(lambda: len(nodes.working("disturbed/r1/encode-image")) == 2, process, root)
        first = [actor for actor in nodes.actors("disturbed/1 CPU/") if actor.alive]
        assert len(first) == 2
        assert len({actor.node for actor in first}) == 2

        kill(first[0].pid)
        wait_until(lambda: "killed, for instance" in said(root), process, root)
        wait_until(lambda: len(nodes.working("disturbed/r1/encode-image")) == 2, process, root)

        joined, raylet = nodes.add()
        wait_until(lambda: len(nodes.working("disturbed/r1/encode-image")) == 3, process, root)
        there = [actor for actor in nodes.actors("disturbed/1 CPU/") if actor.node == joined]
        assert [actor.alive for actor in there] == [True]

        kill(raylet)
        wait_until(lambda: "was lost with the node" in said(root), process, root)
        held.unlink()
        assert process.wait(DEADLINE) == 0, said(root)
    finally:
        held.unlink(missing_ok=True)
        kill(process.pid)
    assert committed(root) == bench.wanted
    # Two to begin with, one for the one that was killed, one on the node that joined: whoever encoded mined too.
    assert [actor.name.rpartition("/")[0] for actor in nodes.actors("disturbed/")] == ["disturbed/1 CPU"] * 4
    assert "left out" not in said(root)


def test_poison_is_left_out_and_named_then_the_rest_is_done_on_a_gpu(bench: Bench) -> None:
    root = bench.unmined("poisoned")
    row = 3 * _ROWS + 5
    train = load(Settings.load(bench.run_file).data, "train")
    fatal = bench.put(trapped.FATAL, repr(float(train.images[[row]][0, 0])))
    ids = train.pairs.image_ids
    process = bench.nodes.run(bench.run_file, root)
    try:
        assert process.wait(DEADLINE) == 3, said(root)
    finally:
        fatal.unlink()
        kill(process.pid)
    error = said(root).splitlines()[-1]
    assert error.startswith("error: r1/encode-image: 1 shard was left out after 3 failures each")
    assert f"shard 3, image rows 24 to 31 (ids {ids[24]} to {ids[31]}): process " in error
    assert "ended without a word" in error
    assert said(root).count("lost a worker") == 3
    shards = -(-bench.num_images // _ROWS)
    assert f"{shards - 1} finished" in error
    done = {path.name for path in root.glob("rounds/001/encode-image/*/part-*.done")}
    assert done == {f"part-{shard:05d}.npy.done" for shard in range(shards) if shard != 3}
    assert not list(root.glob("rounds/001/encode-image/*/manifest.json"))

    # Started again beside a node with a GPU: it is for the encoder. faiss there sees none, there being none,
    # so that miners take what CPUs there are.
    with_gpu, raylet = bench.nodes.add(cpus=1, gpus=2)
    before = bench.nodes.actors("poisoned/")
    kept = {path: path.stat().st_mtime_ns for path in root.glob("rounds/001/encode-image/*/part-*.npy")}
    process = bench.nodes.run(bench.run_file, root)
    assert process.wait(DEADLINE) == 0, said(root)
    assert hashes(root) == bench.wanted
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    made = [actor for actor in bench.nodes.actors("poisoned/") if actor not in before]
    kill(raylet)
    assert {actor.node for actor in made if "/1 CPU and 1 GPU/" in actor.name} == {with_gpu}
    assert {actor.node for actor in made if "/1 CPU/" in actor.name} - {with_gpu}
    # Of its two GPUs one was at work, for one CPU holds one encoder.
    gpus = {line["stage"]: line["gpus"] for line in log.lines(LocalStore(root)) if line["event"] == "done"}
    assert {gpus[name] for name in ("r1/encode-image", "r1/encode-text", "r1/mine-i2t", "r1/fit")} == {1}


def test_a_training_that_loses_who_started_it_is_told_and_goes_on(bench: Bench) -> None:
    """Our actor, which starts Ray Train's; then that one."""
    root = bench.without("started", "fit")
    for starter in ("ray::_Fits", "ray::TrainController"):
        process = bench.nodes.run(bench.run_file, root)
        try:
            wait_until(lambda title=starter: bool(bench.nodes.titled(title)), process, root)
            kill(bench.nodes.titled(starter)[0])
            assert process.wait(DEADLINE) == 75, said(root)
        finally:
            kill(process.pid)
        assert said(root).splitlines()[-1].startswith("error: r1/fit: Ray lost the work (The actor died unexpectedly")
    assert bench.nodes.run(bench.run_file, root).wait(DEADLINE) == 0, said(root)
    assert committed(root) == bench.wanted


def test_an_error_in_a_training_is_told_as_it_was_and_at_once(bench: Bench) -> None:
    root = bench.without("mistaken", "fit")
    (root / ".ray-train" / "of-one-that-was-killed").mkdir(parents=True)
    wrong = bench.put(trapped.WRONG, "no such thing in these towers")
    process = bench.nodes.run(bench.run_file, root)
    try:
        assert process.wait(DEADLINE) == 1, said(root)
    finally:
        wrong.unlink()
        kill(process.pid)
    assert "RuntimeError: r1/fit failed in a worker:\n" in said(root)
    assert "LookupError: no such thing in these towers" in said(root)
    assert "trapped_towers.py" in said(root)
    assert bench.nodes.run(bench.run_file, root).wait(DEADLINE) == 0, said(root)
    assert committed(root) == bench.wanted
    assert not list(root.glob(".ray-train/*"))


def test_a_scheduler_that_ends_the_command_is_told_to_try_again(bench: Bench) -> None:
    """SIGTERM, while actors are at work and while a training is; and the cluster keeps none of them."""
    root = bench.without("stopped", "encode-image", "fit")
    for work in ("encode-image", "fit"):
        process = bench.nodes.run(bench.run_file, root)
        try:
            wait_until(lambda last=f"r1/{work}: not made yet\n": said(root).endswith(last), process, root)
            process.terminate()
            assert process.wait(DEADLINE) == 75, said(root)
        finally:
            kill(process.pid)
        assert said(root).splitlines()[-1].startswith("error: stopped by SIGTERM: what is finished is kept")
        assert not any(word in said(root) for word in ("***", "Traceback"))
    assert bench.nodes.run(bench.run_file, root).wait(DEADLINE) == 0, said(root)
    assert committed(root) == bench.wanted


def test_a_training_whose_nodes_stay_away_is_given_up(bench: Bench) -> None:
    root = bench.without("deserted", "fit")
    paused = bench.put(trapped.PAUSED)
    process = bench.nodes.run(bench.run_file, root)
    try:
        wait_until(lambda: bool(bench.nodes.titled("ray::RayTrainWorker")), process, root)
        (trains,) = bench.nodes.titled("ray::RayTrainWorker")
        there = int(Path(f"/proc/{trains}/stat").read_text().rpartition(") ")[2].split()[1])  # its parent
        (other,) = set(bench.raylets) - {there}
        kill(other)
        time.sleep(4)  # until it is known, or the training begins again there
        kill(there)
        assert process.wait(DEADLINE) == 75, said(root)
    finally:
        paused.unlink()
        kill(process.pid)
        bench.raylets[:] = [bench.nodes.add()[1] for _ in bench.raylets]
    # Where the node is not known to be lost yet, Ray Train may use up its tries on it before anybody has to wait.
    no_room = "r1/fit: [fit] processes = 1, of which each takes 1 CPU, but the nodes have room for 0; none joined"
    given_up = "r1/fit: training was given up after failures of its workers, or of what starts them"
    assert any(end in said(root).splitlines()[-1] for end in (no_room, given_up)), said(root)
    assert bench.nodes.run(bench.run_file, root).wait(DEADLINE) == 0, said(root)
    assert committed(root) == bench.wanted


def test_actors_that_fit_no_node_are_waited_for_in_vain(bench: Bench) -> None:
    root = bench.unmined("large")
    file = bench.base / "large.toml"
    file.write_text(bench.run_file.read_text().replace("[executor]\n", "[executor]\nencode = { cpus = 64 }\n"))
    process = bench.nodes.run(file, root)
    assert process.wait(DEADLINE) == 75, said(root)
    error = said(root).splitlines()[-1]
    assert "a worker takes 64 CPUs" in error
    assert "([executor] encode.cpus, encode.gpus), but no node has that" in error
    assert "none joined within 2 s" in error

    root = bench.without("gpu-alone", "fit")
    file.write_text(bench.run_file.read_text().replace("[fit]\n", '[fit]\ndevice = "cuda"\n'))
    assert bench.nodes.run(file, root).wait(DEADLINE) == 75, said(root)
    assert "of which each takes 1 CPU and 1 GPU, but the nodes have room for 0; none" in said(root).splitlines()[-1]


def test_some_kills(bench: Bench) -> None:
    chaos = Chaos(bench.nodes, bench.raylets, bench.run_file, 20.0, 2.0, random.Random(1))
    root = bench.unmined("some-kills")
    chaos.run(root, ["worker", "raylet", "driver"])
    assert committed(root) == bench.wanted


@pytest.mark.heavy
@pytest.mark.parametrize("whole", [False, True])
def test_many_kills(bench: Bench, whole: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """As many as QUINTAIN_KILLS says, two dozen a run: of encode, index and mine, or of the whole loop."""

    def fresh(name: str) -> Path:
        return bench.base / name if whole else bench.unmined(name)

    root = fresh(f"left-alone-{whole}")
    began = time.monotonic()
    assert bench.nodes.run(bench.run_file, root).wait(DEADLINE) == 0, said(root)
    took = time.monotonic() - began
    pause = took / 12 if whole else took / 4
    chaos = Chaos(bench.nodes, bench.raylets, bench.run_file, took, pause, random.Random(int(whole)))
    assert committed(root) == bench.wanted
    number = 0
    while chaos.kills.total() < int(os.environ.get("QUINTAIN_KILLS", "200")):
        root = fresh(f"killed-{whole}-{number}")
        chaos.run(root, [None] * 24)
        assert committed(root) == bench.wanted
        shutil.rmtree(root)
        number += 1
        with capsys.disabled():
            print(
                f"\n{chaos.kills.total()} kills {dict(chaos.kills)} of {number} runs, {chaos.starts} starts; "
                f"undisturbed {chaos.undisturbed:.0f} s; from a last kill to the end at most {chaos.slowest:.2f} times"
            )
