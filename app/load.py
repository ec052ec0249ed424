"""Replay a trace or a Zipf stream against the shop: `python -m app.load --trace FILE.xz --url http://127.0.0.1:8000`.

Without `--url` it reads straight through the library.  Trace keys become product ids by dense rank modulo the number
of products, so that equal keys stay equal.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import lzma
import multiprocessing
import queue
import random
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.replay import Changes, loopback, replay, write

FORMATS = {"ints": ">i", "longs": ">q"}
COUNT = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query ILIKE '%FROM product%'"


def trace_keys(path: Path, kind: str) -> list[int]:
    """Return the keys of an xz trace of big-endian integers, 4 bytes ("ints") or 8 ("longs").

    Raises:
        ValueError: its length is no multiple of a key's.
    """
    raw = lzma.decompress(path.read_bytes())
    size = struct.calcsize(FORMATS[kind])
    if len(raw) % size:
        raise ValueError(f"{path} must hold whole {size}-byte keys, got {len(raw)} bytes; is --format {kind} right?")
    return [key for (key,) in struct.iter_unpack(FORMATS[kind], raw)]


def zipf_keys(requests: int, keys: int, exponent: float, seed: int = 1) -> list[int]:
    """Return keys whose rank r is read in proportion to r^-exponent; equal for equal arguments."""
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, keys + 1)))
    return random.Random(seed).choices(range(1, keys + 1), cum_weights=weights, k=requests)


def product_ids(keys: Sequence[int], products: int) -> list[int]:
    """Return each key's product: its dense rank by first appearance, modulo the number of products."""
    ranks: dict[int, int] = {}
    return [ranks.setdefault(key, len(ranks)) % products + 1 for key in keys]


@dataclass
class Report:
    """What a replay came to; latencies in seconds, sorted.

    Attributes:
        requests, wanted: those that were sent, and all that were to be.
        kinds: HTTP status, what failed, or freshness and tier -> reads.
        queries: loads of products, by Postgres's own count.
        writes: prices changed meanwhile.
        stale_for: of each read that saw a price older than an acknowledged change, how long before it the change was.
    """

    requests: int
    wanted: int
    distinct: int
    processes: int
    took: float
    latencies: list[float]
    kinds: dict[str, int]
    queries: int
    writes: int
    stale_for: list[float]

    def at(self, share: float) -> float:
        """Return a percentile of the latencies, seconds."""
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)]

    def lines(self) -> Iterator[str]:
        """Yield the report, line by line."""
        rate = self.requests / self.took
        if self.requests < self.wanted:
            yield f"given up   {self.wanted - self.requests:,} requests were not sent: the server was gone"
        yield f"requests   {self.requests:,} in {self.took:.1f} s, {rate:,.0f}/s, {self.processes} processes"
        for share in (0.5, 0.9, 0.99, 1.0):
            yield f"p{share * 100:<9g} {self.at(share) * 1000:.2f} ms"
        for kind, count in sorted(self.kinds.items(), key=lambda each: -each[1]):
            yield f"{kind:<10} {count:,} ({count / self.requests:.2%})"
        yield f"queries    {self.queries:,} by Postgres's own count"
        yield f"ideal      {self.distinct:,} distinct products, hit ratio {1 - self.distinct / self.requests:.3f}"
        yield f"reached    hit ratio {1 - self.queries / self.requests:.3f}"
        yield f"writes     {self.writes:,} prices changed meanwhile"
        worst = f", at most {max(self.stale_for) * 1000:.1f} ms after it" if self.stale_for else ""
        yield f"staleness  {len(self.stale_for):,} reads older than an acknowledged change{worst}"


def loads_counted(database_url: str) -> int:
    """Return how many loads of products Postgres has counted."""
    from sqlalchemy import create_engine, text

    engine = create_engine(database_url)
    with engine.connect() as connection:
        found = int(connection.execute(text(COUNT)).scalar_one())
    engine.dispose()
    return found


