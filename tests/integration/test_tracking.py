"""Tracking by key: changes of what a process keeps or waits for are reported to it, whatever happens, and no others."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from cacheworkers import Cache, Load
from cacheworkers.errors import LoadError
from cacheworkers.store.commands.replies import Claimed
from cacheworkers.store.tracking import listener as listening
from cacheworkers.testing import Valkey
from cacheworkers.testing.cluster import ValkeyCluster
from cacheworkers.testing.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
MakeCache = Callable[..., Cache]
_names = itertools.count(1)


class Shop:
    """A process that reads a price, one that changes it, and a namespace of their own."""

    def __init__(self, make_cache: MakeCache, url: str, **options: Any) -> None:
        self.prices = {n: n * 10 for n in range(1, 200)}
        options = {"redis_url": url, "namespace": f"tracked{next(_names)}", "access_report_interval": 0.0, **options}
        self.cache, self.writer = make_cache(**options), make_cache(**options)
        self.ports, self.store = self.cache._ports, self.writer._ports.store
        self.price = self._declared(self.cache)
        self.elsewhere = self._declared(self.writer)

    def _declared(self, cache: Cache) -> Any:
        @cache.loader(tags=("price:{n}",), fresh_for=300, wait_for=60, load_for=60, jitter=0, early=0)
        def price(load: Load, n: int) -> int:
            return self.prices[n]

        return price

    def keep(self, n: int) -> None:
        """Read until memory answers, and the server tracks what it answers with."""
        wait_until(lambda: self.price.read(n).tier == "l1")
        assert self.ports.listener.barrier(20.0).run()

    def change(self, n: int) -> None:
        """Change a price, and see the reader's process follow."""
        self.prices[n] += 1
        self.writer.invalidate(f"price:{n}")
        wait_until(lambda: self.price.get(n) == self.prices[n])

    def wait_for(self, n: int) -> tuple[list[int], threading.Thread]:
        """Read what another process has claimed: return the values that come, and the thread that waits."""
        token = "ab" * 8
        assert isinstance(self.store.claim(f"price[{n}]", token, lease_for=60).run(), Claimed)
        values: list[int] = []

        def read() -> None:
            with contextlib.suppress(LoadError):
                values.append(self.price.get(n))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        flights = self.ports.waiters.flights
        wait_until(lambda: f"price[{n}]" in flights and flights[f"price[{n}]"].threads)
        wait_until(lambda: self.ports.listener.barrier(20.0).run())
        return values, thread


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def shop(make_cache: MakeCache, server: Valkey) -> Shop:
    return Shop(make_cache, server.url)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "PING_EVERY", 0.05)
    monkeypatch.setattr(listening, "_BACKOFF", (0.01, 0.05))


def stats(server: Valkey) -> Any:
    return redis.Redis.from_url(server.url).info("stats")


# -- no more than that


