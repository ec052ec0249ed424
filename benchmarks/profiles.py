"""Where the time of a hit goes: `python -m benchmarks.profiles [memory|store|async|crowd]`.

A profile of each kind of hit, its functions by their own time.  The profiler's own cost is in all figures, and more of
it where functions are small: read shares and calls, not microseconds; those are `benchmarks.read_path`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.read_path import Product, product_of
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

ROWS = 14
READS = 20_000
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


def table(profile: cProfile.Profile) -> str:
    """Return the functions that took most time of their own, as text; per read."""
    stats: Any = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])
    whole = sum(row[2] for _, row in rows)
    lines = [f"{'calls':>6} {'own us':>7} {'share':>6}  function"]
    for (file, line, name), (_, calls, own, *_) in rows[:ROWS]:
        where = file.replace(_ROOT + "/", "").rpartition("site-packages/")[2].rpartition("/lib/")[2]
        place = f"{where}:{line} {name}" if line else name
        lines.append(f"{calls / READS:6.2f} {1e6 * own / READS:7.2f} {own / whole:6.0%}  {place}")
    lines.append(f"{'':6} {1e6 * whole / READS:7.2f}   100%  {sum(row[1] for _, row in rows) / READS:.0f} calls")
    return "\n".join(lines)


def main() -> None:
    """Profile, and print one table of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "kinds", nargs="*", default=list(KINDS), metavar="kind", help="memory, store, async, crowd; or all"
    )
    options = parser.parse_args()
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
        for kind in options.kinds:
            profile = cProfile.Profile()
            KINDS[kind](near, far, profile)
            print(f"{kind}: {KINDS[kind].__doc__}\n{table(profile)}\n")
        cache.close()


if __name__ == "__main__":
    main()
