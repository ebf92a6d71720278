"""Parts of a killed attempt: reused by the same attempt alone, and only whole."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from miner.artifacts.errors import AnotherWriter, DamagedArtifact
from miner.artifacts.lock import LOCK, hold
from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore


def test_a_part_is_found_by_the_same_inputs_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record = Draft(store, "e", "embeddings", {"checkpoint": "A"}).add_part("part-00000.npy", b"vectors of A", 3)
    assert Draft(store, "e", "embeddings", {"checkpoint": "A"}).find_part("part-00000.npy") == record
    assert Draft(store, "e", "embeddings", {"checkpoint": "B"}).find_part("part-00000.npy") is None
    assert Draft(store, "e", "embeddings", {"checkpoint": "A"}).find_part("part-00001.npy") is None


@pytest.mark.parametrize("name", ["part-00000.npy", "part-00000.npy.done"])
def test_a_damaged_part_is_made_again(tmp_path: Path, name: str) -> None:
    draft = Draft(LocalStore(tmp_path), "e", "embeddings", {})
    draft.add_part("part-00000.npy", b"vectors", 3)
    whole = (tmp_path / "e" / name).read_bytes()
    (tmp_path / "e" / name).write_bytes(whole[:-2])
    assert draft.find_part("part-00000.npy") is None
    with pytest.raises(DamagedArtifact):
        draft.read_part("part-00000.npy")
    record = draft.add_part("part-00000.npy", b"vectors", 3)
    assert draft.find_part("part-00000.npy") == record


def test_one_writer_per_folder(tmp_path: Path) -> None:
    with hold(tmp_path / "out"), pytest.raises(AnotherWriter), hold(tmp_path / "out"):
        pass
    with hold(tmp_path / "out"):
        assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_of_several_hosts_is_held_by_a_file(tmp_path: Path) -> None:
    """As another host that holds it looks from here: its lock of the folder is not seen, that of the file is."""
    with (tmp_path / LOCK).open("w") as there:
        fcntl.flock(there, fcntl.LOCK_EX)
        with pytest.raises(AnotherWriter), hold(tmp_path, shared=True):
            pass
        with hold(tmp_path):
            pass
    with hold(tmp_path, shared=True):
        pass


def test_faiss_is_imported_in_one_file() -> None:
    root = Path(__file__).parents[2]
    named = [p for top in ("miner", "trainer", "pipelines") for p in (root / top).rglob("*.py") if _imports(p, "faiss")]
    assert [p.name for p in named] == ["_faiss.py"]


def _imports(path: Path, module: str) -> bool:
    text = path.read_text()
    return any(form in text for form in (f"import {module}", f'import_module("{module}', f"from {module} "))


def test_vectors_of_two_models_are_refused(tmp_path: Path) -> None:
    import numpy as np

    from miner.artifacts.embeddings import EMBEDDINGS, commit_embeddings, npy_bytes, part_name
    from miner.artifacts.errors import BadInput
    from miner.folder import open_folder

    for side, model in (("image", "a" * 64), ("text", "b" * 64)):
        draft = Draft(LocalStore(tmp_path), side, EMBEDDINGS, {})
        record = draft.add_part(part_name(0), npy_bytes(np.eye(3, dtype=np.float32)), 3)
        commit_embeddings(draft, side, ["0", "1", "2"], [record], 3, {"checkpoint": model})
    (tmp_path / "pairs.csv").write_text("image_id,text_id\n0,0\n1,1\n2,2\n1,0\n")
    with pytest.raises(BadInput, match="encode both with one checkpoint"):
        open_folder(tmp_path)
