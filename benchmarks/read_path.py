"""What a hit costs, beside the peers in the same run: `python -m benchmarks.read_path`.

Peers that are not installed are left out: `pip install 'cashews[redis]' dogpile.cache 'aiocache[redis]' cachetools
coredis`.  The floor is one round trip on a bare socket with hiredis: nothing in Python that asks Redis can be quicker,
but for not sleeping while the store answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.util
import io
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import hiredis
import msgspec
import redis
import redis.asyncio
from rich.console import Console
from rich.table import Table

from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

ROUNDS = 5
#: The row of a store hit that the others are compared with.
FLOOR = "floor: bare socket + hiredis + decode"
PICTURE_WIDTH = 110


class Product(msgspec.Struct, frozen=True):
    """A small value, of the size of a product."""

    id: int
    name: str
    amount: int
    tags: tuple[str, ...]


def product_of(number: int) -> Product:
    """Return a product."""
    return Product(number, "Tall oak table", 19_900, ("oak", "tables", "new"))


class Timed(NamedTuple):
    """One row: microseconds a read, and the ratio to the first of its group."""

    group: str
    name: str
    us: float
    ratio: float


class Bench:
    """Times of everything, in microseconds, each the median of the rounds."""

    def __init__(self, rounds: int = ROUNDS) -> None:
        self.rows: list[Timed] = []
        self._rounds = rounds
        self._group: list[tuple[str, Callable[[], Any], int]] = []

    def add(self, name: str, call: Callable[[], Any], count: int) -> None:
        """Take one of a group, to be called this often in a round; the first is what others are compared with."""
        self._group.append((name, call, count))

    def run(self, group: str, of: int = 1, times_rounds: int = 1) -> None:
        """Time the group in turns, so that what else the machine does meets all of them; each call is `of` reads."""
        times: dict[str, list[float]] = {}
        for _ in range(self._rounds * times_rounds + 1):
            for name, call, count in self._group:
                began = time.perf_counter()
                for _ in range(count):
                    call()
                times.setdefault(name, []).append((time.perf_counter() - began) / count)
        self._note(group, times, of)

    async def arun(self, group: str, of: int = 1, times_rounds: int = 1) -> None:
        """Do what `run` does, where calls return awaitables."""
        times: dict[str, list[float]] = {}
        for _ in range(self._rounds * times_rounds + 1):
            for name, call, count in self._group:
                began = time.perf_counter()
                for _ in range(count):
                    await call()
                times.setdefault(name, []).append((time.perf_counter() - began) / count)
        self._note(group, times, of)

    def _note(self, group: str, times: dict[str, list[float]], of: int) -> None:
        """Take a row each: its median, the first round left out."""
        medians = {name: statistics.median(found[1:]) * 1e6 / of for name, found in times.items()}
        base = next(iter(medians.values()))
        self.rows += [Timed(group, name, median, median / base) for name, median in medians.items()]
        self._group = []

    def __getitem__(self, at: tuple[str, str]) -> Timed:
        """Return the row of a group and a name."""
        return next(row for row in self.rows if (row.group, row.name) == at)


def has(module: str) -> bool:
    """Return whether a peer is installed."""
    return importlib.util.find_spec(module) is not None


def memory(bench: Bench, near: Any) -> None:
    """Hits in this process's memory."""

    @functools.lru_cache(1000)
    def lru(number: int) -> Product:
        return product_of(number)

    bench.add("functools.lru_cache", lambda: lru(42), 100_000)
    bench.add("cacheworkers get (coherent)", lambda: near.get(42), 100_000)
    if has("cachetools"):
        from cachetools import TTLCache, cached

        ttl = cached(TTLCache[Any, Any](1000, 600))(product_of)
        bench.add("cachetools TTLCache (not coherent)", lambda: ttl(42), 50_000)
    bench.run("memory, sync")


def store(bench: Bench, url: str, far: Any) -> None:
    """Hits in Redis, decoded."""
    client: Any = redis.Redis.from_url(url)
    decode = msgspec.json.Decoder(Product).decode
    client.set("bare", msgspec.json.encode(product_of(42)))
    where = urlsplit(url)
    bare = socket.create_connection((where.hostname or "", where.port or 6379))
    reader: Any = hiredis.Reader()
    command = hiredis.pack_command(("GET", "bare"))  # type: ignore[arg-type]  # the stub wants a wider tuple

    def floor() -> Any:
        bare.sendall(command)
        reader.feed(bare.recv(65536))
        return decode(reader.gets())

    bench.add(FLOOR, floor, 2000)
    bench.add("cacheworkers get", lambda: far.get(42), 2000)
    bench.add("redis-py get + decode", lambda: decode(client.get("bare")), 2000)
    if has("dogpile"):
        from dogpile.cache import make_region

        region = make_region().configure("dogpile.cache.redis", arguments={"url": url})
        bench.add("dogpile.cache get_or_create", lambda: region.get_or_create("d", lambda: product_of(42)), 2000)
    bench.run("store, sync")

    keys = [f"bare{number}" for number in range(100)]
    client.mset(dict.fromkeys(keys, msgspec.json.encode(product_of(42))))
    bench.add("redis-py mget + decode", lambda: [decode(raw) for raw in client.mget(keys)], 1)
    bench.add("cacheworkers get_many", lambda: far.get_many(range(100)), 1)
    bench.run("store, sync, one of 100 together", of=100, times_rounds=200)
    bare.close()


