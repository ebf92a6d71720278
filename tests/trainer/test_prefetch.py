"""Making items ahead: order, how far ahead, errors where their item would have come, and no thread left behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from trainer.prefetch import Ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    assert not threads()
    yield
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert not threads()


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_items_come_in_order(depth: int) -> None:
    with Ahead(lambda step: step * step, range(50), depth) as items:
        assert list(items) == [step * step for step in range(50)]
        assert list(items) == []
    with Ahead(lambda step: step, iter([]), depth) as items:
        assert list(items) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_more_than_that_many_are_made_ahead(depth: int) -> None:
    made: list[int] = []
    more = threading.Event()

    def make(step: int) -> int:
        made.append(step)
        more.set()
        return step

    with Ahead(make, range(20), depth) as items:
        for taken in range(10):
            while len(made) < min(20, taken + depth):
                assert more.wait(10)
                more.clear()
            time.sleep(0.002)  # long enough for one too many
            assert made == list(range(taken + depth))
            assert next(items) == taken


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_where_its_item_would_have(depth: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise KeyError("of step 3")
        return step

    with Ahead(make, range(9), depth) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="of step 3") as raised:
            next(items)
        assert raised.traceback[-1].name == "make"
        with pytest.raises(StopIteration):
            next(items)


def test_an_error_of_the_plan_comes_as_well() -> None:
    def plan() -> Iterator[int]:
        yield 1
        raise RuntimeError("no more plan")

    with Ahead(lambda step: step, plan()) as items, pytest.raises(RuntimeError, match="no more plan"):
        list(items)


def test_leaving_early_ends_the_thread_and_makes_nothing_more() -> None:
    made: list[int] = []
    with Ahead(lambda step: made.append(step), range(1000), 2) as items:
        for _ in items:
            break
    assert not threads()
    count = len(made)
    assert count <= 4
    time.sleep(0.01)
    assert len(made) == count
    with pytest.raises(StopIteration):
        next(items)
    items.close()


def test_an_error_in_the_block_ends_the_thread() -> None:
    def leave(items: Ahead[int]) -> None:
        with items:
            next(items)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        leave(Ahead(lambda step: step, range(1000)))
    assert not threads()


def test_dropping_it_ends_the_thread() -> None:
    items = Ahead(lambda step: step, range(1000))
    for _ in items:
        break
    gone = weakref.ref(items)
    del items
    gc.collect()
    assert gone() is None


def test_it_knows_how_long_it_was_waited_for() -> None:
    with Ahead(lambda step: time.sleep(0.02), range(4), 0) as slow:
        list(slow)
    assert slow.waited >= 0.08
    ready = threading.Event()
    with Ahead(lambda step: ready.wait(10), range(2), 2) as items:
        assert items.waited == 0
        threading.Timer(0.05, ready.set).start()
        list(items)
    assert items.waited > 0
