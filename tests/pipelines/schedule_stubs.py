"""Programs that stand in for those a schedule starts, and hostile names for what it is told."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pipelines.cli import main

KINDS = ("airflow", "cron", "kubernetes", "raycronjob", "slurm")
# What each kind must be given beside the common options.
NEEDS: dict[str, list[str]] = {
    "kubernetes": ["--image", "registry.example/quintain:1.0"],
    "raycronjob": ["--image", "registry.example/quintain:1.0"],
}
HOSTILE = [
    "a b  c",
    'it\'s "quoted"',
    "$(touch pwned) `touch pwned` $HOME ${HOME}",
    "100%20 %d \\% \\\\ \\n",
    "new\nline\ttab\n",
    "übung 学习 🦊 \u2028 \x7f",
    "{{ run_id }} {% raw %} {# no #}",
    "; touch pwned & | > < * ? ~ ! # \\",
    "-rf --help",
    ": - yaml: [x] 'y' # no",
]


def rendered(kind: str, run_file: str, run_dir: str, *options: str, at: str = "0 2 * * *") -> str:
    """What `pipelines schedule` prints."""
    result = invoked(kind, run_file, run_dir, *options, at=at)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def invoked(kind: str, run_file: str, run_dir: str, *options: str, at: str = "0 2 * * *") -> Any:
    command = ["schedule", kind, run_file, "--run-dir", run_dir, "--at", at, *NEEDS.get(kind, []), *options]
    return CliRunner().invoke(main, command)


def parsed(command: list[str]) -> dict[str, Any]:
    """The options that click reads out of a `pipelines run` command; fails for any that is not valid."""
    assert command[:2] == ["pipelines", "run"]
    return main.commands["run"].make_context("run", list(command[2:])).params


class Stubs:
    """Programs in a folder of their own that write down what they were called with; `bin` goes first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.home, self.calls = folder / "bin", folder / "home", folder / "calls"
        for made in (self.bin, self.calls, self.home / ".config" / "quintain"):
            made.mkdir(parents=True)
        (self.home / ".config" / "quintain" / "env").write_text("RAY_AUTH_TOKEN=secret-of-the-test\n")

    def add(self, name: str, *, code: int = 0, then: str = "") -> None:
        """A program that records its arguments and its environment, does `then` in Python, and ends with `code`."""
        path = self.bin / name
        path.write_text(
            f"#!{sys.executable}\nimport json, os, signal, subprocess, sys, time\n"
            f"with open(os.path.join({str(self.calls)!r}, '{name}.jsonl'), 'a') as calls:\n"
            "    print(json.dumps({'argv': sys.argv[1:], 'env': dict(os.environ), 'pid': os.getpid()}), file=calls)\n"
            f"{then}\nsys.exit({code})\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def called(self, name: str) -> list[dict[str, Any]]:
        path = self.calls / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home), "LC_ALL": "C.UTF-8", **more}

    def bash(self, script: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", script],
            env=self.environment(**more),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
