"""Reads of many take as many round trips, tasks, queries and waits as a read of one; step by step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import sqlalchemy.exc
from many_shop import UNLUCKY, Asks, Shop, late, path, tens, whole

from cacheworkers import Cache, Config, Load, LoadError, LoadErrors, LoadTimeout
from cacheworkers.core import envelope
from cacheworkers.core.driver import run
from cacheworkers.errors import StoreUnavailable
from cacheworkers.flows import merged_reads
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import Loading, LoadRequest
from cacheworkers.flows.read_state import POLL_FOR
from cacheworkers.flows.run_loader import LATE_RUNS
from cacheworkers.store.connections.request import Request
from cacheworkers.testing import Stepper


@pytest.fixture
def shop(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(make_cache(store_timeout=60.0), monkeypatch)


@pytest.fixture
def make_shop(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shop]:
    def make(options: dict[str, Any] | None = None, **policy: Any) -> Shop:
        return Shop(make_cache(store_timeout=60.0, **(options or {})), monkeypatch, **policy)

    return make


def test_a_joint_load_reads_nothing_older_than_any_of_its_reads_may(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loader reads of other loaders is as new as the newest snapshot of those that it runs for."""
    runs: list[Loading] = []

    def noted(ports: Any, loader: Any, loading: Loading, runner: Any) -> Any:
        runs.append(loading)
        yield from ()
        return {}

    monkeypatch.setattr(merged_reads, "run_loader", noted)
    loader = shop.prices._spec

    def one(key: int) -> Any:
        call = loader.signature.bind((key,), {})
        yield from merged_reads.BATCHED.run(shop.ports, loader, Loading([call], {call.text: None}, 1e9 + key, 40 - key))

    run(merged_reads.merge_reads(shop.ports, loader, [1, 2, 3], one))

    assert [(loading.seq, loading.deadline) for loading in runs] == [(39, 1e9 + 1)]


# -- round trips, tasks and queries


def test_misses_are_one_round_of_claims_one_task_one_query_and_one_look(shop: Shop) -> None:
    going = shop.many(range(1, 101))

    assert path(going, "wait") == ["mget", "claim"]
    assert [len(asks) for asks in shop.asks.rounds] == [100]
    shop.work()
    assert path(going) == ["wait", "mget"]
    assert going.result == tens(range(1, 101))
    assert shop.batches == [list(range(1, 101))]
    assert shop.is_idle()


def test_misses_of_a_plain_loader_are_asked_for_together_too(shop: Shop) -> None:
    going = shop.many([3, 1, 2], of=shop.price)

    assert path(going, "wait") == ["mget", "claim"]
    assert [[ask.call for ask in asks] for asks in shop.asks.rounds] == [["price[3]", "price[1]", "price[2]"]]
    shop.work()
    assert path(going) == ["wait", "mget"]
    assert list(going.finish().items()) == [(3, 30), (1, 10), (2, 20)]


def test_stale_entries_are_served_and_asked_for_in_one_round(shop: Shop) -> None:
    shop.fill(range(1, 101))
    shop.soften(range(1, 101))

    going = shop.many(range(1, 101))

    assert path(going) == ["mget", "claim"]
    assert going.result == tens(range(1, 101))
    assert [{ask.queue for ask in asks} for asks in shop.asks.rounds] == [{"revalidate"}]
    shop.work()
    assert shop.batches == [list(range(1, 101))]


def test_what_is_asked_for_once_is_not_asked_for_again(shop: Shop) -> None:
    shop.fill([1, 2])
    shop.soften([1, 2])
    shop.many([1, 2]).finish()
    shop.ports.l1.clear()

    assert path(shop.many([1, 2])) == ["mget"]


