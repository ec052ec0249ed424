"""What more processes cost the store: `python -m benchmarks.capacity [--listeners 1 10 100 300] [--caches 100 300]`.

Each listener is a connection that tracks as a reading process does: by key, or by prefix as a broadcast (`BCAST`), for
comparison.  One process loads and invalidates, by the real flows, entries that no listener keeps, and then entries that
all of them keep: each receives a message, fetches the new entry and tracks it again.  CPU is that of the server's main
thread; what connections and tracked keys take is its memory.

`--caches` measures whole processes instead of bare connections: each has a `Cache` of its own, keeps entries in its
memory, and pings.  What the server does for them while nothing happens is subtracted.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import hiredis
import redis

from benchmarks.report import markdown
from cacheworkers import Cache, Config, Load, Loader
from cacheworkers.core import envelope
from cacheworkers.core.driver import run
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.store.connections.connection import pack
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

KINDS = ("by key", "broadcast")
NAMESPACE = "capacity"
#: Keys that all listeners keep, and keys that each of them tracks in the measurement of memory.
SHARED, OWN = 10, 200
#: Seconds without a command after which the server has done all that there was to do.
QUIET_FOR = 0.1


def open_shop(url: str) -> tuple[Cache, Loader[[int], int]]:
    """Return a cache on a server, and its loader."""
    cache = Cache(Config(redis_url=url, namespace=NAMESPACE, store_timeout=5.0))

    @cache.loader(tags=("product:{number}",), fresh_for=3600)
    def product(load: Load, number: int) -> int:
        return number

    return cache, product


class Cost(NamedTuple):
    """What a number of listeners costs the server: microseconds of CPU, bytes of memory."""

    kind: str
    listeners: int
    load: float
    invalidation: float
    shared: float
    ping: float
    connection: float
    tracked: float


class Listeners:
    """Connections that track keys; all in one process, since each does next to nothing."""

    def __init__(self, port: int, kind: str, count: int) -> None:
        self._kind = kind
        self._kept: set[bytes] = set()
        self._links: dict[socket.socket, Any] = {}
        tracking = ["CLIENT", "TRACKING", "ON"]
        if kind == "broadcast":
            tracking += ["BCAST", "PREFIX", f"{NAMESPACE}:e:", "PREFIX", f"{NAMESPACE}:f:"]
        for _ in range(count):
            opened = socket.create_connection(("127.0.0.1", port))
            opened.sendall(pack([("HELLO", "3"), tuple(tracking)]))
            self._links[opened] = hiredis.Reader()
        threading.Thread(target=self._receive, daemon=True).start()

    def keep(self, keys: list[str]) -> None:
        """Track keys, and from then on fetch each that has changed, and track it again."""
        self._kept.update(key.encode() for key in keys)
        self._send([self._track(key) for key in keys])

    def track_own(self, count: int) -> None:
        """Have each listener track keys of its own."""
        for number, each in enumerate(self._links):
            each.sendall(pack([self._track(f"{NAMESPACE}:e:{{own[{number}-{n}]}}") for n in range(count)]))

    def ping(self) -> None:
        """Have each ask what a reading process asks twice a second."""
        self._send([("INFO", "REPLICATION"), ("TIME",)])

    def _send(self, requests: list[tuple[Any, ...]]) -> None:
        packed = pack(requests)
        for each in self._links:
            each.sendall(packed)

    def _track(self, key: str | bytes) -> tuple[Any, ...]:
        return ("GETRANGE", key, envelope.LIFE_AT, envelope.LIFE_ENDS_AT - 1)

    def _receive(self) -> None:
        files = selectors.DefaultSelector()
        for each in self._links:
            files.register(each, selectors.EVENT_READ)
        while True:
            for found, _ in files.select():
                link: Any = found.fileobj
                reader = self._links[link]
                reader.feed(link.recv(1 << 16))
                changed: list[bytes] = []
                while (reply := reader.gets()) is not False:
                    if isinstance(reply, hiredis.PushNotification):
                        changed += [key for key in reply[1] if key in self._kept]
                requests = [("GET", key) for key in changed]
                if self._kind == "by key":
                    requests += [self._track(key) for key in changed]
                if requests:
                    link.sendall(pack(requests))


def listen(port: int, kind: str, count: int, commands: Any) -> None:
    """Run a number of listeners, and do what is asked."""
    listeners = Listeners(port, kind, count)
    while True:
        commands.send("ready")
        name, *args = commands.recv()
        if name == "end":
            return
        getattr(listeners, name)(*args)


class Bench:
    """A server, its listeners, and a process that loads and invalidates."""

    def __init__(self, server: Valkey, cache: Cache, commands: Any) -> None:
        self._client = redis.Redis.from_url(server.url)
        self._ports = cache._ports
        self._spec = cache._loaders["product"]
        self._commands = commands
        self._numbers = iter(range(10**9))

    def ask(self, name: str, *args: Any) -> None:
        """Have the listeners do something."""
        self._commands.recv()
        self._commands.send((name, *args))

    def memory(self) -> int:
        """Bytes that the server has allocated, once it is quiet."""
        self._settle()
        return int(self._client.info("memory")["used_memory"])

    def cpu(self, work: Callable[[], int]) -> float:
        """Microseconds of the server's CPU for each piece of work, with everything that it causes."""
        self._settle()
        before = self._seconds()
        count = work()
        self._settle()
        return (self._seconds() - before) / count * 1e6

    def loads(self, numbers: list[int]) -> int:
        """Load and store entries, each by itself."""
        for number in numbers:
            call, token = f"product[{number}]", secrets.token_hex(8)
            self._ports.store.claim(call, token, lease_for=30).run()
            request = LoadRequest("product", call, token, "", "miss")
            run(load(self._ports, self._spec, [request], self._ports.worker))
        return len(numbers)

    def invalidations(self, numbers: list[int]) -> int:
        """Invalidate entries by their tags, each by itself."""
        for number in numbers:
            run(invalidate_tags(self._ports, [f"product:{number}"], "hard"))
        return len(numbers)

    def fresh(self, count: int) -> list[int]:
        """Numbers that nobody has."""
        return [next(self._numbers) for _ in range(count)]

    def key(self, number: int) -> str:
        """The key of an entry."""
        return self._ports.store.keys.entry(f"product[{number}]")

    def _seconds(self) -> float:
        found = self._client.info("cpu")
        return float(found["used_cpu_user_main_thread"]) + float(found["used_cpu_sys_main_thread"])

    def cpu_beside(self, work: Callable[[], int], idle: float) -> float:
        """The same for a server that is never quiet: less what it does meanwhile, `idle` seconds of CPU a second."""
        before, began = self._seconds(), time.monotonic()
        count = work()
        time.sleep(1.0)
        return (self._seconds() - before - idle * (time.monotonic() - began)) / count * 1e6

    def idle(self, seconds: float = 5.0) -> float:
        """Seconds of the server's CPU a second, while nothing happens."""
        before, began = self._seconds(), time.monotonic()
        time.sleep(seconds)
        return (self._seconds() - before) / (time.monotonic() - began)

    def _settle(self) -> None:
        """Wait until the server has done all that there was to do."""

        def is_quiet() -> bool:
            before = self._commands_done()
            time.sleep(QUIET_FOR)
            return self._commands_done() == before + 1

        wait_until(is_quiet, 120)

    def _commands_done(self) -> int:
        return int(self._client.info("stats")["total_commands_processed"])


