"""What a read does, for each thing it may find; sync and async."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from cacheworkers import (
    BulkheadFull,
    Cache,
    CallError,
    Config,
    Freshness,
    KeyMissing,
    Load,
    LoadError,
    LoadErrors,
    LoadTimeout,
)
from cacheworkers.core.driver import run
from cacheworkers.errors import StoreUnavailable
from cacheworkers.flows import read as reading
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.coherence import NEVER
from cacheworkers.local.flight import Flight
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until


class Stuck:
    """A broker that takes every ask, and workers that never come."""

    def __init__(self) -> None:
        self.asks: list[Any] = []

    def submit_all(self, asks: Any) -> int:
        self.asks += asks
        return len(asks)


@pytest.fixture(params=["sync", "async"])
def get(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Read through either face."""

    def read(loader: Any, *args: Any, how: str = "read") -> Any:
        if request.param == "sync":
            return getattr(loader, how)(*args)
        return asyncio.run(getattr(loader, f"a{how}")(*args))

    return read


def test_a_loader_is_no_function(cache: Cache) -> None:
    """What other libraries' decorators return is called; the error says what to type here."""
    number, _ = counted(cache)

    for call in (number, number.since(number.invalidate(1))):
        with pytest.raises(
            TypeError, match=r"number is a loader: read it by number\.get\(\.\.\.\), or .*await number\.aget"
        ):
            call(42)


def counted(cache: Cache, **policy: Any) -> tuple[Any, list[int]]:
    loads: list[int] = []

    @cache.loader(tags=("n:{n}",), **{"jitter": 0, "early": 0, **policy})
    def number(load: Load, n: int) -> int | None:
        loads.append(n)
        if n == 13:
            raise ValueError("unlucky")
        return None if n < 0 else n * 10

    return number, loads


def test_miss_is_loaded_once_and_then_served(cache: Cache, get: Any) -> None:
    number, loads = counted(cache)

    assert get(number, 1).value == 10
    assert get(number, 1).freshness is Freshness.FRESH
    assert loads == [1]
    assert 0.0 <= get(number, 2).waited < 60.0


def test_equal_arguments_are_one_call(cache: Cache) -> None:
    number, loads = counted(cache)

    assert number.get(4) == number.get(n=4) == number.get("4") == 40

    assert loads == [4]


def test_wrong_arguments_are_an_error_that_names_them(cache: Cache) -> None:
    number, _ = counted(cache)

    with pytest.raises(CallError, match="number"):
        number.get("four")
    with pytest.raises(CallError, match="number"):
        number.get(1, 2)


def test_stale_read_is_served_and_asks_for_one_revalidation(cache: Cache, get: Any) -> None:
    number, _ = counted(cache)
    number.get(1)
    cache.invalidate("n:1", mode="soft")
    stuck: Any = Stuck()
    cache._ports.dispatcher = stuck

    found = [get(number, 1) for _ in range(3)]

    assert [f.freshness for f in found] == [Freshness.STALE] * 3
    assert [ask.queue for ask in stuck.asks] == ["revalidate"]


@pytest.mark.parametrize(("wait_for", "reported"), [(0.0, []), (0.5, ["number[1]"])])
def test_workers_that_nobody_has_waited_for_have_missed_nothing(
    cache: Cache, get: Any, wait_for: float, reported: list[str]
) -> None:
    number, loads = counted(cache, wait_for=wait_for, load_for=60)
    stuck: Any = Stuck()
    cache._ports.dispatcher = stuck
    noted: list[str] = []
    cache._ports.note_taken_over = lambda request: noted.append(request.call)

    assert (get(number, 1).tier, loads) == ("load", [1])

    assert noted == reported


