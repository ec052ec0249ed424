"""Pool: what goes over them comes back to who sent it, whatever the network does."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import gc
import os
import select
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from billiard.exceptions import SoftTimeLimitExceeded
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from cacheworkers import Cache, Config, Load
from cacheworkers.errors import StoreError, StoreUnavailable
from cacheworkers.events import StoreLost
from cacheworkers.store.connections import server_check
from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.clients import Clients
from cacheworkers.store.connections.connection import Connection, ConnectionCut, pack
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests
from cacheworkers.store.connections.pool import Pool
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.sentinels import Term
from cacheworkers.testing import FaultProxy, Valkey
from cacheworkers.testing.servers import wait_until


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[FaultProxy]:
    with FaultProxy(valkey.url) as proxy:
        yield proxy


def pool_to(url: str, timeout: float = 5.0, **options: Any) -> Pool:
    """Return a pool to a server; one pool of redis-py is enough, for its options."""
    redis_pool = redis.ConnectionPool.from_url(url, **options)
    async_pool = redis.asyncio.ConnectionPool.from_url(url, **options)
    return Pool(lambda: redis_pool, lambda: async_pool, timeout)


def in_time(exchange: Callable[[], list[Any]]) -> list[Any]:
    """Return the replies of the first exchange that is not late: with so short a timeout a busy machine may be."""
    for _ in range(200):
        with contextlib.suppress(TimeoutError):
            return exchange()
    raise AssertionError("every exchange was late")


async def ain_time(exchange: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
    """Do what `in_time` does, on the running loop."""
    for _ in range(200):
        with contextlib.suppress(TimeoutError):
            return await exchange()
    raise AssertionError("every exchange was late")


class Interrupted(float):
    """A number that a signal's handler interrupts while its text is made."""

    def __str__(self) -> str:
        raise SoftTimeLimitExceeded

    __repr__ = __str__


def test_numbers_are_texts_before_they_are_packed() -> None:
    """hiredis crashes the process where the text of a number cannot be made."""
    with pytest.raises(SoftTimeLimitExceeded):
        pack([("SET", "w:a", Interrupted(1.5))])

    assert pack([("SET", "w:a", 1.5), ("PEXPIRE", b"w:a", 7)]) == (
        b"*3\r\n$3\r\nSET\r\n$3\r\nw:a\r\n$3\r\n1.5\r\n*3\r\n$7\r\nPEXPIRE\r\n$3\r\nw:a\r\n$1\r\n7\r\n"
    )


