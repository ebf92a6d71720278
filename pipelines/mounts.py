"""What a folder's disk is: of this machine, or one that several hosts share."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

__all__ = ["MOUNTS", "mount_of", "of_several_hosts"]

MOUNTS = Path("/proc/self/mounts")
_SHARED = {
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "smb3", "virtiofs",
    "wekafs",
}  # fmt: skip


def mount_of(root: Path) -> tuple[str, list[str]]:
    """Kind and options of the file system, by the deepest mount above it; ("", []) where nothing is known."""
    try:
        mounts = [line.split()[1:4] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return "", []
    whole, deepest, found = root.resolve(), "", ("", "")
    for where, kind, options in mounts:
        place = Path(where.replace("\\040", " "))
        if (place == whole or place in whole.parents) and len(where) >= len(deepest):
            deepest, found = where, (kind, options)
    return found[0], found[1].split(",")


@lru_cache(maxsize=64)
def of_several_hosts(root: Path) -> bool:
    """Whether other hosts may write there, so that a name that one of them made is seen here a while later."""
    kind, _ = mount_of(root)
    return kind in _SHARED or kind.startswith("fuse.")
