"""One bulk UPDATE behind triggers, and everybody else: `python -m benchmarks.bulk_update [--rows 1000000]`.

A process drains the outbox, on a database that ends transactions which are idle for a second.  Before the UPDATE,
while it runs and until all that it has left is delivered, somebody changes one row of another table ten times a second,
and reads until the change is seen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from typing import Any, NamedTuple

from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from benchmarks.report import percentile
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Postgres, Valkey

#: Longest time that the database leaves a transaction idle, milliseconds.
IDLE_LIMIT = 1000
#: Changes of others a second.
OTHERS = 10


class Drained(NamedTuple):
    """What became of one bulk statement.

    Attributes:
        rows: that it has changed; each has a tag of its own.
        statement, drained: how long it took, and how long until all it had left was delivered, seconds.
        others: from the commit of each change by others until it was read, sorted, seconds.
        broken: transactions of the drain that the database has ended.
    """

    rows: int
    statement: float
    drained: float
    others: list[float]
    broken: int


def cache_of(redis_url: str, database_url: str) -> Cache:
    """Return a cache of the benchmark's database."""
    sessions = sessionmaker(create_engine(database_url, pool_pre_ping=True))
    cache = Cache(Config(redis_url=redis_url, store_timeout=5.0), sessions=sessions)
    cache.watch(sessions, {})
    return cache


def drain(redis_url: str, database_url: str, stop: Any, broken: Any) -> None:
    """Drain until asked to stop; count the transactions that were broken off."""
    import logging

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            broken.value += 1

    logging.getLogger("cacheworkers").addHandler(Counting(logging.WARNING))
    cache = cache_of(redis_url, database_url)
    waiting = threading.Event()

    def wait() -> None:
        stop.wait()
        waiting.set()

    threading.Thread(target=wait, daemon=True).start()
    cache.drain_until(waiting)
    cache.close()


def measured(rows: int) -> Drained:
    """Change rows by one statement while others change theirs."""
    context = multiprocessing.get_context("spawn")
    with Valkey() as valkey, Postgres() as postgres:
        url = postgres.create_database("bulk")
        engine = create_engine(url)
        with engine.begin() as connection:
            for each in (
                f"ALTER DATABASE bulk SET idle_in_transaction_session_timeout = {IDLE_LIMIT}",
                "CREATE TABLE product (id int PRIMARY KEY, price int)",
                f"INSERT INTO product SELECT n, 1 FROM generate_series(1, {rows}) n",
                "CREATE TABLE page (id int PRIMARY KEY, version int)",
                "INSERT INTO page VALUES (1, 0)",
            ):
                connection.execute(text(each))
        cache = cache_of(valkey.url, url)
        cache.outbox.create(engine)
        with engine.begin() as connection:
            cache.triggers({"product": ["product:{id}"], "page": ["page:{id}"]}).install(connection)

        @cache.loader(tags=("page:{page_id}",), fresh_for=600, l1_for=0.0)
        def page(load: Load, page_id: int) -> int:
            found: int = load.session.scalar(text("SELECT version FROM page WHERE id = :id"), {"id": page_id})
            return found

        stop, broken = context.Event(), context.Value("i", 0)
        draining = context.Process(target=drain, args=(valkey.url, url, stop, broken))
        draining.start()
        others: list[float] = []
        is_over = threading.Event()

        def change() -> None:
            page.get(1)
            version = 0
            while not is_over.wait(1 / OTHERS):
                version += 1
                with engine.begin() as connection:
                    connection.execute(text("UPDATE page SET version = :version"), {"version": version})
                began = time.monotonic()
                while page.get(1) != version:
                    time.sleep(0.002)
                others.append(time.monotonic() - began)

        changing = threading.Thread(target=change)
        changing.start()
        while len(others) < OTHERS:  # the drain has begun
            time.sleep(0.1)
        others.clear()
        began = time.monotonic()
        with engine.begin() as connection:
            connection.execute(text("UPDATE product SET price = price + 1"))
        statement = time.monotonic() - began
        while cache.outbox_backlog().rows > 1:  # a change of the others may be on its way
            time.sleep(0.1)
        drained = time.monotonic() - began - statement
        is_over.set()
        changing.join()
        stop.set()
        draining.join()
        cache.close()
        engine.dispose()
    return Drained(rows, statement, drained, sorted(others), broken.value)


def main() -> None:
    """Measure once, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    found = measured(parser.parse_args().rows)
    print(f"one UPDATE of {found.rows:,} rows: {found.statement:.1f} s; all delivered {found.drained:.1f} s later")
    print(f"transactions of the drain that the database ended, idle for {IDLE_LIMIT} ms: {found.broken}")
    p50, p99, most = percentile(found.others, 0.5), percentile(found.others, 0.99), found.others[-1]
    print(f"{len(found.others)} changes by others, until read: p50 {p50:.3f} s, p99 {p99:.3f} s, most {most:.3f} s")


if __name__ == "__main__":
    main()
