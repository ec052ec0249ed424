"""Warm many keys of a batch loader through real workers: `python -m benchmarks.warm [--keys 1000 100000]`.

Beside it another process reads cold keys of another loader, one after the other, before and meanwhile: warming must
not hurt those who wait.  The pool that warms is niced, as a pool that nobody waits for may be.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.stack import Pool, stack


def read_cold(first: int, pipe: Connection) -> None:
    """Read cold keys, one every 20 ms; whenever asked, tell how long the reads since took, seconds."""
    from benchmarks.shop import cache, price

    latencies: list[float] = []
    n = first
    while True:
        began = time.perf_counter()
        price.get(n)
        latencies.append(time.perf_counter() - began)
        n += 1
        if pipe.poll(0.02):
            if not pipe.recv():
                break
            pipe.send(latencies)
            latencies = []
    cache.close()


def p99(latencies: list[float]) -> float:
    """Return the 99th percentile, milliseconds."""
    return 1000 * sorted(latencies)[int(len(latencies) * 0.99)]


def asked(pipe: Connection) -> list[float]:
    """Return the latencies since this was last asked."""
    pipe.send(True)
    found: list[float] = pipe.recv()
    return found


def main() -> None:
    """Warm, and print how long it took, in how many queries, and what a miss cost meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--max-rate", type=float, default=2500.0, help="keys a second, of more than a thousand")
    parser.add_argument("--at-once", type=int, default=200, help="keys under way, of more than a thousand")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of reading before anything is warmed")
    options = parser.parse_args()
    with stack(Pool(("miss", "revalidate")), Pool(("warm", "upkeep"), concurrency=1, nice=10)) as here:
        from benchmarks.shop import cache, prices

        here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
        here.sql(f"INSERT INTO price SELECT i, i FROM generate_series(1, {sum(options.keys) + 100_000}) i")
        prices.get(1)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        reader = multiprocessing.get_context("spawn").Process(target=read_cold, args=(sum(options.keys) + 2, theirs))
        reader.start()
        asked(ours)
        time.sleep(options.idle)
        idle = asked(ours)
        first = 2
        for keys in options.keys:
            here.sql("SELECT pg_stat_statements_reset()")
            pace: dict[str, Any] = {"max_rate": options.max_rate, "at_once": options.at_once} if keys > 1000 else {}
            calls = [cache.call("prices", key) for key in range(first, first + keys)]
            asked(ours)
            began = time.perf_counter()
            done = cache.warm_up("prices", calls, **pace)
            took = time.perf_counter() - began
            busy = asked(ours)
            assert done.loaded == keys, done
            queries = here.calls("SELECT id, amount%")
            print(
                f"{keys:,} keys warm in {took:.1f} s and {queries:,} queries; {len(busy):,} misses meanwhile p99 "
                f"{p99(busy):.1f} ms, {len(idle):,} idle {p99(idle):.1f} ms ({p99(busy) / p99(idle):.1f}x)",
                flush=True,
            )
            first += keys
        ours.send(False)
        reader.join()
        cache.close()


if __name__ == "__main__":
    main()
