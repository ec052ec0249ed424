"""A fresh entry in the store: what a read of it asks for, and what memory keeps of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from cacheworkers import Cache, Load
from cacheworkers.core import envelope
from cacheworkers.core.driver import run
from cacheworkers.core.entry import Entry
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing.servers import wait_until

LOAD_TIME = 20.0
READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda loader: loader.read(1).value,
    "get": lambda loader: loader.get(1),
    "get_json": lambda loader: int(loader.get_json(1)),
    "read_json": lambda loader: int(loader.read_json(1).value),
    "get_many": lambda loader: loader.get_many([1])[1],
    "aread": lambda loader: asyncio.run(loader.aread(1)).value,
    "aget": lambda loader: asyncio.run(loader.aget(1)),
    "aget_json": lambda loader: int(asyncio.run(loader.aget_json(1))),
    "aread_json": lambda loader: int(asyncio.run(loader.aread_json(1)).value),
    "aget_many": lambda loader: asyncio.run(loader.aget_many([1]))[1],
    # A read whose call others wait for goes the flow's way from the start.
    "flow": lambda loader: run(loader._reads.flow(loader._bind((1,), {}), (1,), loader._decode)).value,
}


class Shop:
    """One entry that took long to load, fresh for a hundred seconds more."""

    def __init__(self, cache: Cache) -> None:
        self.ports = cache._ports
        self.asks: list[LoadRequest] = []

        @cache.loader(fresh_for=100, jitter=0, early=1.0)
        def price(load: Load, number: int) -> int:
            return 10

        self.price = price
        price.get(1)
        self.ports.dispatcher = self
        store = self.ports.store
        raw = store.get("price[1]").run()
        assert raw is not None
        self.entry: Entry = msgspec.structs.replace(envelope.unpack(raw), load_time=LOAD_TIME)
        store.link.client().set(store.keys.entry("price[1]"), envelope.pack(self.entry), ex=100)
        self.forget()

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        self.asks += asks
        return len(asks)

    def forget(self) -> None:
        """Empty L1, once the listener has received all that was written."""
        wait_until(lambda: self.ports.listener.is_up)
        assert self.ports.listener.barrier(20.0).run()
        self.ports.l1.clear()

    def early_at(self, chance: float) -> float:
        """Let chance be such, and return when the entry is then to be revalidated, by the store's clock."""
        self.ports.chance = lambda: chance
        return self.entry.early_at(1.0, 1.0 - chance)

    def kept_until(self) -> float | None:
        """Return until when L1 may answer, by the store's clock; None if it keeps nothing."""
        slot = self.ports.l1.get("price[1]")
        return None if slot is None else slot.until + self.ports.clock.offset


@pytest.fixture
def shop(cache: Cache) -> Shop:
    return Shop(cache)


@pytest.mark.parametrize("how", READS)
def test_whose_early_instant_has_come_is_asked_for_by_its_reader(shop: Shop, how: str) -> None:
    assert shop.early_at(1 - 1e-9) < time.time()

    assert READS[how](shop.price) == 10

    assert [(ask.call, ask.queue) for ask in shop.asks] == [("price[1]", "revalidate")]


@pytest.mark.parametrize("how", READS)
def test_memory_keeps_it_until_its_early_instant(shop: Shop, how: str) -> None:
    """After that a read must go to the store, for one of them is to ask."""
    early_at = shop.early_at(0.9)
    assert time.time() + 10 < early_at < shop.entry.fresh_until - 10

    assert READS[how](shop.price) == 10

    assert shop.kept_until() == pytest.approx(early_at, abs=5)
    assert shop.asks == []


@pytest.mark.parametrize("how", READS)
def test_memory_keeps_it_no_longer_than_it_is_fresh(shop: Shop, how: str) -> None:
    shop.early_at(0.0)

    assert READS[how](shop.price) == 10

    assert shop.kept_until() == pytest.approx(shop.entry.fresh_until, abs=5)


@pytest.mark.parametrize("how", READS)
def test_memory_keeps_nothing_while_no_push_is_received(shop: Shop, how: str) -> None:
    """What changes meanwhile would be missed."""
    shop.early_at(0.0)
    shop.ports.listener.close()

    assert READS[how](shop.price) == 10

    assert shop.kept_until() is None
    assert shop.asks == []


@pytest.mark.parametrize("how", ["read", "get", "get_many", "aread", "aget", "aget_many"])
def test_a_value_that_is_decoded_from_memory_is_counted_in_its_bytes(shop: Shop, how: str) -> None:
    """Whoever reads first: JSON and then the value takes as much room as the value immediately."""
    l1 = shop.ports.l1
    shop.early_at(0.0)
    READS[how](shop.price)
    together = l1.bytes
    l1.clear()

    shop.price.get_json(1)
    as_json = l1.bytes
    READS[how](shop.price)

    assert as_json < l1.bytes == together
