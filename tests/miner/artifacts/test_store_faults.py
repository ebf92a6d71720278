"""What goes wrong with object stores: told in a sentence, in bounded time, and without a secret in it."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator

import click
import pytest
from click.testing import CliRunner

from miner.artifacts import object_store
from miner.artifacts.command import CommandGroup
from miner.artifacts.errors import BadInput, QuintainError, Retryable
from miner.artifacts.manifest import Draft, find_artifact
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.probe import check_conditional_create
from tests.miner.artifacts.between import Between, Reply, Request

Make = Callable[..., ObjectStore]


def _operations(store: ObjectStore) -> list[Callable[[], object]]:
    def put() -> None:
        source = store.scratch("a")
        source.write_bytes(b"x")
        store.put("a/x", source)

    return [
        lambda: store.create("a/x", b"x"),
        put,
        lambda: store.write("a/x", b"x"),
        lambda: store.read("a/x"),
        lambda: store.names("a"),
        lambda: store.exists("a/x"),
        lambda: store.local("a/x"),
        lambda: store.remove("a"),
    ]


def _told(ask: Callable[[], object]) -> QuintainError:
    """What it raises: a sentence of ours that is an OSError too, with no secret anywhere in the traceback."""
    with pytest.raises(QuintainError) as caught:
        ask()
    assert isinstance(caught.value, OSError)
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown
    assert "AKIA" not in shown
    assert "\n" not in str(caught.value)
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)
    return caught.value


@pytest.fixture
def closed() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def locked(moto: int) -> Iterator[None]:
    """moto checks credentials, and knows none."""

    def reset(count: bytes) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{moto}/moto-api/reset-auth", count, {"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(request).close()

    reset(b"0")
    yield
    reset(b"inf")


def test_a_missing_bucket(s3: Make) -> None:
    store = s3("no-such-bucket")
    for ask in [*_operations(store), lambda: check_conditional_create(store), lambda: find_artifact(store, "e")]:
        error = _told(ask)
        assert isinstance(error, BadInput)
        assert "no bucket 'no-such-bucket'" in str(error)


@pytest.mark.usefixtures("locked")
def test_credentials_that_nobody_knows(s3: Make, moto: int) -> None:
    store = s3("some-bucket")
    for ask in _operations(store):
        error = _told(ask)
        assert isinstance(error, BadInput)
        assert "AWS_SECRET_ACCESS_KEY" in str(error)
    with pytest.raises(BadInput, match=r"credentials were refused \(403, InvalidAccessKeyId\)"):
        store.read("a/x")


def test_no_credentials(s3: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service, asked for want of others, is not there."""
    store = s3(patience=1.0)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    start = time.monotonic()
    error = _told(lambda: store.read("a/x"))
    assert isinstance(error, BadInput)
    assert "no credentials were found; set AWS_ACCESS_KEY_ID" in str(error)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("status", "code", "words", "kind"),
    [
        (403, "AccessDenied", "access denied", BadInput),
        (403, "SignatureDoesNotMatch", "credentials were refused", BadInput),
        (400, "ExpiredToken", "credentials were refused", BadInput),
        (301, "PermanentRedirect", "another region", BadInput),
        (400, "AuthorizationHeaderMalformed", "another region", BadInput),
        (400, "EntityTooLarge", "request was refused", BadInput),
        (404, "NoSuchBucket", "no bucket", BadInput),
        (503, "SlowDown", "answers with errors (503, SlowDown)", Retryable),
        (500, "InternalError", "answers with errors (500, InternalError)", Retryable),
        (429, "TooManyRequests", "answers with errors (429", Retryable),
    ],
)
def test_what_servers_answer(
    moto: int, s3: Make, status: int, code: str, words: str, kind: type[QuintainError]
) -> None:
    with Between(moto, lambda request: Reply(status, code)) as server:
        store = s3("some-bucket", port=server.port, patience=0.3)
        for ask in (lambda: store.read("a/x"), lambda: store.create("a/x", b"x"), lambda: store.names("a")):
            error = _told(ask)
            assert isinstance(error, kind)
            assert words in str(error)


def test_a_server_that_is_down(s3: Make, closed: int) -> None:
    store = s3("some-bucket", port=closed, patience=0.5)
    for ask in _operations(store):
        start = time.monotonic()
        error = _told(ask)
        assert isinstance(error, Retryable)
        assert f"the object store at http://127.0.0.1:{closed} cannot be reached" in str(error)
        assert time.monotonic() - start < 30


def test_a_server_that_never_answers(s3: Make) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = s3("some-bucket", port=silent.getsockname()[1], patience=1.0)
        start = time.monotonic()
        assert isinstance(_told(lambda: store.read("a/x")), Retryable)
        assert isinstance(_told(lambda: store.create("a/x", b"x")), Retryable)
        assert time.monotonic() - start < 60


