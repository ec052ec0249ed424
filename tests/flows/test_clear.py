"""`clear`: everything of a namespace is gone, from the store and this process's memory, and loads under way with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.events import Event, Loaded
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


def counted(cache: Cache) -> tuple[Any, list[int]]:
    loads: list[int] = []

    @cache.loader(fresh_for=300, tags=("n:{n}",))
    def value(load: Load, n: int) -> int:
        loads.append(n)
        return len(loads)

    return value, loads


@pytest.mark.parametrize("is_async", [False, True])
def test_what_was_cached_is_loaded_again(make_cache: MakeCache, is_async: bool) -> None:
    cache = make_cache()
    value, loads = counted(cache)
    assert [value.get(n) for n in (1, 2, 1)] == [1, 2, 1]

    deleted = asyncio.run(cache.aclear()) if is_async else cache.clear()

    assert deleted >= 4, "two entries and their tag sets"
    assert value.get(1) == 3 and loads == [1, 2, 1]
    assert cache.calls_of("n:2") == []


def test_other_namespaces_stay(make_cache: MakeCache) -> None:
    cache, other = make_cache(namespace="clear-a"), make_cache(namespace="clear-ab")
    (mine, _), (theirs, loads) = counted(cache), counted(other)
    mine.get(1)
    theirs.get(1)

    cache.clear()

    theirs.get(1)
    assert loads == [1]
    other.clear()


def test_numbers_of_invalidations_go_on(make_cache: MakeCache) -> None:
    """A reader that holds an older number asks for values since then."""
    cache = make_cache()
    value, _ = counted(cache)
    before = cache.invalidate("n:1")

    cache.clear()
    done = cache.invalidate("n:1")

    assert done.seq > before.seq + 1
    assert value.since(done).get(1) == 1


def test_a_load_that_was_under_way_is_not_stored(make_cache: MakeCache, events: list[Event]) -> None:
    """It has read what was there before; its lease is broken, so its write is refused, and it loads again."""
    cache = make_cache()
    began, go_on, values = threading.Event(), threading.Event(), iter(["old", "new"])

    @cache.loader(fresh_for=300)
    def value(load: Load) -> str:
        found = next(values)
        began.set()
        assert go_on.wait(60)
        return found

    value.revalidate()
    assert began.wait(60)
    cache.clear()
    go_on.set()
    wait_until(lambda: any(isinstance(event, Loaded) for event in events))

    assert value.get() == "new"