@pytest.mark.parametrize(
    ("is_missing", "lease_ends_in", "is_known"), [(True, 5.0, True), (True, 0.0, False), (False, 5.0, False)]
)
def test_who_knows_that_nothing_is_there_and_that_somebody_loads_it_does_not_look(
    is_missing: bool, lease_ends_in: float, is_known: bool
) -> None:
    """A lapsed entry must be looked at, for it is served where the load fails; and so must what has been loaded."""
    flight = Flight("number[1]")
    flight.is_missing, flight.held_until = is_missing, 100.0 + lease_ends_in

    assert reading._is_known_missing(flight, 100.0) is is_known


def test_none_is_cached_too(cache: Cache, get: Any) -> None:
    number, loads = counted(cache)

    assert get(number, -1).value is None
    assert get(number, -1).value is None
    assert loads == [-1]


def test_failed_load_raises_and_is_not_repeated_before_its_backoff_ends(cache: Cache, get: Any) -> None:
    number, loads = counted(cache)

    for _ in range(3):
        with pytest.raises(LoadError, match="unlucky") as caught:
            get(number, 13)

    assert (caught.value.call, caught.value.kind) == ("number[13]", "ValueError")
    assert loads == [13]


def test_failing_reload_leaves_the_lapsed_value_served_and_marked(cache: Cache, get: Any) -> None:
    is_failing = []

    @cache.loader(fresh_for=0, stale_for=0, error_for=300)
    def flaky(load: Load) -> int:
        if is_failing:
            raise ValueError("down")
        return 7

    assert get(flaky).value == 7
    is_failing.append(True)

    found = get(flaky)

    assert (found.value, found.freshness) == (7, Freshness.LAPSED)


def test_waiter_takes_over_when_nobody_has_begun(make_cache: Any, get: Any) -> None:
    cache = make_cache()
    number, loads = counted(cache, wait_for=0.05)
    cache._ports.dispatcher = Stuck()

    found = get(number, 1)

    assert (found.value, found.tier) == (10, "load")
    assert loads == [1]


def test_one_of_many_waiters_takes_over_and_the_rest_are_served(cache: Cache) -> None:
    number, loads = counted(cache, wait_for=0.05)
    cache._ports.dispatcher = Stuck()  # type: ignore[assignment]

    async def all_of_them() -> list[int]:
        return list(await asyncio.gather(*(number.aget(1) for _ in range(200))))

    assert asyncio.run(all_of_them()) == [10] * 200
    assert loads == [1]


def test_load_slower_than_the_wait_is_not_restarted_by_its_readers(cache: Cache) -> None:
    go, loads = threading.Event(), []

    @cache.loader(wait_for=0.02)
    def slow(load: Load) -> int:
        loads.append(1)
        assert go.wait(60)
        return 5

    assert run(reading.ask(cache._ports, cache._loaders["slow"], "slow[]", b"", "miss"))
    wait_until(lambda: loads == [1])  # a worker has begun: who waits now takes nothing over
    for _ in range(5):
        with pytest.raises(LoadTimeout, match=r"has died, .* lease has ended, load_for \(10 s\) after"):
            slow.get()
    left = int(cache.explain("slow[]").lease["left_ms"])
    go.set()

    wait_until(lambda: slow.peek() is not None)
    assert slow.get() == 5
    assert loads == [1] and 0 < left <= 10_000


def test_raise_on_timeout_never_loads_here(cache: Cache, get: Any) -> None:
    number, loads = counted(cache, wait_for=0.02, on_timeout="raise")
    cache._ports.dispatcher = Stuck()  # type: ignore[assignment]

    with pytest.raises(LoadTimeout):
        get(number, 1)
    assert loads == []


def test_bulkhead_bounds_the_loads_of_this_process(make_cache: Any) -> None:
    cache = make_cache(bulkhead=1)
    go, begun = threading.Event(), threading.Event()

    @cache.loader(wait_for=0, load_for=0.2)
    def slow(load: Load, n: int) -> int:
        begun.set()
        assert go.wait(60)
        return n

    cache._ports.dispatcher = Stuck()

    def read_first() -> None:
        with pytest.raises(LoadTimeout):
            slow.get(1)

    first = threading.Thread(target=read_first)
    first.start()
    assert begun.wait(60)

    with pytest.raises(BulkheadFull):
        slow.get(2)
    go.set()
    first.join()


