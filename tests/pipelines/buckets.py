"""Buckets of an S3 server on 127.0.0.1 for runs, and what lies in them."""

from __future__ import annotations

import hashlib
import itertools
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from miner.artifacts.locations import open_store
from miner.artifacts.object_store import ObjectStore

SECRET = "hunter2-of-the-test"
_NUMBERS = itertools.count()


def environment(monkeypatch: pytest.MonkeyPatch, port: int, cache: Path) -> None:
    """What a process needs to use the server at `port`, and nothing of the machine's own."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "QUINTAIN_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    given = {
        "QUINTAIN_CACHE": str(cache),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@contextmanager
def places(port: int, cache: Path, prefix: str) -> Iterator[Callable[[], str]]:
    """Makes a location below `prefix` in a bucket of its own, as often as it is called."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        environment(monkeypatch, port, cache)
        yield lambda: f"s3://{new_bucket(port)}/{prefix}"


def new_bucket(port: int) -> str:
    name = f"runs-{os.getpid()}-{next(_NUMBERS)}"
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{name}", method="PUT")).close()
    return name


def objects(location: str) -> dict[str, bytes]:
    """Every object below a location, by its name there."""
    client = _client(location)
    names = [found["path"] for chunk in obstore.list(client) for found in chunk]
    return {name: bytes(obstore.get(client, name).bytes()) for name in sorted(names)}


def versions(location: str) -> dict[str, tuple[object, object]]:
    """ETag and time of every object below a location, leases apart."""
    listed = [found for chunk in obstore.list(_client(location)) for found in chunk]
    return {f["path"]: (f["e_tag"], f["last_modified"]) for f in listed if not f["path"].startswith("lease/")}


def digests_in(location: str) -> dict[str, str]:
    """What `hashes_in` has, by the MD5 that the server made of each object: one request."""
    found = {name: str(etag).strip('"') for name, (etag, _) in versions(location).items()}
    return {name: etag for name, etag in found.items() if name.startswith("rounds/") and "/report/" not in name}


def empty(location: str) -> None:
    open_store(location).remove("")


def hashes_in(location: str) -> dict[str, str]:
    """Every file of every artifact of the rounds, as `test_loop.hashes` gives them for a folder."""
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in objects(location).items()
        if name.startswith("rounds/") and "/report/" not in name
    }


def copy(source: str, target: str) -> None:
    client = _client(target)
    for name, data in objects(source).items():
        obstore.put(client, name, data)


def _client(location: str) -> S3Store:
    store = open_store(location)
    assert isinstance(store, ObjectStore)
    return S3Store(store.bucket, prefix=store.prefix or None, client_options={"allow_http": True})
