"""The listener: one connection to each master that is notified of every change, or memory does not answer."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from forked import in_child

from cacheworkers import Cache, Load
from cacheworkers.core.driver import run
from cacheworkers.events import ListenerDown, ListenerLag, ListenerUp
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.store.commands.replies import Claimed
from cacheworkers.store.connections.connection import pack
from cacheworkers.store.tracking import listener as listening
from cacheworkers.store.tracking import tracking_connection as tracking
from cacheworkers.testing import FaultProxy, Valkey
from cacheworkers.testing.cluster import ValkeyCluster
from cacheworkers.testing.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
MakeCache = Callable[..., Cache]
_names = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def proxy(server: Valkey) -> Iterator[FaultProxy]:
    """What receives pushes goes through it, and can be held and cut; the rest passes."""
    with FaultProxy(server.url, only=b"TRACKING") as proxy:
        yield proxy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that pings often, and soon gives up and tries again."""
    monkeypatch.setattr(listening, "PING_EVERY", 0.02)
    monkeypatch.setattr(listening, "PING_LOST_AFTER", 0.3)
    monkeypatch.setattr(listening, "_BACKOFF", (0.01, 0.05))


class Shop:
    """A price, a process that reads it, and one that changes it."""

    def __init__(self, make_cache: MakeCache, server: Valkey, proxy: FaultProxy | None, **options: Any) -> None:
        self.prices = {n: n * 10 for n in range(1, 20)}
        self.loads = 0
        self.cache = make_cache(redis_url=(proxy or server).url, **options)
        self.writer = make_cache(redis_url=server.url)
        self.ports = self.cache._ports

        @self.cache.loader(tags=("price:{n}",), fresh_for=300, wait_for=60, load_for=60, jitter=0, early=0)
        def price(load: Load, n: int) -> int:
            self.loads += 1
            return self.prices[n]

        self.price = price

    def keep(self, n: int) -> None:
        """Read until memory answers."""
        wait_until(lambda: self.price.read(n).tier == "l1")

    def change(self, n: int) -> int:
        """Change a price in the other process."""
        self.prices[n] += 1
        self.writer.invalidate(f"price:{n}")
        return self.prices[n]


@pytest.fixture
def shop(make_cache: MakeCache, server: Valkey, proxy: FaultProxy, quick: None) -> Shop:
    return Shop(make_cache, server, proxy)


def reported(events: list[Any], *kinds: type) -> list[str]:
    return [type(event).__name__ for event in list(events) if isinstance(event, kinds)]


# -- starting


@pytest.mark.parametrize("read", ["get", "aget"])
def test_a_process_whose_first_read_is_a_hit_in_the_store_listens(
    make_cache: MakeCache, server: Valkey, read: str
) -> None:
    writer, reader = Shop(make_cache, server, None), Shop(make_cache, server, None)
    wait_until(lambda: writer.price.read(1).tier != "load")

    found = reader.price.get(1) if read == "get" else asyncio.run(reader.price.aget(1))  # type: ignore[arg-type]

    assert found == 10 and reader.loads == 0
    assert reader.ports.listener.started[0]


# -- receiving


def test_a_change_made_elsewhere_is_gone_from_memory(shop: Shop) -> None:
    shop.keep(1)

    value = shop.change(1)

    wait_until(lambda: shop.price.get(1) == value)


def test_memory_is_emptied_when_the_store_is(shop: Shop, server: Valkey) -> None:
    """FLUSHDB names no keys."""
    shop.keep(1)

    redis.Redis.from_url(server.url).flushdb()

    wait_until(lambda: len(shop.ports.l1) == 0)


def test_an_answered_ping_is_an_event_that_says_how_late_a_push_may_be(
    shop: Shop, proxy: FaultProxy, events: list[Any]
) -> None:
    shop.keep(1)
    assert all(event.seconds >= 0 for event in events if isinstance(event, ListenerLag))

    proxy.delay = 0.1

    wait_until(lambda: any(isinstance(event, ListenerLag) and event.seconds >= 0.1 for event in list(events)))
    assert shop.ports.listener.is_up


