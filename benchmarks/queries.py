"""How many queries a trace costs from a cold cache: `python -m benchmarks.queries [--trace FILE ...] [--quick]`.

Replayed are a seeded Zipf and recorded traces (`--trace`, or all of a directory that the variable TRACES names), with
nothing invalidated and nothing expired: a key is loaded once.  One load is one query.  A plain loader is asked for
one key after the other; a batch loader for pages of keys with `get_many`, and by as many tasks as a page has keys,
each for one with `aget`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import markdown, progress
from benchmarks.traces import Trace, found, named, zipf
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey

PAGE = 20
HEADS = ("trace", "read by", "reads", "keys", "queries", "queries a key")


class Queries(NamedTuple):
    """The queries of one way to read a trace."""

    trace: str
    way: str
    reads: int
    distinct: int
    queries: int


class Shop:
    """A cold cache, and a count of its queries."""

    def __init__(self, url: str, namespace: str) -> None:
        self.cache = Cache(Config(redis_url=url, namespace=namespace, store_timeout=5.0))
        self.queries = 0

        @self.cache.loader(fresh_for=3600, early=0)
        def plain(load: Load, number: int) -> int:
            self.queries += 1
            return number

        @self.cache.batch_loader(fresh_for=3600, early=0)
        def batch(load: Load, numbers: list[int]) -> dict[int, int]:
            self.queries += 1
            return {number: number for number in numbers}

        self.plain: Any = plain
        self.batch: Any = batch


def one_by_one(shop: Shop, keys: Sequence[int]) -> None:
    """Read with a plain loader, one after the other."""
    for key in keys:
        shop.plain.get(key)


def page_by_page(shop: Shop, keys: Sequence[int]) -> None:
    """Read with a batch loader, a page a call."""
    for page in pages(keys):
        shop.batch.get_many(page)


def by_tasks(shop: Shop, keys: Sequence[int]) -> None:
    """Read with a batch loader, a page's keys by as many tasks together."""

    async def all_of_them() -> None:
        for page in pages(keys):
            await asyncio.gather(*map(shop.batch.aget, page))

    asyncio.run(all_of_them())


def pages(keys: Sequence[int]) -> Iterator[list[int]]:
    """Yield the keys in lists of `PAGE`."""
    for start in range(0, len(keys), PAGE):
        yield list(keys[start : start + PAGE])


WAYS = {
    "get, a plain loader": one_by_one,
    f"get_many of {PAGE}, a batch loader": page_by_page,
    f"aget by {PAGE} tasks together, a batch loader": by_tasks,
}


def measured(traces: Sequence[Trace]) -> list[Queries]:
    """Return the queries of each way to read each trace."""
    rows = []
    with Valkey() as valkey, progress() as bar:
        task = bar.add_task("replays", total=len(traces) * len(WAYS))
        for number, (trace, (name, way)) in enumerate(itertools.product(traces, WAYS.items())):
            shop = Shop(valkey.url, f"queries{number}")
            way(shop, trace.keys)
            shop.cache.close()
            rows.append(Queries(trace.name, name, len(trace.keys), len(trace.counts), shop.queries))
            bar.advance(task)
    return rows


def cells(row: Queries) -> tuple[str, ...]:
    """Return a row of the table."""
    counts = (f"{each:,}" for each in (row.reads, row.distinct, row.queries))
    return (row.trace, row.way, *counts, f"{row.queries / row.distinct:.2f}")


def small(paths: Sequence[Path] | None, most: int = 200_000) -> list[Trace]:
    """Return the traces of files, of each its first `limit` reads."""
    traces = [named(path) for path in found(paths)]
    return [trace if len(trace.keys) <= most else Trace(trace.name, trace.keys[:most]) for trace in traces]


def main() -> None:
    """Replay, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trace", type=Path, nargs="+", help="recorded traces; or the variable TRACES names their directory"
    )
    parser.add_argument("--quick", action="store_true", help="a small Zipf only")
    options = parser.parse_args()
    traces = [Trace("Zipf 0.9", zipf(10_000, 1_000) if options.quick else zipf(100_000, 10_000))]
    if not options.quick:
        traces += small(options.trace)
    print(markdown(HEADS, map(cells, measured(traces))))


if __name__ == "__main__":
    main()
