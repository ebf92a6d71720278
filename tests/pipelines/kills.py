"""`pipelines` commands in processes that kill themselves before or after their Nth storage operation.

A `Warm` process imports what a command needs and forks one child per command, so that a command costs no imports. An
operation is a call of a method of `Store` (what it calls in turn counts too), or a line added to a folder's log.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.pipelines.faults import Fault, arm
from tests.pipelines.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
READS = ("read", "exists", "names", "local")
WRITES = ("create", "put", "forget", "scratch", "write", "remove", "sweep")


class Warm:
    """`with Warm() as warm: warm("run", ...)`. Commands run one after the other; a `mutant` lacks one of its checks."""

    def __init__(self, mutant: str = "") -> None:
        self._mutant = mutant

    def __enter__(self) -> Warm:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipelines.kills", self._mutant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def __call__(
        self, *arguments: object, at: int = 0, after: bool = False, fault: Fault | None = None, **environment: str
    ) -> tuple[int, str]:
        """(exit code, what it said); -9 when it killed itself before (or after) operation `at`."""
        found = self._ask(arguments, at, after, environment, fault)
        return found["code"], found["said"]

    def calls(self, *arguments: object, fault: Fault, **environment: str) -> list[str]:
        """The calls of the system below `fault.root` of a command that is left alone, in order."""
        found = self._ask(arguments, 0, False, environment, fault)
        assert found["code"] == 0, found["said"]
        names: list[str] = found["calls"]
        return names

    def operations(self, *arguments: object, **environment: str) -> list[str]:
        """The operations of a command that is left alone, in order."""
        found = self._ask(arguments, 0, False, environment)
        assert found["code"] == 0, found["said"]
        names: list[str] = found["operations"]
        return names

    def _ask(
        self,
        arguments: tuple[object, ...],
        at: int,
        after: bool,
        environment: dict[str, str],
        fault: Fault | None = None,
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        about = {"arguments": [str(a) for a in arguments], "at": at, "after": after, "environment": environment}
        about["fault"] = None if fault is None else dataclasses.asdict(fault)
        print(json.dumps(about), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the warm process ended with {self._process.wait(60)}"
        found: dict[str, Any] = json.loads(answer)
        return found


class _Counter:
    """Counts operations of the main thread: the heartbeat of a lease has a clock of its own."""

    def __init__(self, at: int, after: bool) -> None:
        self.at, self.after = at, after
        self.names: list[str] = []

    def around(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return method(*arguments, **named)
            self.names.append(name)
            mine = len(self.names) == self.at
            if mine and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return method(*arguments, **named)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    def store(self, location: str) -> Any:
        """The store at a location, of a class whose operations are counted."""
        from miner.artifacts.locations import open_store

        plain = open_store(location)
        kind = type(plain)
        counted = type(
            kind.__name__, (kind,), {name: self.around(name, getattr(kind, name)) for name in (*READS, *WRITES)}
        )
        return counted(**{each.name: getattr(plain, each.name) for each in dataclasses.fields(plain)})


def _command(about: dict[str, Any], answer: int) -> None:
    """In the child: be the command, and say how it ended unless it is killed."""
    os.environ.update(about["environment"])
    from miner.artifacts.store import LocalStore
    from pipelines import log, places
    from pipelines.cli import main

    fault = Fault(**about["fault"]) if about["fault"] else None
    calls = arm(fault) if fault is not None else []
    counter = _Counter(about["at"], about["after"])
    append, added = log.append, counter.around("append", log.append)
    places.open_store = counter.store
    log.append = lambda store, line: (added if isinstance(store, LocalStore) else append)(store, line)
    code = 1
    try:
        main(about["arguments"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        told = {"code": code, "operations": counter.names, "calls": calls, "modules": list(sys.modules)}
        os.write(answer, json.dumps(told).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    said = Path(f"/tmp/quintain-kills-{os.getpid()}")
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.close(read)
            _command(json.loads(line), write)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        found = json.loads(told) if told else {"operations": [], "modules": []}
        for name in found.pop("modules"):
            if name not in sys.modules and not name.startswith("__"):
                try:
                    importlib.import_module(name)
                except Exception:  # some are made, not imported
                    continue
        found |= {"code": os.waitstatus_to_exitcode(status), "said": said.read_text(errors="replace")[-4000:]}
        print(json.dumps(found), file=answers, flush=True)
    said.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1]:
        MUTANTS[sys.argv[1]]()
    _serve()
