"""Commit to visible, from other processes: `python -m benchmarks.visible [--changes 1000]`.

One price is changed by hand and read through the store by one process, each change once the last was seen.  With
`--rate 100`, prices are changed by a watched session, so many a second, while `--processes` read them all from their
own memory: how long after the commit each of them last returned the old price, when it first returned the new one,
and both for the last of the processes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.report import percentile
from benchmarks.stack import stack

PRICES = 20


class Sighting(NamedTuple):
    """When a process first returned a version of a price, and last returned the one before."""

    key: int
    version: int
    first: float
    last_old: float


def watch(orders: Any, reports: Any) -> None:
    """Read through the store as fast as possible; report when each new price is seen, and any older one after."""
    from benchmarks.shop import price

    price.get(1)
    reports.put("ready")
    while (wanted := orders.recv()) is not None:
        value = -1
        while value < wanted:
            value = price.get(1)
        reports.put((value, time.monotonic()))


def watch_all(stop: Any, reports: Any, pause: float) -> None:
    """Read every price from memory again and again; report when each was last seen old, and first new."""
    from benchmarks.shop import near

    sightings: list[tuple[int, int, float, float]] = []

    async def one(key: int) -> None:
        known, last = await near.aget(key), time.monotonic()
        while not stop.is_set():
            value = await near.aget(key)  # a task a price: who waits for one still sees the others
            now = time.monotonic()
            if value != known:
                sightings.append((key, value, now, last))
                known = value
            last = now
            await asyncio.sleep(pause)

    async def all_of_them() -> None:
        await asyncio.gather(*(near.aget(key) for key in range(1, PRICES + 1)))
        reports.put("ready")
        await asyncio.gather(*(one(key) for key in range(1, PRICES + 1)))

    asyncio.run(all_of_them())
    reports.put(sightings)


def changes(count: int) -> tuple[int, list[float]]:
    """Change one price so often; return how many old values the store gave, and each change's delay, sorted, ms."""
    context = multiprocessing.get_context("spawn")
    with stack() as here:
        here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
        here.sql("INSERT INTO price VALUES (1, 0)")
        ours, theirs = context.Pipe()
        reports = context.Queue()
        watcher = context.Process(target=watch, args=(theirs, reports))
        watcher.start()
        reports.get(timeout=60)
        import psycopg

        from benchmarks.shop import cache, price

        late, old = [], 0
        with psycopg.connect(here.database.replace("+psycopg", ""), autocommit=True) as connection:
            for number in range(1, count + 1):
                ours.send(number)
                connection.execute("UPDATE price SET amount = %s WHERE id = 1", (number,))
                committed = time.monotonic()
                cache.invalidate("price:1")
                found = price.peek(1)
                old += found is not None and found.value < number
                _, seen = reports.get(timeout=60)
                late.append(1000 * (seen - committed))
        ours.send(None)
        watcher.join()
        cache.close()
        return old, sorted(late)


def at_a_rate(count: int, rate: float, processes: int, pause: float) -> tuple[list[list[float]], list[list[float]]]:
    """Change prices so often a second.

    Returns:
        For each change, of each process: ms from the commit to the last old price, and to the first newer one.
    """
    context = multiprocessing.get_context("spawn")
    with stack() as here:
        here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
        here.sql(f"INSERT INTO price SELECT i, 0 FROM generate_series(1, {PRICES}) AS i")
        stop, reports = context.Event(), context.Queue()
        watchers = [context.Process(target=watch_all, args=(stop, reports, pause)) for _ in range(processes)]
        from benchmarks.shop import Price, cache, engine, sessions, watch_prices

        cache.outbox.create(engine)
        watch_prices()
        for watcher in watchers:
            watcher.start()
        for _ in watchers:
            reports.get(timeout=60)
        committed: dict[tuple[int, int], float] = {}
        began = time.monotonic()
        for number in range(1, count + 1):
            key, version = number % PRICES + 1, number
            with sessions() as session:
                session.get_one(Price, key).amount = version
                session.flush()
                # Before the COMMIT: that it has happened is known to who reads before it is to who wrote.
                committed[key, version] = time.monotonic()
                session.commit()
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
        time.sleep(1.0)
        stop.set()
        seen = [[Sighting(*each) for each in reports.get(timeout=60)] for _ in watchers]
        for watcher in watchers:
            watcher.join()
        cache.close()
    return _delays(committed, seen)


def _delays(
    committed: dict[tuple[int, int], float], seen: Iterable[Iterable[Sighting]]
) -> tuple[list[list[float]], list[list[float]]]:
    olds: dict[tuple[int, int], list[float]] = {change: [] for change in committed}
    news: dict[tuple[int, int], list[float]] = {change: [] for change in committed}
    for sightings in seen:
        by_key: dict[int, list[Sighting]] = {}
        for each in sightings:
            by_key.setdefault(each.key, []).append(each)
        for (key, version), at in committed.items():
            first = next((each for each in by_key.get(key, ()) if each.version >= version), None)
            if first is not None:
                olds[key, version].append(1000 * max(0.0, first.last_old - at))
                news[key, version].append(1000 * (first.first - at))
    return list(olds.values()), list(news.values())


def main() -> None:
    """Change prices many times, and print when other processes saw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--rate", type=float, help="changes a second, by a watched session, read from memory")
    parser.add_argument("--processes", type=int, default=4, help="that read; with --rate")
    parser.add_argument("--pause", type=float, default=0.003, help="seconds between two reads of a price; with --rate")
    options = parser.parse_args()
    if options.rate is None:
        old, late = changes(options.changes)
        print(
            f"{options.changes:,} changes: {old} old values read through the store after the acknowledgement; "
            f"commit to new value in another process p50 {statistics.median(late):.1f} ms, "
            f"p99 {percentile(late, 0.99):.1f} ms"
        )
        return
    olds, news = at_a_rate(options.changes, options.rate, options.processes, options.pause)
    seen = sum(len(each) == options.processes for each in news)
    print(
        f"{options.changes:,} changes, {options.rate:g} a second, {options.processes} processes on {os.cpu_count()} "
        f"cores; {seen:,} seen by all of them"
    )
    for name, each in (("the old value is last returned", olds), ("the new one is first returned", news)):
        one, last = [delay for delays in each for delay in delays], [max(delays) for delays in each if delays]
        print(
            f"commit until {name}: one process p50 {percentile(one, 0.5):.1f}, p99 {percentile(one, 0.99):.1f} ms; "
            f"the last of them p50 {percentile(last, 0.5):.1f}, p99 {percentile(last, 0.99):.1f} ms"
        )


if __name__ == "__main__":
    main()
