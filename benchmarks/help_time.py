"""Seconds that `miner --help`, `trainer --help` and `pipelines --help` take: the median of several fresh processes.

    python benchmarks/help_time.py [--runs 9]

The bar is 0.4 s each; exits 1 when one is above.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BAR = 0.4


def seconds(command: str, runs: int) -> list[float]:
    """Wall time of each run, after one that warms the disk cache."""
    program, taken = str(Path(sys.executable).parent / command), []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    slow = False
    for command in ("miner", "trainer", "pipelines"):
        taken = seconds(command, runs)
        median = statistics.median(taken)
        slow |= median > BAR
        print(f"{command} --help: {median:.3f} s (median of {runs}, {min(taken):.3f} to {max(taken):.3f}; bar {BAR} s)")
    sys.exit(slow)


if __name__ == "__main__":
    main()
