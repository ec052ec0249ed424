"""A store without room: reads are served uncached, and what keeps loads few still works.  The server really is full."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from cacheworkers import Cache, Load, LoadError, LoadTimeout, Read
from cacheworkers.store.commands.scripts import CLAIM, Script
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

#: Seconds; far longer than any test takes.
LONG = 600.0
MakeCache = Callable[..., Cache]


class Full:
    """A server that refuses whatever takes memory, until it is given room."""

    def __init__(self, server: Valkey) -> None:
        self.url = server.url
        self.client = redis.Redis(port=server.port)

    def fill(self) -> None:
        self.client.config_set("maxmemory", "1mb")  # an empty server has more
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            self.client.set("filler", "")

    def make_room(self) -> None:
        self.client.config_set("maxmemory", "0")


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey(maxmemory_policy="noeviction") as server:
        yield server


@pytest.fixture
def full(server: Valkey) -> Iterator[Full]:
    full = Full(server)
    yield full
    full.make_room()
    full.client.close()


@pytest.fixture
def made(make_cache: MakeCache, full: Full) -> Callable[..., tuple[Any, list[int]]]:
    """Make a loader and the list of what it has loaded."""

    def make(work: Callable[[int], None] = lambda n: None, **policy: Any) -> tuple[Any, list[int]]:
        cache, loads = make_cache(redis_url=full.url, backoff_for=LONG, max_backoff_for=LONG), []

        @cache.loader(tags=("n:{n}",), **{"jitter": 0, "early": 0, **policy})
        def number(load: Load, n: int) -> int:
            loads.append(n)
            work(n)
            return n * 10

        return number, loads

    return make


READS: dict[str, Callable[[Any, int], Any]] = {
    "get": lambda number, n: number.get(n),
    "aget": lambda number, n: asyncio.run(number.aget(n)),
    "get_json": lambda number, n: int(number.get_json(n)),
    "aget_json": lambda number, n: int(asyncio.run(number.aget_json(n))),
    "get_many": lambda number, n: number.get_many([n])[n],
    "aget_many": lambda number, n: asyncio.run(number.aget_many([n]))[n],
}


@pytest.mark.parametrize("how", READS)
def test_a_miss_is_served_uncached(made: Any, full: Full, how: str) -> None:
    number, _ = made()
    full.fill()

    assert [READS[how](number, 2) for _ in range(3)] == [20, 20, 20]
    assert number.peek(2) is None
    assert number.read(2).freshness.value == "fresh"  # nothing has overtaken it


@pytest.mark.parametrize("how", READS)
def test_a_miss_is_served_though_its_claim_is_refused(
    made: Any, full: Full, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes a server refuse even that little."""
    number, _ = made()
    link = number._ports.store.link
    number.peek(2)
    full.fill()
    with monkeypatch.context() as patch:
        patch.setattr("cacheworkers.store.commands.scripts.CLAIM", _without_its_flag())
        assert READS[how](number, 2) == 20

    assert link.client().exists(number._ports.store.keys.lease("number[2]")) == 0


def test_what_was_dropped_is_not_served_from_memory(make_cache: MakeCache, full: Full) -> None:
    """Though no push of it has reached memory yet: the store has answered that it has no such entry."""
    cache, prices = make_cache(redis_url=full.url), {1: 5}

    @cache.loader(fresh_for=300, jitter=0, early=0, l1_for=LONG)
    def price(load: Load, n: int) -> int:
        return prices[n]

    ports = cache._ports
    ports.listener.start()
    wait_until(lambda: ports.listener.is_up)
    price.get(1)
    assert ports.listener.barrier(60.0).run()  # no push comes late
    wait_until(lambda: price.read(1).tier == "l1")
    slot = ports.l1.get("price[1]")
    full.fill()
    prices[1] = 6
    ports.l1.drop, is_dropped = lambda call: is_dropped.set(), threading.Event()  # type: ignore[method-assign]
    ports.store.drop(["price[1]"]).run()
    assert is_dropped.wait(60)
    slot.until = 0.0

    read = price.read(1)

    assert ports.l1.get("price[1]") is slot
    assert (read.value, read.tier) == (6, "load")


def test_readers_of_one_miss_share_a_load(made: Any, full: Full) -> None:
    """The load that cannot be stored is for all of its process, also those that began after it; one in another."""
    may_go_on = threading.Event()
    (here, loads), (elsewhere, loads_elsewhere) = (
        made(lambda n: may_go_on.wait(LONG) and None, wait_for=60.0, load_for=60.0) for _ in range(2)
    )
    here.peek(7)
    elsewhere.peek(7)
    full.fill()
    found: list[Read] = []

    def start(number: Any) -> list[threading.Thread]:
        threads = [threading.Thread(target=lambda: found.append(number.read(7))) for _ in range(20)]
        for thread in threads:
            thread.start()
        waiters = number._ports.waiters
        wait_until(lambda: len(waiters) == 20)
        return threads

    threads = start(here)
    wait_until(lambda: loads)
    threads += start(elsewhere)
    may_go_on.set()
    for thread in threads:
        thread.join(60)

    assert [(read.value, read.freshness.value, read.tier) for read in found] == [(70, "fresh", "load")] * 40
    assert loads == [7]
    assert loads_elsewhere == [7]