def test_misses_and_stale_ones_share_a_round_in_which_misses_come_first(shop: Shop) -> None:
    shop.fill([1, 2, 5])
    shop.soften([1, 2])

    going = shop.many([1, 3, 2, 4, 5])

    assert path(going, "wait") == ["mget", "claim"]
    [asks] = shop.asks.rounds
    assert [(ask.call, ask.queue) for ask in asks] == [
        ("prices[3]", "miss"),
        ("prices[4]", "miss"),
        ("prices[1]", "revalidate"),
        ("prices[2]", "revalidate"),
    ]
    shop.work()
    assert list(going.finish()) == [1, 3, 2, 4, 5]


def test_who_is_woken_looks_and_no_other(shop: Shop) -> None:
    going = shop.many([1, 2, 3]).until("wait")
    [asks] = shop.asks.rounds
    shop.asks.rounds[:] = [asks[:1]]
    shop.work()

    whole(going)

    assert going.at == "get"
    assert path(going, "wait") == ["get"]
    shop.asks.rounds[:] = [asks[1:]]
    shop.work()
    assert path(going) == ["wait", "mget"]
    assert going.result == tens([1, 2, 3])


def test_a_push_between_claim_and_sleep_is_not_slept_through(shop: Shop) -> None:
    """The worker may be quicker than the reply to the claim."""
    going = shop.many([1, 2])
    whole(going)
    late(going)  # the claims have been done, their reply is on its way
    store = shop.ports.store
    asks = [
        LoadRequest("prices", f"prices[{key}]", store.lease(f"prices[{key}]").run()["token"], "", "miss")
        for key in (1, 2)
    ]
    shop.asks.rounds[:] = [asks]
    shop.work()

    whole(going)
    assert going.at == "wait"
    shop.by_hand.receive()  # what it has asked about the leases before it sleeps

    flights = shop.ports.waiters.flights
    assert all(each.woken for call in ("prices[1]", "prices[2]") for each in flights[call].waiters)
    assert going.finish() == tens([1, 2])


def test_keys_of_one_call_are_loaded_once_and_each_has_its_value(shop: Shop) -> None:
    going = shop.many([7, "7", 7, 8]).until("wait")
    shop.work()

    assert going.finish() == {7: 70, "7": 70, 8: 80}
    assert shop.batches == [[7, 8]]


# -- nobody begins


def test_what_nobody_begins_is_taken_over_in_one_batch_after_one_wait(make_shop: Any) -> None:
    shop = make_shop(wait_for=0.5)
    going = shop.many(range(1, 9)).until("wait")
    shop.pass_time(going, 0.5)

    assert path(going) == ["wait", "mget", "claim", "begin", "snapshot", "load", "register", "write"]
    assert going.result == tens(range(1, 9))
    assert shop.batches == [list(range(1, 9))]
    assert shop.is_idle()
    assert shop.leases() == []


def test_a_take_over_goes_by_batch_size(make_shop: Any) -> None:
    shop = make_shop({"batch_size": 3}, wait_for=0.5)
    going = shop.many(range(1, 9)).until("wait")
    shop.pass_time(going, 0.5)

    assert going.finish() == tens(range(1, 9))
    assert shop.batches == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_a_take_over_holds_one_place_in_the_bulkhead(make_shop: Any) -> None:
    shop = make_shop({"bulkhead": 1}, wait_for=0)
    seen: list[int] = []
    bulkhead = shop.ports.reader.bulkhead
    shop.on_load = lambda keys: seen.append(bulkhead.running)

    assert shop.many([1, 2, 3]).finish() == tens([1, 2, 3])
    assert shop.many([1, 2, 3], of=shop.price).finish() == tens([1, 2, 3])
    assert seen == [1] * 4


def test_with_raise_nobody_loads_here_and_all_wait_once(make_shop: Any) -> None:
    shop = make_shop(wait_for=0.5, on_timeout="raise")
    shop.fill([1])
    going = shop.many([1, 2, 3]).until("wait")
    shop.pass_time(going, 0.5)

    assert path(going) == ["wait", "mget", "claim"]
    assert isinstance(going.error, LoadErrors)
    assert going.error.values == {1: 10}
    assert {key: type(error) for key, error in going.error.errors.items()} == {2: LoadTimeout, 3: LoadTimeout}
    assert shop.batches == []
    assert shop.leases() == []