def test_store_away_loads_here_and_keeps_nothing(events: list[Any], get: Any) -> None:
    from cacheworkers import Config

    cache = Cache(Config(redis_url="redis://127.0.0.1:1/0", store_timeout=0.2), hook=events.append)
    number, loads = counted(cache)

    assert get(number, 1).value == 10
    assert get(number, 1).tier == "load"
    assert loads == [1, 1]
    cache.close()


def test_l1_serves_while_the_store_is_gone_and_is_emptied_when_it_is_back(events: list[Any]) -> None:
    from cacheworkers import Config

    with Valkey() as server:
        cache = Cache(Config(redis_url=server.url, store_timeout=2.0, breaker_for=0.05), hook=events.append)
        number, loads = counted(cache)
        number.get(1)
        wait_until(lambda: cache._ports.listener.is_up)
        assert cache._ports.listener.barrier(60.0).run()  # no push comes late
        wait_until(lambda: number.read(1).tier == "l1")
        server.kill()
        wait_until(lambda: not cache._ports.listener.is_up)

        kept = number.read(1)

        assert (kept.value, kept.tier) == (10, "l1")
        assert loads == [1]
        server.start()
        wait_until(lambda: cache._ports.listener.is_up)
        assert cache._ports.l1.get("number[1]") is None
        cache.close()


def test_what_memory_kept_is_not_served_once_the_store_has_answered_that_it_is_gone(events: list[Any]) -> None:
    """Though the store then refuses everything else: another process may have invalidated it."""
    from cacheworkers import Config

    with Valkey() as server, redis.Redis(port=server.port) as client:
        cache = Cache(Config(redis_url=server.url, store_timeout=5.0), hook=events.append)
        number, loads = counted(cache)
        number.get(1)
        wait_until(lambda: number.read(1).tier == "l1")
        cache._ports.listener.close()
        assert cache._ports.l1.get("number[1]") is not None
        client.delete(cache._ports.store.keys.entry("number[1]"))
        client.acl_setuser("default", enabled=True, commands=["-evalsha", "-eval"])

        assert number.read(1).tier == "load"

        assert loads == [1, 1]
        cache.close()


def test_a_store_that_goes_and_comes_back_is_two_events(events: list[Any]) -> None:
    """However many reads find it gone, it is lost once; the first answer says that it is back."""
    with Valkey() as server:
        cache = Cache(Config(redis_url=server.url, store_timeout=2.0, breaker_for=0.0), hook=events.append)
        number, _ = counted(cache)
        number.get(1)
        server.kill()
        for n in (2, 3, 4):
            assert number.get(n) == n * 10
        server.start()
        assert number.get(5) == 50
        cache.close()

    assert [type(e).__name__ for e in events if type(e).__name__.startswith("Store")] == ["StoreLost", "StoreBack"]


def test_an_answer_from_before_the_failure_does_not_close_the_breaker(cache: Cache, monkeypatch: Any) -> None:
    """Only a probe does: it was sent after."""
    link = cache._ports.store.link
    exchange = link._masters.pool.exchange

    def overtaken(commands: Any) -> Any:
        replies = exchange(commands)
        link._health.breaker.failed()
        return replies

    cache.collect_garbage()
    with monkeypatch.context() as patch:
        patch.setattr(link._masters.pool, "exchange", overtaken)
        cache._ports.store.get("x").run()

    assert link._health.breaker.is_open


def test_after_a_failure_no_older_connection_is_used(cache: Cache, monkeypatch: Any) -> None:
    link = cache._ports.store.link
    cache.collect_garbage()
    assert len(link._masters.pool._idle) > 0

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(link._masters.pool, "exchange", lambda commands: (_ for _ in ()).throw(ConnectionError("cut")))
        cache._ports.store.get("x").run()

    assert len(link._masters.pool._idle) == 0