def test_it_pings_again_once_it_was_answered_and_not_before(shop: Shop, proxy: FaultProxy, events: list[Any]) -> None:
    shop.keep(1)
    wait_until(lambda: len(reported(events, ListenerLag)) >= 3)

    proxy.hold_replies()
    [connection] = shop.ports.listener.connections
    wait_until(lambda: not shop.ports.listener.is_up)

    assert len(connection.pings) == 0, "those that waited were notified"
    proxy.release()


# -- losing the link


@pytest.mark.parametrize("how", ["cut", "killed by the server", "silent"])
def test_a_link_that_is_lost_comes_back_and_memory_begins_again(
    shop: Shop, server: Valkey, proxy: FaultProxy, events: list[Any], how: str
) -> None:
    shop.keep(1)
    [connection] = shop.ports.listener.connections

    if how == "cut":
        proxy.cut()
    elif how == "killed by the server":
        kill_links(server)
    else:
        proxy.hold_replies()
        wait_until(lambda: reported(events, ListenerDown))
        proxy.release()

    wait_until(lambda: reported(events, ListenerUp, ListenerDown) == ["ListenerUp", "ListenerDown", "ListenerUp"])
    [down] = [event for event in events if isinstance(event, ListenerDown)]
    assert ("no answer to a ping" in down.error) == (how == "silent")
    assert connection not in shop.ports.listener.connections
    assert shop.ports.l1.get("price[1]") is None
    shop.keep(1)
    value = shop.change(1)
    wait_until(lambda: shop.price.get(1) == value)


def kill_links(server: Valkey) -> None:
    """Have the server close every connection that receives pushes."""
    client = redis.Redis.from_url(server.url)
    for each in client.client_list():
        if "t" in each["flags"]:
            client.client_kill_filter(_id=each["id"])


def test_a_ping_that_is_refused_loses_the_link(make_cache: MakeCache, quick: None, events: list[Any]) -> None:
    """Rights were taken away: without proof memory must not answer."""
    with Valkey() as server:
        shop = Shop(make_cache, server, None)
        shop.keep(1)
        redis.Redis.from_url(server.url).execute_command("ACL", "SETUSER", "default", "-time")

        wait_until(lambda: reported(events, ListenerDown))

        assert any("NOPERM" in event.error for event in events if isinstance(event, ListenerDown))
        assert shop.price.read(1).tier == "store"


def test_a_master_that_is_none_any_more_is_left(make_cache: MakeCache, quick: None, events: list[Any]) -> None:
    """It goes on answering, and pushes what it replicates, however late: that is no proof."""
    with Valkey() as server, Valkey() as other:
        shop = Shop(make_cache, server, None)
        shop.keep(1)
        redis.Redis.from_url(server.url).replicaof("127.0.0.1", other.port)

        wait_until(lambda: reported(events, ListenerDown))

        assert any("is no longer a master" in event.error for event in events if isinstance(event, ListenerDown))


def test_who_reads_from_memory_alone_finds_the_new_master_too(make_cache: MakeCache, quick: None) -> None:
    """A replica takes over while the old master is alive: nothing else would notify this process."""
    with ValkeyCluster(has_replica=True) as cluster:
        assert cluster.replica is not None
        cache = make_cache(redis_url=cluster.url, access_report_interval=0.0)
        link, listener = cache._ports.store.link, cache._ports.listener

        @cache.loader(fresh_for=300, early=0)
        def price(load: Load, n: int) -> int:
            return n * 10

        wait_until(lambda: price.read(1).tier == "l1")
        before = link.masters
        cluster.replica.ask("CLUSTER", "FAILOVER")

        wait_until(lambda: link.masters != before)
        wait_until(lambda: listener.is_up)

        assert any(str(cluster.replica.port) in name for name in link.masters)