def test_what_a_worker_has_begun_is_not_taken_over(make_shop: Any) -> None:
    shop = make_shop(wait_for=0.5)
    going = shop.many([1, 2]).until("wait")
    [[_, second]] = shop.asks.rounds
    begun = Stepper(load(shop.ports, shop.cache._loaders["prices"], [second], shop.ports.worker)).until("load")
    shop.pass_time(going, 0.5)

    with pytest.raises(LoadErrors) as caught:
        going.finish()

    assert caught.value.values == {1: 10}
    assert isinstance(caught.value.errors[2], LoadTimeout)
    assert shop.batches == [[1]]
    begun.finish()


def test_loads_of_a_plain_loader_come_one_after_the_other_under_one_deadline(make_shop: Any) -> None:
    shop = make_shop(wait_for=0, load_for=30.0)
    clock = shop.by_hand._time._clock

    def take_long(keys: list[int]) -> None:
        clock.now_ms += 20_000

    shop.on_load = take_long

    with pytest.raises(LoadErrors) as caught:
        shop.many([1, 2, 3, 4], of=shop.price).finish()

    assert shop.batches == [[1], [2]]
    assert caught.value.values == tens([1, 2])
    assert {key: type(error) for key, error in caught.value.errors.items()} == {3: LoadTimeout, 4: LoadTimeout}
    assert shop.leases() == []


def test_what_the_dispatcher_has_no_room_for_is_loaded_here_immediately(shop: Shop) -> None:
    shop.asks.room = 2
    going = shop.many(range(1, 6))

    assert path(going, "wait") == ["mget", "claim", "begin", "snapshot", "load", "register", "write"]
    assert shop.batches == [[3, 4, 5]]
    shop.work()
    assert going.finish() == tens(range(1, 6))
    assert shop.batches == [[3, 4, 5], [1, 2]]


def test_leases_of_revalidations_without_room_are_given_back(shop: Shop) -> None:
    shop.fill([1, 2, 3])
    shop.soften([1, 2, 3])
    shop.asks.room = 1

    assert shop.many([1, 2, 3]).finish() == tens([1, 2, 3])

    assert shop.leases() == ["prices[1]"]


def test_a_failed_batch_is_reported_each_key(make_shop: Any) -> None:
    shop = make_shop(wait_for=0)
    shop.fill([1])

    for _ in range(2):  # the second time by the backoff
        with pytest.raises(LoadErrors) as caught:
            shop.many([1, UNLUCKY, 2]).finish()
        assert caught.value.values == tens([1, 2])
        errors: Any = caught.value.errors
        assert {key: (error.call, error.kind) for key, error in errors.items()} == {
            UNLUCKY: (f"prices[{UNLUCKY}]", "ValueError")
        }
    assert shop.batches == [[UNLUCKY, 2], [UNLUCKY], [2]]


# -- beside others in this process


def test_who_reads_one_of_them_meanwhile_claims_nothing(shop: Shop) -> None:
    many = shop.many([1, 2, 3]).until("wait")

    one = shop.one(2)

    assert path(one, "wait") == []
    shop.work()
    assert many.finish() == tens([1, 2, 3])
    read = one.finish()
    assert (read.value, read.is_joined) == (20, True)
    assert shop.batches == [[1, 2, 3]]


def test_what_somebody_reads_already_is_waited_for(shop: Shop) -> None:
    one = shop.one(2).until("wait")

    many = shop.many([1, 2, 3])

    assert path(many, "wait") == ["mget", "claim"]
    assert [[ask.call for ask in asks] for asks in shop.asks.rounds] == [["prices[2]"], ["prices[1]", "prices[3]"]]
    shop.work()
    assert many.finish() == tens([1, 2, 3])
    assert one.finish().value == 20
    assert shop.batches == [[2], [1, 3]]