def test_an_entry_under_another_call_s_key_is_not_served(cache: Cache, get: Any) -> None:
    number, _ = counted(cache)
    number.get(1)
    store = cache._ports.store
    store.link.client().set(store.keys.entry("number[2]"), store.get("number[1]").run())

    assert get(number, 2).value == 20


def test_change_elsewhere_drops_the_entry_from_this_process(make_cache: Any) -> None:
    here, there = make_cache(), make_cache()
    number, loads = counted(here)
    number.get(1)
    wait_until(lambda: here._ports.listener.is_up)
    wait_until(lambda: number.read(1).tier == "l1")

    there.invalidate("n:1")

    wait_until(lambda: here._ports.l1.get("number[1]") is None)
    number.get(1)
    assert loads == [1, 1]


def test_foreign_bytes_in_the_store_are_a_miss_and_an_event(cache: Cache, events: list[Any], get: Any) -> None:
    number, _ = counted(cache)
    client = cache._ports.store.link.client()
    client.set(cache._ports.store.keys.entry("number[1]"), b"CWE\x01 but not really an envelope, is it? " * 3)
    client.lpush(cache._ports.store.keys.entry("number[2]"), "a list")

    assert get(number, 1).value == 10
    assert get(number, 2).value == 20
    assert any(type(event).__name__ == "UnreadableEntry" for event in events)


def test_result_that_is_no_json_reaches_nobody(cache: Cache) -> None:
    @cache.loader(wait_for=0)
    def odd(load: Load) -> Any:
        return float("nan")

    for read in (odd.get, odd.get_json):
        with pytest.raises(LoadError, match="finite"):
            read()


def test_since_takes_nothing_loaded_before_an_invalidation(cache: Cache) -> None:
    number, loads = counted(cache)
    number.get(1)
    done = cache.invalidate("something else")

    assert number.since(done).get(1) == 10
    assert loads == [1, 1]


def test_nested_load_carries_the_tags_of_what_it_read(cache: Cache) -> None:
    number, _ = counted(cache)

    @cache.loader()
    def total(load: Load) -> int:
        return (number.get(1) or 0) + (number.get(2) or 0)

    assert total.get() == 30
    assert set(total.read().entry.tags) == {"n:1", "n:2"}

    cache.invalidate("n:2")

    assert total.peek() is None


def test_batch_loader_loads_what_is_missing_together(cache: Cache, get: Any) -> None:
    batches: list[list[int]] = []

    @cache.batch_loader(tags=("p:{key}",))
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        batches.append(sorted(keys))
        return {key: key * 10 for key in keys if key < 100}

    prices.get(1)

    found = get(prices, [1, 2, 3, 2], how="get_many")

    assert found == {1: 10, 2: 20, 3: 30}
    assert sorted(key for batch in batches for key in batch) == [1, 2, 3]
    with pytest.raises(LoadErrors) as caught:
        prices.get_many([1, 100])
    assert caught.value.values == {1: 10}
    assert type(caught.value.errors[100]) is KeyMissing


def test_a_key_that_a_batch_loader_leaves_out_is_reported_as_such(cache: Cache, get: Any) -> None:
    """By whoever reads it, immediately and while the backoff runs."""

    @cache.batch_loader()
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        return {}

    with pytest.raises(KeyMissing, match="the batch loader left out 1"):
        get(prices, 1)
    with pytest.raises(KeyMissing, match="the batch loader left out 1"):
        get(prices, 1, how="get")
    with pytest.raises(LoadErrors) as caught:
        get(prices, [1], how="get_many")
    assert type(caught.value.errors[1]) is KeyMissing


def test_a_load_that_fails_of_another_s_missing_key_leaves_out_none_itself(cache: Cache, get: Any) -> None:
    @cache.batch_loader()
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        return {}

    @cache.loader()
    def total(load: Load) -> int:
        return prices.get(1)

    with pytest.raises(LoadError) as caught:
        get(total)
    assert (type(caught.value), caught.value.kind) == (LoadError, "KeyMissing")


