"""Commit to visible, from other processes: `python -m benchmarks.visible [--changes 1000]`.

One price is changed by hand and read through the store by one process, each change once the last was seen.  With
`--rate 100`, prices are changed by watched sessions, at this rate, while `--processes` read them all from their
own memory, `--reads` a second each, and have done so for a second: how long after the commit each of them last returned
the old price, when it first returned the new one, and both for the last of the processes; and who used the cores.  The
changes are due at fixed instants, however long the ones before them take; what is measured from the instant at which a
change was due forgives no late one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psutil

from benchmarks.report import percentile
from benchmarks.stack import stack

PRICES = 20
#: Reads a second of each process that reads from memory.
READS = 2000
#: What the command of a process has in it -> what it is; what has none of these reads.
KINDS = {"postgres": "database", "valkey": "store", "redis-server": "store", "celery": "worker"}
#: Sessions that may run together: a change does not wait for the one before.
WRITERS = 8


class Change(NamedTuple):
    """When a change was due, when its COMMIT was sent, and when it had returned, invalidated."""

    due: float
    committed: float
    returned: float


class Seen(NamedTuple):
    """Of each change, what each process that saw it noticed: instants."""

    last_old: list[float]
    first_new: list[float]


class Noticed(NamedTuple):
    """Delays, sorted, in milliseconds: in each process, in the last of them, and there since the change was due."""

    each: list[float]
    last: list[float]
    since_due: list[float]


class Delays(NamedTuple):
    """Delays of the changes that all processes saw, sorted, in milliseconds.

    Attributes:
        begun: from when a change was due until its COMMIT.
        returned: from the COMMIT until the writer goes on, invalidated.
        gone: from the COMMIT until the old value is last returned.
        new: from the COMMIT until the new one is first returned.
    """

    changes: int
    begun: list[float]
    returned: list[float]
    gone: Noticed
    new: Noticed


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


class Cpu(NamedTuple):
    """What has run so far: seconds of CPU by kind of process, and of all cores' idleness."""

    by_kind: dict[str, float]
    idle: float

    @classmethod
    def now(cls) -> Cpu:
        """Return what this process, its children and the machine have used."""
        mine = psutil.Process()
        used = {"writer": sum(mine.cpu_times()[:2])}
        for each in mine.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                words = " ".join(each.cmdline())
                kind = next((kind for word, kind in KINDS.items() if word in words), "readers")
                used[kind] = used.get(kind, 0.0) + sum(each.cpu_times()[:2])
        return cls(used, psutil.cpu_times().idle)

    def share_since(self, before: Cpu, seconds: float) -> dict[str, float]:
        """Return which share of all cores each kind has used since, what others have, and what was idle."""
        whole = seconds * (os.cpu_count() or 1)
        found = {kind: (used - before.by_kind.get(kind, 0.0)) / whole for kind, used in self.by_kind.items()}
        idle = (self.idle - before.idle) / whole
        return {**found, "others": max(0.0, 1.0 - idle - sum(found.values())), "idle": idle}


def at_a_rate(
    count: int, rate: float, processes: int, reads: float, shares: dict[str, float] | None = None
) -> list[tuple[Change, Seen]]:
    """Change prices so often a second; return each change, and when the processes saw it.

    Args:
        reads: how many a second each of the processes does.
        shares: filled with who used the processor meanwhile.
    """
    pause = PRICES / reads
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
        time.sleep(1.0)  # they serve: what a process does in its first second is not measured here

        def change(number: int, due: float) -> Change:
            with sessions() as session:
                session.get_one(Price, number % PRICES + 1).amount = number
                session.flush()
                # Before the COMMIT: that it has happened is known to who reads before it is to who wrote.
                committed = time.monotonic()
                session.commit()
            return Change(due, committed, time.monotonic())

        with ThreadPoolExecutor(WRITERS) as writers:
            for _ in writers.map(change, [0] * WRITERS, [0.0] * WRITERS):
                pass  # connected
            began, before = time.monotonic(), Cpu.now()
            changing = []
            for number in range(1, count + 1):
                due = began + number / rate
                time.sleep(max(0.0, due - time.monotonic()))
                changing.append(writers.submit(change, number, due))
            changes = [each.result() for each in changing]
            if shares is not None:
                shares |= Cpu.now().share_since(before, time.monotonic() - began)
        time.sleep(1.0)
        stop.set()
        seen = [[Sighting(*each) for each in reports.get(timeout=60)] for _ in watchers]
        for watcher in watchers:
            watcher.join()
        cache.close()
    return [(change, _seen(number, seen)) for number, change in enumerate(changes, 1)]


def _seen(number: int, processes: Iterable[Iterable[Sighting]]) -> Seen:
    seen = Seen([], [])
    for sightings in processes:
        mine = (each for each in sightings if each.key == number % PRICES + 1 and each.version >= number)
        first = next(mine, None)
        if first is not None:
            seen.last_old.append(first.last_old)
            seen.first_new.append(first.first)
    return seen


def delays(found: Iterable[tuple[Change, Seen]], processes: int) -> Delays:
    """Return the delays of what the processes saw."""
    by_all = [(change, seen) for change, seen in found if len(seen.first_new) == processes]

    def noticed(at: int) -> Noticed:
        return Noticed(
            _ms(instant - change.committed for change, seen in by_all for instant in seen[at]),
            _ms(max(seen[at]) - change.committed for change, seen in by_all),
            _ms(max(seen[at]) - change.due for change, seen in by_all),
        )

    begun = _ms(change.committed - change.due for change, _ in by_all)
    returned = _ms(change.returned - change.committed for change, _ in by_all)
    return Delays(len(by_all), begun, returned, noticed(0), noticed(1))


def _ms(seconds: Iterable[float]) -> list[float]:
    return sorted(1000 * max(0.0, each) for each in seconds)


def _reported(what: str, found: list[float]) -> None:
    print(f"{what}: p50 {percentile(found, 0.5):.1f}, p99 {percentile(found, 0.99):.1f}, most {found[-1]:.1f} ms")


def main() -> None:
    """Change prices many times, and print when other processes saw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--rate", type=float, help="changes a second, by a watched session, read from memory")
    parser.add_argument("--processes", type=int, default=4, help="that read; with --rate")
    parser.add_argument("--reads", type=float, default=READS, help="a second, of each of them; with --rate")
    options = parser.parse_args()
    if options.rate is None:
        old, late = changes(options.changes)
        print(
            f"{options.changes:,} changes: {old} old values read through the store after the acknowledgement; "
            f"commit to new value in another process p50 {statistics.median(late):.1f} ms, "
            f"p99 {percentile(late, 0.99):.1f} ms"
        )
        return
    shares: dict[str, float] = {}
    seen = at_a_rate(options.changes, options.rate, options.processes, options.reads, shares)
    found = delays(seen, options.processes)
    print(
        f"{options.changes:,} changes, {options.rate:g} a second, {options.processes} processes on {os.cpu_count()} "
        f"cores, {options.reads:g} reads a second each; {found.changes:,} seen by all of them"
    )
    print("the cores meanwhile:", ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))
    _reported("due until its COMMIT", found.begun)
    _reported("COMMIT until the writer goes on, invalidated", found.returned)
    for name, noticed in (("the old price is last returned", found.gone), ("the new one is first returned", found.new)):
        _reported(f"COMMIT until {name}, each process", noticed.each)
        _reported("... the last of them", noticed.last)
        _reported("... since it was due", noticed.since_due)


if __name__ == "__main__":
    main()