def measured(kind: str, listeners: int, count: int) -> Cost:
    """Return what a number of listeners cost a server of their own; each figure is a mean over `count`."""
    context = multiprocessing.get_context("spawn")
    with Valkey() as server:
        cache, _ = open_shop(server.url)
        ours, theirs = context.Pipe()
        bench = Bench(server, cache, ours)
        bench.loads(bench.fresh(100))
        before = bench.memory()
        process = context.Process(target=listen, args=(server.port, kind, listeners, theirs), daemon=True)
        process.start()
        bench.ask("ping")
        connection = (bench.memory() - before) / listeners
        unheld = bench.fresh(count)
        load_us = bench.cpu(lambda: bench.loads(unheld))
        invalidation_us = bench.cpu(lambda: bench.invalidations(unheld))
        shared = bench.fresh(SHARED)
        bench.loads(shared)
        bench.ask("keep", [bench.key(number) for number in shared])
        rounds = max(1, count // SHARED // 10)
        shared_us = bench.cpu(lambda: sum(bench.invalidations(shared) and bench.loads(shared) for _ in range(rounds)))
        ping_us = bench.cpu(lambda: _pinged(bench, listeners, max(1, count // listeners)))
        before = bench.memory()
        bench.ask("track_own", OWN)
        tracked = (bench.memory() - before) / listeners / OWN if kind == "by key" else 0.0
        bench.ask("end")
        process.join()
        cache.close()
    return Cost(kind, listeners, load_us, invalidation_us, shared_us, ping_us, connection, tracked)


def _pinged(bench: Bench, listeners: int, times: int) -> int:
    for _ in range(times):
        bench.ask("ping")
    return times * listeners


class ProcessCost(NamedTuple):
    """What processes with a cache cost the server: microseconds of CPU."""

    processes: int
    idle: float
    load: float
    invalidation: float
    pushed: float


def keep_entries(url: str, numbers: list[int], ready: Any) -> None:
    """Be a process that keeps entries in its memory, until it is ended."""
    cache, product = open_shop(url)
    wait_until(lambda: product.get_many(numbers) and len(cache._ports.l1.slots) == len(numbers), 120)
    ready.release()
    threading.Event().wait()


def measured_processes(count: int, loads: int) -> ProcessCost:
    """Return what a number of processes cost, each with a cache that keeps the same entries."""
    context = multiprocessing.get_context("fork")
    with Valkey() as server:
        ready = context.Semaphore(0)
        shared = list(range(10**9, 10**9 + SHARED))
        with contextlib.ExitStack() as processes:
            loader, _ = open_shop(server.url)
            bench = Bench(server, loader, None)
            bench.loads(shared)
            loader.close()
            for _ in range(count):
                process = context.Process(target=keep_entries, args=(server.url, shared, ready), daemon=True)
                process.start()
                processes.callback(process.kill)
            for _ in range(count):
                ready.acquire()
            cache, _ = open_shop(server.url)
            processes.callback(cache.close)
            bench = Bench(server, cache, None)
            idle = bench.idle()
            unheld = bench.fresh(loads)
            load_us = bench.cpu_beside(lambda: bench.loads(unheld), idle)
            invalidation_us = bench.cpu_beside(lambda: bench.invalidations(unheld), idle)
            pushed_us = bench.cpu_beside(lambda: bench.invalidations(shared), idle)
    return ProcessCost(count, idle, load_us, invalidation_us, pushed_us)


PROCESS_HEADS = (
    "processes",
    "idle: CPU a second",
    "a load, kept by none",
    "an invalidation, kept by none",
    "an invalidation, kept by all",
)


def process_cells(cost: ProcessCost) -> tuple[str, ...]:
    """Return a row of the processes' table."""
    times = (cost.load, cost.invalidation, cost.pushed)
    return (f"{cost.processes:,}", f"{cost.idle * 1e3:,.1f} ms", *(f"{each:,.0f} us" for each in times))


HEADS = (
    "tracking",
    "listeners",
    "a load, kept by none",
    "an invalidation, kept by none",
    "both, kept by all",
    "a ping",
    "a connection",
    "a tracked key",
)


def cells(cost: Cost) -> tuple[str, ...]:
    """Return a row of the table."""
    tracked = f"{cost.tracked:,.0f} B" if cost.tracked else ""
    times = (cost.load, cost.invalidation, cost.shared, cost.ping)
    return (
        cost.kind,
        f"{cost.listeners:,}",
        *(f"{each:,.0f} us" for each in times),
        f"{cost.connection / 1024:,.0f} KiB",
        tracked,
    )


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", type=int, nargs="+", default=[1, 10, 60, 100, 300])
    parser.add_argument("--count", type=int, default=500, help="loads, and invalidations, of each measurement")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--caches", type=int, nargs="+", help="processes with a cache, instead of listeners")
    options = parser.parse_args()
    if options.caches:
        found = [measured_processes(count, options.count) for count in options.caches]
        print(markdown(PROCESS_HEADS, map(process_cells, found)))
        return
    costs = [measured(kind, count, options.count) for kind in options.kinds for count in options.listeners]
    print(markdown(HEADS, map(cells, costs)))


if __name__ == "__main__":
    main()