def test_a_plain_loader_of_one_argument_reads_many_too(cache: Cache, get: Any) -> None:
    """One round trip for hits; each miss is a load of its own."""
    number, loads = counted(cache)
    number.get(1)

    assert get(number, [3, 1, 2, 1], how="get_many") == {3: 30, 1: 10, 2: 20}
    assert sorted(loads) == [1, 2, 3]

    @cache.loader()
    def pair(load: Load, one: int, other: int) -> int:
        return one

    with pytest.raises(CallError, match="other"):
        pair.get_many([1])


def test_cancelled_reader_gives_its_place_to_another(cache: Cache) -> None:
    go = threading.Event()

    @cache.loader()
    def slow(load: Load) -> int:
        assert go.wait(60)
        return 5

    async def go_on() -> int:
        first, second = asyncio.create_task(slow.aget()), asyncio.create_task(slow.aget())
        await asyncio.sleep(0)
        first.cancel()
        go.set()
        return await second

    assert asyncio.run(go_on()) == 5


def test_full_store_serves_uncached_and_still_invalidates(events: list[Any]) -> None:
    from cacheworkers import Config

    with Valkey(maxmemory="4mb", maxmemory_policy="noeviction") as server:
        cache = Cache(Config(redis_url=server.url, store_timeout=5.0), hook=events.append)
        number, _ = counted(cache, wait_for=0)
        number.get(1)
        client = cache._ports.store.link.client()
        at = 0
        try:
            while True:
                client.set(f"filler{at}", b"x" * 20_000)
                at += 1
        except Exception as error:
            assert "OOM" in str(error) or "maxmemory" in str(error)

        assert number.get(1) == 10
        cache.invalidate("n:1")
        assert number.peek(1) is None
        cache.close()


def test_a_closed_cache_receives_no_pushes_so_its_memory_does_not_answer(cache: Cache) -> None:
    number, _ = counted(cache)
    number.get(1)
    wait_until(lambda: number.get(1) is not None and cache._ports.listener.is_up)

    cache.close()

    cache._ports.coherence.prove(time.monotonic())  # its thread was about to say so
    assert not cache._ports.listener.is_up
    assert cache._ports.coherence.usable_at == NEVER


def test_a_read_knows_whether_it_joined_the_load_of_another(make_cache: Callable[..., Cache]) -> None:
    """Of readers of one cold key, in two processes, one has asked; a hit has joined nobody."""
    caches = [make_cache(), make_cache()]
    may_go_on = threading.Event()
    loaders = []
    for cache in caches:

        @cache.loader(wait_for=60, load_for=60, early=0)
        def slow(load: Load, n: int) -> int:
            may_go_on.wait(60)
            return n

        loaders.append(slow)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda loader=loader: found.append(loader.read(1))) for loader in 3 * loaders]

    for thread in threads:
        thread.start()
    wait_until(lambda: all(len(cache._ports.waiters) == 3 for cache in caches))
    # Each process knows who holds the lease: a leader that had not looked yet would find the value, and join nobody.
    wait_until(lambda: all(cache._ports.waiters.waiting() for cache in caches))
    may_go_on.set()
    for thread in threads:
        thread.join(60)

    assert sorted(read.is_joined for read in found) == [False] + 5 * [True]
    assert not loaders[0].read(1).is_joined


def test_a_read_s_own_load_is_no_older_than_its_wait(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with this process's idea of the store's time: else Cache-Status calls a miss a hit."""
    cache = make_cache(l1_entries=0)

    @cache.loader(fresh_for=300)
    def price(load: Load, number: int) -> int:
        return number

    price.get(1)
    monkeypatch.setattr(StoreClock, "measure", lambda *_: None)
    cache._ports.clock.offset += 0.5

    assert (found := price.read(2)).age <= found.waited
