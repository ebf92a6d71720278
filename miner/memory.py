"""How much memory there is: the least that the machine, the container and `ulimit` leave."""

from __future__ import annotations

import resource
from pathlib import Path

from miner.artifacts.errors import BadInput

__all__ = ["available", "half", "in_all", "parse_size", "readable"]

_GROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def available() -> int:
    """Bytes that this process can still take."""
    found = [_machine(), *_container(), *_limits()]
    return max(0, min(found))


def half() -> int:
    """Bytes for a search of which nobody said how much it may take: about half of what is left, rounded down to three
    binary digits, so that the same search, started again a little later, is most likely cut into the same shards."""
    size = max(2**20, available() // 2)
    step = 1 << (size.bit_length() - 3)
    return size // step * step


def in_all() -> int:
    """Bytes that this process can hold: what it holds already, without the files that it maps, and what is left."""
    return available() + _kilobytes(_status().get("RssAnon"))


def _machine() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30  # not a Linux machine: a laptop has so much to spare


def _container() -> list[int]:
    """What the control group of a container leaves; the files that it caches are given back when memory is wanted."""
    found = []
    for most, used in _GROUPS:
        try:
            limit = (Path("/sys/fs/cgroup") / most).read_text().strip()
            if limit != "max":
                used_up = int((Path("/sys/fs/cgroup") / used).read_text())
                stat = (Path("/sys/fs/cgroup") / used).with_name("memory.stat").read_text().split()
                cached = dict(zip(stat[::2], stat[1::2], strict=False)).get("inactive_file", "0")
                found.append(int(limit) - used_up + int(cached))
        except (OSError, ValueError):
            continue
    return found


def _limits() -> list[int]:
    """What `ulimit -d` and `ulimit -v` leave."""
    found, status = [], _status()
    for kind, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - _kilobytes(status.get(used)))
    return found


def _status() -> dict[str, str]:
    try:
        return dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return {}


def _kilobytes(said: str | None) -> int:
    return int((said or "0 kB").split()[0]) * 1024


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
