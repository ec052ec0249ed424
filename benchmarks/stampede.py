"""Simultaneous readers of one cold key: `python -m benchmarks.stampede [--readers 50000] [--processes 4]`.

With `--peers` the same beside libraries that have a lock, where they are installed: `pip install 'cashews[redis]'
 dogpile.cache 'aiocache[redis]'`.
Their loads run in the readers' processes, for as long.  With `--threads 32`, 32 threads of one process, beside
dogpile.cache.

A crowd comes to processes that serve: each has read another key a second before.  The first miss of a process takes
longer, for Celery and kombu are imported then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.metadata
import multiprocessing
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis
import redis.asyncio

from benchmarks import report
from benchmarks.stack import stack
from cacheworkers.testing import Valkey

#: For how long a process has served before a crowd comes, seconds, and what it has read.
SERVED_FOR, SERVED = 1.0, 0
#: Seconds of the slow load, here and in `benchmarks/shop.py`.
LOAD_TIME = 0.4
PEERS_READERS = 5000
#: Seconds after which a peer's process is given up.
PATIENCE = 120.0
#: What is said of a library that is not there.
ABSENT = "not installed"


class Crowd(NamedTuple):
    """How a library's readers were served; None: not within `PATIENCE`, or not installed.

    Attributes:
        took: seconds to the last.
    """

    name: str
    how: str
    loads: int | None = None
    served: int | None = None
    took: float | None = None


def read_on_threads(readers: int, key: int, coherence: Any, results: Any) -> None:
    """Read one key from many threads of this process, once everybody is at the gate."""
    from benchmarks.shop import slow

    slow.get(SERVED)
    time.sleep(SERVED_FOR)
    ends: list[float] = []

    def one() -> None:
        slow.get(key)
        ends.append(time.monotonic())

    crowd = [threading.Thread(target=one) for _ in range(readers)]
    coherence.wait()
    begin = time.monotonic()
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    results.put((begin, max(ends, default=begin), len(ends)))


def read(readers: int, key: int, coherence: Any, results: Any) -> None:
    """Read one key from many tasks of this process, once everybody is at the gate."""
    from benchmarks.shop import slow

    async def one() -> float:
        await slow.aget(key)
        return time.monotonic()

    async def all_of_them() -> tuple[float, float, int]:
        await slow.aget(SERVED)
        await asyncio.sleep(SERVED_FOR)
        coherence.wait()
        begin = time.monotonic()
        ends = await asyncio.gather(*(one() for _ in range(readers)), return_exceptions=True)
        served = [end for end in ends if isinstance(end, float)]
        return begin, max(served, default=begin), len(served)

    results.put(asyncio.run(all_of_them()))


def wait_for_one_future(began: Any, readers: int, key: int, coherence: Any, results: Any) -> None:
    """Run one process of the floor: a number of tasks await one future, which is set after the load's time.

    What no cache can do without is in it too.  The process has imported the same application, whose objects the
    garbage collector walks over while tasks are made.  And the load's time runs from the first task of any process
    on: none runs before all tasks of its process are made, and a load begins when somebody reads.

    Args:
        began: shared by all processes, the monotonic instant of that first task; 0 before.
    """
    import benchmarks.shop  # noqa: F401

    async def all_of_them() -> tuple[float, float, int]:
        loop = asyncio.get_running_loop()
        value: asyncio.Future[int] = loop.create_future()

        async def one() -> float:
            await value
            return time.monotonic()

        async def first() -> float:
            with began.get_lock():
                began.value = began.value or time.monotonic()
            loop.call_at(began.value + LOAD_TIME, value.set_result, 7)
            return await one()

        coherence.wait()
        begin = time.monotonic()
        ends = await asyncio.gather(first(), *(one() for _ in range(readers - 1)))
        return begin, max(ends), len(ends)

    results.put(asyncio.run(all_of_them()))


def crowd_of(reads: Callable[[int, int, Any, Any], None], readers: int, processes: int, key: int) -> tuple[int, float]:
    """Return how many readers of these processes were served, and seconds to the last."""
    context = multiprocessing.get_context("spawn")
    coherence, results = context.Barrier(processes), context.Queue()
    crowd = [context.Process(target=reads, args=(readers, key, coherence, results)) for _ in range(processes)]
    for each in crowd:
        each.start()
    rows = [results.get(timeout=120) for _ in crowd]
    for each in crowd:
        each.join()
    return sum(served for _, _, served in rows), max(end for _, end, _ in rows) - min(begin for begin, _, _ in rows)


def floor(readers: int, processes: int) -> float:
    """Return after how many seconds the last task of these processes has the value of a future."""
    began = multiprocessing.get_context("spawn").Value("d", 0.0)
    return crowd_of(functools.partial(wait_for_one_future, began), readers // processes, processes, 0)[1]


class Round(NamedTuple):
    """What a crowd of readers came to.

    Attributes:
        loads: by Postgres's count.
        served: readers with a value.
        took: seconds to the last.
        least: the same of the floor, right before; 0 where it was not measured.
    """

    loads: int
    served: int
    took: float
    least: float = 0.0

    @property
    def beside_floor(self) -> str:
        """What it took beside the load, and its overhead beside the floor's."""
        overhead = (self.took - LOAD_TIME) / max(self.least - LOAD_TIME, 1e-9)
        return (
            f"{self.took / LOAD_TIME:.1f}x the load's time; beyond it {overhead:.1f}x the floor's, "
            f"which ended at {self.least:.2f} s"
        )


