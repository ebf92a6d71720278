"""Elements on disk: what was written is what is read, row by row, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from miner.artifacts.elements import ElementLists, add_element_parts, element_names
from miner.artifacts.embeddings import EMBEDDINGS, commit_embeddings, npy_bytes, part_name
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, open_artifact
from miner.artifacts.store import LocalStore

LENGTHS = [[3, 1, 5], [2], [4, 4, 1, 2]]


def rows_of(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, 6)).astype(np.float16) for shard in LENGTHS for length in shard]


def written(folder: Path, *, elements: bool = True) -> Artifact:
    draft = Draft(LocalStore(folder), ".", EMBEDDINGS, {})
    rows, parts, more, at = rows_of(), [], {}, 0
    for shard, lengths in enumerate(LENGTHS):
        vectors = np.ones((len(lengths), 4), np.float32)
        parts.append(draft.add_part(part_name(shard), npy_bytes(vectors), len(vectors)))
        if elements:
            values = np.concatenate(rows[at : at + len(lengths)])
            add_element_parts(draft, shard, values, np.array(lengths, np.int32))
            for name in element_names(shard):
                record = draft.find_part(name)
                assert record is not None
                more[name] = record
        at += len(lengths)
    return commit_embeddings(draft, "text", [str(row) for row in range(at)], parts, 4, {}, more)


def check(lists: ElementLists) -> None:
    rows = rows_of()
    for wanted in ([0], [7, 0, 3, 3], [2, 3, 4], [1]):
        values, lengths = lists.take(np.array(wanted))
        assert lengths.tolist() == [len(rows[row]) for row in wanted]
        assert values.shape == (len(wanted), max(lengths), 6)
        for at, row in enumerate(wanted):
            assert np.array_equal(values[at, : lengths[at]], rows[row])


def test_rows_come_back_across_shards(tmp_path: Path) -> None:
    written(tmp_path)
    lists = ElementLists.open(open_artifact(tmp_path, EMBEDDINGS))
    assert (len(lists), lists.dim) == (8, 6)
    check(lists)
    assert not list(tmp_path.glob("*.done"))


def test_elements_in_memory_read_the_same() -> None:
    rows = rows_of()
    check(ElementLists.of(np.concatenate(rows), np.array([len(row) for row in rows], np.int32)))


def test_embeddings_without_elements_are_refused(tmp_path: Path) -> None:
    written(tmp_path, elements=False)
    with pytest.raises(BadInput, match="without elements"):
        ElementLists.open(open_artifact(tmp_path, EMBEDDINGS))


@pytest.mark.parametrize("name", [*element_names(1), element_names(2)[0]])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 4
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedArtifact, match=name):
        ElementLists.open(open_artifact(tmp_path, EMBEDDINGS))
