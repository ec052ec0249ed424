"""Warm many keys of a batch loader through real workers: `python -m benchmarks.warm [--keys 1000 100000]`.

Beside it one process reads cold keys of another loader, one after the other, before and meanwhile: warming must not
hurt those who wait.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from typing import Any

from benchmarks.stack import stack

CHUNK = 500


def warm(prices: Any, first: int, keys: int, rate: float) -> None:
    """Return when all keys are fresh, asking for at most `rate` keys a second."""
    began = time.monotonic()
    for start in range(first, first + keys, CHUNK):
        chunk = range(start, min(start + CHUNK, first + keys))
        while True:
            done = prices.warm_many(chunk)
            if done.fresh == done.looked:
                break
            time.sleep(0.01)
        time.sleep(max(0.0, began + (start - first + CHUNK) / rate - time.monotonic()) if keys > CHUNK * 2 else 0.0)


def misses(price: Any, numbers: Any, stop: threading.Event, latencies: list[float]) -> None:
    """Read cold keys until told to stop; milliseconds."""
    while not stop.is_set():
        began = time.perf_counter()
        price.get(next(numbers))
        latencies.append(1000 * (time.perf_counter() - began))
        time.sleep(0.02)


def p99(latencies: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(latencies)[int(len(latencies) * 0.99)]


def main() -> None:
    """Warm, and print how long it took, in how many queries, and what a miss cost meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--rate", type=float, default=2500.0, help="keys a second, of more than a thousand")
    options = parser.parse_args()
    with stack() as here:
        from benchmarks.shop import cache, price, prices

        here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
        here.sql(f"INSERT INTO price SELECT i, i FROM generate_series(1, {sum(options.keys) + 100_000}) i")
        numbers = itertools.count(sum(options.keys) + 1)
        first = 1
        prices.get(first)
        idle: list[float] = []
        stop = threading.Event()
        threading.Timer(5.0, stop.set).start()
        misses(price, numbers, stop, idle)
        for keys in options.keys:
            here.sql("SELECT pg_stat_statements_reset()")
            busy: list[float] = []
            stop = threading.Event()
            reader = threading.Thread(target=misses, args=(price, numbers, stop, busy))
            reader.start()
            began = time.perf_counter()
            warm(prices, first + 1, keys, options.rate)
            took = time.perf_counter() - began
            stop.set()
            reader.join()
            queries = here.calls("SELECT id, amount%")
            print(
                f"{keys:,} keys warm in {took:.1f} s and {queries:,} queries; a miss meanwhile p99 {p99(busy):.1f} ms, "
                f"idle {p99(idle):.1f} ms ({p99(busy) / p99(idle):.1f}x)"
            )
            first += keys
        cache.close()


if __name__ == "__main__":
    main()