def test_what_is_neither_kept_nor_waited_for_is_not_reported(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.keep(1)
    reported: list[str] = []
    monkeypatch.setattr(shop.ports.listener.messages, "drop", reported.append)

    for n in range(100, 150):
        assert shop.elsewhere.get(n) == n * 10
        shop.writer.invalidate(f"price:{n}")
    shop.writer.invalidate("price:1")
    assert shop.ports.listener.barrier(20.0).run()

    assert reported == ["price[1]"]


@pytest.mark.parametrize("look", ["peek", "explain", "stored", "warm"])
def test_a_look_that_keeps_nothing_is_not_tracked(shop: Shop, server: Valkey, look: str) -> None:
    shop.keep(1)
    wait_until(lambda: shop.elsewhere.read(2).tier == "l1")
    assert shop.writer._ports.listener.barrier(20.0).run()
    before = stats(server)["tracking_total_items"]

    match look:
        case "peek":
            shop.price.peek(2)
        case "explain":
            shop.cache.explain(shop.price, 2)
        case "stored":
            shop.cache.stored("price[2]")
        case "warm":
            shop.price.warm([2]).wait()
    assert shop.ports.listener.barrier(20.0).run()

    assert stats(server)["tracking_total_items"] <= before


def test_a_process_that_stands_still_costs_the_store_no_more_than_what_it_keeps(server: Valkey) -> None:
    """Stopped in a debugger, say: its reports wait in the server's memory, and others' writes are none of them."""
    namespace = f"tracked{next(_names)}"
    code = (
        "import sys, time\nfrom cacheworkers import Cache, Config\n"
        "cache = Cache(Config(redis_url=sys.argv[1], namespace=sys.argv[2], store_timeout=5.0))\n"
        "@cache.loader(fresh_for=300)\ndef price(load, n: int) -> int:\n    return n\n"
        "while price.read(1).tier != 'l1': pass\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, server.url, namespace], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        os.kill(child.pid, signal.SIGSTOP)
        client = redis.Redis.from_url(server.url)
        for _ in range(20):
            with client.pipeline(transaction=False) as pipe:
                for n in range(2000):
                    pipe.set(f"{namespace}:e:{{search[{n}-{'x' * 300}]}}", b"x", ex=60)
                pipe.execute()
        assert max(int(each["omem"]) for each in client.client_list()) < 1 << 20
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.kill()
        child.wait()


# -- whatever the server and the link do


def test_a_full_table_costs_memory_and_never_a_right_answer(make_cache: MakeCache) -> None:
    """The server forgets a key that it tracks, and says so; what this process dropped for that is counted."""
    with Valkey() as server:
        shop = Shop(make_cache, server.url)
        client = redis.Redis.from_url(server.url)
        client.config_set("tracking-table-max-keys", 5)
        for n in range(1, 60):
            shop.price.get(n)

        wait_until(lambda: stats(server)["tracking_total_keys"] <= 5)
        wait_until(lambda: len(shop.ports.l1) <= 5)
        for n in (1, 30, 59):
            shop.change(n)
        for n in range(1, 60):
            assert shop.price.get(n) == shop.prices[n]

        assert shop.ports.l1.unchanged_drops > 0


def test_ids_that_a_restarted_server_gives_again_mean_nothing(make_cache: MakeCache, quick: None) -> None:
    """It counts its clients from 1 again; what was tracked before is tracked by nobody."""
    with Valkey() as server:
        shop = Shop(make_cache, server.url)
        shop.keep(1)
        server.kill()
        wait_until(lambda: not shop.ports.listener.is_up)
        server.start()

        wait_until(lambda: shop.ports.listener.is_up)
        shop.keep(1)
        shop.change(1)


@pytest.mark.parametrize("what", ["the tracking connection", "every other connection"])
def test_connections_that_the_server_closes_are_replaced(shop: Shop, server: Valkey, what: str, quick: None) -> None:
    """What was read over another connection stays tracked, whatever becomes of that."""
    shop.keep(1)
    client = redis.Redis.from_url(server.url)
    for each in client.client_list():
        is_tracking = "t" in each["flags"]
        if is_tracking == (what == "the tracking connection") and int(each["id"]) != client.client_id():
            client.client_kill_filter(_id=each["id"])

    shop.change(1)
    shop.keep(1)
    shop.change(1)


# -- who waits


@pytest.mark.parametrize("how", ["written", "failed", "given back"])
def test_a_reader_is_woken_when_the_load_of_another_process_has_ended(shop: Shop, how: str) -> None:
    """Long before its own `wait_for` or the lease would end."""
    shop.keep(1)
    values, thread = shop.wait_for(2)

    match how:
        case "written":
            shop.store.release([("price[2]", "ab" * 8)]).run()
            shop.elsewhere.get(2)
        case "failed":
            [begun] = shop.store.begin([("price[2]", "ab" * 8, "cd" * 8, b"")], load_for=60).run()
            assert begun is not None
            shop.store.fail([("price[2]", "cd" * 8, "Error", "no")], first_for=0.01, most_for=0.01).run()
        case "given back":
            shop.store.release([("price[2]", "ab" * 8)]).run()
    thread.join(20)

    assert not thread.is_alive()
    assert how == "failed" or values == [20]


def test_a_load_that_has_ended_before_it_is_watched_is_noticed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the claim and the request that tracks its keys nothing is reported: then the lease is gone."""
    shop.keep(1)
    watch = shop.ports.listener.watch
    token = "ab" * 8

    def watch_late(flight: Any) -> bool:
        shop.store.release([("price[2]", token)]).run()
        shop.elsewhere.get(2)
        return watch(flight)

    assert isinstance(shop.store.claim("price[2]", token, lease_for=60).run(), Claimed)
    monkeypatch.setattr(shop.ports.listener, "watch", watch_late)
    began = time.monotonic()

    assert shop.price.get(2) == 20
    assert time.monotonic() - began < 30


# -- slots that move


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as cluster:
        yield cluster


def move(cluster: ValkeyCluster, shop: Shop, n: int, how: str) -> None:
    slot = key_slot(shop.store.keys.entry(f"price[{n}]").encode())
    owner = cluster.owner(slot)
    target = next(node for node in cluster.masters if node is not owner)
    if how == "key by key":
        cluster.move(slot, target)
    else:
        cluster.move_atomically(slot, target)


in_both_ways = pytest.mark.parametrize("how", ["key by key", "atomically"])


@in_both_ways
def test_what_is_kept_follows_its_slot(make_cache: MakeCache, cluster: ValkeyCluster, quick: None, how: str) -> None:
    """Its deletion where it was is reported; where it is now it is tracked when it is read again."""
    shop = Shop(make_cache, cluster.url, store_timeout=5.0)
    for n in range(1, 6):
        shop.keep(n)
        move(cluster, shop, n, how)
        wait_until(lambda n=n: shop.ports.l1.get(f"price[{n}]") is None)  # type: ignore[misc]
        shop.change(n)
        shop.keep(n)
        shop.change(n)


@in_both_ways
def test_a_reader_that_waits_is_woken_where_its_slot_has_gone(
    make_cache: MakeCache, cluster: ValkeyCluster, quick: None, how: str
) -> None:
    """A key that does not exist leaves unreported: it is asked about again."""
    shop = Shop(make_cache, cluster.url, store_timeout=5.0)
    shop.keep(1)
    values, thread = shop.wait_for(2)

    move(cluster, shop, 2, how)
    shop.store.release([("price[2]", "ab" * 8)]).run()
    assert shop.elsewhere.get(2) == 20
    thread.join(30)

    assert values == [20]