@pytest.mark.parametrize("how", ["get", "read", "get_many", "a miss", "invalidate"])
def test_what_a_signal_s_handler_raises_is_the_caller_s(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Celery's soft time limit comes while a task waits for the store, as a rule; taken for the store's, it is lost."""

    @cache.batch_loader(l1_for=0)
    def price(load: Load, keys: list[int]) -> dict[int, int]:
        return {key: key for key in keys}

    works: dict[str, Callable[[], object]] = {
        "get": lambda: price.get(1),
        "read": lambda: price.read(1),
        "get_many": lambda: price.get_many([1, 2]),
        "a miss": lambda: price.get_many([3, 4]),
        "invalidate": lambda: cache.invalidate("price:1"),
    }
    assert price.get_many([1, 2]) == {1: 1, 2: 2}
    here, left = threading.get_ident(), [SoftTimeLimitExceeded()]

    def interrupted(receive: Callable[..., Any]) -> Callable[..., Any]:
        def received(*args: Any) -> Any:
            if left and threading.get_ident() == here:
                raise left.pop()
            return receive(*args)

        return received

    monkeypatch.setattr(Connection, "ask", interrupted(Connection.ask))
    monkeypatch.setattr(Connection, "receive", interrupted(Connection.receive))

    with pytest.raises(SoftTimeLimitExceeded):
        works[how]()

    assert price.get_many([1, 2, 3]) == {1: 1, 2: 2, 3: 3}  # its connection is nobody's any more


def test_replies_come_in_order_with_errors_among_them(valkey: Valkey) -> None:
    pool = pool_to(valkey.url)

    replies = pool.exchange([("SET", "w:a", "1"), ("INCR", "w:a"), ("LPUSH", "w:a", 1), ("GET", "w:a")])

    assert (replies[0], replies[1], replies[3]) == (b"OK", 2, b"2")
    assert isinstance(replies[2], ResponseError)


def test_large_values_survive(valkey: Valkey) -> None:
    pool = pool_to(valkey.url)
    large = bytes(range(256)) * 8192

    pool.exchange([("SET", "w:large", large)])

    assert pool.exchange([("GET", "w:large"), ("GET", "w:large")]) == [large, large]


def test_one_large_reply_is_all_that_one_command_waits_for(valkey: Valkey) -> None:
    pool = pool_to(valkey.url)
    large = b"x" * 5_000_000
    assert pool.exchange([("SET", "large", large)]) == [b"OK"]

    assert pool.get("large", time.monotonic()) == large
    assert pool.exchange([("DEL", "large")]) == [1]


def test_a_connection_is_checked_only_after_it_was_idle_for_a_while(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, checked = pool_to(valkey.url), list[Connection]()

    def is_open(connection: Connection) -> bool:
        checked.append(connection)
        return True

    pool.exchange([("PING",)])
    [connection] = pool._idle
    connection.suspect()
    monkeypatch.setattr(Connection, "is_open", property(is_open))

    for now in (100.0, 100.1, 100.2, 101.0):
        pool.get("nothing", now)

    assert checked == [connection, connection]


def test_threads_do_not_share_a_connection(valkey: Valkey) -> None:
    pool = pool_to(valkey.url)
    wrong: list[Any] = []

    def work(n: int) -> None:
        for _ in range(200):
            reply = pool.exchange([("ECHO", f"{n}")])
            if reply != [f"{n}".encode()]:
                wrong.append((n, reply))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_late_reply_is_a_timeout_and_nobody_elses_answer(valkey: Valkey, proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url, timeout=0.2)
    assert in_time(lambda: pool.exchange([("ECHO", "before")])) == [b"before"]
    proxy.hold_replies()

    with pytest.raises(TimeoutError):
        pool.exchange([("ECHO", "late")])
    proxy.release()

    assert in_time(lambda: pool.exchange([("ECHO", "after")])) == [b"after"]


def test_a_connection_that_was_cut_while_it_was_idle_is_not_used(proxy: FaultProxy, monkeypatch: Any) -> None:
    monkeypatch.setattr("cacheworkers.store.connections.pool.FRESH_FOR", 0.0)
    pool = pool_to(proxy.url)
    pool.exchange([("ECHO", "a")])
    idle = pool._idle[0]
    proxy.cut()
    assert idle._socket.recv(1) == b""  # the end has arrived here

    assert pool.exchange([("ECHO", "b")]) == [b"b"]
    assert proxy.connections == 2


def test_a_connection_that_is_cut_in_use_is_an_error_and_replaced(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url)
    pool.exchange([("ECHO", "a")])
    proxy.hold_replies()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            pool.exchange([("ECHO", "b")])
        except ConnectionError as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    proxy.cut()
    reader.join(60)
    proxy.release()

    assert len(failed) == 1
    assert pool.exchange([("ECHO", "c")]) == [b"c"]


def test_tasks_share_one_connection_and_get_their_own_replies(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url)

    async def main() -> list[Any]:
        return await asyncio.gather(*(pool.aexchange([("ECHO", str(n)), ("ECHO", f"{n}!")]) for n in range(500)))

    assert asyncio.run(main()) == [[f"{n}".encode(), f"{n}!".encode()] for n in range(500)]
    assert proxy.connections == 1


def test_a_cancelled_task_takes_no_neighbours_reply(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url)

    async def main() -> list[Any]:
        await pool.aexchange([("PING",)])
        proxy.hold_replies()
        tasks = [asyncio.create_task(pool.aexchange([("ECHO", str(n))])) for n in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        proxy.release()
        return await asyncio.gather(*tasks[1::2])

    assert asyncio.run(main()) == [[str(n).encode()] for n in range(1, 10, 2)]
    assert proxy.connections == 1


def test_late_reply_fails_its_task_and_the_next_has_a_new_connection(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url, timeout=0.2)

    async def main() -> Any:
        await ain_time(lambda: pool.aexchange([("PING",)]))
        proxy.hold_replies()
        with pytest.raises(TimeoutError):
            await pool.aexchange([("ECHO", "late")])
        proxy.release()
        return await ain_time(lambda: pool.aexchange([("ECHO", "after")]))

    assert asyncio.run(main()) == [b"after"]


def test_a_cut_connection_fails_those_who_wait(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url)

    async def main() -> tuple[list[Any], Any]:
        await pool.aexchange([("PING",)])
        proxy.hold_replies()
        tasks = [asyncio.create_task(pool.aexchange([("ECHO", "x")])) for _ in range(3)]
        await asyncio.sleep(0)
        proxy.cut()
        failed = await asyncio.gather(*tasks, return_exceptions=True)
        proxy.release()
        return failed, await pool.aexchange([("ECHO", "after")])

    failed, after = asyncio.run(main())
    assert [type(each) for each in failed] == [ConnectionCut] * 3
    assert after == [b"after"]


def test_who_began_to_connect_may_be_cancelled(proxy: FaultProxy) -> None:
    """Those who wait for the same connection get it all the same."""
    pool = pool_to(proxy.url)

    async def main() -> Any:
        first = asyncio.create_task(pool.aexchange([("ECHO", "first")]))
        await asyncio.sleep(0)
        second = asyncio.create_task(pool.aexchange([("ECHO", "second")]))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(main()) == [b"second"]
    assert proxy.connections == 1


def test_a_connection_that_fails_after_all_were_cancelled_is_nobody_s_error() -> None:
    """asyncio would log it as an exception that nobody has retrieved."""
    pool = pool_to("redis://127.0.0.1:1/0")
    logged: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        asking = asyncio.create_task(pool.aexchange([("PING",)]))
        while not pool._connecting:
            await asyncio.sleep(0)
        [connecting] = pool._connecting.values()
        asking.cancel()
        await asyncio.wait([asking, connecting])
        assert asking.cancelled() and connecting.done()

    asyncio.run(main())
    gc.collect()
    assert logged == []


def test_an_error_of_one_master_is_an_error_of_the_store(cache: Cache) -> None:
    with pytest.raises(StoreError):
        cache._ports.store.link.on_master(0, ("NO_SUCH_COMMAND",))


def test_a_master_that_is_away_is_not_asked_on_the_way_to_all_masters(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = cache._ports.store.link
    monkeypatch.setattr(link._masters, "unavailable", link._masters.names)

    with pytest.raises(StoreUnavailable, match="did not answer lately"):
        link.on_master(0, ("PING",))
    with pytest.raises(StoreUnavailable, match="did not answer lately"):
        link.on_masters("k", lambda key: [("GET", key)])


def test_a_listener_of_another_master_than_the_sentinels_name_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(Config(redis_url="sentinel://127.0.0.1:1/shop"))
    link = cache._ports.store.link
    term = Term(("10.0.0.2", 6379), 2)
    monkeypatch.setattr(link._clients, "pool", lambda: SimpleNamespace(get_master_address=lambda: term.master))
    monkeypatch.setattr(link._clients.lease, "term", term)

    assert link.confirm_master("10.0.0.2:6379") == term
    with pytest.raises(OSError, match="no longer a master"):
        link.confirm_master("10.0.0.1:6379")
    cache.close()


def test_the_server_is_checked_at_the_first_exchange(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(server_check, "check_server", lambda info, *_, **__: checked.append(info["redis_version"]))

    for _ in range(2):
        cache._ports.store.link.exchange([Request(("GET", "k"))])

    assert len(checked) == 1 and int(checked[0].split(".")[0]) >= 7


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_master_that_has_answered_since_its_listener_was_lost_is_not_silent(cache: Cache, is_async: bool) -> None:
    link, requests = cache._ports.store.link, [Request(("GET", "k"))]
    link.expect_silence()
    assert link.is_silent("k", link.masters)

    if is_async:
        asyncio.run(link.aexchange(requests))
    else:
        link.exchange(requests)

    assert not link.is_silent("k", link.masters)


def test_an_idle_connection_is_used_once_sentinels_have_confirmed_its_master(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, asked = pool_to(valkey.url), []
    pool.exchange([("PING",)])
    monkeypatch.setattr(pool, "redis_pool", lambda: SimpleNamespace(get_master_address=lambda: asked.append("master")))

    for is_over in (False, True):
        pool._lease = SimpleNamespace(is_over=is_over)  # type: ignore[assignment]
        assert pool.exchange([("ECHO", "a")]) == [b"a"]

    assert asked == ["master"]


def test_a_loop_that_was_closed_while_it_connected_is_forgotten(valkey: Valkey) -> None:
    pool, loop = pool_to(valkey.url), asyncio.new_event_loop()
    pool._connecting[loop] = loop.create_future()
    loop.close()

    pool.drop()

    assert pool._connecting == {}


def test_a_child_asks_a_store_that_was_away_for_its_parent(cache: Cache) -> None:
    link = cache._ports.store.link
    link._health.breaker.failed()
    link.expect_silence()
    link._answered.add("")  # type: ignore[union-attr]
    assert not link.is_well and not link.is_silent("k", link.masters)

    link.reset()

    assert link.is_well and link.is_silent("k", link.masters)


def test_a_closed_cache_leaves_no_connection_of_its_client(cache: Cache, valkey: Valkey) -> None:
    mine = cache._ports.store.link.client().client_id()
    with redis.Redis.from_url(valkey.url) as client:
        assert mine in {int(each["id"]) for each in client.client_list()}

        cache.close()

        wait_until(lambda: mine not in {int(each["id"]) for each in client.client_list()})


def test_each_loop_has_a_connection_of_its_own(valkey: Valkey) -> None:
    pool = pool_to(valkey.url)

    for n in range(3):
        assert asyncio.run(pool.aexchange([("ECHO", str(n))])) == [str(n).encode()]


def test_a_loop_that_ends_closes_its_connection(valkey: Valkey) -> None:
    """Closed after its loop, asyncio would warn of it: in development mode, and where a suite makes warnings errors."""
    pool, files = pool_to(valkey.url), set(os.listdir("/proc/self/fd"))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            asyncio.run(pool.aexchange([("PING",)]))
        gc.collect()

    assert not warned
    assert not pool._of_loop
    assert set(os.listdir("/proc/self/fd")) <= files


def test_a_loop_that_has_ended_its_generators_goes_on(valkey: Valkey) -> None:
    pool = pool_to(valkey.url)

    async def main() -> list[Any]:
        await pool.aexchange([("PING",)])
        await asyncio.get_running_loop().shutdown_asyncgens()
        return await pool.aexchange([("PING",)])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(main()) == [b"PONG"]
    pool._close_those_of_closed_loops()
    assert not pool._until_end


def test_loops_that_have_ended_leave_no_connection_behind(events: list[Any]) -> None:
    """However many a process runs in turn, as scripts and sync views of async code do; `close` takes the last."""
    with Valkey() as server, redis.Redis(port=server.port) as watching:
        cache = Cache(Config(redis_url=server.url, access_report_interval=0), hook=events.append)

        @cache.loader(fresh_for=600, early=0, l1_for=0.0)
        def number(load: Load, n: int) -> int:
            return n

        def clients() -> int:
            return len(watching.client_list())

        number.get(1)
        wait_until(lambda: cache._ports.listener.is_up)
        began_with, files = clients(), len(os.listdir("/proc/self/fd"))

        assert [asyncio.run(number.aget(1)) for _ in range(40)] == [1] * 40

        assert len(os.listdir("/proc/self/fd")) < files + 10
        wait_until(lambda: clients() <= began_with + 1)
        cache.close()
        wait_until(lambda: clients() == 1)


def test_connections_to_sentinels_end_with_their_loop(valkey: Valkey, proxy: FaultProxy) -> None:
    """The server that stands for a Sentinel has no masters to name, but is connected to."""
    clients = Clients(parse_url(f"sentinel://{proxy.url.partition('://')[2].partition('/')[0]}/shop"), 5.0)

    async def ask() -> Any:
        sentinel = clients.async_pool().sentinel_manager
        await sentinel.sentinels[0].ping()
        [connection] = sentinel.sentinels[0].connection_pool._available_connections
        return connection._writer.transport.get_extra_info("socket")

    sockets = [asyncio.run(ask()) for _ in range(3)]
    assert [each.fileno() == -1 for each in sockets] == [True, True, False]

    clients.close()
    assert sockets[-1].fileno() == -1


def test_closed_in_mid_exchange_the_connection_of_a_loop_ends_with_its_last_reply(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url)

    async def main() -> Any:
        await pool.aexchange([("PING",)])
        [[connection]] = pool._of_loop.values()
        proxy.hold_replies()
        late = asyncio.create_task(pool.aexchange([("ECHO", "late")]))
        await asyncio.sleep(0)
        pool.close()
        proxy.release()
        return await late, connection

    reply, connection = asyncio.run(main())
    assert reply == [b"late"]
    assert connection._transport.is_closing()


def test_nobody_there_is_an_error_of_redis(valkey: Valkey) -> None:
    pool = pool_to("redis://127.0.0.1:1/0", timeout=0.5)

    with pytest.raises(ConnectionError):
        pool.exchange([("PING",)])
    with pytest.raises(ConnectionError):
        asyncio.run(pool.aexchange([("PING",)]))


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_and_a_database_are_honoured(valkey: Valkey, protocol: int) -> None:
    pool = pool_to(f"{valkey.url.partition('://')[0]}://{valkey.url.split('/')[2]}/3", protocol=protocol)

    assert b"db=3" in pool.exchange([("CLIENT", "INFO")])[0]


# -- cut


def killed(server: redis.Redis, held: Any) -> None:
    """Have the server close a connection, and return when the end of it has arrived here."""
    host, port = held.getsockname()
    server.client_kill(f"{host}:{port}")
    wait_until(lambda: select.select([held], [], [], 0)[0])


@pytest.fixture
def watching(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis(port=valkey.port) as client:
        client.set("w:cut", "1")
        yield client


@pytest.fixture
def never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a connection was idle."""
    monkeypatch.setattr("cacheworkers.store.connections.pool.FRESH_FOR", 600.0)


READS = [[("GET", "w:cut")], [("MGET", "w:cut")], [("GETRANGE", "w:cut", 0, 9), ("GET", "w:cut")]]
WAYS: dict[str, Callable[[Pool, Any], list[Any]]] = {
    "alone": lambda pool, commands: pool.exchange(commands),
    "sent": lambda pool, commands: pool.send(commands).receive(),
    "sent, with less time": lambda pool, commands: pool.send(commands, timeout=60.0).receive(timeout=60.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("commands", READS, ids=lambda commands: commands[0][0])
def test_a_read_whose_connection_was_cut_is_sent_once_more(
    valkey: Valkey, watching: redis.Redis, never_looked_at: None, commands: Any, way: str
) -> None:
    """No failure, that others would have to know."""
    pool = pool_to(valkey.url)
    expected = pool.exchange(commands)
    killed(watching, pool._idle[0]._socket)

    assert WAYS[way](pool, commands) == expected
    assert pool.failed_at == 0.0
    assert len(pool._idle) == 1


@pytest.mark.parametrize("way", WAYS)
def test_what_writes_is_not_sent_again(valkey: Valkey, watching: redis.Redis, never_looked_at: None, way: str) -> None:
    """It may have been done; nor is what is read with it."""
    pool = pool_to(valkey.url)
    for commands in ([("INCR", "w:cut")], [("GET", "w:cut"), ("INCR", "w:cut")]):
        pool.exchange([("PING",)])
        killed(watching, pool._idle[0]._socket)
        with pytest.raises(ConnectionError):
            WAYS[way](pool, commands)

    assert watching.get("w:cut") == b"1"
    assert pool.failed_at > 0.0


def test_a_read_that_is_cut_twice_fails(proxy: FaultProxy, never_looked_at: None) -> None:
    pool = pool_to(proxy.url)
    pool.exchange([("PING",)])
    proxy.close()

    with pytest.raises(ConnectionError):
        pool.exchange([("GET", "w:cut")])
    assert pool.failed_at > 0.0


def test_one_cut_connection_makes_the_others_suspect(
    valkey: Valkey, watching: redis.Redis, never_looked_at: None
) -> None:
    """What closed one has perhaps closed all that were idle: even a write finds one that was not."""
    pool = pool_to(valkey.url)
    for sent in [pool.send([("PING",)]) for _ in range(4)]:
        sent.receive()
    for idle in list(pool._idle):
        killed(watching, idle._socket)

    assert pool.exchange([("GET", "w:cut")]) == [b"1"]
    sent = pool.send([("GET", "w:cut")])  # takes the one that is new
    assert pool.exchange([("INCR", "w:cut")]) == [2]
    assert sent.receive() == [b"1"]


def test_a_late_reply_is_not_asked_for_again(proxy: FaultProxy) -> None:
    """The store is slow, and not to be asked twice as much."""
    pool = pool_to(proxy.url, timeout=0.2)
    in_time(lambda: pool.exchange([("GET", "w:cut")]))
    connections = proxy.connections
    proxy.hold_replies()

    with pytest.raises(TimeoutError):
        pool.exchange([("GET", "w:cut")])

    assert proxy.connections == connections
    proxy.release()


def test_the_second_time_has_what_the_first_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both together take one timeout, and the second never nothing."""
    now, given = [100.0], list[float | None]()

    class Cut:
        is_cut, generation = True, 0

        def __init__(self, pool: Any, timeout: float, connect_timeout: float | None, generation: int) -> None:
            given.append(connect_timeout)

        def exchange(self, packed: bytes, count: int) -> list[Any]:
            now[0] += 7.0
            raise ConnectionError("cut")

        def send(self, packed: bytes) -> None:
            now[0] += 2.9

        def wait(self, timeout: float) -> None:
            given.append(timeout)

        def receive(self, count: int) -> list[Any]:
            return [b"1"] * count

        def close(self) -> None:
            pass

    pool = Pool(lambda: None, lambda: None, 10.0)
    monkeypatch.setattr("cacheworkers.store.connections.pool.Connection", Cut)
    monkeypatch.setattr("cacheworkers.store.connections.pool.time", SimpleNamespace(monotonic=lambda: now[0]))

    assert pool.exchange([("GET", "w:cut")]) == [b"1"]
    assert given == [None, pytest.approx(3.0), pytest.approx(0.5)]


def test_on_a_loop_too_a_read_that_was_cut_is_sent_once_more_and_a_write_is_not(
    valkey: Valkey, watching: redis.Redis
) -> None:
    """All that were on the way go over one new connection."""
    pool = pool_to(valkey.url)

    async def cut() -> Any:
        await pool.aexchange([("PING",)])
        [[connection]] = pool._of_loop.values()
        killed(watching, connection._transport.get_extra_info("socket"))  # and the loop has not noticed

    async def main() -> tuple[Any, Any]:
        await cut()
        reads = await asyncio.gather(*(pool.aexchange([("GET", "w:cut")]) for _ in range(20)))
        assert pool.failed_at == 0.0
        await cut()
        return reads, await asyncio.gather(pool.aexchange([("INCR", "w:cut")]), return_exceptions=True)

    reads, [written] = asyncio.run(main())
    assert reads == [[b"1"]] * 20
    assert type(written) is ConnectionCut
    assert watching.get("w:cut") == b"1"


def test_of_a_read_that_is_cut_twice_on_a_loop_its_caller_gets_an_error(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url)
    reported: list[Any] = []

    async def main() -> None:
        await pool.aexchange([("PING",)])
        ended = asyncio.Event()
        proxy.close()
        assert pool.submit(("GET", "w:cut"), lambda outcome: (reported.append(outcome), ended.set()))
        await ended.wait()
        with pytest.raises(ConnectionError):
            await pool.aexchange([("GET", "w:cut")])

    asyncio.run(main())
    assert isinstance(reported[0], ConnectionError)


HOW: dict[str, Callable[[Any, int], Any]] = {
    "get": lambda number, n: number.get(n),
    "get_many": lambda number, n: number.get_many([n])[n],
}
AHOW: dict[str, Callable[[Any, int], Any]] = {
    "aget": lambda number, n: number.aget(n),
    "aget_many": lambda number, n: number.aget_many([n]),
}


def made_number(make_cache: Callable[..., Cache]) -> tuple[Any, list[int]]:
    loads: list[int] = []

    @make_cache(access_report_interval=0).loader(fresh_for=600, early=0, l1_for=0.0)
    def number(load: Load, n: int) -> int:
        loads.append(n)
        return n * 10

    return number, loads


@pytest.mark.parametrize("how", HOW)
def test_one_connection_that_is_closed_is_no_store_that_is_lost(
    make_cache: Callable[..., Cache], watching: redis.Redis, never_looked_at: None, events: list[Any], how: str
) -> None:
    number, loads = made_number(make_cache)
    number.get(1)
    for idle in list(number._ports.store.link._alone._idle):
        killed(watching, idle._socket)

    assert HOW[how](number, 1) == 10
    assert loads == [1]
    assert [event for event in events if isinstance(event, StoreLost)] == []


@pytest.mark.parametrize("how", AHOW)
def test_one_connection_of_a_loop_that_is_closed_is_no_store_that_is_lost(
    make_cache: Callable[..., Cache], watching: redis.Redis, events: list[Any], how: str
) -> None:
    number, loads = made_number(make_cache)

    async def main() -> Any:
        await number.aget(1)
        [[connection]] = number._ports.store.link._alone._of_loop.values()
        killed(watching, connection._transport.get_extra_info("socket"))
        return await AHOW[how](number, 1)

    assert asyncio.run(main()) in (10, {1: 10})
    assert loads == [1]
    assert [event for event in events if isinstance(event, StoreLost)] == []


# -- dropped


def test_a_connection_that_was_in_use_when_all_were_dropped_is_not_used_again(proxy: FaultProxy) -> None:
    """Its server may be no longer a master, and answers all the same."""
    pool = pool_to(proxy.url)
    [before] = pool.exchange([("CLIENT", "ID")])
    sent = pool.send([("GET", "w:cut")])

    pool.drop()
    sent.receive()

    [after] = pool.exchange([("CLIENT", "ID")])
    assert after != before


def test_a_connection_that_was_being_opened_when_all_were_dropped_is_not_kept(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_to(proxy.url)
    redis_pool = pool.redis_pool

    def dropping() -> Any:
        found = redis_pool()  # it has just been asked where the master is
        pool.drop()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(pool, "redis_pool", dropping)
        pool.exchange([("PING",)])

    assert list(pool._idle) == []


def test_a_late_reply_closes_what_has_not_answered_since(proxy: FaultProxy) -> None:
    """What the network has forgotten looks open: each of the idle connections would cost a reader a timeout."""
    pool = pool_to(proxy.url, timeout=0.2)
    in_time(lambda: pool.exchange([("PING",)]))
    for sent in [pool.send([("PING",)]) for _ in range(3)]:
        with contextlib.suppress(TimeoutError):
            sent.receive()
    proxy.hold_replies()

    with pytest.raises(TimeoutError):
        pool.exchange([("GET", "w:cut")])
    proxy.release()

    assert list(pool._idle) == []


def test_reads_behind_a_late_one_on_a_loop_are_answered_over_a_new_connection(valkey: Valkey) -> None:
    """One connection that leads nowhere costs its first reader only."""
    with FaultProxy(valkey.url) as proxy:
        there = [proxy.url]
        pool = pool_to(proxy.url, timeout=2.0)
        pool._async_redis_pool = lambda: redis.asyncio.ConnectionPool.from_url(there[0])

        async def main() -> list[Any]:
            await pool.aexchange([("SET", "w:cut", "1")])
            proxy.hold_replies()
            there[0] = valkey.url
            late = asyncio.create_task(pool.aexchange([("GET", "w:cut")]))
            await asyncio.sleep(1.0)  # half of the timeout: those behind it have time left
            behind = [asyncio.create_task(pool.aexchange([("GET", "w:cut")])) for _ in range(10)]
            return await asyncio.gather(late, *behind, return_exceptions=True)

        late, *behind = asyncio.run(main())

    assert isinstance(late, TimeoutError)
    assert behind == [[b"1"]] * 10


@pytest.mark.parametrize("how", ["get", "aget"])
def test_one_late_reply_is_no_store_that_is_lost(
    make_cache: Callable[..., Cache], proxy: FaultProxy, events: list[Any], how: str
) -> None:
    """Its reader has the value, loaded or from the store after all; others are answered."""
    number, loads = made_number(lambda **options: make_cache(redis_url=proxy.url, store_timeout=2.0, **options))
    for n in range(10):
        number.get(n)
    loads.clear()
    health = number._ports.store.link._health
    confirm = health._confirm

    def released() -> None:
        proxy.release()
        confirm()

    async def read() -> Any:
        await number.aget(0)
        proxy.hold_replies()
        return await number.aget(1)

    health._confirm = released
    if how == "get":
        proxy.hold_replies()
        assert number.get(1) == 10
    else:
        assert asyncio.run(read()) == 10

    assert loads in ([], [1])
    loads.clear()
    assert [number.get(n) for n in range(10)] == [n * 10 for n in range(10)]
    assert loads == []
    assert [event for event in events if isinstance(event, StoreLost)] == []


# -- less time


def test_a_reply_may_be_waited_for_less_long_than_the_timeout(proxy: FaultProxy) -> None:
    """What was not waited for is not taken for another's reply."""
    pool = pool_to(proxy.url, timeout=600.0)
    assert pool.send([("ECHO", "a")], timeout=60.0).receive(timeout=60.0) == [b"a"]
    proxy.hold_replies()
    sent = pool.send([("ECHO", "b")])

    with pytest.raises(TimeoutError):
        sent.receive(timeout=0.01)

    proxy.release()
    assert pool.exchange([("ECHO", "c")]) == [b"c"]


def test_connecting_may_be_waited_for_less_long_than_the_timeout(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url, timeout=600.0, socket_timeout=600.0)
    proxy.hold_replies()

    with pytest.raises(TimeoutError):
        pool.send([("ECHO", "a")], timeout=0.01)


def test_a_connection_that_was_connected_in_less_time_has_the_whole_timeout(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url, timeout=600.0)
    pool.send([("ECHO", "a")], timeout=60.0).receive()

    assert pool._idle[-1]._socket.gettimeout() in (None, 600.0)


def test_on_a_loop_too_the_wait_for_several_may_be_shorter(proxy: FaultProxy) -> None:
    pool = pool_to(proxy.url, timeout=600.0)

    async def main() -> None:
        assert await FanOut(RoutedRequests(pool, [("ECHO", "a")]), timeout=60.0).arun() == [[b"a"]]
        proxy.hold_replies()
        with pytest.raises(builtins.TimeoutError):
            await FanOut(RoutedRequests(pool, [("ECHO", "b")]), timeout=0.01).arun()
        proxy.release()
        assert await FanOut(RoutedRequests(pool, [("ECHO", "c")])).arun() == [[b"c"]]

    asyncio.run(main())
