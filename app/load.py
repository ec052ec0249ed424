"""Replay a trace or a Zipf stream against the shop: `python -m app.load --trace FILE.xz --url http://127.0.0.1:8000`.

Without `--url` it reads straight through the library.  Trace keys become product ids by dense rank modulo the number
of products, so that equal keys stay equal.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import lzma
import multiprocessing
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def loopback(url: str) -> tuple[str, int]:
    """Return host and port of a URL of this machine.

    Raises:
        ValueError: it is another machine's: this is a load generator.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"--url must be on this machine (127.0.0.1, localhost), got {url}")
    return parts.hostname, parts.port or 80


def replay(ids: list[int], url: str, path: str, concurrency: int, done: Any, results: Any) -> None:
    """Send one process's share of the requests; report latencies and hit kinds."""
    kinds: collections.Counter[str] = collections.Counter()
    latencies: list[float] = []
    stream = iter(ids)

    async def over_http() -> None:
        host, port = loopback(url)
        reader, writer = await asyncio.open_connection(host, port)
        for number in stream:
            begun = time.perf_counter()
            writer.write(f"GET {path}/{number} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            note(begun, head.split(b" ", 2)[1].decode())
        writer.close()

    async def through_library() -> None:
        from app.shop import product

        for number in stream:
            begun = time.perf_counter()
            found = await product.aread(number)
            note(begun, f"{found.freshness.value} {found.tier}")

    def note(begun: float, kind: str) -> None:
        latencies.append(time.perf_counter() - begun)
        kinds[kind] += 1
        if len(latencies) % 200 == 0:
            with done.get_lock():
                done.value += 200

    async def everybody() -> None:
        work: Callable[[], Any] = over_http if url else through_library
        await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(everybody())
    results.put((latencies, dict(kinds)))


def run(ids: list[int], *, url: str, path: str, processes: int, concurrency: int) -> Iterator[str]:
    """Replay ids, and yield the lines of the report."""
    from sqlalchemy import create_engine, text

    from app import database

    context = multiprocessing.get_context("spawn")
    engine = create_engine(database.engine.url)
    with engine.connect() as connection:
        before = int(connection.execute(text(COUNT)).scalar_one())
    done, results = context.Value("q", 0), context.Queue()
    shares = [ids[at::processes] for at in range(processes)]
    begun = time.monotonic()
    workers = [context.Process(target=replay, args=(share, url, path, concurrency, done, results)) for share in shares]
    for worker in workers:
        worker.start()
    rows: list[tuple[list[float], dict[str, int]]] = []
    while len(rows) < processes:
        if not results.empty():
            rows.append(results.get())
        elif any(worker.exitcode not in (None, 0) for worker in workers):
            raise RuntimeError("a process of the load generator ended early; its error is above")
        else:
            workers[0].join(0.1)
        print(f"\r{done.value:,} of {len(ids):,} requests", end="", file=sys.stderr, flush=True)
    took = time.monotonic() - begun
    print(file=sys.stderr)
    with engine.connect() as connection:
        queries = int(connection.execute(text(COUNT)).scalar_one()) - before
    engine.dispose()
    latencies = sorted(itertools.chain.from_iterable(each for each, _ in rows))
    kinds = sum((collections.Counter(each) for _, each in rows), collections.Counter())
    distinct = len(set(ids))
    yield f"requests   {len(latencies):,} in {took:.1f} s, {len(latencies) / took:,.0f}/s, {processes} processes"
    for share in (0.5, 0.9, 0.99, 1.0):
        at = min(int(len(latencies) * share), len(latencies) - 1)
        yield f"p{share * 100:<9g} {latencies[at] * 1000:.2f} ms"
    for kind, count in kinds.most_common():
        yield f"{kind:<10} {count:,} ({count / len(latencies):.2%})"
    yield f"queries    {queries:,} by Postgres's own count"
    yield f"ideal      {distinct:,} distinct products, hit ratio {1 - distinct / len(ids):.3f}"
    yield f"reached    hit ratio {1 - queries / len(ids):.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m app.load", description=__doc__)
    parser.add_argument("--trace", type=Path, help="xz of big-endian integers, one key each")
    parser.add_argument("--format", choices=sorted(FORMATS), default="ints")
    parser.add_argument("--zipf", type=float, default=0.9, help="exponent, where no trace is given")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100_000, help="at most so many")
    parser.add_argument("--products", type=int, default=10_000, help="how many are seeded")
    parser.add_argument("--url", default="", help="the API's address; without it, through the library")
    parser.add_argument("--uncached", action="store_true", help="the API's uncached twin")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once in each process")
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
    for line in run(ids, url=options.url, path=path, processes=options.processes, concurrency=options.concurrency):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
