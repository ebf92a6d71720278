"""Whether a place keeps the promises that a run rests on. What is written there to find out is removed again."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from miner import memory
from miner.artifacts.errors import AnotherWriter, BadInput, QuintainError
from miner.artifacts.lock import LOCK, WITHOUT_LOCKS, hold
from miner.artifacts.probe import check_conditional_create
from miner.artifacts.store import LocalStore, Store
from pipelines.machine import Check
from pipelines.mounts import mount_of

__all__ = ["look_at"]

_GIB = 2**30
_WRITERS = 8
_SKEW = 30.0  # seconds: what a lease allows
_ELSEWHERE = "use a folder on another file system, or an object store"
_FLEETING = {"tmpfs": "it is memory: a reboot empties it", "overlay": "it is a container's own layer and ends with it"}
_OWN_LOCKS = {"nolock", "noflock", "local_lock=all", "local_lock=flock", "localflock", "nobrl"}  # of NFS, Lustre, SMB
_Test = Callable[[Store, str], str]


def look_at(store: Store) -> Iterator[Check]:
    """One check after the other, at the place or, where it is not made yet, at the folder that will hold it."""
    if isinstance(store, LocalStore):
        root = store.root.absolute()
        while not root.exists() and root != root.parent:
            root = root.parent
        if not root.is_dir():
            yield Check("place", "problem", f"{root} is a file", "give a folder")
            return
        store = LocalStore(root)
        yield _disk(root)
        yield _kind(root)
    probe = f"quintain-doctor-{secrets.token_hex(8)}"
    tests: list[tuple[str, _Test]] = [("write", _write)]
    if isinstance(store, LocalStore):
        tests += [("fsync", _fsync), ("lock", _lock), ("memory map", _map), ("server clock", _server_clock)]
    tests += [("replace", _replace), ("one writer wins", _race), ("conditional create", lambda s, _: _conditional(s))]
    try:
        for name, test in tests:
            try:
                yield Check(name, "ok", test(store, probe))
            except _Warned as warned:
                yield Check(name, "warning", str(warned), warned.do)
            except QuintainError as wrong:
                yield Check(name, "problem", str(wrong), "then ask again" if isinstance(wrong, OSError) else _ELSEWHERE)
                if name == "write":
                    return
            except OSError as wrong:
                yield Check(
                    name, "problem", f"{store.url}: {wrong.strerror or wrong}", f"make it writable, or {_ELSEWHERE}"
                )
                if name == "write":
                    return
    finally:
        with contextlib.suppress(OSError, QuintainError):
            store.remove(probe)


class _Warned(Exception):
    def __init__(self, found: str, do: str) -> None:
        super().__init__(found)
        self.do = do


def _disk(root: Path) -> Check:
    usage, inodes = shutil.disk_usage(root), os.statvfs(root)
    found = f"{memory.readable(usage.free)} free of {memory.readable(usage.total)} at {root}"
    if inodes.f_files and inodes.f_favail < 10_000:
        return Check("disk", "warning", f"{found}, and room for {inodes.f_favail} files", "delete small files")
    if usage.free < _GIB:
        return Check(
            "disk", "problem", found, "make room, `pipelines gc` helps; `pipelines plan` says what a run takes"
        )
    if usage.free < 10 * _GIB:
        return Check("disk", "warning", found, "`pipelines plan` says what a run takes, `pipelines gc` what can go")
    return Check("disk", "ok", found)


def _kind(root: Path) -> Check:
    kind, options = mount_of(root)
    return file_system(kind, options) if kind else Check("file system", "ok", "unknown")


def file_system(kind: str, options: list[str]) -> Check:
    """What is to be said of a kind of file system that is mounted with these options."""
    if kind in _FLEETING:
        return Check("file system", "warning", f"{kind}: {_FLEETING[kind]}", "keep runs that must last elsewhere")
    own = [option for option in options if option in _OWN_LOCKS]
    if own:
        wrong = f"{kind}, mounted with {own[0]}: locks stay on this host, so that a run on another is not turned away"
        return Check("file system", "warning", wrong, f"mount it without {own[0]}, or start runs from one host alone")
    return Check("file system", "ok", kind)


def _write(store: Store, probe: str) -> str:
    data = secrets.token_bytes(1 << 16)
    began = time.monotonic()
    store.write(f"{probe}/file", data)
    if store.read(f"{probe}/file") != data or "file" not in store.names(probe):
        raise BadInput(f"{store.url}: what was written is not what is read and listed afterwards")
    return f"{store.url}: written, read and listed in {1000 * (time.monotonic() - began):.0f} ms"


def _replace(store: Store, probe: str) -> str:
    source = store.scratch(probe)
    try:
        source.write_bytes(b"the second")
        store.put(f"{probe}/file", source)
    finally:
        source.unlink(missing_ok=True)
    if store.read(f"{probe}/file") != b"the second":
        raise BadInput(f"{store.url}: a file that was replaced still has its old content")
    return "a file is replaced as a whole"


def _race(store: Store, probe: str) -> str:
    """Several writers at the same moment: one must win, and its content stay."""
    store.names(probe)  # so that threads share one connection
    with ThreadPoolExecutor(_WRITERS) as pool:
        won = list(pool.map(lambda number: store.create(f"{probe}/one", b"%d" % number), range(_WRITERS)))
    content = store.read(f"{probe}/one")
    # A create that was repeated after a lost answer says False of its own writing.
    if sum(won) > 1 or (sum(won) == 1 and content != b"%d" % won.index(True)):
        raise BadInput(f"{store.url}: of {_WRITERS} writers of one name {sum(won)} believe to have won")
    return f"of {_WRITERS} writers at once one won"


def _conditional(store: Store) -> str:
    return check_conditional_create(store)


def _fsync(store: Store, probe: str) -> str:
    assert isinstance(store, LocalStore)
    path = store.root / probe / "synced"
    began = time.monotonic()
    for name, flags in ((path, os.O_CREAT | os.O_WRONLY), (path.parent, os.O_RDONLY)):
        handle = os.open(name, flags, 0o600)
        try:
            if name == path:
                os.write(handle, b"synced")
            os.fsync(handle)
        finally:
            os.close(handle)
    took = time.monotonic() - began
    if took > 1:
        raise _Warned(f"a file and its folder took {took:.1f} s", "every commit waits that long; use a faster disk")
    return f"a file and its folder in {1000 * took:.0f} ms"


def _lock(store: Store, probe: str) -> str:
    assert isinstance(store, LocalStore)
    folder = store.root / probe / "locked"
    with hold(folder, shared=True):
        try:
            with hold(folder):
                pass
        except AnotherWriter:
            return _file_lock(folder / LOCK)
    raise BadInput(f"{store.url}: locks do nothing here, so that two runs could write at once")


def _file_lock(path: Path) -> str:
    """Of a file that is locked already: the lock that other hosts can see."""
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "a second run is turned away"
    except OSError as failed:
        if failed.errno not in WITHOUT_LOCKS:
            raise
    finally:
        os.close(file)
    raise _Warned(
        "a second run of this host is turned away, one of another host is not: files cannot be locked here",
        "mount it with locks (NFS: lockd; Lustre: flock), or start runs from one host alone",
    )


def _map(store: Store, probe: str) -> str:
    with open(store.local(f"{probe}/file"), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as seen:
        if len(seen) == 0:
            raise BadInput(f"{store.url}: a mapped file is empty")
    return "files can be mapped"


def _server_clock(store: Store, probe: str) -> str:
    assert isinstance(store, LocalStore)
    path = store.root / probe / "now"
    path.write_bytes(b"now")
    apart = path.stat().st_mtime - time.time()
    if abs(apart) > _SKEW:
        raise _Warned(f"it is {apart:+.0f} s from this machine's", "set both clocks (NTP): leases rest on them")
    return "agrees with this machine's"
