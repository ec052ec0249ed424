"""The store dies and comes back while everybody reads: `python -m benchmarks.restart [--outage 5]`.

Processes read a hundred hot values, in one thread, in four, and on an event loop.  The store is killed, or frozen
first, so that connections hang instead of failing; after a while it starts again, empty.  Printed are the reads that
were served meanwhile and from where, the longest that any took beside the store's timeout, how often one waited for
most of that timeout, and how long after the store's return every process's memory was coherent again: its listener
is up, and a change made then has been seen.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report import markdown
from cacheworkers import Cache, Config, Load
from cacheworkers.errors import CacheworkersError
from cacheworkers.events import Event, ListenerUp, Served
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

PRICES = 100
KINDS = ("a thread", "4 threads", "16 tasks")
HEADS = (
    "the store", "reads before, a second", "during, a second", "from memory", "loaded here", "failed",
    "longest wait, ms", "waits over half the timeout", "coherent again after, s", "old",
)  # fmt: skip
BEFORE, DURING, AFTER = range(3)
BURST = 100


@dataclass
class Seen:
    """What the readers of one process have seen, by phase.

    Attributes:
        tiers: reads by where they were served from.
        longest: seconds.
        waits: reads that took more than half of the store's timeout, by reader.
        old: reads of a value older than one that was acknowledged before they began.
    """

    tiers: list[Counter[str]] = field(default_factory=lambda: [Counter(), Counter(), Counter()])
    longest: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    waits: Counter[int] = field(default_factory=Counter)
    up_at: list[float] = field(default_factory=list)
    old: int = 0


class Shared:
    """What all processes see."""

    def __init__(self, context: Any) -> None:
        self.database = context.Array("q", PRICES, lock=False)
        self.acknowledged = context.Value("q", 0, lock=False)
        self.seen = context.Array("q", len(KINDS), lock=False)
        self.phase = context.Value("b", BEFORE, lock=False)
        self.stop = context.Event()


class Shop:
    """One process's cache."""

    def __init__(self, url: str, shared: Shared, seen: Seen) -> None:
        self._here, self._seen = threading.local(), seen
        self.cache = Cache(Config(redis_url=url), hook=self._note)

        @self.cache.loader(tags=("price:{n}",), fresh_for=600)
        def price(load: Load, n: int) -> int:
            return int(shared.database[n])

        self.price = price

    def _note(self, event: Event) -> None:
        if isinstance(event, Served):
            self._here.tier = event.tier
        elif isinstance(event, ListenerUp):
            self._seen.up_at.append(time.monotonic())

    def tier(self) -> str:
        """Return where this thread's last read was served from; hits in memory emit no event."""
        return str(self._here.__dict__.pop("tier", "l1"))


def read(number: int, url: str, shared: Shared, results: Any, pause: float) -> None:
    """Read until stopped."""
    seen = Seen()
    shop = Shop(url, shared, seen)
    half = Config().store_timeout / 2

    def note(reader: int, n: int, began: float, tier: str, value: int, least: int) -> None:
        took, phase = time.monotonic() - began, shared.phase.value
        seen.tiers[phase][tier] += 1
        seen.longest[phase] = max(seen.longest[phase], took)
        if took > half and phase != BEFORE:
            seen.waits[reader] += 1
        if n == 0:
            shared.seen[number] = value
            seen.old += 0 <= value < least

    def until_stopped(reader: int) -> None:
        turns = itertools.cycle(range(PRICES))
        while not shared.stop.is_set():
            for n in itertools.islice(turns, BURST):
                least, began = shared.acknowledged.value, time.monotonic()
                try:
                    value = shop.price.get(n)
                except CacheworkersError as error:
                    note(reader, n, began, type(error).__name__, -1, 0)
                else:
                    note(reader, n, began, shop.tier(), value, least)
            time.sleep(pause)

    async def auntil_stopped(reader: int) -> None:
        turns = itertools.cycle(range(PRICES))
        while not shared.stop.is_set():
            for n in itertools.islice(turns, BURST):
                least, began = shared.acknowledged.value, time.monotonic()
                try:
                    value = await shop.price.aget(n)
                except CacheworkersError as error:
                    note(reader, n, began, type(error).__name__, -1, 0)
                else:
                    note(reader, n, began, shop.tier(), value, least)
            await asyncio.sleep(pause)

    for n in range(PRICES):
        shop.price.get(n)
    wait_until(lambda: all(shop.price.read(n).tier == "l1" for n in range(PRICES)))
    results.put("ready")
    _run(KINDS[number], until_stopped, auntil_stopped)
    results.put(seen)
    shop.cache.close()


