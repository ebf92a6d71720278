"""One run folder and whatever may happen to it, in any order: runs of two settings, kills, damage, repair, gc, a second
writer. After every step the folder holds what was committed, and nothing made from damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from miner.artifacts.lock import hold
from miner.artifacts.store import LocalStore
from pipelines.best import BEST
from pipelines.verification import verify
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.kills import Warm
from tests.pipelines.mutants import MUTANTS

_LOOSE = ("settings.json", "log.jsonl")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bench:
    """Two run files, their undisturbed runs, and a process that runs commands."""

    base: Path
    warm: Warm
    wanted: tuple[dict[str, str], dict[str, str]]

    def run_file(self, variant: int) -> Path:
        return self.base / f"{variant}.toml"

    def undisturbed(self, variant: int) -> Path:
        return self.base / str(variant)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with benches(tmp_path_factory.mktemp("machine")) as bench:
        yield bench


@contextmanager
def benches(base: Path, mutant: str = "") -> Iterator[Bench]:
    (base / "vectors").mkdir()
    write_vectors(base / "vectors", num=48)
    small = {"run": {"rounds": 1, "first_epochs": 1, "epochs": 1}, "fit": {"batch_size": 16}}
    with Warm(mutant) as warm:
        for variant, k in enumerate((4, 5)):
            raw = raw_settings(
                base / "vectors",
                **small,
                mine={"k": k, "shard_anchors": 48},
                loss={"h_t": 3, "h_v": 3},
                watch={"trackers": []},
            )
            write_toml(base / f"{variant}.toml", raw)
            code, said = warm("run", base / f"{variant}.toml", "--run-dir", base / str(variant))
            assert code == 0, said
        yield Bench(base, warm, (_listed(base / "0"), _listed(base / "1")))


def _listed(root: Path) -> dict[str, str]:
    """MD5 of every file of every committed artifact, by name; what only manifests know that are whole."""
    found = {}
    # The copy of the best checkpoint is replaced when another one becomes the best.
    for manifest in (each for each in root.rglob(_MANIFEST) if each.parent != root / BEST):
        names = _names(manifest)
        found |= {str(p.relative_to(root)): _md5(p) for n in names if (p := manifest.parent / n).exists()}
    return found


def _names(manifest: Path) -> list[str]:
    try:
        return [_MANIFEST, *json.loads(manifest.read_bytes())["files"]]
    except (ValueError, KeyError, TypeError):
        return [_MANIFEST]


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class Folder(RuleBasedStateMachine):
    bench: ClassVar[Bench]
    count: ClassVar[Counter[str]] = Counter()
    variants = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.root = Path(self.stack.enter_context(TemporaryDirectory(prefix="quintain-machine-"))) / "run"
        self.damaged: dict[str, bytes] = {}  # what damaged files were, by name
        self.kept: dict[str, str] = {}  # what was committed when it was last looked at
        self.other = ExitStack()  # a second writer, while it is there
        self.held = False
        self.last: int | None = None  # the settings that were last written down

    def teardown(self) -> None:
        """Whatever happened: repaired, the same commands give the undisturbed tables."""
        self.other.close()
        self.held = False
        if self.root.exists():
            self.repair()
            for variant in (0, 1):
                self.run(variant)
        self.stack.close()

    @initialize(begun=st.sampled_from([None, 0, 1]), at=st.integers(40, 250), which=st.integers(0, 10**6))
    def begin(self, begun: int | None, at: int, which: int) -> None:
        """Killed on its way and damaged there, where work is left that needs it; or done; half of each."""
        if begun is None:
            self.killed(0, at, False)
            self.look()
            if self.kept:
                self.damage(which, 3 * which, True)
        else:
            shutil.copytree(self.bench.undisturbed(begun), self.root)
            self.last = begun
            self.look()

    @rule(variant=variants)
    def run(self, variant: int) -> None:
        code, said = self._command("run", self.bench.run_file(variant), "--run-dir", self.root)
        if self.held:
            assert code == 5, said
            return
        self.last = variant if code == 0 else self._said_to_be_for()
        assert code in ((0, 4) if self._artifacts_damaged() else (0,)), said
        if code == 0:
            there, wanted = _listed(self.root), self.bench.wanted[variant]
            lacking = {name for name in wanted if name not in there}
            # gc may have taken embeddings and indexes, which nothing then needs.
            assert all("/encode-" in name or "/index-" in name for name in lacking), lacking

    @rule(variant=variants, at=st.integers(1, 260), after=st.booleans())
    def killed(self, variant: int, at: int, after: bool) -> None:
        code, said = self._command("run", self.bench.run_file(variant), "--run-dir", self.root, at=at, after=after)
        self.last = self._said_to_be_for()
        assert code in ((-9, 5) if self.held else (-9, 0, 4) if self._artifacts_damaged() else (-9, 0)), said

    @precondition(lambda self: self.root.exists())
    @rule(keep=st.sampled_from([None, 0, 1]), at=st.sampled_from([0, 0, 5, 20, 40]))
    def collected(self, keep: int | None, at: int) -> None:
        before = _listed(self.root)
        more = () if keep is None else ("--keep-rounds", keep)
        code, said = self._command("gc", self.root, "--delete", *more, at=at)
        if self.held:
            assert code in (5, 3, 4, -9), said
            assert _listed(self.root) == before
        elif code not in (0, -9):
            # Nothing is there to plan from, or what is there is damaged.
            assert code == 3 or (code == 4 and self.damaged), said
            assert _listed(self.root) == before
        elif self.last is not None:
            # Of the last settings nothing goes but what can be made again.
            gone = {name for name in self.bench.wanted[self.last] if name in before and not (self.root / name).exists()}
            assert keep is not None or not gone, gone
            assert all("/encode-" in name or "/index-" in name for name in gone), gone
        self.look()

    @precondition(lambda self: self.kept and len(self.damaged) < 2)
    @rule(which=st.integers(0, 10**6), bit=st.integers(0, 10**9), late=st.booleans())
    def damage(self, which: int, bit: int, late: bool) -> None:
        """`late`: of what was made last, which the work that is left is most likely to read."""
        names = sorted(set(self.kept) - set(self.damaged))
        if late:
            newest = sorted({name.rpartition("/")[0] for name in names}, key=self._made)[-4:]
            names = [name for name in names if name.rpartition("/")[0] in newest]
        self._flip(names[which % len(names)], bit)

    @precondition(lambda self: (self.root / "settings.json").exists())
    @rule(name=st.sampled_from(_LOOSE), bit=st.integers(0, 10**9))
    def damage_beside(self, name: str, bit: int) -> None:
        if name not in self.damaged and (self.root / name).exists():
            self._flip(name, bit)

    @rule()
    def repair(self) -> None:
        """As the sentences say: the folders of what is damaged are deleted."""
        for name in self.damaged:
            folder = self.root / name if name in _LOOSE else (self.root / name).parent
            if name not in _LOOSE:
                shutil.rmtree(folder, ignore_errors=True)
        self.damaged = {name: was for name, was in self.damaged.items() if name in _LOOSE}
        self.look()

    @precondition(lambda self: self.root.exists() and not self.held)
    @rule()
    def another_writer_comes(self) -> None:
        self.other.enter_context(hold(self.root))
        self.held = True

    @precondition(lambda self: self.held)
    @rule()
    def another_writer_goes(self) -> None:
        self.other.close()
        self.held = False

    @invariant()
    def what_was_committed_stays(self) -> None:
        """And what was committed since is what the undisturbed runs hold, whatever was damaged meanwhile."""
        if not self.root.exists():
            return
        there = _listed(self.root)
        for name, digest in self.kept.items():
            assert name in there or name in self.damaged or self._beside_a_broken_manifest(name), f"{name} is gone"
            assert there.get(name, digest) == digest or name in self.damaged, f"{name} has changed"
        every = self.bench.wanted[0] | self.bench.wanted[1]
        for name, digest in there.items():
            if "/report/" not in name and "/removed-" not in name and name not in self.damaged:
                assert every.get(name) == digest, f"{name} is not what it would be undisturbed"
        self.look()

    @invariant()
    def verify_says_what_is_damaged(self) -> None:
        if not self.root.exists() or not any(self.root.iterdir()):
            return
        found = {finding.where: finding.what for finding in verify(LocalStore(self.root)).findings if finding.damage}
        damaged = {name.removesuffix(f"/{_MANIFEST}") for name in self.damaged if name != "log.jsonl"}
        # What a file should be is in its manifest: where that is damaged too, its folder is told of, and why.
        folders = {where for where, what in found.items() if "beside it cannot be checked" in what}
        told = found.keys() | {name for name in damaged if name.rpartition("/")[0] in folders}
        # A changed blank of the layout is no damage to what the settings say.
        assert damaged - {"settings.json"} <= told, (damaged, found)
        others = {where for where in found if where not in damaged and "which is not here" not in found[where]}
        assert others <= (
            {"pairs"} if "pairs" not in {p.parent.name for p in self.root.glob("pairs/*.json")} else set()
        )

    def look(self) -> None:
        self.kept = _listed(self.root) if self.root.exists() else {}

    def _command(self, *arguments: object, at: int = 0, after: bool = False) -> tuple[int, str]:
        before = _state(self.root) if self.held else {}
        code, said = self.bench.warm(*arguments, at=at, after=after)
        self.count[f"{arguments[0]}: {code}"] += 1
        assert "Traceback" not in said, said
        if self.held:
            assert _state(self.root) == before
        elif arguments[0] == "run" and code in (0, -9, 4):
            # Settings are written anew by a run that gets so far; a log is only ever added to.
            self.damaged = {n: was for n, was in self.damaged.items() if n != "settings.json" or self._same(n)}
        return code, said

    def _artifacts_damaged(self) -> bool:
        return any(name not in _LOOSE for name in self.damaged)

    def _same(self, name: str) -> bool:
        """Whether a damaged file of no artifact is still as it was damaged."""
        return (self.root / name).exists() and (self.root / name).read_bytes() == self.flipped[name]

    def _made(self, folder: str) -> int:
        manifest = self.root / folder / _MANIFEST
        return manifest.stat().st_mtime_ns if manifest.exists() else 0

    def _made(self, folder: str) -> int:
        manifest = self.root / folder / _MANIFEST
        return manifest.stat().st_mtime_ns if manifest.exists() else 0

    def _said_to_be_for(self) -> int | None:
        """Whose settings the folder holds; None where nobody can tell."""
        path = self.root / "settings.json"
        known = [self.bench.undisturbed(variant) / "settings.json" for variant in (0, 1)]
        same = [v for v in (0, 1) if path.exists() and path.read_bytes() == known[v].read_bytes()]
        return same[0] if same else None

    def _flip(self, name: str, bit: int) -> None:
        path = self.root / name
        whole = path.read_bytes()
        data = bytearray(whole)
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        path.write_bytes(data)
        self.damaged[name] = whole
        self.count["damage"] += 1
        self.flipped = {**getattr(self, "flipped", {}), name: bytes(data)}

    def _beside_a_broken_manifest(self, name: str) -> bool:
        return f"{name.rpartition('/')[0]}/{_MANIFEST}" in self.damaged


def _state(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def _played(bench: Bench, examples: int, steps: int, *, shrink: bool = True) -> None:
    Folder.bench = bench
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
    )
    run_state_machine_as_test(Folder, settings=profile)


def test_a_few_histories_of_a_folder(bench: Bench) -> None:
    _played(bench, examples=3, steps=7)


@pytest.mark.heavy
def test_many_histories_of_a_folder(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    histories = int(os.environ.get("QUINTAIN_HISTORIES", "60"))
    _played(bench, examples=histories, steps=15)
    with capsys.disabled():
        print(f"\n{histories} histories of up to 15 steps: {dict(Folder.count)}")


@pytest.mark.heavy
@pytest.mark.parametrize("mutant", MUTANTS)
def test_histories_find_a_check_that_is_gone(mutant: str, tmp_path: Path) -> None:
    with benches(tmp_path, mutant) as bench, pytest.raises(AssertionError):
        _played(bench, examples=60, steps=15, shrink=False)
