"""Stores that cannot tell who was first are refused before anything is committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft, find_artifact
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.probe import check_conditional_create
from miner.artifacts.store import LocalStore
from tests.miner.artifacts.between import Between, Reply, Request


def test_a_store_that_ignores_the_condition_is_refused(moto: int, s3: Callable[..., ObjectStore]) -> None:
    with Between(moto, dropped=frozenset({"if-none-match"})) as server:
        store = s3(s3().bucket, port=server.port)
        with pytest.raises(BadInput, match=r"ignores the condition of a create .* won as well"):
            check_conditional_create(store)
        assert not store.exists("")
        draft = Draft(store, "e", "embeddings", {})
        draft.add("x", b"x")
        for _ in range(2):
            with pytest.raises(BadInput, match="ignores the condition"):
                draft.commit({}, {})
        assert find_artifact(store, "e") is None


def test_a_store_that_does_not_know_the_condition_is_refused(moto: int, s3: Callable[..., ObjectStore]) -> None:
    """The second create is answered with 501, as some servers do."""

    def rule(request: Request) -> Reply | None:
        return Reply(501, "NotImplemented") if request.method == "PUT" else None

    with Between(moto, rule) as server:
        store = s3(s3().bucket, port=server.port, patience=0.5)
        with pytest.raises(BadInput, match=r"cannot do what was asked \(501, NotImplemented\)"):
            check_conditional_create(store)


def test_a_store_is_probed_once_per_process(moto: int, s3: Callable[..., ObjectStore]) -> None:
    with Between(moto) as server:
        store = s3(s3().bucket, port=server.port)
        for number in range(3):
            Draft(store, f"e{number}", "embeddings", {}).commit({}, {})
        probes = [request.path for request in server.seen if "probe" in request.path and request.method == "PUT"]
        assert len(probes) == 2
        assert len(set(probes)) == 1


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("miner.artifacts.store.os.link", link)
    with pytest.raises(BadInput, match="no hard links"):
        check_conditional_create(LocalStore(tmp_path))


def test_a_create_whose_answer_was_lost_is_no_reason_to_refuse(moto: int, s3: Callable[..., ObjectStore]) -> None:
    """The first create is repeated, and turned away by what it wrote itself."""

    def rule(request: Request) -> Reply | None:
        return Reply(500, "InternalError", after=True) if request.method == "PUT" and request.number == 1 else None

    with Between(moto, rule) as server:
        assert "turned away" in check_conditional_create(s3(s3().bucket, port=server.port))
