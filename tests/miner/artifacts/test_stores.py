"""What every store promises, over a folder, an S3 server and a stand-in for Google Cloud Storage."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.probe import check_conditional_create
from miner.artifacts.store import LocalStore, Store


def _file(store: Store, prefix: str, data: bytes) -> Path:
    source = store.scratch(prefix, ".part")
    source.write_bytes(data)
    return source


class TestStore:
    def test_names_are_what_lies_directly_below(self, store: Store) -> None:
        assert store.names("") == store.names(".") == store.names("a") == []
        for name in ("a/z.npy", "a/b/c/deep.npy", "a/b.json", "a/.hidden", "ab/other", "top"):
            store.write(name, b"x")
        assert store.names("a") == ["b", "b.json", "z.npy"]
        assert store.names("") == store.names(".") == ["a", "ab", "top"]
        assert store.names("a/b/c") == store.names("./a//b/c/") == ["deep.npy"]
        assert store.names("a/nothing") == store.names("a/z.npy") == []

    def test_odd_characters_stay_as_they_are(self, store: Store) -> None:
        names = ["a b", "a%20b", "a+b", "a~b", "é", "a#b", "a?b", "a&b=c", "%2e", "日本"]
        for name in names:
            store.write(f"odd/{name}", name.encode())
        assert store.names("odd") == sorted(names)
        assert [store.read(f"odd/{name}").decode() for name in names] == names

    def test_an_absent_name_is_created_once(self, store: Store) -> None:
        assert store.create("a/manifest.json", b"first")
        assert not store.create("a/manifest.json", b"second")
        assert store.read("a/manifest.json") == b"first"
        assert store.names("a") == ["manifest.json"]

    def test_of_eight_writers_one_wins_every_key(self, store: Store) -> None:
        start = threading.Barrier(8)
        data = pickle.dumps(store)

        def write(writer: int) -> list[bool]:
            mine: Store = pickle.loads(data)
            start.wait()
            return [mine.create(f"keys/{key}", f"writer {writer}".encode()) for key in range(20)]

        with ThreadPoolExecutor(8) as pool:
            won = np.array(list(pool.map(write, range(8))))
        assert (won.sum(axis=0) == 1).all()
        for key in range(20):
            assert store.read(f"keys/{key}") == f"writer {won[:, key].argmax()}".encode()

    @pytest.mark.parametrize("size", [0, 1, 17 << 20])
    def test_put_moves_a_file_and_replaces(self, store: Store, size: int) -> None:
        """17 MiB: an upload in three parts."""
        data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
        store.write("a/x", b"what a killed writer left")
        source = _file(store, "a", data)
        store.put("a/x", source)
        assert not source.exists()
        assert store.read("a/x") == data
        assert store.local("a/x").read_bytes() == data
        assert store.names("a") == ["x"]

    def test_local_follows_the_object(self, store: Store) -> None:
        store.write("a/x.npy", b"first")
        path = store.local("a/x.npy")
        assert path.name.endswith("x.npy")
        assert path.read_bytes() == b"first"
        store.write("a/x.npy", b"other")
        assert store.local("a/x.npy").read_bytes() == b"other"
        store.remove("a/x.npy")
        with pytest.raises(FileNotFoundError):
            store.local("a/x.npy")

    def test_what_is_missing(self, store: Store) -> None:
        store.write("a/b/x", b"x")
        for ask in (store.read, store.local):
            with pytest.raises(FileNotFoundError):
                ask("a/nothing")
        with pytest.raises(FileNotFoundError):
            store.local("a/b")
        assert not store.exists("a/nothing")
        assert store.exists("a/b/")
        assert store.exists("a/b/x")
        assert store.exists("a/b")
        assert store.exists("a")
        store.write("hidden/.parts/x", b"x")
        assert store.exists("hidden/.parts")
        assert store.names("hidden") == []
        for name in ("", "."):
            with pytest.raises(IsADirectoryError):
                store.read(name)

    def test_remove_takes_what_lies_below_and_no_neighbour(self, store: Store) -> None:
        for name in ("a/x", "a/b/y", "a/.hidden", "ab/z", "a.json"):
            store.write(name, b"x")
        store.remove("a/nothing")
        store.remove("a")
        store.remove("a")
        assert store.names("") == ["a.json", "ab"]
        assert not store.exists("a/.hidden")
        store.remove("a.json")
        assert store.names("") == ["ab"]

    def test_what_a_folder_cannot_remove_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """But not what another was faster with, nor what NFS keeps while a file is open."""
        store, unlink = LocalStore(tmp_path), os.unlink

        def failing(code: int) -> None:
            def instead(path: Any, **about: Any) -> None:
                if str(path).endswith("stays"):
                    raise OSError(code, os.strerror(code), path)
                unlink(path, **about)

            monkeypatch.setattr(os, "unlink", instead)

        for name in ("a/stays", "a/x"):
            store.write(name, b"x")
        failing(errno.EPERM)
        with pytest.raises(PermissionError):
            store.remove("a")
        for code in (errno.ENOENT, errno.EBUSY):
            failing(code)
            store.write("a/x", b"x")
            store.remove("a")
            assert store.names("a") == ["stays"]

    def test_sweep_takes_what_killed_writers_left(self, store: Store) -> None:
        left, elsewhere = _file(store, "a", b"x"), _file(store, "b", b"x")
        store.write("a/x", b"x")
        store.sweep("a")
        assert not left.exists()
        assert elsewhere.exists()
        assert store.names("a") == ["x"]

    @pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\x", "a\0x"])
    def test_names_that_leave_the_store_are_refused(self, store: Store, name: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        asks: list[Callable[[], Any]] = [
            lambda: store.create(name, b"x"),
            lambda: store.put(name, tmp_path / "file"),
            lambda: store.write(name, b"x"),
            lambda: store.read(name),
            lambda: store.exists(name),
            lambda: store.names(name),
            lambda: store.local(name),
            lambda: store.scratch(name),
            lambda: store.remove(name),
        ]
        for ask in asks:
            with pytest.raises(BadInput, match="leaves"):
                ask()

    def test_a_store_is_cheap_to_pickle_and_hashable(self, store: Store) -> None:
        store.write("a", b"x")
        data = pickle.dumps(store)
        assert len(data) < 1000
        again = pickle.loads(data)
        assert again == store
        assert hash(again) == hash(store)
        assert again.read("a") == b"x"
        assert again.url == store.url

    def test_the_probe_says_what_it_found_and_leaves_nothing(self, store: Store) -> None:
        assert check_conditional_create(store).startswith(f"{store.url}: of two writers")
        left = any(store.root.iterdir()) if isinstance(store, LocalStore) else store.exists("")
        assert not left
