"""Is the connection of our own for event loops worth its lines?  `python -m benchmarks.loop_connection [--delay 0.3]`.

The same batcher over it and over `redis.asyncio`, beside `redis.asyncio` alone, on loopback and with a delay added to
each reply: the further away the store is, the less a connection's own cost counts, but on the loop's CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio

from benchmarks import report
from benchmarks.read_path import Product, product_of
from cacheworkers import Cache, Config, Load
from cacheworkers.local.get_batcher import GetBatcher
from cacheworkers.testing import FaultProxy, Valkey

ROUNDS = 25
TOGETHER = 100
#: Reads of a round that are made one after the other, and rounds of a hundred.
ALONE, HUNDREDS = 200, 10
HEADS = ("delay", "reads", "redis.asyncio", "batched, over redis.asyncio", "batched, over our own")
_Read = Callable[[int], Awaitable[Any]]


def delayed(url: str, delay: float, started: Any, done: Any) -> None:
    """Be a proxy in a process of its own: its threads would hold up the loop that is measured."""
    with FaultProxy(url) as proxy:
        proxy.delay = delay
        started.put(proxy.url)
        done.wait()


async def one_after_the_other(read: _Read) -> int:
    """Read, and return how many reads those were."""
    for _ in range(ALONE):
        await read(42)
    return ALONE


async def together(read: _Read) -> int:
    """Read a hundred keys from as many tasks, again and again."""
    for _ in range(HUNDREDS):
        await asyncio.gather(*(read(number) for number in range(TOGETHER)))
    return HUNDREDS * TOGETHER


async def compared(cache: Cache, url: str, shown: str) -> list[tuple[str, ...]]:
    """Return a row for reads one by one and one for a hundred together: microseconds and, of CPU, those of the loop."""
    store = cache.internals.ports.store
    client: Any = redis.asyncio.Redis.from_url(url)
    over_theirs = GetBatcher(lambda calls: client.mget([store.keys.entry(call) for call in calls]))
    ways: list[_Read] = [
        lambda number: client.get(store.keys.entry(f"product[{number}]")),
        lambda number: over_theirs.get(f"product[{number}]"),
        lambda number: store.batcher.get(f"product[{number}]"),
    ]
    rows = []
    for name, work in (("one by one", one_after_the_other), (f"{TOGETHER} together", together)):
        times: list[list[tuple[float, float]]] = [[] for _ in ways]
        for _ in range(ROUNDS + 1):
            for found, read in zip(times, ways, strict=True):
                began, used = time.perf_counter(), time.thread_time()
                reads = await work(read)
                found.append(((time.perf_counter() - began) / reads, (time.thread_time() - used) / reads))
        medians = [[1e6 * statistics.median(each) for each in zip(*found[1:], strict=True)] for found in times]
        rows.append((shown, name, *(f"{took:,.0f} us, {cpu:.0f} of CPU" for took, cpu in medians)))
    await client.aclose()
    return rows


def main() -> None:
    """Measure both with and without the delay, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.3, help="milliseconds that a reply takes longer")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    with Valkey() as valkey:
        for delay in (0.0, options.delay):
            started, done = context.Queue(), context.Event()
            proxy = context.Process(target=delayed, args=(valkey.url, delay / 1000, started, done))
            if delay:
                proxy.start()
            url = started.get() if delay else valkey.url
            cache = Cache(Config(redis_url=url, store_timeout=5.0))

            @cache.loader(name="product", fresh_for=3600)
            def product(load: Load, number: int) -> Product:
                return product_of(number)

            product.get_many([*range(TOGETHER)])
            rows += asyncio.run(compared(cache, url, f"{delay:g} ms"))
            cache.close()
            done.set()
            if delay:
                proxy.join()
    print(report.markdown(HEADS, rows))


if __name__ == "__main__":
    main()
