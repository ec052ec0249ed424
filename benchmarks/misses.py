"""What a cold miss costs: `python -m benchmarks.misses [--misses 300] [--readers 200] [--crowd 4000]`.

One reader reads cold keys of a loader that does nothing, in turns with a bare Celery task: published by the same
process, run by the same worker, and answered over a list in the same Redis.  Then as many keys are read cold by many
tasks together.  The loader returns the instant at which it ran: until then a miss was claimed, published and queued.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import redis
from celery import Celery

from benchmarks.report import markdown, percentile
from benchmarks.stack import Pool, worker
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey

URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
app = Celery("misses", broker=URL)
cache = Cache(Config(redis_url=URL, store_timeout=5.0), celery=app)
answers = redis.Redis.from_url(URL)
#: The four queues are polled in their order; the bare task goes through the first of them.
BARE = {"queue": "cw.miss", "exchange": "", "routing_key": "cw.miss"}
HEADS = ("what", "p50 ms", "p99 ms", "ratio", "until it ran, p50 ms", "CPU of the reader, us")


@cache.loader(fresh_for=3600, l1_for=0.0)
def instant(load: Load, number: int) -> float:
    """Return when it ran."""
    return time.monotonic()


@app.task(name="bare", ignore_result=True, acks_late=True)
def bare(number: int) -> None:
    """Answer with when it ran."""
    answers.lpush(f"answer:{number}", repr(time.monotonic()))


class Took(NamedTuple):
    """Milliseconds of each, from its beginning; CPU is that of this process, microseconds of each."""

    whole: list[float]
    until_run: list[float]
    cpu: float


class Throughput(NamedTuple):
    """Misses a second of many readers, and milliseconds from a read's beginning until its loader ran."""

    misses_a_second: float
    until_run: list[float]


def one_miss(number: int) -> float:
    """Read a cold key."""
    return instant.get(number)


def one_task(number: int) -> float:
    """Publish a bare task, and wait for its answer."""
    bare.apply_async((number,), **BARE)
    found: Any = answers.brpop([f"answer:{number}"])
    return float(found[1])


def alone(count: int) -> dict[str, Took]:
    """Return what misses and bare tasks took, one after the other, in turns."""
    kinds: dict[str, Callable[[int], float]] = {"a bare Celery task": one_task, "a cold miss": one_miss}
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


def together(readers: int, count: int) -> Throughput:
    """Return how many misses a second many tasks had, each reading one cold key after the other."""
    numbers, until_run = iter(range(1_000_000, 1_000_000 + count)), []

    async def read() -> None:
        for number in numbers:
            began = time.monotonic()
            until_run.append(1e3 * (await instant.aget(number) - began))

    async def all_of_them() -> float:
        await instant.aget(0)
        began = time.monotonic()
        await asyncio.gather(*(read() for _ in range(readers)))
        return count / (time.monotonic() - began)

    return Throughput(asyncio.run(all_of_them()), until_run)


@contextlib.contextmanager
def servers() -> Iterator[None]:
    """Start a store and one worker of two slots."""
    with Valkey() as valkey:
        os.environ["REDIS_URL"] = valkey.url
        with worker(Pool(), "benchmarks.misses"):
            yield


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--misses", type=int, default=300, help="of one reader")
    parser.add_argument("--readers", type=int, default=200, help="of them together")
    parser.add_argument("--crowd", type=int, default=4000, help="misses of all of them together")
    options = parser.parse_args()
    with servers():
        # In this process the module is `__main__`, made before the store was: what readers use is the import's.
        from benchmarks import misses

        found = misses.alone(options.misses)
        floor = percentile(found["a bare Celery task"].whole, 0.5)
        rows = [
            (
                name,
                f"{percentile(took.whole, 0.5):.2f}",
                f"{percentile(took.whole, 0.99):.2f}",
                f"{percentile(took.whole, 0.5) / floor:.2f}x",
                f"{percentile(took.until_run, 0.5):.2f}",
                f"{took.cpu:.0f}",
            )
            for name, took in found.items()
        ]
        print(markdown(HEADS, rows))
        many = misses.together(options.readers, options.crowd)
        print(
            f"{options.readers} readers together: {many.misses_a_second:,.0f} misses/s; until it ran "
            f"p50 {percentile(many.until_run, 0.5):.0f} ms, p99 {percentile(many.until_run, 0.99):.0f} ms"
        )
        misses.cache.close()


if __name__ == "__main__":
    main()
