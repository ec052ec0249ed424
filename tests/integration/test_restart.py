"""A store that dies and comes back under its readers: hot values go on being served, and nobody waits in vain twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.store import listener as listening
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

#: Far longer than a read takes that does not wait for the store.
STORE_TIMEOUT = 1.0
#: Longer than the store is away: it is tried once, and then no more.
BREAKER_FOR = 600.0
HOT, READERS, READS = range(1, 6), 6, 20


class Shop:
    """A process that reads, and one that changes what it reads."""

    def __init__(self, make_cache: Callable[..., Cache], server: Valkey) -> None:
        self.server = server
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
            wait_until(lambda n=n: price.read(n).tier == "l1")
        self.loads.clear()

    def lose(self, how: str) -> None:
        """Let the store die, and the listener notice."""
        if how == "frozen":
            self.server.pause()
        else:
            self.server.kill()
        wait_until(lambda: not self.listener.is_up)

    def bring_back(self) -> None:
        """Start it again, empty, and let as much time pass as the breaker asks for."""
        self.server.kill()
        self.server.start()
        self.cache._ports.store.link._health.breaker._probe_at = 0.0  # type: ignore[attr-defined]


@pytest.fixture
def shop(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(listening, "PING_EVERY", 0.02)
    monkeypatch.setattr(listening, "PING_LOST_AFTER", 0.2)
    with Valkey() as server:
        yield Shop(make_cache, server)


def read_in_threads(shop: Shop) -> list[list[tuple[Any, float]]]:
    """Have readers read the hot values over and over; what each read returned, and how long it took."""
    found: list[list[tuple[Any, float]]] = [[] for _ in range(READERS)]

    def read(mine: list[tuple[Any, float]]) -> None:
        for turn in range(READS):
            began = time.monotonic()
            mine.append((shop.price.read(HOT[turn % len(HOT)]), time.monotonic() - began))

    threads = [threading.Thread(target=read, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def read_in_tasks(shop: Shop) -> list[list[tuple[Any, float]]]:
    """The same on an event loop."""

    async def read() -> list[tuple[Any, float]]:
        mine = []
        for turn in range(READS):
            began = time.monotonic()
            mine.append((await shop.price.aread(HOT[turn % len(HOT)]), time.monotonic() - began))
        return mine

    async def all_of_them() -> list[list[tuple[Any, float]]]:
        return await asyncio.gather(*(read() for _ in range(READERS)))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("readers", [read_in_threads, read_in_tasks])
def test_hot_values_are_served_and_each_reader_waits_at_most_once(
    shop: Shop, readers: Callable[[Shop], list[list[tuple[Any, float]]]], how: str
) -> None:
    """And for no longer than the store's timeout; nothing is loaded that memory has."""
    shop.lose(how)

    found = readers(shop)

    assert [[read.value for read, _ in mine] for mine in found] == [
        [HOT[turn % len(HOT)] * 10 for turn in range(READS)]
    ] * READERS
    assert {read.tier for mine in found for read, _ in mine} == {"l1"}
    assert shop.loads == []
    waits = [[took for _, took in mine if took >= STORE_TIMEOUT] for mine in found]
    assert max(map(len, waits)) <= (1 if how == "frozen" else 0)
    assert all(took < 2 * STORE_TIMEOUT for mine in waits for took in mine)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_memory_is_coherent_again_once_the_store_is_back(shop: Shop, how: str) -> None:
    """It has forgotten what it held; what it holds then, it hears of."""
    shop.lose(how)
    shop.prices[1] = 11
    assert shop.price.read(1).value == 10

    shop.bring_back()
    wait_until(lambda: shop.listener.is_up)
    assert shop.price.get(1) == 11

    wait_until(lambda: shop.price.read(1).tier == "l1")
    shop.prices[1] = 12
    shop.writer.invalidate("price:1")
    wait_until(lambda: shop.price.get(1) == 12)
