"""How long L1 of other processes lags behind a change: `python -m benchmarks.coherence [--changes 10000 --pace 2000]`.

Four processes read one value from their own memory, at a pace or as fast as they can; this one changes it and
invalidates.  For each process and change: `gone` is the time from the change until the last read began that still
returned what was before it (a read under way at the change may), `late` the same from when `invalidate` had returned,
`seen` until the first read that did not has returned, its load included.  A change that the next one overtook before it
was noticed is gone when that one is: none is left out.

At full speed on fewer cores than processes all this is the scheduler's doing: the writer, the store, and a process that
has invalidation messages to process each wait for their turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from typing import Any, NamedTuple

from benchmarks.report import percentile
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until


class Lags(NamedTuple):
    """What readers noticed: sorted, in milliseconds; `took` in seconds."""

    took: float
    reads: int
    gone: list[float]
    late: list[float]
    seen: list[float]


def made(url: str, database: Any) -> tuple[Cache, Any]:
    """Return a cache and a loader that reads the shared number."""
    cache = Cache(Config(redis_url=url, store_timeout=5.0))

    @cache.loader(tags=("number",), fresh_for=600, stale_for=0)
    def number(load: Load) -> int:
        return int(database[0])

    return cache, number


def read(url: str, database: Any, seen: Any, stop: Any, results: Any, pace: float, switch: float) -> None:
    """Read; report of each change when the last read of what was before it began, and when the first that did not
    return that was done, in monotonic time; and how many reads there were.

    Args:
        pace: reads a second; 0 for as many as there can be.
        seen: set to one more than the last change that was read.
    """
    sys.setswitchinterval(switch)
    cache, number = made(url, database)
    sightings: list[tuple[int, float, float]] = []
    reads, known, last = 0, -1, 0.0
    number.get()
    due = time.monotonic()
    while not stop.is_set():
        for _ in range(1 if pace else 200):
            began = time.monotonic()
            value = number.get()
            reads += 1
            if value != known:
                now = time.monotonic()
                if known >= 0:
                    sightings += [(change, last, now) for change in range(known + 1, value + 1)]
                known = value
                seen[0] = value + 1
            last = began
        if pace:
            due = max(due + 1 / pace, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))
    results.put((sightings, reads))
    cache.close()


def measured(changes: int, processes: int, rate: float = 100.0, pace: float = 0.0, switch: float | None = None) -> Lags:
    """Return the lags of a number of changes, made at a rate."""
    switch = sys.getswitchinterval() if switch is None else switch
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey:
        database = context.Array("q", 1, lock=False)
        changed_at, acknowledged_at = [0.0] * (changes + 1), [0.0] * (changes + 1)
        seen = [context.Array("q", 1, lock=False) for _ in range(processes)]
        stop, results = context.Event(), context.Queue()
        readers = [
            context.Process(target=read, args=(valkey.url, database, each, stop, results, pace, switch))
            for each in seen
        ]
        for reader in readers:
            reader.start()
        cache, _ = made(valkey.url, database)
        wait_until(lambda: all(each[0] for each in seen), 60)
        time.sleep(1.0)
        began = time.monotonic()
        for change in range(1, changes + 1):
            database[0] = change
            changed_at[change] = time.monotonic()
            cache.invalidate("number")
            acknowledged_at[change] = time.monotonic()
            time.sleep(max(0.0, began + change / rate - time.monotonic()))
        took = time.monotonic() - began
        wait_until(lambda: all(each[0] == changes + 1 for each in seen), 60)
        stop.set()
        rows = [results.get(timeout=60) for _ in readers]
        for reader in readers:
            reader.join()
        cache.close()
    sightings = [sighting for each, _ in rows for sighting in each]
    return Lags(
        took,
        sum(reads for _, reads in rows),
        gone=sorted(max(0.0, 1000 * (last - changed_at[change])) for change, last, _ in sightings),
        late=sorted(max(0.0, 1000 * (last - acknowledged_at[change])) for change, last, _ in sightings),
        seen=sorted(1000 * (now - changed_at[change]) for change, _, now in sightings),
    )


def main() -> None:
    """Change, and print the lags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second")
    parser.add_argument("--pace", type=float, default=0.0, help="reads a second of each process; 0 for full speed")
    parser.add_argument(
        "--switch-interval", type=float, default=sys.getswitchinterval(), help="sys.setswitchinterval of the readers"
    )
    options = parser.parse_args()
    found = measured(options.changes, options.processes, options.rate, options.pace, options.switch_interval)
    print(
        f"{options.changes:,} changes in {found.took:.0f} s, {options.processes} processes on {os.cpu_count()} cores, "
        f"{found.reads / found.took:,.0f} reads a second"
    )
    for name, lags in (("gone", found.gone), ("late", found.late), ("seen", found.seen)):
        print(
            f"{name}: p50 {percentile(lags, 0.5):.1f} ms, p99 {percentile(lags, 0.99):.1f} ms, "
            f"most {lags[-1]:.1f} ms; {len(lags):,} changes seen"
        )


if __name__ == "__main__":
    main()