def test_a_value_without_room_is_offered_before_anybody_is_woken(made: Any, full: Full) -> None:
    """The record of the failure wakes all waiters: who found no value then would load once more."""
    number, loads = made(wait_for=60.0, load_for=60.0)
    number.peek(7)
    ports = number._ports
    offer, seen = ports.waiters.offer, []

    def offer_and_look(*args: Any, **options: Any) -> None:
        seen.append(ports.store.link.client().exists(ports.store.keys.failures("number[7]")))
        offer(*args, **options)

    ports.waiters.offer = offer_and_look
    full.fill()

    assert number.get(7) == 70
    assert (seen, loads) == ([0], [7])
    wait_until(lambda: ports.store.link.client().exists(ports.store.keys.failures("number[7]")))


@pytest.mark.parametrize("how", ["tag", "call"])
def test_who_began_after_an_invalidation_does_not_share_an_older_load(
    make_cache: MakeCache, full: Full, how: str
) -> None:
    """Its number is in the store, or the lease is gone, though the load has registered nothing."""
    cache = make_cache(redis_url=full.url, backoff_for=LONG, max_backoff_for=LONG)
    has_read, may_go_on, prices = threading.Event(), threading.Event(), {7: 70}

    @cache.loader(tags=("n:{n}",), jitter=0, early=0, wait_for=60.0, load_for=60.0)
    def price(load: Load, n: int) -> int:
        found = prices[n]
        if not has_read.is_set():
            has_read.set()
            may_go_on.wait(60)
        return found

    price.peek(7)
    full.fill()
    found: dict[str, int] = {}

    def start(name: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.update({name: price.get(7)}))
        thread.start()
        return thread

    before = start("before")
    has_read.wait(60)
    prices[7] = 71
    if how == "call":
        price.invalidate(7)
    else:
        cache.invalidate("n:7")
    after = start("after")
    wait_until(lambda: len(price._ports.waiters) == 2 or "after" in found)
    may_go_on.set()
    before.join(60)
    after.join(60)

    assert found["after"] == 71
    assert found["before"] in (70, 71)


def test_a_failed_load_is_not_repeated_before_its_backoff_ends(made: Any, full: Full) -> None:
    def fail(n: int) -> None:
        raise ValueError("unlucky")

    number, loads = made(fail)
    full.fill()

    for _ in range(3):
        with pytest.raises(LoadError, match="unlucky"):
            number.get(1)
    assert loads == [1]


def test_a_lapsed_value_is_served_where_the_load_here_fails(made: Any, full: Full) -> None:
    is_down = threading.Event()

    def work(n: int) -> None:
        if is_down.is_set():
            raise ValueError("unlucky")

    number, _ = made(work, fresh_for=0.001, stale_for=0, error_for=LONG)
    number.get(1)
    full.fill()
    wait_until(lambda: number.peek(1).freshness.value == "lapsed")
    assert number.read(1).tier == "load"  # which is reported to others
    is_down.set()

    read = number.read(1)

    assert (read.value, read.freshness.value, read.tier) == (10, "lapsed", "store")


def test_who_may_not_load_here_gets_an_error(made: Any, full: Full) -> None:
    """What another process has loaded cannot reach it."""
    may_go_on = threading.Event()
    worker, loads = made(lambda n: may_go_on.wait(LONG) and None, wait_for=60.0, load_for=60.0)
    number, loads_here = made(on_timeout="raise", wait_for=60.0, load_for=60.0)
    worker.peek(1)
    number.peek(1)
    full.fill()
    loading = threading.Thread(target=worker.get, args=(1,))
    loading.start()
    wait_until(lambda: loads)
    errors: list[Exception] = []

    def read() -> None:
        try:
            number.get(1)
        except LoadTimeout as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: len(number._ports.waiters) == 1)
    may_go_on.set()
    reader.join(60)
    loading.join(60)

    [error] = errors
    assert str(error).startswith('number[1] cannot be read, and on_timeout is "raise": the store is out of memory')
    assert (loads, loads_here) == ([1], [])


def test_it_is_stored_again_once_there_is_room(make_cache: MakeCache, full: Full) -> None:
    """After a backoff that does not grow."""
    cache = make_cache(redis_url=full.url, backoff_for=0.01, max_backoff_for=LONG)

    @cache.loader(jitter=0, early=0)
    def number(load: Load, n: int) -> int:
        return n * 10

    number.peek(1)
    full.fill()
    for _ in range(20):
        assert number.get(1) == 10
    full.make_room()

    wait_until(lambda: number.get(1) == 10 and number.peek(1) is not None)


def test_what_it_takes_without_room_is_little_and_goes(made: Any, full: Full) -> None:
    """No lease and no count of attempts is left, and why it was not stored is known for three backoffs at most."""
    number, _ = made()
    keys = number._ports.store.keys
    number.peek(1)
    full.fill()

    for n in range(1, 20):
        number.get(n)

    def left() -> set[str]:
        return {key for key in map(bytes.decode, full.client.keys(f"{keys.namespace}:*")) if "number[" in key}

    recorded = {keys.failures(f"number[{n}]") for n in range(1, 20)}
    wait_until(lambda: left() == recorded)  # the last one's reader has its value a moment before
    assert all(0 < full.client.pttl(key) <= 3 * LONG * 1000 for key in recorded)


def _without_its_flag() -> Script:
    source = CLAIM.source.replace(b" flags=allow-oom", b"")
    return Script("claim", source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
