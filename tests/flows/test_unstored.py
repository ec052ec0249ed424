"""Values that have no place in the store: those that outgrow a limit, and those that their loader keeps from it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, Load, LoadError
from cacheworkers.events import Loaded, NotStored
from cacheworkers.local.clock import StoreClock
from cacheworkers.testing.servers import wait_until

WAYS: dict[str, Callable[[Any], Any]] = {
    "get": lambda loader: loader.get(1),
    "aget": lambda loader: asyncio.run(loader.aget(1)),
    "get_many": lambda loader: loader.get_many([1])[1],
    "get_json": lambda loader: json.loads(loader.get_json(1)),
    "read_json": lambda loader: json.loads(loader.read_json(1).value),
}
#: What a load says of a value that cannot be stored, and what the event says of it.
ODD: dict[str, tuple[Callable[[Load], object], str]] = {
    "too many tags": (lambda load: load.tag(*(f"t:{n}" for n in range(300))), "at most 200 tags"),
    "too long a tag": (lambda load: load.tag("t" * 300), "at most 200 bytes"),
    "a control character": (lambda load: load.tag("two\nlines"), "control characters"),
    "an empty tag": (lambda load: load.tag(""), "non-empty"),
    "too many bytes": (lambda load: load.tag("large"), "at most 100000 bytes"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("is_nested", [False, True])
def test_what_outgrows_a_limit_is_served_uncached(
    make_cache: Callable[..., Cache], events: list[Any], odd: str, way: str, is_nested: bool
) -> None:
    cache = make_cache(max_entry_bytes=100_000)
    say, reason = ODD[odd]
    length = 200_000 if odd == "too many bytes" else 3

    @cache.loader(fresh_for=300)
    def inner(load: Load, n: int) -> str:
        say(load)
        return "x" * length

    @cache.loader(fresh_for=300)
    def outer(load: Load, n: int) -> str:
        return inner.get(n)

    for _ in range(3):
        assert WAYS[way](outer if is_nested else inner) == "x" * length

    assert any(isinstance(each, NotStored) and reason in each.reason for each in events)


@pytest.mark.parametrize("way", WAYS)
def test_an_argument_that_makes_no_legal_tag_is_served_uncached(make_cache: Callable[..., Cache], way: str) -> None:
    cache = make_cache()

    @cache.loader(fresh_for=300, tags=("name:{name}",))
    def listing(load: Load, name: str) -> str:
        return name

    for _ in range(2):
        assert listing.get("two\nlines") == "two\nlines"


def test_workers_are_not_asked_at_every_read(make_cache: Callable[..., Cache], events: list[Any]) -> None:
    cache = make_cache(backoff_for=60)

    @cache.loader(fresh_for=300)
    def listing(load: Load, n: int) -> int:
        load.tag("")
        return n

    assert [listing.get(1) for _ in range(5)] == [1] * 5
    assert len([each for each in events if isinstance(each, Loaded)]) == 1


def test_a_value_that_comes_back_changed_is_an_error_for_every_reader(make_cache: Callable[..., Cache]) -> None:
    """It is no limit: with the same value some readers would get one thing, others another."""
    cache = make_cache()

    @cache.loader(fresh_for=300)
    def listing(load: Load, n: int) -> Any:
        return (n,)

    for way in WAYS.values():
        with pytest.raises(Exception, match=r"\(tuple\) and comes back as \[1\] \(list\)") as caught:
            way(listing)
        errors = getattr(caught.value, "errors", {1: caught.value})
        assert isinstance(errors[1], LoadError) and errors[1].kind == "CodecError"


class Half:
    """A page that is half of one until its backends are well."""

    def __init__(self, cache: Cache) -> None:
        self.is_well = False
        self.loads = 0
        self.goes_on, self.has_begun = threading.Event(), threading.Event()
        self.goes_on.set()

        @cache.loader(fresh_for=300, early=0, wait_for=20, tags=("page:{n}",))
        def page(load: Load, n: int) -> str:
            self.loads += 1
            self.has_begun.set()
            self.goes_on.wait(20)
            if not self.is_well:
                load.no_store()
            return "whole" if self.is_well else "half"

        @cache.loader(fresh_for=300, early=0, wait_for=20)
        def site(load: Load, n: int) -> str:
            return f"{page.get(n)} a page"

        self.page, self.site = page, site


@pytest.mark.parametrize("l1_entries", [0, 100])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_to_be_stored_is_for_no_later_read(
    make_cache: Callable[..., Cache], way: str, l1_entries: int
) -> None:
    half = Half(make_cache(l1_entries=l1_entries))

    assert WAYS[way](half.page) == "half"
    assert half.page.peek(1) is None
    half.is_well = True

    assert WAYS[way](half.page) == WAYS[way](half.page) == "whole"
    assert half.loads == 2


@pytest.mark.parametrize("way", WAYS)
def test_it_is_for_no_later_read_whose_clock_is_behind(
    make_cache: Callable[..., Cache], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as a process's idea of the store's clock may be: what is over there is over here."""
    half = Half(make_cache(l1_entries=0))
    assert WAYS[way](half.page) == "half"
    half.is_well = True
    now = StoreClock.now
    monkeypatch.setattr(StoreClock, "now", lambda clock: now(clock) - 0.9)

    assert WAYS[way](half.page) == "whole"


