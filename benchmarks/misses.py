"""What a cold miss costs: `python -m benchmarks.misses [--misses 300] [--readers 200] [--crowd 4000]`.

One reader reads cold keys of a loader that does nothing, in turns with a bare Celery task: published by the same
process, run by the same worker, and answered over a list in the same Redis.  Then bare tasks are published back to
back, and as many keys are read cold by many tasks together.  The loader returns the instant at which it ran: until then
a miss was claimed, published and queued.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.report import markdown, percentile
from benchmarks.stack import Pool, worker
from cacheworkers.testing import Valkey

MISSES, READERS, CROWD = 300, 200, 4000
BARE, MISS = "a bare Celery task", "a cold miss"
#: The four queues are polled in their order; the bare task goes through the first of them.
ROUTE = {"queue": "cw.miss", "exchange": "", "routing_key": "cw.miss"}
HEADS = ("what", "p50 ms", "p99 ms", "ratio", "until it ran, p50 ms", "CPU of the reader, us")


class Took(NamedTuple):
    """Milliseconds of each, from its beginning; CPU is that of this process, microseconds of each."""

    whole: list[float]
    until_run: list[float]
    cpu: float


class Throughput(NamedTuple):
    """Misses a second of many readers, and milliseconds from a read's beginning until its loader ran.

    Attributes:
        bare_a_second: bare Celery tasks a second through the same worker.
    """

    bare_a_second: float
    misses_a_second: float
    until_run: list[float]


class Measured(NamedTuple):
    """One reader's misses and bare tasks by name, and many readers together."""

    alone: dict[str, Took]
    together: Throughput

    @property
    def ratio(self) -> float:
        """What a miss takes beside a bare task, in the median."""
        return percentile(self.alone[MISS].whole, 0.5) / percentile(self.alone[BARE].whole, 0.5)


def measured(count: int, readers: int, crowd: int) -> Measured:
    """Measure on a store and a worker of two slots, both started and ended here."""
    with Valkey() as valkey:
        os.environ["REDIS_URL"] = valkey.url
        with worker(Pool(), "benchmarks.missshop"):
            # The app takes the store's address when it is imported.
            from benchmarks import missshop

            try:
                return Measured(alone(missshop, count), together(missshop, readers, crowd))
            finally:
                missshop.cache.close()


def alone(shop: Any, count: int) -> dict[str, Took]:
    """Return what misses and bare tasks took, one after the other, in turns."""

    def one_task(number: int) -> float:
        shop.bare.apply_async((number,), **ROUTE)
        return float(shop.answers.brpop([f"answer:{number}"])[1])

    kinds: dict[str, Callable[[int], float]] = {BARE: one_task, MISS: shop.instant.get}
    found = {name: Took([], [], 0.0) for name in kinds}
    for number in range(-20, count):
        for name, one in kinds.items():
            cpu, began = time.process_time(), time.monotonic()
            ran = one(number)
            took = Took([time.monotonic() - began], [ran - began], time.process_time() - cpu)
            if number >= 0:
                so_far = found[name]
                found[name] = Took(
                    so_far.whole + [1e3 * each for each in took.whole],
                    so_far.until_run + [1e3 * each for each in took.until_run],
                    so_far.cpu + 1e6 * took.cpu / count,
                )
    return found


def together(shop: Any, readers: int, count: int) -> Throughput:
    """Return how many misses a second many tasks had, each reading one cold key after the other."""
    bare = bare_throughput(shop, count)
    numbers, until_run = iter(range(1_000_000, 1_000_000 + count)), []

    async def read() -> None:
        for number in numbers:
            began = time.monotonic()
            until_run.append(1e3 * (await shop.instant.aget(number) - began))

    async def all_of_them() -> float:
        await shop.instant.aget(0)
        began = time.monotonic()
        await asyncio.gather(*(read() for _ in range(readers)))
        return count / (time.monotonic() - began)

    return Throughput(bare, asyncio.run(all_of_them()), until_run)


def bare_throughput(shop: Any, count: int) -> float:
    """Return how many bare tasks a second the same worker runs, published back to back by this process."""
    numbers = range(1_000_000, 1_000_000 + count)
    began = time.monotonic()
    for number in numbers:
        shop.bare.apply_async((number,), **ROUTE)
    for number in numbers:
        shop.answers.brpop([f"answer:{number}"])
    return count / (time.monotonic() - began)


def rows(found: Measured) -> list[tuple[str, ...]]:
    """Return the table's rows."""
    floor = percentile(found.alone[BARE].whole, 0.5)
    return [
        (
            name,
            f"{percentile(took.whole, 0.5):.2f}",
            f"{percentile(took.whole, 0.99):.2f}",
            f"{percentile(took.whole, 0.5) / floor:.2f}x",
            f"{percentile(took.until_run, 0.5):.2f}",
            f"{took.cpu:.0f}",
        )
        for name, took in found.alone.items()
    ]


def main() -> None:
    """Measure, and print a table and a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--misses", type=int, default=MISSES, help="of one reader")
    parser.add_argument("--readers", type=int, default=READERS, help="of them together")
    parser.add_argument("--crowd", type=int, default=CROWD, help="misses of all of them together")
    options = parser.parse_args()
    found = measured(options.misses, options.readers, options.crowd)
    print(markdown(HEADS, rows(found)))
    many = found.together
    print(
        f"{options.readers} readers together: {many.misses_a_second:,.0f} misses/s; until it ran "
        f"p50 {percentile(many.until_run, 0.5):.0f} ms, p99 {percentile(many.until_run, 0.99):.0f} ms\n"
        f"bare Celery tasks a second through the same worker: {many.bare_a_second:,.0f}"
    )


if __name__ == "__main__":
    main()
