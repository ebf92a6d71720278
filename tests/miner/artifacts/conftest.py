"""Servers on 127.0.0.1 that stores are tested against: moto for S3, a stand-in for Google Cloud Storage."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from miner.artifacts.locations import open_store
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore, Store
from tests.miner.artifacts.gcs_stand_in import GcsStandIn

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def moto() -> Iterator[int]:
    """The port of an S3 server."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
    pytest.importorskip("flask_cors", reason="moto's server needs flask and flask-cors, which are not installed")
    server = pytest.importorskip("moto.server", reason="moto, the S3 server of these tests, is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    responses = pytest.importorskip("moto.s3.responses").S3Response
    put, one_at_a_time = responses.put_object, threading.Lock()

    def put_object(self: object, *arguments: object) -> object:
        with one_at_a_time:
            return put(self, *arguments)

    with pytest.MonkeyPatch.context() as monkeypatch:
        # It looks whether a key is there and then stores it, in threads that do not wait: S3 does both in one step.
        monkeypatch.setattr(responses, "put_object", put_object)
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
        yield running.get_host_and_port()[1]
        running.stop()


@pytest.fixture(scope="session")
def gcs() -> Iterator[GcsStandIn]:
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
    running = GcsStandIn()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of these tests; nothing of the machine's, and no request to a metadata service."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "QUINTAIN_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("QUINTAIN_CACHE", str(tmp_path / "copies"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-of-the-test")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "hunter2-of-the-test")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")


@pytest.fixture
def s3(moto: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ObjectStore]:
    def make(bucket: str = "", *, port: int = moto, prefix: str = "run/1", patience: float = 5.0) -> ObjectStore:
        """A store in a bucket of its own, asked through `port`."""
        if not bucket:
            bucket = f"bucket-{next(_NUMBERS)}"
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{moto}/{bucket}", method="PUT")).close()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store(f"s3://{bucket}/{prefix}", patience=patience, cache=tmp_path / "cache")
        assert isinstance(store, ObjectStore)
        return store

    return make


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    if request.param == "s3":
        made: Store = request.getfixturevalue("s3")()
        return made
    monkeypatch.setenv("GOOGLE_BASE_URL", request.getfixturevalue("gcs").url)
    return open_store(f"gs://bucket-{next(_NUMBERS)}/run/1", patience=5.0, cache=tmp_path / "cache")
