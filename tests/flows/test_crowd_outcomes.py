"""What the followers of a crowd are given where its leader finds nothing fresh: one look, one load, not its limits."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cacheworkers import Cache, Freshness, Load, LoadError, LoadErrors
from cacheworkers.flows.read_state import Wait
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

READERS = 50
MakeCache = Callable[..., Cache]


@pytest.fixture
def cache(make_cache: MakeCache) -> Cache:
    """Reads reach the store; its changes are reported, so that readers need not poll."""
    cache = make_cache(l1_entries=0)
    cache._ports.listener.start()
    wait_until(lambda: cache._ports.listener.is_up)
    return cache


def together(read: Callable[[], Awaitable[Any]], readers: int = READERS) -> list[Any]:
    """Return what tasks of one turn have found, or their errors."""

    async def play() -> list[Any]:
        return await asyncio.gather(*(read() for _ in range(readers)), return_exceptions=True)

    return asyncio.run(play())


def test_a_lapsed_value_is_one_look_and_one_claim_for_all(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = threading.Event()

    @cache.loader(fresh_for=0.05, stale_for=0, error_for=600, jitter=0, early=0, wait_for=60, load_for=60)
    def price(load: Load, number: int) -> dict[str, int]:
        if fails.is_set():
            raise RuntimeError("the database is down")
        return {"price": number}

    price.get(1)
    fails.set()
    wait_until(lambda: price.read(1).freshness is Freshness.LAPSED)
    store, asked = cache._ports.store, list[str]()
    get, claim = store.batcher.get, store.claim
    monkeypatch.setattr(store.batcher, "get", lambda *args: asked.append("get") or get(*args))
    monkeypatch.setattr(store, "claim", lambda *args, **more: asked.append("claim") or claim(*args, **more))

    found = together(lambda: price.aread(1))

    assert {(read.value["price"], read.freshness) for read in found} == {(1, Freshness.LAPSED)}
    assert asked == ["get", "claim"]


def test_a_load_that_outlasts_its_value_is_one_for_all_who_waited_for_it(cache: Cache) -> None:
    loads: list[int] = []

    @cache.loader(fresh_for=0.001, stale_for=0, jitter=0, early=0, wait_for=60, load_for=60)
    def price(load: Load, number: int) -> int:
        loads.append(number)
        time.sleep(0.05)
        return number

    assert together(lambda: price.aget(1)) == [1] * READERS
    assert loads == [1]

    async def play() -> list[int]:
        first = asyncio.create_task(price.aget(2))
        while 2 not in loads:
            await asyncio.sleep(0.001)
        return await asyncio.gather(first, price.aget(2))

    assert asyncio.run(play()) == [2, 2]
    assert loads == [1, 2, 2], "who comes while it is being loaded has it loaded again"


def test_a_failure_that_another_reader_learnt_before_is_not_for_who_asks_after_an_invalidation(cache: Cache) -> None:
    """A `get_many` has learnt it while the loop was busy: the leader takes it over, its new follower may not."""
    is_down, may_fail, is_invalidated = threading.Event(), threading.Event(), threading.Event()
    is_down.set()

    @cache.loader(tags=("all",), wait_for=60, load_for=60)
    def price(load: Load, number: int) -> int:
        if is_down.is_set():
            may_fail.wait(60)
            raise RuntimeError("the database is down")
        return 2

    waiters = cache._ports.waiters

    def invalidate(many: Any) -> None:
        may_fail.set()
        many.exception(60)
        is_down.clear()
        cache.invalidate("all")
        is_invalidated.set()

    def get_many() -> Any:
        return price.get_many([1])

    async def play() -> list[Any]:
        leader = asyncio.create_task(price.aget(1))
        while not (flight := waiters.flights.get("price[1]")) or not flight.token:
            await asyncio.sleep(0.001)
        many = pool.submit(get_many)
        while len(waiters) < 2:
            await asyncio.sleep(0.001)
        pool.submit(invalidate, many)
        is_invalidated.wait(60)  # the loop is busy
        return await asyncio.gather(leader, price.aget(1), return_exceptions=True)

    with ThreadPoolExecutor(2) as pool:
        led, followed = asyncio.run(play())

    assert isinstance(led, LoadError | int)
    assert followed == 2


def test_a_read_that_blocks_the_loop_of_the_task_that_claims_ends(make_cache: MakeCache) -> None:
    cache = make_cache(l1_entries=0, store_timeout=0.2)

    @cache.loader(wait_for=0.2, load_for=60)
    def price(load: Load, number: int) -> int:
        return number

    async def play() -> list[int]:
        await cache._ports.store.get("price[0]").arun()  # the loop has a connection
        task, flights = asyncio.create_task(price.aget(1)), cache._ports.waiters.flights
        while "price[1]" not in flights or not flights["price[1]"].is_claiming:
            await asyncio.sleep(0)
        return [price.get(1), await task]

    assert price.get(0) == 0
    assert asyncio.run(play()) == [1, 1]


@pytest.mark.parametrize("l1_for", [0.0, 60.0])
def test_arguments_without_a_hash_lead_to_no_crowd_but_to_their_value(make_cache: MakeCache, l1_for: float) -> None:
    cache = make_cache()

    @cache.loader(l1_for=l1_for, wait_for=60)
    def name(load: Load, key: uuid.UUID) -> str:
        return str(key)

    def key(number: int) -> tuple[Any, str]:
        found = uuid.UUID(int=number)
        return bytearray(found.bytes), str(found)

    for number, read in enumerate((name.get, name.read, name.get_json, name.read_json)):
        raw, text = key(number)
        found: Any = read(raw)
        assert text in str(found)
    for number, aread in enumerate((name.aget, name.aread, name.aget_json, name.aread_json), 10):
        raw, text = key(number)
        assert all(text in str(each) for each in together(functools.partial(aread, raw), 4))
    assert name._reads.crowds == {}


class JobTimeout(Exception):
    """A time limit of a user's own, as a signal's handler raises it; it cannot be copied."""

    def __init__(self, *, seconds: float) -> None:
        super().__init__(f"after {seconds} s")


def test_a_time_limit_of_the_leader_s_thread_is_not_its_followers(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load = threading.Event()
    wait = Wait.run

    @cache.loader(wait_for=60, load_for=60)
    def price(load: Load, number: int) -> int:
        may_load.wait(60)
        return number

    def limited(step: Wait) -> bool:
        if threading.current_thread() is not leader:
            return wait(step)
        waits.append(step)
        if len(waits) == 1:
            wait_until(lambda: len(cache._ports.waiters.crowds) == 3)
            return True  # it looks again, for all three
        raise JobTimeout(seconds=1)

    led: list[Any] = []
    waits: list[Wait] = []

    def lead() -> None:
        try:
            led.append(price.get(1))
        except JobTimeout as error:
            led.append(error)
        may_load.set()

    monkeypatch.setattr(Wait, "run", limited)
    leader = threading.Thread(target=lead)
    leader.start()
    wait_until(lambda: cache._ports.waiters.flights)
    with ThreadPoolExecutor(3) as pool:
        followers = [pool.submit(price.get, 1) for _ in range(3)]
    leader.join()

    assert [each.result() for each in followers] == [1, 1, 1]
    assert [type(each) for each in led] == [JobTimeout]


def test_each_reader_raises_an_error_of_its_own_where_the_store_is_away(make_cache: MakeCache) -> None:
    with Valkey() as server:
        cache = make_cache(redis_url=server.url, store_timeout=0.5, breaker_for=60.0)

        @cache.loader(wait_for=60)
        def price(load: Load, number: int) -> int:
            time.sleep(0.05)
            raise RuntimeError("the database is down")

        server.kill()
        found = together(lambda: price.aget_many([1]))
        cache.close()

    assert {type(each) for each in found} == {LoadErrors}
    assert len({id(each.errors[1]) for each in found}) == READERS
    assert {type(each.errors[1].__cause__) for each in found} == {RuntimeError}


def test_who_was_cancelled_is_not_counted_as_a_reader(cache: Cache) -> None:
    may_load = threading.Event()

    @cache.loader(wait_for=60)
    def price(load: Load, number: int) -> int:
        may_load.wait(60)
        return number

    async def play() -> int:
        readers = [asyncio.create_task(price.aget(1)) for _ in range(READERS)]
        while not cache._ports.waiters.flights:
            await asyncio.sleep(0.001)
        for each in readers[1:]:
            each.cancel()
        await asyncio.gather(*readers[1:], return_exceptions=True)
        may_load.set()
        return await readers[0]

    assert asyncio.run(play()) == 1
    assert [*dict(cache._ports.access_counter.taken([], 1000)).values()] == [1]


def test_a_follower_s_error_keeps_nothing_alive(cache: Cache) -> None:
    """No cycle of error, traceback and frame: what a request has is free as soon as it ends."""

    class Request:
        pass

    @cache.loader(wait_for=60)
    def price(load: Load, number: int) -> int:
        raise RuntimeError("the database is down")

    requests: list[weakref.ref[Request]] = []

    async def view() -> bool:
        request = Request()
        requests.append(weakref.ref(request))
        try:
            await price.aget(1)
        except LoadError:
            return False
        return bool(request)

    gc.collect()
    gc.disable()
    try:
        assert together(view) == [False] * READERS
        alive = sum(each() is not None for each in requests)
    finally:
        gc.enable()
    assert alive == 0


def test_who_comes_after_an_invalidation_is_not_covered_by_a_look_of_before(cache: Cache) -> None:
    """The look of those before went through the batcher, in a turn of its own; its reply is late."""
    prices = [1]

    @cache.loader(tags=("all",), wait_for=60)
    def price(load: Load, number: int) -> list[int]:
        return [prices[0]]

    price.get(1)
    batcher = cache._ports.store.batcher

    async def play() -> tuple[list[Any], list[Any]]:
        await price.aget(1)
        batcher.was_alone = False
        held: list[Any] = []
        submit, has_come = batcher._submit, asyncio.Event()

        def late(keys: list[str], done: Callable[[Any], None]) -> bool:
            batcher._submit = submit
            return submit(keys, lambda outcome: (held.append((done, outcome)), has_come.set())[0])

        batcher._submit = late
        before = [asyncio.create_task(price.aget(1)) for _ in range(3)]
        await has_come.wait()
        prices[0] = 2
        await cache.ainvalidate("all")
        after = [asyncio.create_task(price.aget(1)), asyncio.create_task(price.aget(number=1))]
        await asyncio.sleep(0)
        done, outcome = held[0]
        done(outcome)
        return await asyncio.gather(*before), await asyncio.gather(*after)

    before, after = asyncio.run(play())
    assert before in ([[1]] * 3, [[2]] * 3)
    assert after == [[2]] * 2