def test_other_masters_lose_the_link(shop: Shop, events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushes of a master that has come since would not be received."""
    shop.keep(1)

    monkeypatch.setattr(type(shop.ports.store.link), "masters", frozenset({"others"}))

    wait_until(lambda: reported(events, ListenerUp, ListenerDown)[:2] == ["ListenerUp", "ListenerDown"])
    assert shop.price.read(1).tier == "store"


def test_who_waits_for_a_ping_is_notified_when_it_is_lost(shop: Shop, proxy: FaultProxy) -> None:
    shop.keep(1)
    proxy.hold_replies()
    pings = shop.ports.listener.ping()
    assert pings is not None

    proxy.cut()

    assert [ping.result(20) for ping in pings] == [False]
    proxy.release()


def test_a_ping_that_cannot_be_sent_fails_nobody(shop: Shop) -> None:
    """The link breaks just then; the barrier was in vain, which is no error."""
    shop.keep(1)
    [connection] = shop.ports.listener.connections

    def broken(data: bytes) -> None:
        raise BrokenPipeError

    connection.socket = SimpleNamespace(sendall=broken, recv=connection.socket.recv, shutdown=lambda how: None)  # type: ignore

    assert shop.ports.listener.barrier(20.0).run() is False


def test_while_nothing_is_received_reads_go_past_memory(shop: Shop, proxy: FaultProxy) -> None:
    """What changes is seen immediately; nothing is kept, and nothing that was kept answers."""
    shop.keep(1)
    proxy.hold_replies()
    proxy.cut()
    wait_until(lambda: not shop.ports.listener.is_up)

    tiers = {shop.price.read(1).tier for _ in range(5)}
    values = [(shop.change(1), shop.price.get(1)) for _ in range(5)]
    proxy.release()

    assert tiers == {"store"}
    assert all(changed == read for changed, read in values)


def test_an_own_change_empties_memory_though_no_push_will_report_it(shop: Shop, proxy: FaultProxy) -> None:
    """The link has died, and nobody has noticed."""
    shop.keep(1)
    shop.keep(2)
    proxy.hold_replies()

    shop.prices[1] += 1
    shop.cache.invalidate("price:1")
    value = shop.price.get(1)
    proxy.release()

    assert value == shop.prices[1]
    assert shop.ports.l1.get("price[2]") is None


def test_what_a_push_breaks_is_no_reason_to_trust_memory(shop: Shop, events: list[Any]) -> None:
    """A callback that raises loses the link, as a cut would; the next one is as good as the first."""
    shop.keep(1)
    received = shop.ports.listener.messages.drop

    def breaks(call: str) -> None:
        shop.ports.listener.messages.drop = received
        raise ZeroDivisionError

    shop.ports.listener.messages.drop = breaks
    value = shop.change(1)

    wait_until(lambda: reported(events, ListenerUp, ListenerDown) == ["ListenerUp", "ListenerDown", "ListenerUp"])
    assert shop.price.get(1) == value


def test_who_waits_for_a_push_looks_for_himself_once_none_will_come(shop: Shop, proxy: FaultProxy) -> None:
    """Another process has the lease; its write is pushed over a link that has died meanwhile."""
    shop.keep(1)
    store, values = shop.ports.store, list[int]()
    assert isinstance(store.claim("price[2]", "ab" * 8, lease_for=60).run(), Claimed)
    reader = threading.Thread(target=lambda: values.append(shop.price.get(2)))
    reader.start()
    flight = shop.ports.waiters.flights
    wait_until(lambda: "price[2]" in flight and flight["price[2]"].threads)

    proxy.hold_replies()
    proxy.cut()
    ask = LoadRequest("price", "price[2]", "ab" * 8, "", "miss")
    run(load(shop.ports, shop.cache._loaders["price"], [ask], shop.ports.worker))
    reader.join(20)
    proxy.release()

    assert values == [20]


def test_it_tries_again_less_and_less_often_until_it_connects(
    make_cache: MakeCache, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 50 ms to 2 s, each by half at random, so that not all processes come back at one instant."""
    cache = make_cache(redis_url=server.url)
    link, listener = cache._ports.store.link, cache._ports.listener
    waits: list[float] = []
    pools = link.pools

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 10:
            link.pools = pools  # type: ignore[method-assign]
        return False

    link.pools = lambda: (_ for _ in ()).throw(OSError("nobody there"))  # type: ignore[method-assign]
    monkeypatch.setattr(listener._closed, "wait", wait)
    listener.start()
    wait_until(lambda: listener.is_up)
    kill_links(server)
    wait_until(lambda: len(waits) > 10)

    longest = [*(min(0.05 * 2**n, 2.0) for n in range(10)), 0.05]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=False))
    assert len({wait / most for wait, most in zip(waits, longest, strict=False)}) > 1


