"""Commit to visible, from another process: `python -m benchmarks.visible [--changes 1000]`."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

from benchmarks.stack import stack


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


def main() -> None:
    """Change one price many times, and print when another process saw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=1000)
    options = parser.parse_args()
    old, late = changes(options.changes)
    print(
        f"{options.changes:,} changes: {old} old values read through the store after the acknowledgement; "
        f"commit to new value in another process p50 {statistics.median(late):.1f} ms, "
        f"p99 {late[int(len(late) * 0.99) - 1]:.1f} ms"
    )


if __name__ == "__main__":
    main()
