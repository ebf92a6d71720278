"""Artifacts in S3 and Google Cloud Storage, behind the same interface as a folder; on the package `obstore`.

`create` is a PUT on the condition that the key is absent (`If-None-Match: *`; for GCS a generation of 0): of several
writers one wins. `miner.artifacts.probe` finds servers that ignore the condition. Everything else may be repeated, so
the library repeats it on lost connections and 5xx answers, for at most `patience` seconds.

A store is a few strings: cheap to pickle. Credentials are not among them: each process reads them from its own
environment. What a killed upload left of a large file is invisible and costs storage until the bucket's lifecycle rule
for incomplete multipart uploads removes it; have one.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from miner.artifacts.errors import BadInput
from miner.artifacts.object_cache import LocalCopies
from miner.artifacts.object_errors import AccessRefused, ObjectChanged, StoreUnreachable, spoken

if TYPE_CHECKING:
    from obstore import GetResult, ListResult, ObjectMeta
    from obstore.store import GCSStore, RetryConfig, S3Store

__all__ = ["ObjectStore", "Scheme"]

Scheme = Literal["s3", "gs"]
_PART = 8 << 20  # uploaded and repeated in one piece
_MOST_PARTS = 9_000  # S3 takes 10,000
_RANGE = 32 << 20
_TRIES = 4


@dataclass(frozen=True)
class ObjectStore:
    """Everything below `prefix` of a bucket. Raises AccessRefused (a BadInput) or StoreUnreachable (a Retryable), both
    OSErrors, where a folder raises OSError.

    `settings` are options of obstore that are no secrets (endpoint, region), as `open_store` finds them; `cache` is
    where local copies lie, unless the environment says it (see `object_cache`). `guard` is called before anything is
    written or removed and raises when this process may not; it stays in this process.
    """

    scheme: Scheme
    bucket: str
    prefix: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    patience: float = 60.0
    cache: Path | None = field(default=None, compare=False)
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "guard": None}

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    def create(self, name: str, data: bytes) -> bool:
        """See `Store`. False also when this very call was repeated after a broken answer and had written already:
        who must know compares the content."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        client, key = self._client(), self._file(name)
        for attempt in range(_TRIES):
            self._ask_guard()
            try:
                with self._spoken(name):
                    try:
                        obstore.put(client, key, data, mode="create", use_multipart=False)
                        return True
                    except AlreadyExistsError as exists:
                        # 409 is S3's answer to some of several writers at once, before any of them has won.
                        if "status code: 409" not in str(exists):
                            return False
            except FileNotFoundError:
                raise AccessRefused(f"{self.url}: {name} cannot be written (404); check the store's name.") from None
            time.sleep(0.1 * 2**attempt)
        raise StoreUnreachable(f"{self.url}: {name} is being written by several at once (409); run the command again.")

    def put(self, name: str, source: Path) -> None:
        """See `Store`; large files go up in parts, and appear whole."""
        import obstore

        self._ask_guard()
        part = max(_PART, -(-source.stat().st_size // _MOST_PARTS))
        with self._spoken(name):
            obstore.put(self._client(), self._file(name), source, chunk_size=part, max_concurrency=4)
        source.unlink()

    def write(self, name: str, data: bytes) -> None:
        import obstore

        self._ask_guard()
        with self._spoken(name):
            obstore.put(self._client(), self._file(name), data, chunk_size=_PART, max_concurrency=4)

    def read(self, name: str) -> bytes:
        import obstore

        client, key = self._client(), self._file(name)
        for attempt in range(_TRIES):
            with self._spoken(name):
                got = obstore.get(client, key)
            if got.meta["size"] <= _RANGE:
                return self._body(name, got, lambda: obstore.get(client, key))
            try:
                return b"".join(self._ranges(name, got.meta))
            except ObjectChanged:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError

    def exists(self, name: str) -> bool:
        key = self._key(name)
        return bool(key and self._meta(name)) or any(self._below(name).values())

    def names(self, prefix: str) -> list[str]:
        depth = len(PurePosixPath(self._key(prefix)).parts)
        below = self._below(prefix)
        paths = [*below["common_prefixes"], *(found["path"] for found in below["objects"])]
        parts = [PurePosixPath(path).parts for path in paths]
        # An empty object named like the folder, as consoles make them, is no file in it.
        return sorted({each[-1] for each in parts if len(each) == depth + 1 and not each[-1].startswith(".")})

    def local(self, name: str) -> Path:
        """See `Store`; a copy in the cache, of the object as it is now."""
        copies = self._copies()
        for attempt in range(_TRIES):
            meta = self._meta(name)
            if meta is None:
                self._below(name)  # the answer to a HEAD does not say that the whole bucket is missing; this one does
                raise FileNotFoundError(2, "No such object", f"{self.url}/{name}")
            version = f"{meta['e_tag'] or meta['last_modified']} {meta['version']} {meta['size']}"
            if copy := copies.find(name, version, meta["size"]):
                return copy
            fresh = copies.fresh()
            try:
                with open(fresh, "wb") as file:
                    for data in self._ranges(name, meta):
                        file.write(data)
                return copies.adopt(name, version, fresh)
            except ObjectChanged:
                if attempt == _TRIES - 1:
                    raise
            finally:
                fresh.unlink(missing_ok=True)
        raise AssertionError

    def forget(self, name: str) -> bool:
        return self._copies().drop(name)

    def scratch(self, prefix: str, suffix: str = "") -> Path:
        self._key(prefix)
        return self._copies().scratch(prefix, suffix)

    def remove(self, name: str) -> None:
        import obstore

        client, key = self._client(), self._key(name)
        if not key and not self.prefix:
            raise BadInput(f"{self.url}: a whole bucket is not emptied; remove what lies in it by name.")
        for _ in range(_TRIES):
            try:
                with self._spoken(name):
                    for below in obstore.list(client, key or None, chunk_size=1000):
                        self._ask_guard()
                        obstore.delete(client, [found["path"] for found in below])
                break
            except FileNotFoundError:  # GCS says so when somebody else was faster; look again
                continue
        if key:
            self._ask_guard()
            try:
                with self._spoken(name):
                    obstore.delete(client, key)
            except FileNotFoundError:
                pass

    def sweep(self, prefix: str) -> None:
        """See `Store`; on this machine."""
        self._copies().sweep(prefix)

    def _meta(self, name: str) -> ObjectMeta | None:
        import obstore

        client, key = self._client(), self._file(name)
        try:
            with self._spoken(name):
                return obstore.head(client, key)
        except FileNotFoundError:
            return None

    def _below(self, prefix: str) -> ListResult[Sequence[ObjectMeta]]:
        import obstore

        client, key = self._client(), self._key(prefix)
        with self._spoken(prefix):
            return obstore.list_with_delimiter(client, key or None)

    def _ranges(self, name: str, meta: ObjectMeta) -> Iterator[bytes]:
        """The content of this version piece by piece, so that a lost connection costs one piece."""
        import obstore

        client, key = self._client(), self._file(name)
        for start in range(0, meta["size"], _RANGE):
            options: Any = {"range": (start, min(start + _RANGE, meta["size"]))}
            if meta["e_tag"]:
                options["if_match"] = meta["e_tag"]
            again = functools.partial(obstore.get, client, key, options=options)
            with self._spoken(name):
                got = again()
            yield self._body(name, got, again)

    def _body(self, name: str, got: GetResult, again: Callable[[], GetResult]) -> bytes:
        """All bytes of an answer. The library repeats requests; an answer that breaks off is asked for again here."""
        for attempt in range(_TRIES):
            try:
                with self._spoken(name):
                    return bytes(got.bytes())
            except StoreUnreachable:
                if attempt == _TRIES - 1:
                    raise
            time.sleep(0.1 * 2**attempt)
            with self._spoken(name):
                got = again()
        raise AssertionError

    def _ask_guard(self) -> None:
        if self.guard is not None:
            self.guard()

    def _key(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or any(character in name for character in "\\\0\r\n"):
            raise BadInput(f"artifact name {name!r} leaves {self.url}; names are relative and stay inside.")
        return "/".join(parts)

    def _file(self, name: str) -> str:
        if not (key := self._key(name)):
            raise IsADirectoryError(21, "Is a directory", self.url)
        return key

    def _spoken(self, name: str) -> AbstractContextManager[None]:
        settings = dict(self.settings)
        return spoken(self.url, name, settings.get("endpoint") or settings.get("base_url", ""))

    def _copies(self) -> LocalCopies:
        return LocalCopies.of(self.url, self.cache)

    def _client(self) -> S3Store | GCSStore:
        return _client(self)


@functools.lru_cache(maxsize=32)
def _client(store: ObjectStore) -> S3Store | GCSStore:
    """One per process: connections are kept and shared between threads."""
    if _forked:
        raise BadInput(
            f"{store.url}: this process was forked from one that used an object store, which does not survive that; "
            "start workers with the method 'spawn' or 'forkserver'."
        )
    from obstore.store import GCSStore, S3Store

    settings: dict[str, Any] = dict(store.settings)
    client: Any = {
        "allow_http": settings.pop("allow_http", "false") == "true",
        "connect_timeout": "5s",
        "read_timeout": f"{max(1.0, store.patience):.0f}s",
        "timeout": f"{max(1.0, 10 * store.patience):.0f}s",
    }
    wait = timedelta(seconds=store.patience)
    retry: RetryConfig = {
        "max_retries": 8,
        "retry_timeout": wait,
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": min(wait, timedelta(seconds=10)), "base": 2},
    }
    kind: Any = S3Store if store.scheme == "s3" else GCSStore
    prefix = store.prefix or None
    try:
        made: S3Store | GCSStore = kind(
            store.bucket, prefix=prefix, config=settings, client_options=client, retry_config=retry
        )
    except Exception:  # the library's text may quote a key
        family = "AWS_" if store.scheme == "s3" else "GOOGLE_"
        raise AccessRefused(
            f"{store.url}: the settings of this store cannot be used; check the bucket's name, the environment "
            f"variables that begin with {family}, and the files that they name."
        ) from None
    return made


_forked = False


def _after_fork() -> None:
    """The library's threads are gone in the child, where a call would wait for them for ever."""
    global _forked
    _forked = _forked or _client.cache_info().currsize > 0
    _client.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
