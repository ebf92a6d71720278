"""A lease says who writes into a store now, so that a second run stops before it has cost GPU time.

    lease/<epoch>   holder, since, until, seconds, released, token, place, pid

An epoch is created if absent, renewed by a thread every third of its `seconds`, and marked as released at the end. It
is free when it was released, when `until` is over by more than `skew` seconds, or when its holder was a process of this
machine that is gone (killed, say); whoever takes over creates the next epoch. The last one stays, so epochs grow.

Nothing rests on it but time: of two runs that both believe to hold it, one commits each artifact (`Store.create`).

Clocks: `until` is by the holder's clock, "now" by the reader's. Up to `skew` seconds of difference change nothing. If
the reader's is further ahead it may take over a living lease, whose holder then stops; if the holder's is ahead, a
killed holder's lease is waited for so much longer.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from miner.artifacts.errors import AnotherWriter, QuintainError, Retryable
from miner.artifacts.store import Store

__all__ = ["Lease", "hold_lease"]

_TRIES = 5
_PATIENCE = 10.0


@dataclass(frozen=True)
class _Term:
    """The content of one epoch; times are seconds since 1970."""

    holder: str
    since: float
    until: float
    seconds: float
    released: bool
    token: str
    place: str
    pid: int

    def dumps(self) -> bytes:
        return json.dumps({**asdict(self), "shown": _clock(self.until)}, sort_keys=True).encode() + b"\n"

    @classmethod
    def loads(cls, data: bytes) -> _Term | None:
        """None for what is no lease: it then holds nobody back."""
        try:
            raw = json.loads(data)
            term = cls(**{name: kind(raw[name]) for name, kind in _KINDS.items()})
            _clock(term.since), _clock(term.until)
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            return None
        return term

    def held(self, now: float, skew: float) -> bool:
        return not self.released and now <= self.until + skew and not self._dead()

    def _dead(self) -> bool:
        if not self.place or self.place != _place():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        return False


_KINDS = {
    "holder": str,
    "since": float,
    "until": float,
    "seconds": float,
    "released": bool,
    "token": str,
    "place": str,
    "pid": int,
}


class Lease:
    """What `hold_lease` gives. Long work calls `check` now and then, and before it writes: mostly it asks the store
    nothing."""

    def __init__(self, store: Store, prefix: str, term: _Term, skew: float) -> None:
        self._store, self._prefix, self._term, self._skew = store, prefix, term, skew
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of {store.url}", daemon=True)
        self._lost: str | None = None
        self.epoch = 0

    def check(self) -> None:
        """Raises AnotherWriter once another run has taken over.

        A process that was stopped for a while may be back before its heartbeat: where the lease is over by its own
        clock, the store is asked first. Raises OSError when that fails.
        """
        if self._lost is None and time.time() > self._term.until:
            self._renew()
        if self._lost is not None:
            raise AnotherWriter(self._lost)

    def _take(self) -> None:
        for _ in range(_TRIES):
            newest = _newest(self._store, self._prefix)
            found = _read(self._store, self._prefix, newest)
            now = time.time()
            if found is not None and found.held(now, self._skew):
                raise AnotherWriter(_sentence(self._store, self._prefix, newest, found, self._skew, now))
            self.epoch = newest + 1
            self._term = replace(self._term, since=now, until=now + self._term.seconds)
            created = self._store.create(self._name(), self._term.dumps())
            # A create that was repeated after a lost answer says False of its own writing.
            mine = created or _token(_read(self._store, self._prefix, self.epoch)) == self._term.token
            if not mine:
                continue
            # Who listed the epochs long ago may have made one that was over and had been removed.
            if _newest(self._store, self._prefix) > self.epoch:
                self._store.remove(self._name())
                continue
            for over in _epochs(self._store, self._prefix):
                if over < self.epoch:
                    self._store.remove(f"{self._prefix}/{over}")
            return
        raise Retryable(f"{self._store.url}: too many runs ask for the lease at once; run the same command again.")

    def _name(self) -> str:
        return f"{self._prefix}/{self.epoch}"

    def _beat(self) -> None:
        while not self._stop.wait(self._term.seconds / 3):
            # A store that does not answer now may answer at the next beat; if not, the lease ends by itself.
            with contextlib.suppress(OSError, QuintainError):
                self._renew()
            if self._lost is not None:
                return

    def _renew(self) -> None:
        newest = _newest(self._store, self._prefix)
        if newest > self.epoch:
            self._lose(newest)
            return
        if self._stop.is_set():
            return
        self._term = replace(self._term, until=time.time() + self._term.seconds)
        self._store.write(self._name(), self._term.dumps())
        if (newest := _newest(self._store, self._prefix)) > self.epoch:
            self._store.remove(self._name())
            self._lose(newest)

    def _lose(self, newest: int) -> None:
        other = _read(self._store, self._prefix, newest)
        who = f"{other.holder}, since {_clock(other.since)}" if other is not None else "another run"
        self._lost = (
            f"{self._store.url}: the lease (epoch {self.epoch}) was taken over by {who} (epoch {newest}): this run had "
            "not renewed it in time. Nothing committed was lost; let one of the two runs go on."
        )

    def _release(self) -> None:
        self._stop.set()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():  # it waits for a store that does not answer
            return
        if self._lost is None and _newest(self._store, self._prefix) == self.epoch:
            self._store.write(self._name(), replace(self._term, until=time.time(), released=True).dumps())


@contextmanager
def hold_lease(
    store: Store, *, holder: str | None = None, prefix: str = "lease", seconds: float = 60.0, skew: float = 30.0
) -> Iterator[Lease]:
    """Be the one who writes into `store`. `holder` is what the loser reads, by default user, machine, pid and command.

    Raises AnotherWriter when somebody is, with who, since when, until when and what to do; OSError when the storage
    fails. The end of the block releases it; a store that fails then is left to the lease's own end.
    """
    term = _Term(holder or _whoami(), 0.0, 0.0, seconds, False, secrets.token_hex(16), _place(), os.getpid())
    lease = Lease(store, prefix, term, skew)
    lease._take()
    lease._thread.start()
    try:
        yield lease
    finally:
        with contextlib.suppress(OSError, QuintainError):
            lease._release()


def _epochs(store: Store, prefix: str) -> list[int]:
    return [int(name) for name in store.names(prefix) if name.isascii() and name.isdigit()]


def _newest(store: Store, prefix: str) -> int:
    return max(_epochs(store, prefix), default=0)


def _read(store: Store, prefix: str, epoch: int) -> _Term | None:
    try:
        return _Term.loads(store.read(f"{prefix}/{epoch}"))
    except FileNotFoundError:
        return None


def _token(term: _Term | None) -> str | None:
    return None if term is None else term.token


def _sentence(store: Store, prefix: str, epoch: int, term: _Term, skew: float, now: float) -> str:
    ahead = term.until - now > term.seconds + skew
    wait = f"delete {prefix}/{epoch} there" if ahead else f"it is free after {_clock(term.until + skew)}"
    clocks = " (its clock is ahead of this machine's)" if ahead else ""
    return (
        f"{store.url}: another run writes here: {term.holder}, since {_clock(term.since)}; its lease (epoch {epoch}), "
        f"which it renews, is until {_clock(term.until)}{clocks}. Wait for it to end, or write elsewhere; if it was "
        f"killed on another machine, {wait}."
    )


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _whoami() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's uid without a name
        user = f"uid {os.getuid()}"
    return f"{user} on {socket.gethostname()}, process {os.getpid()} ({Path(sys.argv[0]).name or 'python'})"


def _place() -> str:
    """Where process ids mean the same: one boot of one machine, one pid namespace. Empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