def _run(kind: str, work: Callable[[int], None], awork: Callable[[int], Any]) -> None:
    if kind == "a thread":
        work(0)
    elif kind == "4 threads":
        threads = [threading.Thread(target=work, args=(reader,)) for reader in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:

        async def tasks() -> None:
            await asyncio.gather(*map(awork, range(16)))

        asyncio.run(tasks())


def restart(is_frozen: bool, outage: float, pause: float, before_for: float = 2.0) -> tuple[list[Seen], float, float]:
    """Restart the store under readers; what they saw, how long it was away, and when all were coherent after that.

    Args:
        is_frozen: it hangs before it is killed.
        outage: seconds without it.
        pause: seconds that each reader rests after a hundred reads.
        before_for: seconds of reading before.
    """
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        shared, results = Shared(context), context.Queue()
        readers = [
            context.Process(target=read, args=(number, valkey.url, shared, results, pause))
            for number in range(len(KINDS))
        ]
        for reader in readers:
            reader.start()
        try:
            for _ in readers:
                assert results.get(timeout=60) == "ready"
            time.sleep(before_for)
            gone_at, shared.phase.value = time.monotonic(), DURING
            if is_frozen:
                valkey.pause()
            else:
                valkey.kill()
            time.sleep(outage)
            if is_frozen:
                valkey.kill()
            valkey.start()
            back_at, shared.phase.value = time.monotonic(), AFTER
            _change(valkey.url, shared)
            wait_until(lambda: min(shared.seen) >= shared.acknowledged.value)
            seen_at = time.monotonic()
            time.sleep(before_for)
            shared.stop.set()
            seen: list[Seen] = [results.get(timeout=60) for _ in readers]
            for reader in readers:
                reader.join(60)
        finally:
            for reader in readers:
                reader.kill()
    coherent_at = max(seen_at, *(max(each.up_at) for each in seen))
    return seen, back_at - gone_at, coherent_at - back_at


def _change(url: str, shared: Shared) -> None:
    """Change a value, as another process does, and have it acknowledged."""
    shop = Shop(url, shared, Seen())
    shared.database[0] += 1
    shop.cache.invalidate("price:0")
    shared.acknowledged.value = shared.database[0]
    shop.cache.close()


def row(is_frozen: bool, outage: float, pause: float) -> tuple[str, ...]:
    """Return the table's row of one restart."""
    before_for = 2.0
    seen, away, coherent = restart(is_frozen, outage, pause, before_for)
    before, during = (sum((each.tiers[phase] for each in seen), Counter()) for phase in (BEFORE, DURING))
    failed = sum(count for tier, count in during.items() if tier not in ("l1", "load", "store"))
    waits = [count for each in seen for count in each.waits.values()]
    return (
        f"{'frozen' if is_frozen else 'killed'} for {away:.1f} s",
        f"{sum(before.values()) / before_for:,.0f}",
        f"{sum(during.values()) / away:,.0f}",
        f"{during['l1']:,}",
        f"{during['load']:,}",
        f"{failed:,}",
        f"{1000 * max(max(each.longest[DURING:]) for each in seen):.0f}",
        f"{sum(waits)}, by one reader at most {max(waits, default=0)}",
        f"{coherent:.2f}",
        f"{sum(each.old for each in seen)}",
    )


def main() -> None:
    """Restart the store twice, and print what readers saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outage", type=float, default=5.0, help="seconds without the store")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds that a reader rests after a hundred reads")
    options = parser.parse_args()
    rows = [row(is_frozen, options.outage, options.pause) for is_frozen in (False, True)]
    print(markdown(HEADS, rows))
    print(
        f"the store's timeout is {1000 * Config().store_timeout:.0f} ms; it is tried every {Config().breaker_for:g} s"
    )


if __name__ == "__main__":
    main()
