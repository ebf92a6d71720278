"""What stages have in common: the artifact that another process, maybe on another host, has committed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from miner.artifacts.errors import Retryable
from miner.artifacts.manifest import Artifact, Draft
from miner.artifacts.store import LocalStore
from pipelines import mounts
from pipelines.jobs import artifact_at


def _commit(root: Path) -> Artifact:
    draft = Draft(LocalStore(root), "rounds/001/index-image/k", "index", {})
    return draft.commit({"a": draft.add("a", b"1")}, {})


def test_what_another_host_committed_is_waited_for_where_names_are_seen_late(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mounts").write_text(f"a / ext4 rw 0 0\nserver:/x {tmp_path}/shared nfs4 rw 0 0\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    assert not mounts.of_several_hosts(tmp_path / "own")
    with pytest.raises(Retryable, match="gone, or not seen from here yet"):
        artifact_at(LocalStore(tmp_path / "own"), "rounds/001/index-image/k")

    late = threading.Timer(1.0, _commit, [tmp_path / "shared"])
    late.start()
    began = time.monotonic()
    found = artifact_at(LocalStore(tmp_path / "shared"), "rounds/001/index-image/k")
    assert time.monotonic() - began >= 1
    late.join()
    assert found.manifest == _commit(tmp_path / "shared").manifest