def test_reads_of_overlapping_keys_share_what_each_has_claimed(shop: Shop) -> None:
    first, second = shop.many([1, 2, 3]), shop.many([3, 4, 5, 1])
    whole(first)
    whole(second)  # both have found nothing

    assert path(first, "wait") == ["claim"]
    assert path(second, "wait")[-1] == "claim"
    shop.work()
    assert first.finish() == tens([1, 2, 3])
    assert list(second.finish().items()) == [(3, 30), (4, 40), (5, 50), (1, 10)]
    assert sorted(key for batch in shop.batches for key in batch) == [1, 2, 3, 4, 5]
    assert shop.is_idle()


def test_who_is_claiming_is_waited_for_and_what_it_has_found_looked_at(shop: Shop) -> None:
    first, second = shop.many([1, 2]), shop.many([2, 3])
    whole(first)
    whole(second)  # both stand before their claims: of 2 only the first
    late(first)

    assert path(second, "wait") == ["get", "claim"]
    first.until("wait")
    shop.work()

    assert first.finish() == tens([1, 2])
    assert second.finish() == tens([2, 3])
    assert sorted(key for batch in shop.batches for key in batch) == [1, 2, 3]


def test_an_invalidation_in_between_wakes_and_is_heeded(shop: Shop) -> None:
    going = shop.many([1, 2]).until("wait")
    shop.cache.invalidate("p:1")
    shop.by_hand.receive()
    shop.work()

    assert going.finish() == tens([1, 2])
    assert shop.is_idle()


# -- endings before the end


@pytest.mark.parametrize("at", ["claim", "wait", "begin", "load", "write"])
def test_who_is_cancelled_gives_leases_back_and_leaves_no_waiter(make_shop: Any, at: str) -> None:
    shop = make_shop(wait_for=0.0 if at in ("begin", "load", "write") else 20.0)
    flow = shop.prices._many([1, 2, 3])
    step = next(flow)
    while not repr(step).startswith(at):
        step = flow.send(step.run())
    if at in ("claim", "load", "write"):
        step.run()  # done, though nobody notices

    with pytest.raises(asyncio.CancelledError):
        flow.throw(asyncio.CancelledError())

    asked = at == "wait"  # workers are at it: they go on
    assert len(shop.leases()) == (3 if asked else 0)
    assert shop.is_idle()


def test_who_waits_for_a_claim_that_is_cancelled_claims_itself(shop: Shop) -> None:
    flow = shop.prices._many([1, 2])
    step = next(flow)
    step = flow.send(step.run())  # before the claims
    other = shop.one(1)
    assert path(other, "wait") == ["get"]

    with pytest.raises(asyncio.CancelledError):
        flow.throw(asyncio.CancelledError())

    assert other._step.waiter.woken  # type: ignore[union-attr]
    assert path(other, "claim") == ["wait", "get"]
    other.until("wait")
    shop.work()
    assert other.finish().value == 10


