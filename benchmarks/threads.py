"""Hits of one process in 1 to 32 threads: `python -m benchmarks.threads [--quick]`.

Throughput is measured without a clock around each read, latency in a run of its own.  Python runs one thread at a time
and lets another in after 5 ms at the latest: where threads never wait, as on hits in memory, the slowest reads are
those that were interrupted.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import redis

from benchmarks.read_path import Product, product_of
from benchmarks.report import markdown, percentile, progress
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

THREADS = (1, 2, 4, 8, 16, 32)
KEYS = 100
HEADS = ("read", "threads", "reads/s", "ratio", "p50 us", "p99 us", "p99.9 us")


class Speed(NamedTuple):
    """Reads a second of a number of threads, the ratio to those of the fewest, and microseconds of a read."""

    read: str
    threads: int
    reads_a_second: float
    ratio: float
    p50: float
    p99: float
    p999: float


class Crowd:
    """Threads that read as fast as they can, for some seconds."""

    def __init__(self, get: Callable[[int], Any], threads: int, seconds: float) -> None:
        self._get = get
        self._threads = threads
        self._seconds = seconds

    def throughput(self) -> float:
        """Return reads a second of all threads."""
        counts: list[int] = []

        def read(stop: threading.Event) -> None:
            get, reads, numbers = self._get, 0, range(KEYS)
            while not stop.is_set():
                for number in numbers:
                    get(number)
                reads += KEYS
            counts.append(reads)

        took = self._run(read)
        return sum(counts) / took

    def latencies(self) -> list[float]:
        """Return the microseconds of all reads."""
        found: list[float] = []

        def read(stop: threading.Event) -> None:
            get, clock, times, numbers = self._get, time.perf_counter, [], range(KEYS)
            while not stop.is_set():
                for number in numbers:
                    began = clock()
                    get(number)
                    times.append(clock() - began)
            found.extend(1e6 * each for each in times)

        self._run(read)
        return found

    def _run(self, read: Callable[[threading.Event], None]) -> float:
        """Run it in all threads, and return for how many seconds."""
        stop, coherence = threading.Event(), threading.Barrier(self._threads + 1)

        def work() -> None:
            coherence.wait()
            read(stop)

        crowd = [threading.Thread(target=work) for _ in range(self._threads)]
        for each in crowd:
            each.start()
        coherence.wait()
        began = time.perf_counter()
        time.sleep(self._seconds)
        stop.set()
        for each in crowd:
            each.join()
        return time.perf_counter() - began


def readers(url: str, cache: Cache) -> dict[str, Callable[[int], Any]]:
    """Return what is measured: name -> a read of one key."""

    @cache.loader(fresh_for=3600, early=0)
    def near(load: Load, number: int) -> Product:
        return product_of(number)

    @cache.loader(fresh_for=3600, early=0, l1_for=0.0)
    def far(load: Load, number: int) -> Product:
        return product_of(number)

    far.get_many(range(KEYS))
    near.get_many(range(KEYS))
    wait_until(lambda: near.get_many(range(KEYS)) and all(near.read(number).tier == "l1" for number in range(KEYS)))
    client: Any = redis.Redis.from_url(url)
    decode = msgspec.json.Decoder(Product).decode
    for number in range(KEYS):
        client.set(f"bare{number}", msgspec.json.encode(product_of(number)))
    return {
        "L1 hit": near.get,
        "store hit": far.get,
        "redis-py get + decode": lambda number: decode(client.get(f"bare{number}")),
    }


def measured(counts: Sequence[int], seconds: float) -> list[Speed]:
    """Return the speed of each kind of read, in a number of threads."""
    speeds = []
    with Valkey() as valkey:
        cache = Cache(Config(redis_url=valkey.url, store_timeout=5.0))
        reads = readers(valkey.url, cache)
        with progress() as bar:
            task = bar.add_task("measurements", total=len(reads) * len(counts))
            for name, get in reads.items():
                base = 0.0
                for threads in counts:
                    crowd = Crowd(get, threads, seconds)
                    speed = crowd.throughput()
                    base = base or speed
                    times = crowd.latencies()
                    halves = (percentile(times, each) for each in (0.5, 0.99, 0.999))
                    speeds.append(Speed(name, threads, speed, speed / base, *halves))
                    bar.advance(task)
        cache.close()
    return speeds


def cells(speed: Speed) -> tuple[str, ...]:
    """Return a row of the table."""
    halves = (f"{each:,.1f}" for each in (speed.p50, speed.p99, speed.p999))
    return (speed.read, f"{speed.threads}", f"{speed.reads_a_second:,.0f}", f"{speed.ratio:.2f}", *halves)


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="0.3 seconds each")
    options = parser.parse_args()
    speeds = measured(options.threads, 0.3 if options.quick else options.seconds)
    print(markdown(HEADS, map(cells, speeds)))


if __name__ == "__main__":
    main()