async def on_a_loop(bench: Bench, url: str, near: Any, far: Any) -> None:
    """The same, on an event loop."""

    async def empty() -> None:
        pass

    bench.add("an empty coroutine", empty, 100_000)
    bench.add("cacheworkers aget (coherent)", lambda: near.aget(42), 100_000)
    await bench.arun("memory, async")

    client: Any = redis.asyncio.Redis.from_url(url)
    decode = msgspec.json.Decoder(Product).decode

    async def plain(key: str) -> Any:
        return decode(await client.get(key))

    peers = contextlib.AsyncExitStack()
    bench.add("redis.asyncio get + decode", lambda: plain("bare"), 2000)
    bench.add("cacheworkers aget", lambda: far.aget(42), 2000)
    if has("cashews"):
        from cashews import Cache as Cashews

        cashews = Cashews()
        cashews.setup(url, client_side=False)
        cached = cashews(ttl="10m", key="c:{number}")(_aproduct)
        bench.add("cashews", lambda: cached(42), 1000)
        peers.push_async_callback(cashews.close)
    if has("aiocache"):
        from aiocache import RedisCache
        from aiocache import cached as acached
        from aiocache.serializers import PickleSerializer

        where = urlsplit(url)
        options = {"endpoint": where.hostname, "port": where.port, "serializer": PickleSerializer()}
        wrapped = acached(cache=RedisCache, key="aio", ttl=600, **options)(_aproduct)
        bench.add("aiocache", lambda: wrapped(42), 1000)
    core: Any = None
    if has("coredis"):
        import coredis

        core = await peers.enter_async_context(coredis.Redis.from_url(url))

        async def through_core(key: str) -> Any:
            return decode(await core.get(key))

        bench.add("coredis get + decode", lambda: through_core("bare"), 1000)
    await bench.arun("store, async, alone")

    async def bare_many() -> list[Any]:
        return [decode(raw) for raw in await client.mget(keys)]

    keys = [f"bare{number}" for number in range(100)]
    bench.add("redis.asyncio mget + decode", bare_many, 1)
    bench.add("cacheworkers aget_many", lambda: far.aget_many(range(100)), 1)
    await bench.arun("store, async, one of 100 by one call", of=100, times_rounds=200)

    bench.add("redis.asyncio get + decode", lambda: asyncio.gather(*(plain(f"bare{n}") for n in range(100))), 30)
    bench.add("cacheworkers aget", lambda: asyncio.gather(*(far.aget(n) for n in range(100))), 100)
    if core is not None:
        bench.add("coredis get + decode", lambda: asyncio.gather(*(through_core(f"bare{n}") for n in range(100))), 30)
    await bench.arun("store, async, one of 100 together", of=100)
    await peers.aclose()
    await client.aclose()


async def _aproduct(number: int) -> Product:
    return product_of(number)


def table(bench: Bench) -> Table:
    """Return the rows for a terminal."""
    made = Table(title="What a hit costs: microseconds a read, and the ratio to the first of each group")
    for name in ("hit", "library", "us a read", "ratio"):
        made.add_column(name, justify="right" if name in ("us a read", "ratio") else "left")
    last = ""
    for group, name, median, ratio in bench.rows:
        if last and group != last:
            made.add_section()
        made.add_row(group if group != last else "", name, f"{median:,.2f}", f"{ratio:.2f}x")
        last = group
    return made


def markdown(bench: Bench) -> str:
    """Return the rows as Markdown."""
    lines = ["# What a hit costs", "", "| hit | library | us a read | ratio |", "|---|---|---|---|"]
    lines += [f"| {group} | {name} | {median:,.2f} | {ratio:.2f}x |" for group, name, median, ratio in bench.rows]
    return "\n".join(lines) + "\n"


def files(bench: Bench) -> dict[str, str]:
    """Return the table's files: name -> what is in it."""
    console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO())
    console.print(table(bench))
    return {
        "read_path.md": markdown(bench),
        "read_path.svg": console.export_svg(title="python -m benchmarks.read_path"),
    }


def measured(rounds: int = ROUNDS) -> Bench:
    """Return the times of all hits."""
    bench = Bench(rounds)
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
        memory(bench, near)
        store(bench, valkey.url, far)
        asyncio.run(on_a_loop(bench, valkey.url, near, far))
        cache.close()
    return bench


def main() -> None:
    """Measure, print one table, and write it as Markdown and as a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write-to", type=Path, default=Path("docs/explanation"), help="directory of the table's files"
    )
    options = parser.parse_args()
    bench = measured()
    Console(width=PICTURE_WIDTH).print(table(bench))
    options.write_to.mkdir(parents=True, exist_ok=True)
    for name, text in files(bench).items():
        (options.write_to / name).write_text(text)


if __name__ == "__main__":
    main()
