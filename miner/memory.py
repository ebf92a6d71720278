"""How much memory there is: the least that the machine, the container and `ulimit` leave."""

from __future__ import annotations

import resource
from pathlib import Path

from miner.artifacts.errors import BadInput

__all__ = ["available", "parse_size", "readable"]

_GROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def available() -> int:
    """Bytes that this process can still take."""
    found = [_machine(), *_container(), *_limits()]
    return max(0, min(found))


def _machine() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30  # not a Linux machine: a laptop has so much to spare


def _container() -> list[int]:
    """What the control group of a container leaves."""
    found = []
    for most, used in _GROUPS:
        try:
            limit = (Path("/sys/fs/cgroup") / most).read_text().strip()
            if limit != "max":
                found.append(int(limit) - int((Path("/sys/fs/cgroup") / used).read_text()))
        except (OSError, ValueError):
            continue
    return found


def _limits() -> list[int]:
    """What `ulimit -d` and `ulimit -v` leave."""
    found = []
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        status = {}
    for kind, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(status.get(used, "0 kB").split()[0]) * 1024)
    return found


def parse_size(text: str) -> int:
    """ "8G" (GiB), "500M" or "1000000" as bytes. Raises BadInput."""
    number, unit = text.strip().upper().removesuffix("B").removesuffix("I"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    try:
        size = float(number) * _UNITS[unit]
    except ValueError as wrong:
        raise BadInput(f"{text!r} is not a size; write for example 8G, 500M or a number of bytes.") from wrong
    if not 0 < size < 2**60:
        raise BadInput(f"{text!r} is not a size that a memory can have; write for example 8G or 500M.")
    return int(size)


def readable(size: float) -> str:
    """Bytes as people read them: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
