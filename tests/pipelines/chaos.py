"""Random SIGKILLs of a run on a cluster: of its driver, of what works for it, of the nodes that is on.

A driver that died, or gave up with "try again", is started again by the same command, until the run is finished.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tests.pipelines.nodes import Nodes, kill, said
from tests.pipelines.test_loop import hashes

Victim = Literal["driver", "worker", "raylet"]
_AGAIN = (-9, 75)  # killed; "try again"
_MOST_STARTS = 40


def committed(root: Path) -> dict[str, str]:
    """What `hashes` gives, of files that a manifest lists: a lost worker may write beside them for a while."""
    listed = set()
    for manifest in (root / "rounds").rglob("manifest.json"):
        files = [*json.loads(manifest.read_bytes())["files"], manifest.name]
        listed |= {str(manifest.with_name(name).relative_to(root)) for name in files}
    return {name: digest for name, digest in hashes(root).items() if name in listed}


@dataclass
class Chaos:
    """`run_file` is run on `nodes`, which hold the raylets of all nodes but the head's, at random(seed)."""

    nodes: Nodes
    raylets: list[int]
    run_file: Path
    undisturbed: float  # seconds that it takes
    pause: float  # seconds between kills, at most
    random: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # from a run's last kill to its end, in undisturbed runs
    starts: int = 0

    def run(self, root: Path, victims: Sequence[Victim | None]) -> None:
        """Run with one kill after the other, at random moments (None: of a random victim), to the end."""
        process = self._start(root)
        try:
            last = time.monotonic()
            for victim in victims:
                process = self._wait(process, root, self.random.uniform(0, self.pause))
                if process.poll() is not None:
                    break  # finished before its time came
                self._kill(victim or self.random.choice(get_args(Victim)), process)
                last = time.monotonic()
            self._wait(process, root, 3 * self.undisturbed + 60)
            assert self._ended(root), f"{root.name}: not finished: {said(root)[-4000:]}"
            self.slowest = max(self.slowest, (time.monotonic() - last) / self.undisturbed)
        finally:
            kill(process.pid)
            process.wait()

    def _start(self, root: Path) -> subprocess.Popen[bytes]:
        self.starts += 1
        return self.nodes.run(self.run_file, root)

    def _wait(self, process: subprocess.Popen[bytes], root: Path, seconds: float) -> subprocess.Popen[bytes]:
        """Let it run so long, started again when it ends before it is done. The process that runs now, or is done."""
        end = time.monotonic() + seconds
        for _ in range(_MOST_STARTS):
            try:
                code = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return process
            if code == 0:
                return process
            # Chance may hit one shard three times, which is then left out as it should be.
            left_out = code == 3 and "left out after" in said(root).splitlines()[-1]
            assert left_out or code in _AGAIN, f"{root.name} ended with {code}: {said(root)[-4000:]}"
            process = self._start(root)
        raise AssertionError(f"{root.name}: started {_MOST_STARTS} times: {said(root)[-4000:]}")

    @staticmethod
    def _ended(root: Path) -> bool:
        return any(line.startswith("page: ") for line in said(root).splitlines())

    def _kill(self, victim: Victim, process: subprocess.Popen[bytes]) -> None:
        workers = self.nodes.workers()
        if victim == "worker" and not workers:
            victim = "driver"
        self.kills[victim] += 1
        if victim == "driver":
            kill(process.pid)
        elif victim == "worker":
            kill(self.random.choice(workers))
        else:
            kill(self.raylets.pop(self.random.randrange(len(self.raylets))))
            self.raylets.append(self.nodes.add()[1])
