"""A soft invalidation of many: revalidations are spread over time, hot ones first, and none comes too late.

Time is virtual: reads are made at instants that the test chooses.
"""

from __future__ import annotations

import bisect
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.core.driver import run
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.flows.read import read
from cacheworkers.flows.read_state import ReadOptions
from cacheworkers.local.clock import StoreClock

MEMBERS = 600
STALE_FOR = 40.0
RATE = 20.0
MakeCache = Callable[..., Cache]


class Clock(StoreClock):
    """The store's clock, stopped, and turned forward by hand."""

    __slots__ = ("_began", "_real", "passed")

    def __init__(self, real: StoreClock) -> None:
        super().__init__()
        self._real = real
        self.stop()

    def stop(self) -> None:
        """Stop it at what it is now."""
        self._began = self._real.now(), self._real.monotonic()
        self.passed = 0.0

    def now(self) -> float:
        return self._began[0] + self.passed

    def monotonic(self) -> float:
        return self._began[1] + self.passed


class RecentRequests:
    """A dispatcher that notes what it is asked for, and when; nobody loads it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at: dict[str, float] = {}

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        for ask in asks:
            assert ask.call not in self.at, "asked for twice"
            self.at[ask.call] = self._clock.passed
        return len(asks)


class Shop:
    """Many entries of one tag; each read a step of virtual time."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.ports = cache, cache._ports

        @cache.loader(tags=("all",), fresh_for=3000, stale_for=STALE_FOR, jitter=0.0, early=0.0, load_for=600.0)
        def number(load: Load, n: int) -> int:
            return n

        self.number, self.spec = number, cache._loaders["number"]
        number.get_many(range(MEMBERS))
        self.clock = Clock(self.ports.clock)
        self.asked = RecentRequests(self.clock)
        self.ports.clock = self.clock
        self.ports.dispatcher = self.asked  # type: ignore[assignment]  # it is asked for single calls only

    def soften(self) -> None:
        """Make all of them stale, now."""
        self.cache.invalidate("all", mode="soft")
        self.clock.stop()

    def read(self, n: int) -> str:
        call = self.spec.signature.bind((n,), {})
        return run(read(self.ports, self.spec, call, ReadOptions(self.spec.codec.decode, 0, 5.0))).freshness.value

    def read_for(self, seconds: float, per_second: int, chance: random.Random) -> None:
        """Read by a Zipf law, evenly in time."""
        weights = [1 / (rank + 1) for rank in range(MEMBERS)]
        for _ in range(int(seconds * per_second)):
            self.clock.passed += 1 / per_second
            [n] = chance.choices(range(MEMBERS), weights)
            assert self.read(n) == "stale"


@pytest.fixture
def make_shop(make_cache: MakeCache) -> Callable[..., Shop]:
    return lambda **options: Shop(make_cache(**options))


def most_in_a_second(at: dict[str, float]) -> int:
    instants = sorted(at.values())
    return max(bisect.bisect_left(instants, instant + 1.0) - first for first, instant in enumerate(instants))


def test_revalidations_are_spread_and_hot_ones_come_first(make_shop: Any) -> None:
    shop = make_shop(revalidate_rate=RATE)
    shop.soften()

    shop.read_for(8.0, 1000, random.Random(7))

    assert most_in_a_second(shop.asked.at) <= 2 * RATE + 1  # one burst more than the rate, at the beginning
    assert max(shop.asked.at.get(f"number[{n}]", 99.0) for n in range(5)) < 2.0
    ranks = [int(call[7:-1]) for call in sorted(shop.asked.at, key=lambda call: shop.asked.at[call])]
    thirds = [statistics.mean(ranks[at : at + len(ranks) // 3]) for at in (0, len(ranks) // 3, 2 * len(ranks) // 3)]
    assert thirds == sorted(thirds)


def test_without_the_limit_they_come_all_together(make_shop: Any) -> None:
    """What it is there for."""
    shop = make_shop(revalidate_rate=0)
    shop.soften()

    for n in range(MEMBERS):
        shop.read(n)

    assert len(shop.asked.at) == MEMBERS


def test_few_are_asked_for_together(make_shop: Any) -> None:
    shop = make_shop(revalidate_rate=RATE)
    shop.soften()

    for n in range(int(RATE)):
        shop.read(n)

    assert len(shop.asked.at) == RATE


def test_each_is_asked_for_before_it_lapses(make_shop: Any) -> None:
    """Also what is read seldom, and more of it than the rate allows: in the third quarter of its stale period."""
    shop = make_shop(revalidate_rate=1.0)
    shop.soften()

    for n in list(range(MEMBERS)) * 4:  # each four times, ten seconds apart
        shop.clock.passed += (STALE_FOR - 1.0) / (4 * MEMBERS)
        assert shop.read(n) == "stale"

    assert len(shop.asked.at) == MEMBERS
    late = {call: at for call, at in shop.asked.at.items() if at > STALE_FOR / 2}
    assert len(late) > 0.8 * MEMBERS
    assert most_in_a_second(late) < MEMBERS / 4


def test_what_is_not_asked_for_is_not_kept_in_memory(make_shop: Any) -> None:
    """Else its next reads would not ask either."""
    shop = make_shop(revalidate_rate=1.0)
    kept: list[str] = []
    wanted = ReadOptions(shop.spec.codec.decode, 0, 5.0, lambda entry, *_: kept.append(entry.call))
    shop.soften()
    shop.ports.coherence.prove(1.0)

    for n in (1, 2, 3):
        run(read(shop.ports, shop.spec, shop.spec.signature.bind((n,), {}), wanted))

    assert kept == list(shop.asked.at) == ["number[1]"]
