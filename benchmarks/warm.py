"""Warm many keys of a batch loader through real workers: `python -m benchmarks.warm [--keys 1000 100000]`.

Beside it another process reads cold keys of another loader, one after the other, meanwhile and in pauses: warming must
not hurt those who wait.  The pool that warms, and who has it warm, are niced, for nobody waits for them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.report import percentile
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


def at(latencies: list[float], share: float) -> float:
    """Return a percentile, milliseconds."""
    return 1000 * percentile(latencies, share)


def asked(pipe: Connection) -> list[float]:
    """Return the latencies since this was last asked."""
    pipe.send(True)
    found: list[float] = pipe.recv()
    return found


def main() -> None:
    """Warm, and print how long it took, in how many queries, and what a miss cost meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--max-rate", type=float, default=2000.0, help="keys a second, of more than a thousand")
    parser.add_argument("--at-once", type=int, default=200, help="keys under way, of more than a thousand")
    parser.add_argument("--parts", type=int, default=10, help="so many times nothing is warmed, for as long as then is")
    options = parser.parse_args()
    with stack(Pool(("miss", "revalidate")), Pool(("warm", "upkeep"), concurrency=1, nice=10)) as here:
        from benchmarks.shop import cache, prices

        here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
        here.sql(f"INSERT INTO price SELECT i, i FROM generate_series(1, {sum(options.keys) + 100_000}) i")
        prices.get(1)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        reader = multiprocessing.get_context("spawn").Process(target=read_cold, args=(sum(options.keys) + 2, theirs))
        reader.start()
        os.nice(10)
        asked(ours)
        first = 2
        for keys in options.keys:
            here.sql("SELECT pg_stat_statements_reset()")
            pace: dict[str, Any] = {"max_rate": options.max_rate, "at_once": options.at_once} if keys > 1000 else {}
            calls = [cache.call("prices", key) for key in range(first, first + keys)]
            size = keys if keys <= 1000 else -(-keys // options.parts)
            took, idle, busy = 0.0, [], []
            for start in range(0, keys, size):
                asked(ours)
                began = time.perf_counter()
                done = cache.warm_up("prices", calls[start : start + size], **pace)
                lasted = time.perf_counter() - began
                busy += asked(ours)
                assert done.loaded == done.calls, done
                took += lasted
                # As long again without: what else the machine does meanwhile is in both.
                time.sleep(max(1.0, lasted))
                idle += asked(ours)
            print(
                f"{keys:,} keys warm in {took:.1f} s and {here.calls('SELECT id, amount%'):,} queries; p50, p99 of "
                f"{len(busy):,} misses meanwhile {at(busy, 0.5):.1f}, {at(busy, 0.99):.1f} ms, of {len(idle):,} idle "
                f"{at(idle, 0.5):.1f}, {at(idle, 0.99):.1f} ms ({at(busy, 0.99) / at(idle, 0.99):.2f}x)",
                flush=True,
            )
            first += keys
        ours.send(False)
        reader.join()
        cache.close()


if __name__ == "__main__":
    main()
