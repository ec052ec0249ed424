"""A store that dies and comes back under its readers: hot values go on being served, and nobody waits in vain twice."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheworkers import Cache, Load, Read
from cacheworkers.store.tracking import listener as listening
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

STORE_TIMEOUT = 1.0
#: Far shorter than the store is away: it is looked for again and again, by no reader.
BREAKER_FOR = 0.05
HOT, READERS, READS = range(1, 6), 6, 20


class Shop:
    """A process that reads, and one that changes what it reads."""

    def __init__(self, make_cache: Callable[..., Cache], server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self._monkeypatch = monkeypatch
        self.prices = {n: n * 10 for n in HOT}
        self.loads: list[int] = []
        self.cache = make_cache(redis_url=server.url, store_timeout=STORE_TIMEOUT, breaker_for=BREAKER_FOR)
        self.writer = make_cache(redis_url=server.url)
        self.listener = self.cache._ports.listener

        @self.cache.loader(tags=("price:{n}",), fresh_for=300, early=0, jitter=0)
        def price(load: Load, n: int) -> int:
            self.loads.append(n)
            return self.prices[n]

        self.price = price
        for n in HOT:
            price.get(n)
        wait_until(lambda: self.listener.is_up)
        assert self.listener.barrier(60.0).run()  # no push comes late
        for n in HOT:
            wait_until(lambda n=n: price.read(n).tier == "l1")
        self.loads.clear()

    def lose(self, how: str) -> None:
        """Let the store die, and the listener notice: immediately, but not before it is so."""
        if how == "frozen":
            self.server.pause()
        else:
            self.server.kill()
        with self._monkeypatch.context() as hasty:
            hasty.setattr(listening, "PING_EVERY", 0.02)
            hasty.setattr(listening, "PING_LOST_AFTER", 0.2)
            wait_until(lambda: not self.listener.is_up)

    def bring_back(self) -> None:
        """Start it again, empty."""
        self.server.kill()
        self.server.start()


@pytest.fixture
def shop(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with Valkey() as server:
        yield Shop(make_cache, server, monkeypatch)


def read_in_threads(shop: Shop) -> list[list[Read]]:
    """Have readers read the hot values over and over; what each was given."""
    found: list[list[Read]] = [[] for _ in range(READERS)]

    def read(mine: list[Read]) -> None:
        mine += [shop.price.read(HOT[state % len(HOT)]) for state in range(READS)]

    threads = [threading.Thread(target=read, args=(mine,), name=f"reader {n}") for n, mine in enumerate(found)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def read_in_tasks(shop: Shop) -> list[list[Read]]:
    """The same on an event loop."""

    async def read() -> list[Read]:
        return [await shop.price.aread(HOT[state % len(HOT)]) for state in range(READS)]

    async def all_of_them() -> list[list[Read]]:
        return await asyncio.gather(*(read() for _ in range(READERS)))

    return asyncio.run(all_of_them())


def note_askers(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each thread asks the store, which may cost it a timeout; the main one for all tasks."""
    link, askers = shop.cache._ports.store.link, Counter[str]()

    def noted(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asks(*args: Any) -> Any:
            askers[threading.current_thread().name] += 1
            outcome = ask(*args)
            if outcome is False:  # not sent
                askers[threading.current_thread().name] -= 1
            return outcome

        return asks

    for owner, name in ((link._masters, "exchange"), (link._masters, "aexchange"), (link._alone, "submit")):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name)))
    return askers


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("readers", [read_in_threads, read_in_tasks])
def test_hot_values_are_served_and_each_reader_waits_at_most_twice(
    shop: Shop, readers: Callable[[Shop], list[list[Read]]], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and once more while that is confirmed over a fresh connection; nothing is loaded that memory has."""
    shop.lose(how)
    askers = note_askers(shop, monkeypatch)
    probes: list[None] = []
    health = shop.cache._ports.store.link._health
    is_answered = health._is_answered
    monkeypatch.setattr(health, "_is_answered", lambda is_early: is_answered(is_early) or probes.append(None))

    found = readers(shop)
    wait_until(lambda: len(probes) > 1)
    found += readers(shop)

    assert [[read.value for read in mine] for mine in found] == [
        [HOT[state % len(HOT)] * 10 for state in range(READS)]
    ] * (2 * READERS)
    assert {read.tier for mine in found for read in mine} == {"l1"}
    assert shop.loads == []
    assert max((times for name, times in askers.items() if name.startswith("reader")), default=0) <= 2
    assert askers["MainThread"] <= 2 * READERS


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_memory_is_coherent_again_once_the_store_is_back(shop: Shop, how: str) -> None:
    """It has forgotten what it held; of what it holds then, it is notified."""
    shop.lose(how)
    shop.prices[1] = 11
    assert shop.price.read(1).value == 10

    shop.bring_back()
    wait_until(lambda: shop.listener.is_up and shop.cache._ports.store.link._health.is_well)
    assert shop.price.get(1) == 11

    wait_until(lambda: shop.price.read(1).tier == "l1")
    shop.prices[1] = 12
    shop.writer.invalidate("price:1")
    wait_until(lambda: shop.price.get(1) == 12)
