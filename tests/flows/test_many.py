"""Reads of many keys keep every promise that a read of one keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cacheworkers import Cache, Load, LoadErrors
from cacheworkers.core import envelope
from cacheworkers.events import Served
from cacheworkers.store.connections.transport import Request
from cacheworkers.testing.servers import wait_until


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Callable[..., dict[Any, Any]]:
    """Read many through either face."""

    def read(loader: Any, keys: Any) -> dict[Any, Any]:
        if request.param == "sync":
            return dict(loader.get_many(keys))
        return dict(asyncio.run(loader.aget_many(keys)))

    return read


def priced(cache: Cache, **policy: Any) -> tuple[Any, list[int]]:
    loads: list[int] = []

    @cache.batch_loader(tags=("p:{key}",), **{"jitter": 0, "early": 0, **policy})
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        loads.extend(keys)
        return {key: key * 10 for key in keys}

    return prices, loads


def receive_all(cache: Cache) -> None:
    """Return once the listener is up, and has received all that was written."""
    wait_until(lambda: cache._ports.listener.is_up)
    assert cache._ports.listener.barrier(60.0).run()


def test_what_many_found_in_the_store_is_in_memory_afterwards(cache: Cache, many: Any) -> None:
    prices, loads = priced(cache)
    prices.get_many([1, 2])
    receive_all(cache)
    cache._ports.l1.clear()

    assert many(prices, [1, 2]) == {1: 10, 2: 20}
    assert [prices.read(key).tier for key in (1, 2)] == ["l1", "l1"]
    assert sorted(loads) == [1, 2]


def test_nothing_is_kept_in_memory_while_pushes_are_not_received(cache: Cache, many: Any) -> None:
    prices, _ = priced(cache)
    prices.get_many([1, 2])
    ports = cache._ports
    wait_until(lambda: ports.coherence.is_coherent)
    ports.listener.close()
    ports.l1.clear()

    assert many(prices, [1, 2]) == {1: 10, 2: 20}
    assert len(ports.l1) == 0


def test_a_push_between_the_get_and_the_fill_keeps_the_old_value_out(cache: Cache) -> None:
    prices, _ = priced(cache)
    prices.get_many([1, 2])
    ports = cache._ports
    receive_all(cache)
    ports.l1.clear()
    flow = prices._many([1, 2])
    found = next(flow).run()  # the GET

    ports.l1.drop("prices[1]")  # what the listener does for a push

    with pytest.raises(StopIteration):
        flow.send(found)
    assert list(ports.l1.slots) == ["prices[2]"]


def test_every_key_counts_as_a_read_and_is_reported(cache: Cache, events: list[Any], many: Any) -> None:
    prices, _ = priced(cache, l1_for=0.0)
    prices.get_many([1, 2, 3])
    cache.report_accesses()
    events.clear()

    many(prices, [1, 2, 3])
    cache.report_accesses()

    served = [(each.loader, each.freshness, each.tier) for each in events if isinstance(each, Served)]
    assert served == [("prices", "fresh", "store")] * 3
    assert {call: round(score) for call, score in prices.hot()} == {f"prices[{n}]": 2 for n in (1, 2, 3)}


def test_what_is_due_early_is_asked_for(cache: Cache, many: Any) -> None:
    """A read of many takes its share of early revalidations: here of an entry that took long to load."""
    prices, _ = priced(cache, early=1.0, l1_for=0.0, fresh_for=600)
    prices.get_many([1, 2])
    entry = prices.peek(1).entry
    store = cache._ports.store
    slow = envelope.pack(msgspec.structs.replace(entry, load_time=60.0))
    store.link.exchange([Request(("SET", store.keys.entry("prices[1]"), slow))])
    cache._ports.chance = lambda: 1.0 - 1e-9  # as early as can be

    assert many(prices, [1, 2]) == {1: 10, 2: 20}

    wait_until(lambda: prices.peek(1).entry.load_time < 60.0)
    assert prices.peek(2).entry.write_id


def test_a_load_that_reads_many_carries_their_tags_and_is_not_built_on_older_ones(cache: Cache) -> None:
    prices, loads = priced(cache)

    @cache.loader()
    def total(load: Load) -> int:
        return sum(prices.get_many([1, 2]).values())

    prices.get(1)
    cache.invalidate("something else")  # what is stored of 1 is older now than the load that begins
    loads.clear()

    assert total.get() == 30
    assert sorted(loads) == [1, 2]
    assert set(total.read().entry.tags) == {"p:1", "p:2"}

    cache.invalidate("p:2")

    assert total.peek() is None


def test_a_load_that_reads_many_is_reported_each_that_failed(cache: Cache) -> None:
    @cache.batch_loader()
    def stock(load: Load, keys: list[int]) -> dict[int, int]:
        return {key: key for key in keys if key < 100}

    @cache.loader()
    def known(load: Load) -> list[int]:
        try:
            return list(stock.get_many([1, 2, 100]).values())
        except LoadErrors as error:
            return [*error.values.values(), -len(error.errors)]

    assert known.get() == [1, 2, -1]


def test_more_keys_than_one_command_may_name(cache: Cache, many: Any) -> None:
    prices, loads = priced(cache)

    assert many(prices, range(350)) == {key: key * 10 for key in range(350)}
    loads.clear()
    assert many(prices, [*range(349, -1, -1), 7]) == {key: key * 10 for key in range(350)}
    assert loads == []


def test_values_come_in_the_order_of_the_keys_wherever_each_was_found(cache: Cache, many: Any) -> None:
    prices, loads = priced(cache, stale_for=60, fresh_for=60)
    prices.get_many(range(10))
    ports = cache._ports
    wait_until(lambda: ports.coherence.is_coherent)
    store = ports.store
    for key in (2, 7):
        entry = prices.peek(key).entry
        stale = envelope.pack(msgspec.structs.replace(entry, fresh_until=entry.created))
        store.link.exchange([Request(("SET", store.keys.entry(f"prices[{key}]"), stale))])
    store.link.exchange([Request(("SET", store.keys.entry("prices[4]"), envelope.pack(entry)[:60]))])
    assert ports.listener.barrier(20.0).run()
    ports.l1.clear()
    prices.get_many([0, 3, 8])

    found = many(prices, [9, 8, 12, 7, 6, 5, 4, 3, 2, 1, 0, 9, 11])

    assert list(found.items()) == [(key, key * 10) for key in (9, 8, 12, 7, 6, 5, 4, 3, 2, 1, 0, 11)]
    assert {4, 11, 12} <= set(loads)


def test_without_memory_many_are_read_from_the_store_each_time(make_cache: Any, many: Any) -> None:
    cache = make_cache(l1_entries=0)
    prices, loads = priced(cache)
    prices.get_many([1, 2])
    wait_until(lambda: cache._ports.coherence.is_coherent)

    assert many(prices, [1, 2]) == {1: 10, 2: 20}

    assert len(cache._ports.l1) == 0
    assert not prices._memory.keeps_for
    assert prices.read(1).tier == "store"
    assert sorted(loads) == [1, 2]