def test_a_loader_that_breaks_the_rules_ends_all(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no error of the library is nobody's alone, and comes out as it is."""
    going = shop.many([1, 2])
    whole(going)
    monkeypatch.setattr(shop.asks, "submit_all", lambda asks: [][0])

    whole(going)

    assert isinstance(going.error, IndexError)
    assert shop.leases() == []
    assert shop.is_idle()


# -- without store, broker or readable entries


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Callable[..., dict[Any, Any]]:
    def read(loader: Any, keys: Any) -> dict[Any, Any]:
        if request.param == "sync":
            return dict(loader.get_many(keys))
        return dict(asyncio.run(loader.aget_many(keys)))

    return read


@pytest.fixture
def away() -> Any:
    cache = Cache(Config(redis_url="redis://127.0.0.1:1/0", store_timeout=0.2, batch_size=30))
    yield cache
    cache.close()


def test_without_the_store_a_batch_is_one_call_of_the_loader(away: Cache, many: Any) -> None:
    batches: list[list[int]] = []

    @away.batch_loader()
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        batches.append(list(keys))
        return tens(keys)

    assert many(prices, range(50)) == tens(range(50))
    assert batches == [list(range(30)), list(range(30, 50))]


def test_without_the_store_a_plain_loader_is_called_for_each(away: Cache, many: Any) -> None:
    @away.loader()
    def price(load: Load, key: int) -> int:
        if key == UNLUCKY:
            raise ValueError("unlucky")
        return key * 10

    with pytest.raises(LoadErrors) as caught:
        many(price, [1, UNLUCKY, 2])

    assert caught.value.values == tens([1, 2])
    assert isinstance(caught.value.errors[UNLUCKY], LoadError)


def test_without_the_store_nobody_loads_if_on_timeout_is_raise(away: Cache, many: Any) -> None:
    @away.batch_loader(on_timeout="raise")
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        raise AssertionError("loaded here")

    with pytest.raises(LoadErrors) as caught:
        many(prices, [1, 2])

    assert {type(error) for error in caught.value.errors.values()} == {LoadTimeout}


def test_a_store_that_goes_away_in_mid_read_is_done_without(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    going = shop.many([1, 2, 3]).until("claim")
    link = shop.ports.store.link

    def cut(requests: Sequence[Request]) -> list[Any]:
        with link._health.asking():
            raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(link, "exchange", cut)
        patch.setattr(shop.ports, "release_soon", lambda call, name: None)
        assert going.finish() == tens([1, 2, 3])

    assert shop.batches == [[1, 2, 3]]
    assert shop.is_idle()


def test_without_a_broker_a_batch_is_one_call_of_the_loader(cache: Cache, many: Any) -> None:
    batches: list[list[int]] = []

    @cache.batch_loader()
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        batches.append(list(keys))
        return tens(keys)

    asks = Asks()
    asks.room = 0
    cache._ports.dispatcher = asks

    assert many(prices, range(50)) == tens(range(50))
    assert batches == [list(range(50))]
    assert many(prices, range(50)) == tens(range(50))
    assert len(batches) == 1


def test_a_value_that_cannot_be_stored_reaches_who_loaded_it(make_cache: Any, many: Any) -> None:
    cache = make_cache(max_entry_bytes=300)

    @cache.batch_loader(wait_for=0)
    def pages(load: Load, keys: list[int]) -> dict[int, str]:
        return {key: "x" * key for key in keys}

    assert many(pages, [10, 500]) == {10: "x" * 10, 500: "x" * 500}
    assert pages.peek(500) is None


def test_what_many_waited_for_is_in_memory_afterwards(shop: Shop) -> None:
    going = shop.many([1, 2]).until("wait")
    shop.work()
    going.finish()

    assert sorted(shop.ports.l1.slots) == ["prices[1]", "prices[2]"]


def test_many_take_nothing_older_than_since(shop: Shop) -> None:
    shop.fill([1, 2])
    done = shop.cache.invalidate("something else")

    going = shop.many([1, 2], of=shop.prices.since(done))

    assert path(going, "wait") == ["mget", "claim"]
    shop.work()
    assert going.finish() == tens([1, 2])
    assert shop.batches == [[1, 2]]


def test_lapsed_entries_are_served_when_their_load_has_failed(make_shop: Any) -> None:
    shop = make_shop(wait_for=0)
    shop.fill([1, 2])
    store = shop.ports.store
    for key in (1, 2):
        entry = envelope.unpack(store.get(f"prices[{key}]").run())
        old = msgspec.structs.replace(entry, fresh_until=entry.created, stale_until=entry.created)
        store.link.exchange([Request(("SET", store.keys.entry(f"prices[{key}]"), envelope.pack(old)))])

    def away(keys: list[int]) -> None:
        raise ConnectionError("the database is away")

    shop.on_load = away
    with pytest.raises(LoadErrors) as caught:
        shop.many([1, UNLUCKY, 2]).finish()

    assert caught.value.values == tens([1, 2])
    assert shop.batches == [[1, UNLUCKY, 2]]


class Timeout(OSError):
    """As `requests.Timeout` is."""


class ReadTimeout(Timeout):
    """As `requests.ReadTimeout` is."""


class NotThere(OSError):
    """As `requests.HTTPError` and `urllib.error.HTTPError` are: an answer of a server about one key."""


@pytest.mark.parametrize(
    ("error", "is_of_a_key"),
    [
        (FileNotFoundError(2, "no such file"), True),
        (NotThere("404"), True),
        (ConnectionResetError("cut"), False),
        (TimeoutError("late"), True),
        (ReadTimeout("late"), True),
        (sqlalchemy.exc.TimeoutError("QueuePool limit of size 5 reached"), False),
        (OSError(101, "no route"), False),
    ],
    ids=repr,
)
def test_what_one_key_raises_is_its_own_and_what_a_dead_line_raises_is_all_s(
    make_shop: Any, error: Exception, is_of_a_key: bool
) -> None:
    shop = make_shop(wait_for=0)

    def odd(keys: list[int]) -> None:
        if UNLUCKY in keys:
            raise error

    shop.on_load = odd
    with pytest.raises(LoadErrors) as caught:
        shop.many([1, UNLUCKY, 2]).finish()

    if is_of_a_key:
        assert caught.value.values == tens([1, 2]) and list(caught.value.errors) == [UNLUCKY]
    else:
        assert caught.value.values == {} and shop.batches == [[1, UNLUCKY, 2]]


def test_a_database_that_is_late_for_every_key_is_asked_a_few_times_only(make_shop: Any) -> None:
    shop = make_shop(wait_for=0)

    def late(keys: list[int]) -> None:
        raise TimeoutError("late")

    shop.on_load = late
    with pytest.raises(LoadErrors) as caught:
        shop.many(range(50)).finish()

    assert caught.value.values == {} and len(shop.batches) == 1 + LATE_RUNS


def test_a_batch_that_was_late_is_not_halved_past_its_deadline(make_shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load takes three fifths of its time: once more would be too late, and would hold the lease for nothing."""
    shop = make_shop(wait_for=0, load_for=10.0)
    clock = shop.ports.clock
    now = clock.monotonic()
    monkeypatch.setattr(type(clock), "monotonic", lambda clock: now + 6.0 * len(shop.batches))

    def late(keys: list[int]) -> None:
        if UNLUCKY in keys:
            raise TimeoutError("late")

    shop.on_load = late
    with pytest.raises(LoadErrors) as caught:
        shop.many([1, UNLUCKY, 2]).finish()

    assert caught.value.values == {} and shop.batches == [[1, UNLUCKY, 2]]


def test_a_push_between_the_first_look_and_the_place_among_waiters_is_not_slept_through(shop: Shop) -> None:
    """The push came when nobody was there yet; another reader's claim, asked for before, is still under way.

    late: GET (nothing)   other: claim (held)   worker: write, push   late: enters, and sees that other is claiming
    """
    worker = shop.many([1]).until("wait")
    waiters = shop.ports.waiters
    flights, waiters.flights = waiters.flights, {}  # that reader is in another process
    second = shop.many([1])
    late(second)
    other = shop.one(1).until("claim")
    late(other)
    shop.work()

    whole(second)
    assert second.at == "get"
    assert second.finish() == {1: 10}
    other.finish()
    waiters.flights = flights
    worker._flow.close()


def test_tasks_that_read_overlapping_keys_load_each_once(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache(bulkhead=2)
    loaded: list[int] = []

    @cache.batch_loader(wait_for=60, load_for=60)
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        loaded.extend(keys)
        return tens(keys)

    async def all_of_them() -> list[dict[int, int]]:
        ones = (prices.aget(key) for key in range(0, 60, 5))
        found = await asyncio.gather(*(prices.aget_many(range(at, at + 20)) for at in range(0, 60, 5)), *ones)
        return found[:12]

    found = asyncio.run(all_of_them())

    assert found == [tens(range(at, at + 20)) for at in range(0, 60, 5)]
    assert sorted(loaded) == list(range(75))


def test_threads_that_read_overlapping_keys_load_each_once(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache(bulkhead=2)
    loaded: list[int] = []

    @cache.loader(wait_for=60, load_for=60)
    def price(load: Load, key: int) -> int:
        loaded.append(key)
        return key * 10

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: price.get_many(range(at, at + 20)), range(0, 40, 5)))

    assert found == [tens(range(at, at + 20)) for at in range(0, 40, 5)]
    assert sorted(loaded) == list(range(55))
    assert len(cache._ports.waiters) == 0


def test_a_cancelled_task_leaves_no_waiter_and_the_next_is_served(cache: Cache) -> None:
    go = threading.Event()

    @cache.batch_loader(wait_for=60, load_for=60)
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        assert go.wait(60)
        return tens(keys)

    async def cancel_one() -> dict[int, int]:
        first = asyncio.create_task(prices.aget_many([1, 2, 3]))
        while "prices[1]" not in cache._ports.waiters.flights:
            await asyncio.sleep(0)
        second = asyncio.create_task(prices.aget_many([2, 3, 4]))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        return await second

    assert asyncio.run(cancel_one()) == tens([2, 3, 4])
    assert len(cache._ports.waiters) == 0


def test_while_pushes_are_not_received_many_poll_together(shop: Shop) -> None:
    shop.ports.listener.close()
    going = shop.many([1, 2, 3]).until("wait")
    step: Any = going._step

    assert 0 < step.timeout < 2 * POLL_FOR

    spec = shop.cache._loaders["prices"]
    [asks] = shop.asks.rounds
    Stepper(load(shop.ports, spec, asks, shop.ports.worker)).finish()
    assert path(going) == ["wait", "mget"]
    assert going.result == tens([1, 2, 3])


def test_a_master_that_is_away_is_no_matter_of_the_other_keys(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Cluster: what lies on the others is asked for and waited for as ever."""
    link = shop.ports.store.link
    exchange = link.exchange

    def partly(requests: Sequence[Request]) -> list[Any]:
        if any("prices[2]" in request.key for request in requests):
            raise StoreUnavailable("that master is away")
        return exchange(requests)

    monkeypatch.setattr(type(link), "is_cluster", True)
    monkeypatch.setattr(link, "exchange", partly)
    going = shop.many([1, 2, 3])

    path(going, "wait")
    assert shop.batches == [[2]]
    assert [[ask.call for ask in asks] for asks in shop.asks.rounds] == [["prices[1]", "prices[3]"]]
    shop.work()
    assert going.finish() == tens([1, 2, 3])


def test_a_lease_known_to_be_taken_over_is_waited_for_to_its_end(make_shop: Any) -> None:
    """Nobody takes over twice: who comes later waits for that load, however long ago its own wait was over."""
    shop = make_shop(wait_for=0.5)
    first = shop.many([1, 2]).until("wait")
    shop.pass_time(first, 0.5)
    first.until("load")
    other = shop.many([2, 1])
    path(other, "wait")
    shop.pass_time(other, 0.5)

    whole(other)
    assert path(other, "wait")[-1] in ("get", "mget")
    assert first.finish() == tens([1, 2])
    shop.by_hand.receive()

    assert other.finish() == tens([1, 2])
    assert shop.batches == [[1, 2]]