def test_what_is_built_on_it_is_not_stored_either(make_cache: Callable[..., Cache]) -> None:
    half = Half(make_cache())

    assert half.site.get(1) == "half a page"
    half.is_well = True

    assert half.site.get(1) == "whole a page"


def test_all_who_wait_get_it_from_one_load(make_cache: Callable[..., Cache]) -> None:
    """In other processes too, and those who have come while it was being loaded."""
    half, elsewhere = Half(make_cache()), Half(make_cache())
    half.goes_on.clear()
    found: list[str] = []
    readers = [threading.Thread(target=lambda one=one: found.append(one.page.get(1))) for one in (half, elsewhere) * 3]
    readers[0].start()
    assert half.has_begun.wait(20)
    for reader in readers[1:]:
        reader.start()
    waiters = [one.page._ports.waiters for one in (half, elsewhere)]

    def following() -> list[int]:
        crowds = [list(each.crowds.of_threads.values()) for each in waiters]
        return [sum(len(crowd.followers) for crowd in each) for each in crowds]

    # One that comes after the load has ended is no waiter: it loads for itself.
    wait_until(lambda: [each.calls for each in waiters] == [1, 1] and following() == [2, 2])
    half.goes_on.set()
    for reader in readers:
        reader.join(20)

    assert found == ["half"] * 6
    assert half.loads + elsewhere.loads <= 2


def test_an_invalidation_overtakes_it(make_cache: Callable[..., Cache]) -> None:
    """A read that begins after an acknowledged invalidation is not served what was being loaded before it."""
    cache = make_cache()
    half = Half(cache)
    half.goes_on.clear()
    first = threading.Thread(target=half.page.get, args=(1,))
    first.start()
    assert half.has_begun.wait(20)
    cache.invalidate("page:1")
    half.is_well = True
    half.goes_on.set()

    assert half.page.get(1) == "whole"
    first.join(20)


def test_over_http_it_is_not_to_be_stored(make_cache: Callable[..., Cache]) -> None:
    from cacheworkers.web import HttpPolicy, answer

    half = Half(make_cache())

    made = answer(half.page.read_json(1), HttpPolicy(max_age=60))

    assert (b"cache-control", b"no-store") in made.headers


@pytest.mark.parametrize("odd", [None, "too many tags"])
def test_what_is_not_stored_is_as_old_as_the_read_that_gets_it(
    make_cache: Callable[..., Cache], odd: str | None
) -> None:
    for wait_for, tier in ((20.0, "store"), (0.0, "load")):

        @make_cache().loader(fresh_for=300, wait_for=wait_for)
        def page(load: Load, n: int) -> str:
            if odd is None:
                load.no_store()
            else:
                ODD[odd][0](load)
            return "half a page"

        found = page.read(1)

        assert (found.age, found.freshness.value) == (0.0, "fresh")
        assert found.tier == (tier if odd is None else "load")  # nobody can hand it over