def test_plain_http_has_to_be_allowed(s3: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true" in str(_told(lambda: s3("some-bucket").read("a/x")))


def test_errors_that_pass_are_passed_over(moto: int, s3: Make) -> None:
    def rule(request: Request) -> Reply | None:
        return Reply(503, "SlowDown") if request.number <= 2 else None

    with Between(moto, rule) as server:
        store = s3(s3().bucket, port=server.port)
        store.write("a/x", b"x")
        assert store.names("a") == ["x"]
        assert store.read("a/x") == b"x"
        assert store.create("a/y", b"y")
        assert not store.create("a/y", b"z")


def test_a_conflict_of_writers_is_asked_again(moto: int, s3: Make) -> None:
    """S3 answers some of several writers of one key with 409, whether or not one of them has won."""

    def rule(request: Request) -> Reply | None:
        first = request.method == "PUT" and request.number == 1
        return Reply(409, "ConditionalRequestConflict") if first else None

    with Between(moto, rule) as server:
        store = s3(s3().bucket, port=server.port)
        assert store.create("a/x", b"x")
        assert not store.create("a/x", b"y")
        assert store.read("a/x") == b"x"
    with Between(moto, lambda request: Reply(409, "ConditionalRequestConflict")) as server:
        store = s3(store.bucket, port=server.port)
        assert "(409)" in str(_told(lambda: store.create("a/z", b"x")))


def test_a_commit_whose_answer_was_lost_counts(moto: int, s3: Make) -> None:
    def rule(request: Request) -> Reply | None:
        lost = request.method == "PUT" and "manifest" in request.path and request.number == 3
        return Reply(500, "InternalError", after=True) if lost else None

    with Between(moto, rule) as server:
        store = s3(s3().bucket, port=server.port)
        made = Draft(store, "e", "embeddings", {}).commit({}, {"a": 1})
        assert sum(request.method == "PUT" and "manifest" in request.path for request in server.seen) == 2
    found = find_artifact(s3(store.bucket), "e")
    assert found is not None
    assert found.manifest == made.manifest


@pytest.mark.parametrize("cut", [0, 5])
def test_an_answer_that_breaks_off_is_asked_again(moto: int, s3: Make, cut: int) -> None:
    def rule(request: Request) -> Reply | None:
        return Reply(cut=cut) if request.method == "GET" and request.number <= 2 else None

    data = bytes(range(256)) * 100
    for ask in (ObjectStore.read, lambda store, name: store.local(name).read_bytes()):
        with Between(moto, rule) as server:
            store = s3(s3().bucket, port=server.port)
            store.write("a/x", data)
            assert ask(store, "a/x") == data


def test_a_download_that_always_breaks_off_leaves_no_half_file(
    moto: int, s3: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_TRIES", 2)
    with Between(moto, lambda request: Reply(cut=5) if request.method == "GET" else None) as server:
        store = s3(s3().bucket, port=server.port, patience=0.5)
        store.write("a/x", b"x" * 1000)
        assert isinstance(_told(lambda: store.local("a/x")), Retryable)
        assert isinstance(_told(lambda: store.read("a/x")), Retryable)
    assert store.cache is not None
    assert list((store.cache / "objects").iterdir()) == []


def test_an_object_replaced_while_it_is_read_is_read_anew(moto: int, s3: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_RANGE", 100)
    direct = s3()

    def rule(request: Request) -> None:
        if request.method == "GET" and request.number == 3:
            direct.write("a/x", b"b" * 500)

    with Between(moto, rule) as server:
        store = s3(direct.bucket, port=server.port)
        direct.write("a/x", b"a" * 500)
        assert store.local("a/x").read_bytes() == b"b" * 500
    with Between(moto, rule) as server:
        store = s3(direct.bucket, port=server.port)
        direct.write("a/x", b"a" * 500)
        assert store.read("a/x") == b"b" * 500


def test_a_forked_process_says_so_instead_of_hanging(s3: Make) -> None:
    store = s3()
    store.write("a", b"x")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def ask() -> None:
        try:
            queue.put(store.read("a"))
        except BadInput as error:
            queue.put(str(error))

    child = context.Process(target=ask)
    child.start()
    child.join(30)
    hangs = child.is_alive()
    child.kill()
    assert not hangs
    assert "spawn" in queue.get()
    assert store.read("a") == b"x"


def test_commands_end_with_the_sentence(s3: Make, closed: int) -> None:
    missing, down = s3("no-such-bucket"), s3("some-bucket", port=closed, patience=0.3)
    group = CommandGroup()
    for name, store in (("missing", missing), ("down", down)):
        group.add_command(click.Command(name, callback=lambda store=store: store.read("a")))
    for name, code, words in (("missing", 3, "no bucket"), ("down", 75, "cannot be reached")):
        result = CliRunner().invoke(group, [name])
        assert result.exit_code == code
        assert result.output.startswith("error: s3://")
        assert words in result.output
        assert result.output.count("\n") == 1