def run(
    ids: list[int],
    *,
    url: str,
    path: str,
    processes: int,
    concurrency: int,
    writes: float = 0.0,
    rate: float | None = None,
    database_url: str | None = None,
    count_queries: bool = True,
) -> Report:
    """Replay ids while `writes` prices are changed a second, with a progress bar on the terminal.

    Args:
        rate: requests a second of all processes together; None for as many as are answered.
        database_url: whose Postgres counts the queries; None for the shop's own.
        count_queries: False where the database cannot be reached from here; then they are 0.

    Raises:
        RuntimeError: a process ended early; its error is on stderr.
    """
    if database_url is None and count_queries:
        from app.database import engine

        database_url = engine.url.render_as_string(hide_password=False)
    before = loads_counted(database_url) if database_url else 0
    context = multiprocessing.get_context("spawn")
    done, results = context.Value("q", 0), context.Queue()
    changes, stop, written = Changes(max(ids)), threading.Event(), list[int]()
    shares = [ids[at::processes] for at in range(processes)]
    each = None if rate is None else rate / processes
    workers = [
        context.Process(target=replay, args=(share, url, path, concurrency, changes, done, results, each))
        for share in shares
    ]
    writer = threading.Thread(target=write, args=(url, changes, ids, writes, stop, written))
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    if writes:
        writer.start()
    rows: list[tuple[list[float], dict[str, int], list[float]]] = []
    try:
        with _progress() as progress:
            bar = progress.add_task("requests", total=len(ids))
            while len(rows) < processes:
                with contextlib.suppress(queue.Empty):
                    rows.append(results.get(timeout=0.2))
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise RuntimeError("a process of the load generator ended early; its error is above")
                progress.update(bar, completed=done.value)
            took = time.monotonic() - begun
            progress.update(bar, completed=len(ids))
    finally:
        stop.set()
        if writes:
            writer.join()
        for worker in workers:
            if len(rows) < processes:
                worker.terminate()
            worker.join()
    found = loads_counted(database_url) - before if database_url else 0
    kinds = sum((collections.Counter(each) for _, each, _ in rows), collections.Counter[str]())
    return Report(
        requests=kinds.total(),
        wanted=len(ids),
        distinct=len(set(ids)),
        processes=processes,
        took=took,
        latencies=sorted(itertools.chain.from_iterable(each for each, _, _ in rows)),
        kinds=dict(kinds),
        queries=found,
        writes=len(written),
        stale_for=[each for _, _, stale in rows for each in stale],
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m app.load", description=__doc__)
    parser.add_argument("--trace", type=Path, help="xz of big-endian integers, one key each")
    parser.add_argument("--format", choices=sorted(FORMATS), default="ints")
    parser.add_argument("--zipf", type=float, default=0.9, help="exponent, where no trace is given")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100_000, help="how many at most")
    parser.add_argument("--products", type=int, default=10_000, help="how many are seeded")
    parser.add_argument("--url", default="", help="the API's address; without it, through the library")
    parser.add_argument("--uncached", action="store_true", help="the API's uncached twin")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=8, help="concurrent requests of each process")
    parser.add_argument("--rate", type=float, help="requests a second; without it, as many as are answered")
    parser.add_argument("--writes", type=float, default=0.0, help="prices to change a second meanwhile")
    options = parser.parse_args(arguments)
    try:
        if options.url:
            loopback(options.url)
        keys = trace_keys(options.trace, options.format) if options.trace else None
    except (OSError, ValueError, lzma.LZMAError) as error:
        parser.error(str(error))
    if keys is None:
        keys = zipf_keys(options.requests, options.keys, options.zipf)
    ids = product_ids(keys[: options.requests], options.products)
    path = "/uncached/products" if options.uncached else "/products"
    report = run(
        ids,
        url=options.url.rstrip("/"),
        path=path,
        processes=options.processes,
        concurrency=options.concurrency,
        writes=options.writes,
        rate=options.rate,
    )
    for line in report.lines():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