# -- the store is gone


def test_memory_answers_while_the_store_is_gone_but_not_for_ever(make_cache: MakeCache, quick: None) -> None:
    with Valkey() as server:
        shop = Shop(make_cache, server, None, l1_on_loss_for=0.0, breaker_for=0.0)
        other = Shop(make_cache, server, None, breaker_for=0.0)
        shop.keep(1)
        other.keep(1)
        loads = shop.loads, other.loads
        server.kill()
        wait_until(lambda: not shop.ports.listener.is_up and not other.ports.listener.is_up)

        tiers = shop.price.read(1).tier, other.price.read(1).tier

    assert tiers == ("load", "l1")
    assert (shop.loads - loads[0], other.loads - loads[1]) == (1, 0)


# -- processes


def test_a_child_of_a_fork_listens_for_itself(shop: Shop, proxy: FaultProxy) -> None:
    """It begins with nothing in memory, receives changes, and leaves its parent's link alone."""
    shop.keep(1)
    [connection] = shop.ports.listener.connections

    def child() -> None:
        assert len(shop.ports.l1) == 0 and not shop.ports.listener.is_up
        shop.keep(1)
        assert shop.ports.listener.connections != [connection]
        assert shop.change(1) and shop.price.get(1)
        wait_until(lambda: shop.ports.l1.get("price[1]") is None or shop.price.get(1) == shop.prices[1])

    code = in_child(child)

    assert code == 0
    assert shop.ports.listener.connections == [connection]
    shop.keep(1)
    value = shop.change(1)
    wait_until(lambda: shop.price.get(1) == value)


def test_closed_it_leaves_no_thread_and_no_connection(shop: Shop, server: Valkey) -> None:
    shop.keep(1)
    thread = shop.ports.listener._thread
    assert thread is not None and thread.is_alive()

    shop.cache.close()

    wait_until(lambda: not thread.is_alive())
    assert shop.ports.listener.connections == []


