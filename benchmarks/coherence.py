"""How long L1 of other processes lags behind a change: `python -m benchmarks.coherence [--changes 10000]`.

Four processes read one value from their own memory as fast as they can; this one changes it and invalidates.  A lag is
the time from the change until a process first returns it, its load included; `old` counts what was read after it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import Any

from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey


def made(url: str, database: Any) -> tuple[Cache, Any]:
    """Return a cache and a loader that reads the shared number."""
    cache = Cache(Config(redis_url=url, store_timeout=5.0))

    @cache.loader(tags=("number",), fresh_for=600, stale_for=0)
    def number(load: Load) -> int:
        return int(database[0])

    return cache, number


def read(url: str, database: Any, changed_at: Any, seen: Any, stop: Any, results: Any, nice: float) -> None:
    """Read at full speed; report the lag of each change, in milliseconds, and how many reads there were."""
    cache, number = made(url, database)
    lags: list[float] = []
    reads, known = 0, -1
    number.get()
    while not stop.is_set():
        for _ in range(200):
            value = number.get()
            reads += 1
            if value != known:
                if known >= 0:
                    lags.append(1000 * (time.monotonic() - changed_at[value]))
                known = value
                seen[0] = value
        if nice:
            time.sleep(nice)
    results.put((lags, reads))
    cache.close()


def main() -> None:
    """Change, and print the lags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a reader rests after each 200 reads")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        database = context.Array("q", 1, lock=False)
        changed_at = context.Array("d", options.changes + 1, lock=False)
        seen = [context.Array("q", 1, lock=False) for _ in range(options.processes)]
        stop, results = context.Event(), context.Queue()
        readers = [
            context.Process(target=read, args=(valkey.url, database, changed_at, each, stop, results, options.pause))
            for each in seen
        ]
        for reader in readers:
            reader.start()
        cache, _ = made(valkey.url, database)
        time.sleep(3.0)
        began = time.monotonic()
        for change in range(1, options.changes + 1):
            database[0] = change
            changed_at[change] = time.monotonic()
            cache.invalidate("number")
            time.sleep(max(0.0, began + change / options.rate - time.monotonic()))
        took = time.monotonic() - began
        time.sleep(1.0)
        stop.set()
        rows = [results.get(timeout=60) for _ in readers]
        for reader in readers:
            reader.join()
        lags = sorted(lag for each, _ in rows for lag in each)
        reads = sum(count for _, count in rows)
        print(
            f"{options.changes:,} changes in {took:.0f} s, {options.processes} processes on {os.cpu_count()} cores, "
            f"{reads / took:,.0f} reads a second: change to seen p50 {lags[len(lags) // 2]:.1f} ms, "
            f"p99 {lags[int(len(lags) * 0.99)]:.1f} ms, most {lags[-1]:.1f} ms; {len(lags):,} changes seen"
        )
        cache.close()


if __name__ == "__main__":
    main()
