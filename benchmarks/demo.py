"""The demo as a newcomer runs it: wall clock, and peak memory of the driver, Ray and all workers together.

    python benchmarks/demo.py

Memory is the sum of the processes' proportional set sizes (a shared page counts once), sampled twice a second. Linux
only.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "QUINTAIN_BENCHMARK"


def processes(mark: str) -> list[Path]:
    """/proc folders of every process that inherited the mark, however it was started."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder)
        except OSError:
            continue  # ended meanwhile
    return found


def proportional_set_size(folder: Path) -> int:
    """Bytes."""
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines", "run", "--demo", "--run-dir", f"{folder}/demo"]
        began, peak = time.monotonic(), 0
        running = subprocess.Popen(command, env={**os.environ, MARK: mark})
        while running.poll() is None:
            peak = max(peak, sum(proportional_set_size(process) for process in processes(mark)))
            time.sleep(0.5)
        seconds = time.monotonic() - began
        print(f"exit {running.returncode}, {seconds:.0f} s, peak memory {peak / 2**30:.2f} GiB, {os.cpu_count()} cores")
    sys.exit(running.returncode)


if __name__ == "__main__":
    main()
