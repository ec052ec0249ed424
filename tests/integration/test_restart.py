"""A store that dies and comes back under its readers: hot values go on being served, and nobody waits in vain twice."""

from __future__ import annotations

import asyncio
import collections
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from cacheworkers import Cache, Load
from cacheworkers.store import listener as listening
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

STORE_TIMEOUT = 2.0
#: Longer than the store is away: it is tried once, and then no more.
BREAKER_FOR = 600.0
HOT, READERS, READS = range(1, 6), 6, 20
#: What a read returned, and how often the store kept it waiting in vain.
Found = tuple[Any, int]


class Shop:
    """A process that reads, and one that changes what it reads."""

    def __init__(self, make_cache: Callable[..., Cache], server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self._monkeypatch = monkeypatch
        self._timeouts: collections.Counter[int] = collections.Counter()
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
        self._count_timeouts()
        for n in HOT:
            price.get(n)
        wait_until(lambda: self.listener.is_up)
        assert self.listener.barrier(60.0).run()  # no push comes late
        for n in HOT:
            wait_until(lambda n=n: price.read(n).tier == "l1")
        self.loads.clear()

    def _count_timeouts(self) -> None:
        """Note in which thread the store did not answer in time; not by the clock, for any thread may be paused."""
        health = self.cache._ports.store.link._health
        translated = health.translated

        def counted(error: Exception) -> Any:
            if isinstance(error, redis.TimeoutError | TimeoutError):
                self._timeouts[threading.get_ident()] += 1
            return translated(error)

        self._monkeypatch.setattr(health, "translated", counted)

    @property
    def timeouts(self) -> int:
        """How often the store has kept this thread waiting in vain; all tasks of its loop, if it has one."""
        return self._timeouts[threading.get_ident()]

    def lose(self, how: str) -> None:
        """Let the store die, and the listener notice: at once, but not before it is so."""
        if how == "frozen":
            self.server.pause()
        else:
            self.server.kill()
        with self._monkeypatch.context() as hasty:
            hasty.setattr(listening, "PING_EVERY", 0.02)
            hasty.setattr(listening, "PING_LOST_AFTER", 0.2)
            wait_until(lambda: not self.listener.is_up)

    def bring_back(self) -> None:
        """Start it again, empty, and let as much time pass as the breaker asks for."""
        self.server.kill()
        self.server.start()
        self.cache._ports.store.link._health.breaker._probe_at = 0.0  # type: ignore[attr-defined]


@pytest.fixture
def shop(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with Valkey() as server:
        yield Shop(make_cache, server, monkeypatch)


def read_in_threads(shop: Shop) -> list[list[Found]]:
    """Have readers read the hot values over and over."""
    found: list[list[Found]] = [[] for _ in range(READERS)]

    def read(mine: list[Found]) -> None:
        for turn in range(READS):
            before = shop.timeouts
            mine.append((shop.price.read(HOT[turn % len(HOT)]), shop.timeouts - before))

    threads = [threading.Thread(target=read, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def read_in_tasks(shop: Shop) -> list[list[Found]]:
    """The same on an event loop."""

    async def read() -> list[Found]:
        mine = []
        for turn in range(READS):
            before = shop.timeouts
            mine.append((await shop.price.aread(HOT[turn % len(HOT)]), shop.timeouts - before))
        return mine

    async def all_of_them() -> list[list[Found]]:
        return await asyncio.gather(*(read() for _ in range(READERS)))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("readers", [read_in_threads, read_in_tasks])
def test_hot_values_are_served_and_each_reader_waits_at_most_once(
    shop: Shop, readers: Callable[[Shop], list[list[Found]]], how: str
) -> None:
    """Nothing is loaded that memory has."""
    shop.lose(how)

    found = readers(shop)

    assert [[read.value for read, _ in mine] for mine in found] == [
        [HOT[turn % len(HOT)] * 10 for turn in range(READS)]
    ] * READERS
    assert {read.tier for mine in found for read, _ in mine} == {"l1"}
    assert shop.loads == []
    waits = [sum(1 for _, timeouts in mine if timeouts) for mine in found]
    assert max(waits) <= (1 if how == "frozen" else 0)


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
