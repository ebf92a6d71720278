"""What people write as a place for artifacts, and what the environment adds."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.locations import open_store
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore


@pytest.mark.parametrize(
    ("location", "folder"),
    [("runs/a", "runs/a"), ("/runs/a b", "/runs/a b"), (".", "."), ("file:///runs/a%20b", "/runs/a b"), ("c:x", "c:x")],
)
def test_a_folder(location: str, folder: str) -> None:
    assert open_store(location) == LocalStore(Path(folder))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize(("prefix", "kept"), [("", ""), ("/", ""), ("/a", "a"), ("/a//b/", "a/b")])
def test_a_bucket(scheme: str, prefix: str, kept: str) -> None:
    store = open_store(f"{scheme}://my-bucket{prefix}")
    assert isinstance(store, ObjectStore)
    assert (store.scheme, store.bucket, store.prefix) == (scheme, "my-bucket", kept)
    assert store.url == f"{scheme}://my-bucket/{kept}".rstrip("/")


@pytest.mark.parametrize(
    "location",
    [
        "",
        "s3://",
        "s3:///prefix",
        "gs://bucket/../other",
        "s3://bucket/a?versionId=1",
        "s3://bucket/a#b",
        "file://host/folder",
        "https://bucket.s3.amazonaws.com/x",
        "hdfs://x/y",
        "S3://bucket",
    ],
)
def test_what_is_no_place(location: str) -> None:
    with pytest.raises(BadInput, match=r"write|give"):
        open_store(location)


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "file"])
def test_a_secret_in_a_location_is_not_repeated(scheme: str) -> None:
    with pytest.raises(BadInput) as caught:
        open_store(f"{scheme}://AKIA:hunter2@bucket/prefix?X-Amz-Signature=hunter2")
    assert "hunter2" not in str(caught.value)


def test_the_environment_adds_what_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://objects:9000")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "SECRET-TOKEN")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "TRUE")
    store = open_store("s3://bucket/a")
    assert isinstance(store, ObjectStore)
    assert dict(store.settings) == {"endpoint": "https://objects:9000", "region": "us-east-1", "allow_http": "true"}
    for shown in (repr(store), store.url, pickle.dumps(store).decode("latin-1")):
        assert "SECRET" not in shown
        assert "AKIA" not in shown
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    store = open_store("s3://bucket/a")
    assert isinstance(store, ObjectStore)
    assert dict(store.settings)["endpoint"] == "https://general"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ALLOW_HTTP", "maybe"),
        ("AWS_ENDPOINT_URL", "objects:9000"),
        ("AWS_ENDPOINT_URL", "https://user:hunter2@objects"),
        ("AWS_ENDPOINT_URL", "https://objects?token=hunter2"),
    ],
)
def test_a_setting_that_is_none_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadInput, match=variable) as caught:
        open_store("s3://bucket/a")
    assert "hunter2" not in str(caught.value)


def test_one_bucket_at_two_servers_is_two_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://one")
    one = open_store("s3://bucket/a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://two")
    assert open_store("s3://bucket/a") != one


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_store("runs") == LocalStore(Path("runs"))
    with pytest.raises(BadInput, match=r"pip install 'quintain\[cloud\]'"):
        open_store("s3://bucket/a")


def test_opening_asks_nothing_and_needs_no_library() -> None:
    code = (
        "import sys; from miner.artifacts.locations import open_store; open_store('s3://b/c'); assert 'obstore' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
