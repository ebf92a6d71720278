"""Who is blamed when processes and nodes are lost, and what is said of what is left out."""

from __future__ import annotations

import pytest

from miner.artifacts.errors import Retryable
from pipelines.executors.quarantine import FINISH, TRIES, Quarantine


def test_the_third_lost_process_leaves_a_shard_out() -> None:
    quarantine = Quarantine("r1/mine-i2t", "mine.cpus")
    assert [quarantine.note(4, "a", f"seen {n}", {"a"}) for n in range(TRIES)] == [True, True, False]
    assert quarantine.note(5, "a", "seen", {"a"})
    error = str(quarantine.error(7, lambda shard: f"rows of {shard}"))
    assert "r1/mine-i2t: 1 shard was left out after 3 failures each, 7 finished and kept" in error
    assert "shard 4, rows of 4: seen 2" in error
    assert "[executor] mine.cpus" in error
    assert "shard 5" not in error


def test_a_lost_node_is_nobodys_fault_even_when_that_is_known_late() -> None:
    quarantine = Quarantine("r1/mine-i2t", "mine.cpus")
    assert quarantine.note(4, "a", "seen", {"a", "b"})
    assert quarantine.note(4, "a", "seen", {"a", "b"})
    # Now node a is gone too: the first two were its fault.
    assert quarantine.note(4, "b", "seen", {"b"})
    assert quarantine.note(4, "b", "seen", {"b"})
    assert not quarantine.note(4, "b", "seen", {"b"})
    assert quarantine.left_out == [4]


def test_a_shard_that_takes_its_node_with_it_is_not_tried_for_ever() -> None:
    quarantine = Quarantine("r1/mine-i2t", "mine.cpus")
    assert all(quarantine.note(4, f"node {number}", "seen", set()) for number in range(9))
    with pytest.raises(Retryable, match=r"shard 4 was lost 10 times.*run the same command again"):
        quarantine.note(4, "node 9", "seen", set())


def test_many_left_out_are_hopeless_and_shown_in_part() -> None:
    quarantine = Quarantine("r1/encode-image", "encode.cpus")
    for shard in range(9):
        assert not quarantine.hopeless
        for _ in range(TRIES):
            quarantine.note(shard, "a", "seen", {"a"})
    assert quarantine.hopeless
    error = str(quarantine.error(0, str))
    assert "9 shards were left out after 3 failures each" in error
    assert "shard 4, 4: seen; and 4 more" in error


def test_putting_together_is_named() -> None:
    quarantine = Quarantine("r1/encode-image", "encode.cpus")
    for _ in range(TRIES):
        quarantine.note(FINISH, "a", "seen", {"a"})
    assert "putting the shards together failed 3 times: seen" in str(quarantine.error(0, str))


def test_a_stage_without_shards_names_no_setting() -> None:
    quarantine = Quarantine("r1/evaluate", "")
    for _ in range(TRIES):
        quarantine.note(FINISH, "a", "seen", {"a"})
    error = str(quarantine.error(0, str))
    assert error.startswith("r1/evaluate: it failed 3 times: seen.")
    assert "[executor]" not in error