def rounds(
    readers: int,
    processes: int,
    count: int,
    reads: Callable[[int, int, Any, Any], None] = read,
    *,
    with_floor: bool = False,
) -> Iterator[Round]:
    """Yield what each round came to, of a key of its own.

    Before them comes one of a reader a process, in which the worker makes its first load and connects to its database.
    """
    with stack() as here:
        crowd_of(reads, 1, processes, SERVED)
        for key in range(1, count + 1):
            here.sql("SELECT pg_stat_statements_reset()")
            least = floor(readers, processes) if with_floor else 0.0
            served, took = crowd_of(reads, readers // processes, processes, key)
            yield Round(here.calls("SELECT pg_sleep%"), served, took, least)


def dogpile(url: str, readers: int, coherence: Any) -> list[float]:
    """dogpile.cache: threads, and its distributed lock."""
    from dogpile.cache import make_region

    # Room for everybody: with redis-py's hundred connections all other readers would fail.
    pool = redis.ConnectionPool.from_url(url, max_connections=readers + 10)
    lock = {"distributed_lock": True, "lock_timeout": 30, "thread_local_lock": False}
    arguments = {"connection_pool": pool, "redis_expiration_time": 60, **lock}
    region = make_region().configure("dogpile.cache.redis", arguments=arguments)
    client = redis.Redis.from_url(url)

    def load() -> int:
        client.incr("loads:dogpile")
        time.sleep(LOAD_TIME)
        return 7

    ends: list[float] = []

    def one() -> None:
        with contextlib.suppress(Exception):  # whoever is not served is not counted
            region.get_or_create("slow", load, 60)
            ends.append(time.monotonic())

    region.get_or_create("served", int, 60)
    time.sleep(SERVED_FOR)
    threading.stack_size(256 * 1024)
    crowd = [threading.Thread(target=one) for _ in range(readers)]
    coherence.wait()
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    return ends


def cashews(url: str, readers: int, coherence: Any) -> list[float]:
    """cashews: tasks, and `lock=True`."""
    from cashews import Cache as Cashews

    async def crowd() -> list[float]:
        cache = Cashews()
        cache.setup(url, client_side=False, max_connections=100, wait_for_connection_timeout=60)
        client = redis.asyncio.Redis.from_url(url)

        @cache(ttl="1m", key="slow:{key}", lock=True)
        async def slow(key: int) -> int:
            if key != SERVED:
                await client.incr("loads:cashews")
                await asyncio.sleep(LOAD_TIME)
            return 7

        try:
            return await served(slow, readers, coherence)
        finally:
            await cache.close()
            await client.aclose()

    return asyncio.run(crowd())


def aiocache(url: str, readers: int, coherence: Any) -> list[float]:
    """aiocache: tasks, and `cached_stampede`, whose lock is Redis's."""
    from aiocache import RedisCache, cached_stampede

    async def crowd() -> list[float]:
        parts = urlsplit(url)
        client = redis.asyncio.Redis.from_url(url)

        # Room for everybody: with its own ten connections most readers would fail, and load for themselves.
        where = {"endpoint": parts.hostname, "port": parts.port, "pool_max_size": readers + 10, "timeout": PATIENCE}

        @cached_stampede(
            lease=30, ttl=60, key_builder=lambda _, key: f"slow:{key}", cache=RedisCache, namespace="ai", **where
        )
        async def slow(key: int) -> int:
            if key != SERVED:
                await client.incr("loads:aiocache")
                await asyncio.sleep(LOAD_TIME)
            return 7

        try:
            return await served(slow, readers, coherence)
        finally:
            await client.aclose()

    return asyncio.run(crowd())


async def served(slow: Callable[[int], Awaitable[int]], readers: int, coherence: Any) -> list[float]:
    """Read from this number of tasks together, and return when each was served."""

    async def one() -> float:
        await slow(SERVED + 1)
        return time.monotonic()

    await slow(SERVED)
    await asyncio.sleep(SERVED_FOR)
    coherence.wait()
    found = await asyncio.gather(*(one() for _ in range(readers)), return_exceptions=True)
    return [end for end in found if isinstance(end, float)]


PEERS: dict[str, tuple[str, Callable[[str, int, Any], list[float]]]] = {
    "dogpile.cache": ("distributed_lock, threads", dogpile),
    "cashews": ("lock=True, tasks", cashews),
    "aiocache": ("cached_stampede, tasks", aiocache),
}


def play(peer: str, url: str, readers: int, coherence: Any, results: Any) -> None:
    """Be one process of a peer's crowd: how many were served, and when the first began and the last ended."""
    began: list[float] = []

    class Begun:
        def wait(self) -> None:
            coherence.wait()
            began.append(time.monotonic())

    ends = PEERS[peer][1](url, readers, Begun())
    results.put((began[0], max(ends, default=began[0]), len(ends)))


def against(peer: str, readers: int, processes: int) -> tuple[int, int, float]:
    """Return a peer's loads by Redis's count, readers served, and seconds to the last; those still waiting count not.

    Raises:
        queue.Empty: a process was not done within `PATIENCE` seconds.
    """
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        coherence, results = context.Barrier(processes), context.Queue()
        words = (peer, valkey.url, readers // processes, coherence, results)
        crowd = [context.Process(target=play, args=words) for _ in range(processes)]
        for each in crowd:
            each.start()
        try:
            rows = [results.get(timeout=PATIENCE) for _ in crowd]
        finally:
            for each in crowd:
                each.kill()
                each.join()
        loads = int(redis.Redis.from_url(valkey.url).get(f"loads:{peer.partition('.')[0]}") or 0)
    return loads, sum(row[2] for row in rows), max(row[1] for row in rows) - min(row[0] for row in rows)


def beside_peers(readers: int, processes: int) -> list[Crowd]:
    """Return a row for this library, and one for each peer."""
    [ours] = rounds(readers, processes, 1)
    found = [Crowd("cacheworkers", "Celery workers load, tasks", *ours[:3])]
    for peer, (how, _) in PEERS.items():
        try:
            name = f"{peer} {importlib.metadata.version(peer)}"
        except importlib.metadata.PackageNotFoundError:
            found.append(Crowd(peer, ABSENT))
            continue
        try:
            found.append(Crowd(name, how, *against(peer, readers, processes)))
        except queue.Empty:
            found.append(Crowd(name, how))
    return found


def threads_beside_dogpile(readers: int) -> list[Crowd]:
    """Return a row for this library and one for dogpile.cache: threads of one process read one cold key."""
    [ours] = rounds(readers, 1, 1, read_on_threads)
    theirs = against("dogpile.cache", readers, 1)
    return [
        Crowd("cacheworkers", "Celery workers load, threads", *ours[:3]),
        Crowd("dogpile.cache", PEERS["dogpile.cache"][0], *theirs),
    ]


def heads(readers: int, processes: int) -> tuple[str, ...]:
    """Return the heads of the table."""
    return (f"{readers:,} readers in {processes} processes", "how", "loads", "served", "the last after")


def cells(crowd: Crowd) -> tuple[str, ...]:
    """Return a row of the table."""
    if crowd.took is None:
        ended = "" if crowd.how == ABSENT else f"not done after {PATIENCE:g} s"
        return (crowd.name, crowd.how, "", "", ended)
    return (crowd.name, crowd.how, f"{crowd.loads}", f"{crowd.served:,}", f"{crowd.took:.2f} s")


def main() -> None:
    """Run it and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="number of threads of one process, beside dogpile.cache")
    parser.add_argument("--peers", action="store_true", help="one round beside peers, of 5,000 readers")
    options = parser.parse_args()
    if options.threads:
        print(report.markdown(heads(options.threads, 1), map(cells, threads_beside_dogpile(options.threads))))
        return
    if options.peers:
        readers = min(options.readers, PEERS_READERS)
        found = beside_peers(readers, options.processes)
        print(report.markdown(heads(readers, options.processes), map(cells, found)))
        return
    print(f"the floor: as many tasks await a future, set {LOAD_TIME} s after the first of them has run")
    for each in rounds(options.readers, options.processes, 3, with_floor=True):
        print(
            f"{options.readers:,} readers in {options.processes} processes, load {LOAD_TIME} s: "
            f"{report.counted(each.loads, 'load')} by Postgres's count, {each.served:,} served, "
            f"last after {each.took:.2f} s: {each.beside_floor}"
        )


if __name__ == "__main__":
    main()
