"""Where the time goes: `python -m benchmarks.profiles [memory|store|async|crowd|miss|commit]`.

A profile of each kind of hit, of misses, and of a large commit, its functions by their own time.  The profiler's own
cost is in all figures, and more of it where functions are small: read shares and calls, not microseconds; those are
`benchmarks.read_path`'s.  Of misses and commits it is CPU time of the one thread that reads or writes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.read_path import Product, product_of
from benchmarks.stack import Stack, stack
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

ROWS = 14
READS = 20_000
MISSES, READERS = 1000, 200
CHANGED = 4000
_ROOT = str(Path(__file__).resolve().parent.parent)


def memory(near: Any, far: Any, profile: cProfile.Profile) -> None:
    """Hits in this process's memory."""
    profile.enable()
    for _ in range(READS):
        near.get(42)
    profile.disable()


def store(near: Any, far: Any, profile: cProfile.Profile) -> None:
    """Hits in Redis, one after the other."""
    profile.enable()
    for _ in range(READS):
        far.get(42)
    profile.disable()


def asynchronous(near: Any, far: Any, profile: cProfile.Profile) -> None:
    """Hits in Redis on an event loop, a hundred together."""

    async def read() -> None:
        await far.aget(42)
        profile.enable()
        for _ in range(READS // 100):
            await asyncio.gather(*(far.aget(number) for number in range(100)))
        profile.disable()

    asyncio.run(read())


def crowd(near: Any, far: Any, profile: cProfile.Profile) -> None:
    """Tasks that read one cold key together."""

    async def read() -> None:
        profile.enable()
        await asyncio.gather(*(near.aget(0) for _ in range(READS)))
        profile.disable()

    asyncio.run(read())


KINDS: dict[str, Callable[[Any, Any, cProfile.Profile], None]] = {
    "memory": memory,
    "store": store,
    "async": asynchronous,
    "crowd": crowd,
}


def miss(here: Stack, profile: cProfile.Profile) -> int:
    """Cold misses of two hundred tasks, loaded by a worker from Postgres."""
    from benchmarks.shop import price

    numbers = iter(range(2, MISSES + 2))

    async def one() -> None:
        for number in numbers:
            await price.aget(number)

    async def read() -> None:
        await price.aget(1)
        profile.enable()
        await asyncio.gather(*(one() for _ in range(READERS)))
        profile.disable()

    asyncio.run(read())
    return MISSES


def commit(here: Stack, profile: cProfile.Profile) -> int:
    """One flush and commit of watched rows, until their tags are left to the drain; of each row."""
    from benchmarks.shop import Price, cache, engine, sessions, watch_prices

    cache.outbox.create(engine)
    watch_prices()
    for count in (1, CHANGED):
        with sessions() as session:
            for row in session.scalars(select(Price).limit(count)):
                row.amount += 1
            if count == CHANGED:  # the first connects
                profile.enable()
            session.commit()
            profile.disable()
    return CHANGED


WITH_STACK: dict[str, Callable[[Stack, cProfile.Profile], int]] = {"miss": miss, "commit": commit}


def table(profile: cProfile.Profile, reads: int) -> str:
    """Return the functions that took most time of their own, as text; per read."""
    stats: Any = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])
    whole = sum(row[2] for _, row in rows)
    lines = [f"{'calls':>6} {'own us':>7} {'share':>6}  function"]
    for (file, line, name), (_, calls, own, *_) in rows[:ROWS]:
        where = file.replace(_ROOT + "/", "").rpartition("site-packages/")[2].rpartition("/lib/")[2]
        place = f"{where}:{line} {name}" if line else name
        lines.append(f"{calls / reads:6.2f} {1e6 * own / reads:7.2f} {own / whole:6.0%}  {place}")
    lines.append(f"{'':6} {1e6 * whole / reads:7.2f}   100%  {sum(row[1] for _, row in rows) / reads:.0f} calls")
    return "\n".join(lines)


def main() -> None:
    """Profile, and print one table of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS, *WITH_STACK], metavar="kind", help="one of these; or all")
    options = parser.parse_args()
    hits = [kind for kind in options.kinds if kind in KINDS]
    if hits:
        profile_hits(hits)
    for kind in options.kinds:
        if kind in WITH_STACK:
            with stack() as here:
                here.sql("CREATE TABLE price (id int PRIMARY KEY, amount int)")
                here.sql(f"INSERT INTO price SELECT i, 0 FROM generate_series(1, {CHANGED}) AS i")
                show(kind, WITH_STACK[kind], here)


def show(kind: str, run: Callable[[Stack, cProfile.Profile], int], here: Stack) -> None:
    """Profile one that needs a worker and a database, and print its table."""
    from benchmarks.shop import cache

    profile = cProfile.Profile(time.thread_time)  # waiting for others is none of it
    reads = run(here, profile)
    print(f"{kind}: {run.__doc__}\n{table(profile, reads)}\n")
    cache.close()


def profile_hits(kinds: list[str]) -> None:
    """Profile hits, and print one table of each kind."""
    with Valkey() as valkey:
        cache = Cache(Config(redis_url=valkey.url, store_timeout=5.0))

        @cache.loader(fresh_for=3600, early=0)
        def near(load: Load, number: int) -> Product:
            return product_of(number)

        @cache.loader(fresh_for=3600, early=0, l1_for=0.0)
        def far(load: Load, number: int) -> Product:
            return product_of(number)

        near.get(42)
        wait_until(lambda: near.read(42).tier == "l1")
        far.get_many([*range(100)])
        for kind in kinds:
            profile = cProfile.Profile()
            KINDS[kind](near, far, profile)
            print(f"{kind}: {KINDS[kind].__doc__}\n{table(profile, READS)}\n")
        cache.close()


if __name__ == "__main__":
    main()