def test_closed_it_waits_for_no_ping(
    make_cache: MakeCache, server: Valkey, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread ends as it is woken, not when it would ping next."""
    monkeypatch.setattr(listening, "PING_EVERY", 3600.0)
    shop = Shop(make_cache, server, proxy)
    shop.keep(1)
    thread = shop.ports.listener._thread

    shop.ports.listener.close()

    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


def test_closed_while_it_connects_it_leaves_no_connection(shop: Shop, proxy: FaultProxy) -> None:
    """What it had just opened is closed by the thread itself."""
    opened: list[Any] = []
    connection = listening.TrackingConnection

    def closes_meanwhile(*args: Any) -> Any:
        opened.append(connection(*args))
        shop.ports.listener._closed.set()
        return opened[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "TrackingConnection", closes_meanwhile)
        shop.ports.listener.start()
        wait_until(lambda: opened and not shop.ports.listener._thread.is_alive())  # type: ignore[union-attr]

    assert opened[0].socket.fileno() == -1
    assert not shop.ports.listener.is_up


def test_where_no_thread_can_be_started_reads_go_past_memory(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process at its limit of threads, or an interpreter that has none; once there is room, it listens."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in ("cacheworkers-listener", "cacheworkers-accesses"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert shop.price.get(1) == 10
        assert {shop.price.read(1).tier for _ in range(3)} == {"store"}

    shop.keep(1)
    lost, back = log_lines_of(caplog)
    assert "its thread cannot be started: can't start new thread" in lost and "receives invalidation messages" in back


# -- what is reported


def log_lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "listener" in record.getMessage()]


def test_it_is_reported_once_why_nothing_can_be_received_and_once_that_it_can(
    make_cache: MakeCache, server: Valkey, quick: None, events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A user without the right to CLIENT TRACKING, who is given it."""
    watching = redis.Redis(port=server.port)
    user = f"user{next(_names)}"
    watching.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", "-client|tracking")
    cache = make_cache(redis_url=server.url.replace("//", f"//{user}:pw@"))
    link, listener, tries = cache._ports.store.link, cache._ports.listener, list[int]()
    pools = link.pools

    def counted() -> Any:
        tries.append(1)
        return pools()

    link.pools = counted  # type: ignore[method-assign]
    listener.start()
    wait_until(lambda: len(tries) > 3)

    [reported] = log_lines_of(caplog)
    [event] = [event for event in events if isinstance(event, ListenerDown)]
    assert (
        f"127.0.0.1:{server.port}: NoPermissionError" in reported
        and "client|tracking" in reported
        and "doctor" in reported
    )
    assert "NoPermissionError" in event.error

    watching.execute_command("ACL", "SETUSER", user, "+client|tracking")
    wait_until(lambda: listener.is_up)
    wait_until(lambda: len(log_lines_of(caplog)) == 2)
    assert log_lines_of(caplog)[1] == f"the listener receives invalidation messages from 127.0.0.1:{server.port}"


def test_a_link_that_is_lost_is_reported_and_a_close_is_not(
    shop: Shop, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    shop.keep(1)
    assert log_lines_of(caplog) == []
    proxy.cut()
    wait_until(lambda: len(log_lines_of(caplog)) == 2)
    shop.keep(1)
    shop.cache.close()

    lost, back = log_lines_of(caplog)
    assert "receives no invalidation messages from 127.0.0.1:" in lost and "receives invalidation messages from" in back


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_read_that_blocks_an_event_loop_is_reported_once(
    shop: Shop, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads on threads, and those that are awaited, are not."""
    monkeypatch.setattr("cacheworkers.local.blocking_call._is_reported", False)

    async def read() -> None:
        for n in (1, 2, 1):
            await asyncio.to_thread(shop.price.get, n)
            if how == "sync":
                shop.price.get(n + 2)
            else:
                await shop.price.aget(n + 2)

    shop.price.get(9)
    asyncio.run(read())

    reported = [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()]
    assert [each.partition(",")[0] for each in reported] == ["price was read on a running event loop"] * (how == "sync")


@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize(
    ("how", "is_reported"),
    [("many", True), ("amany", False), ("peek", True), ("apeek", False), ("read", True), ("get_json", True)],
)
def test_every_read_that_blocks_an_event_loop_is_reported(
    shop: Shop,
    how: str,
    is_reported: bool,
    is_batch: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once in a process, whichever it is; one that is awaited is not."""
    monkeypatch.setattr("cacheworkers.local.blocking_call._is_reported", False)

    @shop.cache.batch_loader(wait_for=60, load_for=60)
    def prices(load: Load, ns: list[int]) -> dict[int, int]:
        return {n: shop.prices[n] for n in ns}

    loader: Any = prices if is_batch else shop.price

    async def read() -> None:
        for n in (1, 2):
            match how:
                case "many":
                    loader.get_many([n, n + 2])
                case "amany":
                    await loader.aget_many([n, n + 2])
                case "apeek":
                    await loader.apeek(n)
                case _:
                    getattr(loader, how)(n)

    loader.get_many([9])
    asyncio.run(read())

    reported = [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()]
    assert [each.partition(",")[0] for each in reported] == [
        f"{loader.name} was read on a running event loop"
    ] * is_reported


def test_many_that_memory_has_are_not_reported(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They block no loop; memory does not answer without proof that it receives pushes; it is asked until it does."""

    async def read() -> None:
        shop.price.get_many([1, 2])

    def is_silent() -> bool:
        monkeypatch.setattr("cacheworkers.local.blocking_call._is_reported", False)
        caplog.clear()
        shop.keep(1)
        shop.keep(2)
        asyncio.run(read())
        return not any("event loop" in record.getMessage() for record in caplog.records)

    wait_until(is_silent)


READS = """
import sys, atexit, logging, os
logging.getLogger("cacheworkers").addHandler(logging.NullHandler())
from cacheworkers import Cache, Config, Load
cache = Cache(Config(redis_url=sys.argv[1], namespace=sys.argv[2], store_timeout=0.5))

@cache.loader(fresh_for=300)
def price(load: Load, n: int) -> int:
    return n * 10

def until(condition):
    while not condition():
        pass

def say(word):
    print(word, flush=True)
"""
ENDS = {
    "while it listens": "price.get(1); until(lambda: price.read(1).tier == 'l1'); say('ready'); sys.stdin.readline()",
    "after close": "price.get(1); until(lambda: price.read(1).tier == 'l1'); say('ready'); sys.stdin.readline(); "
    "cache.close()",
    "before it is connected": "price.get(1); say('ready'); sys.stdin.readline()",
    "in a child": "price.get(1); until(lambda: price.read(1).tier == 'l1'); child = os.fork(); price.get(1); "
    "child or sys.exit(); os.waitpid(child, 0); say('ready'); sys.stdin.readline()",
    "with a first read at the very end": "atexit.register(lambda: say(price.get(1))); say('ready'); "
    "sys.stdin.readline()",
    "with a barrier under way": "price.get(1); until(lambda: price.read(1).tier == 'l1'); say('ready'); "
    "sys.stdin.readline(); cache._ports.listener.ping()",
}


@pytest.mark.parametrize("link", ["well", "stuck", "gone"])
@pytest.mark.parametrize("how", ENDS)
def test_it_never_keeps_a_process_from_ending(server: Valkey, proxy: FaultProxy, how: str, link: str) -> None:
    """Whatever its thread waits for; and it says nothing but what it logs."""
    # Python 3.12 and newer warn of every fork of a process with threads, as this one has.
    quiet = ["-W", "ignore:This process:DeprecationWarning"]
    words = [sys.executable, *quiet, "-c", READS + ENDS[how], proxy.url, f"end{next(_names)}"]
    process = subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    if link == "stuck":
        proxy.hold_replies()
    elif link == "gone":
        proxy.close()

    try:
        _, said = process.communicate("\n", timeout=30)
    finally:
        process.kill()

    assert (process.returncode, said) == (0, "")


class Tracked:
    """A tracking connection whose requests nobody receives but the test."""

    def __init__(self, cache: Cache) -> None:
        self.wakes = 0
        [(name, pool)] = cache._ports.listener._link.pools().items()
        self.connection = tracking.TrackingConnection(name, pool, 5.0, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def track(self) -> None:
        """Ask for something."""
        self.connection.track(pack([("EXISTS", "key")]), lambda reply: None)

    @property
    def unsent(self) -> int:
        """How many requests wait for the receiving thread."""
        return len(self.connection._queue)


@pytest.fixture
def tracked(shop: Shop) -> Iterator[Tracked]:
    tracked = Tracked(shop.cache)
    yield tracked
    tracked.connection.close()


def test_a_request_to_track_is_sent_by_who_makes_it_and_what_follows_soon_is_collected(tracked: Tracked) -> None:
    tracked.connection.collect_for = 3600.0
    tracked.connection._flushed_at = float("-inf")

    tracked.track()
    assert (tracked.unsent, tracked.wakes) == (0, 0)

    tracked.track()
    tracked.track()
    assert (tracked.unsent, tracked.wakes) == (2, 1)


def test_a_server_that_owes_many_replies_blocks_no_reader(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked.connection.collect_for = 0.0
    monkeypatch.setattr(tracking, "_MAX_AWAITED", 2)

    for _ in range(4):
        tracked.track()

    assert (tracked.unsent, tracked.wakes) == (2, 1)


def test_over_tls_only_the_receiving_thread_writes(tracked: Tracked) -> None:
    """OpenSSL takes no write by one thread while another reads."""
    tracked.connection.collect_for = 0.0
    tracked.connection._takes_writes = False

    tracked.track()
    tracked.connection.ping(lambda reply, sent: None)

    assert (tracked.unsent, tracked.wakes) == (2, 2)
