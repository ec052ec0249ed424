"""A Cluster: one write per master, replies in order, and nothing lost or run twice while slots move and masters die."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from cacheworkers import Cache, Config, Load, StoreUnavailable
from cacheworkers.core.driver import run
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.commands.scripts import Script
from cacheworkers.store.connections.async_connection import AsyncConnection
from cacheworkers.store.connections.connection import Connection
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.transport import Transport
from cacheworkers.store.tracking.listener import Listener
from cacheworkers.testing import Valkey
from cacheworkers.testing.cluster import Node, ValkeyCluster
from cacheworkers.testing.servers import wait_until

_names = itertools.count(1)


def script(source: bytes) -> Script:
    return Script("test", source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


COUNT = script(b"return redis.call('INCR', KEYS[1])")
COUNT_BOTH = script(b"return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"k{next(_names)}"


def link_to(url: str, timeout: float = 5.0, breaker_for: float = 0.0) -> Transport:
    config = Config(redis_url=url, store_timeout=timeout, breaker_for=breaker_for)
    return Transport(config, StoreClock(), on_lost=lambda error: None, on_back=lambda: None)


@pytest.fixture
def link(cluster: ValkeyCluster) -> Iterator[Transport]:
    link = link_to(cluster.url)
    yield link
    link.close()


@pytest.fixture(params=["sync", "async"])
def exchange(request: pytest.FixtureRequest, link: Transport) -> Iterator[Callable[[Sequence[Request]], list[Any]]]:
    """One exchange, blocking or on a loop that stays the same."""
    if request.param == "sync":
        yield link.exchange
    else:
        with asyncio.Runner() as runner:
            yield lambda requests: runner.run(link.aexchange(requests))


def gets(keys: Sequence[str]) -> list[Request]:
    return [Request(("GET", key)) for key in keys]


def slot_of(key: str) -> int:
    return key_slot(key.encode())


def other_than(cluster: ValkeyCluster, slot: int) -> Node:
    owner = cluster.owner(slot)
    return next(node for node in cluster.masters if node is not owner)


# -- what it costs


def reads_of(node: Node) -> int:
    """How often a server has read from its clients' sockets."""
    stats = node.ask("INFO", "stats")
    return int(stats.partition(b"total_reads_processed:")[2].split()[0])


def test_an_exchange_is_one_write_for_each_master(cluster: ValkeyCluster, exchange: Any, prefix: str) -> None:
    keys = [f"{prefix}:{n}" for n in range(100)]
    exchange([Request(("SET", key, key)) for key in keys])
    before = [reads_of(node) for node in cluster.masters]

    assert exchange(gets(keys)) == [key.encode() for key in keys]

    # The second look is a read too.
    assert [reads_of(node) - was - 1 for node, was in zip(cluster.masters, before, strict=True)] == [1, 1, 1]


def test_all_writes_go_out_before_any_reply_is_read(link: Transport, prefix: str, monkeypatch: Any) -> None:
    """So that the masters work at the same time."""
    keys = [f"{prefix}:{n}" for n in range(100)]
    link.exchange(gets(keys))
    done: list[str] = []
    send, receive = Connection.send, Connection.receive
    monkeypatch.setattr(Connection, "send", lambda wire, packed: (done.append("send"), send(wire, packed))[1])
    monkeypatch.setattr(Connection, "receive", lambda wire, count: (done.append("receive"), receive(wire, count))[1])

    link.exchange(gets(keys))

    assert done == ["send"] * 3 + ["receive"] * 3


def test_tasks_of_one_loop_share_one_connection_to_each_master(cluster: ValkeyCluster, prefix: str) -> None:
    """Reads of one turn of the loop are one write to each."""
    cache = Cache(Config(redis_url=cluster.url, store_timeout=5.0, namespace=prefix))

    @cache.loader(fresh_for=300, l1_for=0.0)
    def number(load: Load, n: int) -> int:
        return n * 10

    sent: Counter[AsyncConnection] = Counter()
    exchange = AsyncConnection.exchange

    async def counted(wire: AsyncConnection, packed: bytes, count: int, **more: bool) -> list[Any]:
        sent[wire] += 1
        return await exchange(wire, packed, count, **more)

    async def main() -> list[Any]:
        await asyncio.gather(*(number.aget(n) for n in range(90)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AsyncConnection, "exchange", counted)
            return await asyncio.gather(*(number.aget(n) for n in range(90)))

    assert asyncio.run(main()) == [n * 10 for n in range(90)]
    assert list(sent.values()) == [1, 1, 1]
    cache.close()


@pytest.mark.parametrize("how", ["get_many", "aget_many"])
def test_many_are_read_from_all_masters(cluster: ValkeyCluster, prefix: str, how: str) -> None:
    cache = Cache(Config(redis_url=cluster.url, store_timeout=5.0, namespace=prefix))
    loads: list[list[int]] = []

    @cache.batch_loader(fresh_for=300, l1_for=0.0, tags=("n:{key}", "all"))
    def numbers(load: Load, keys: list[int]) -> dict[int, int]:
        loads.append(keys)
        return {key: key * 10 for key in keys}

    def read() -> Any:
        found = getattr(numbers, how)(range(200))
        return asyncio.run(found) if how == "aget_many" else found

    assert read() == read() == {n: n * 10 for n in range(200)}
    assert sorted(key for keys in loads for key in keys) == list(range(200))
    assert cache.invalidate("all").entries == 200
    cache.close()


# -- what it answers

_KEYS = st.sampled_from([f"key{n}" for n in range(12)])
_COMMANDS = st.one_of(
    st.builds(lambda key, value: ("SET", key, value), _KEYS, st.integers(0, 99)),
    st.builds(lambda key: ("GET", key), _KEYS),
    st.builds(lambda key: ("DEL", key), _KEYS),
    st.builds(lambda key, value: ("RPUSH", key, value), _KEYS, st.binary(max_size=3)),
    st.builds(lambda key: ("LRANGE", key, 0, -1), _KEYS),
    st.builds(lambda key: ("PTTL", key), _KEYS),
    st.builds(lambda key, of: ("EVALSHA", key, of), _KEYS, _KEYS),
)


def test_any_batch_is_answered_as_a_single_server_answers_it(
    valkey: Valkey, link: Transport, exchange: Any, prefix: str
) -> None:
    """Keys of one batch lie on one master, on several, are of the wrong type, and scripts have several of them."""
    alone = link_to(valkey.url)
    examples = itertools.count()

    @settings(max_examples=60)
    @given(st.lists(_COMMANDS, max_size=40))
    def holds(commands: list[tuple[Any, ...]]) -> None:
        namespace = f"{prefix}:{next(examples)}"
        batch = [asked(namespace, words) for words in commands]
        assert plain(exchange(batch)) == plain(alone.exchange(batch))

    def asked(namespace: str, words: tuple[Any, ...]) -> Request:
        name, key, *rest = words
        key = f"{namespace}:{{{key}}}"
        if name == "EVALSHA":
            return Request.call(COUNT_BOTH, (f"{key}:count", f"{key}:{rest[0]}:count"), ())
        return Request((name, key, *rest))

    def plain(replies: list[Any]) -> list[Any]:
        return [f"{type(each).__name__}: {each}" if isinstance(each, Exception) else each for each in replies]

    holds()
    alone.close()


def test_a_master_that_forgot_its_scripts_is_given_them(cluster: ValkeyCluster, exchange: Any, prefix: str) -> None:
    calls = [Request.call(COUNT, (f"{prefix}:{n}",), ()) for n in range(30)]
    assert exchange(calls) == [1] * 30
    cluster.masters[1].ask("SCRIPT", "FLUSH", "SYNC")

    assert exchange(calls) == [2] * 30


def test_the_rights_that_doctor_names_are_enough_on_every_node(prefix: str) -> None:
    """With a password in the URL, and while a slot is on its way."""
    rights = "+@read +@write +@scripting +@connection +info +time +config|get +cluster"
    with ValkeyCluster() as cluster:
        for node in cluster.masters:
            node.ask("ACL", "SETUSER", "shop", "on", ">secret", f"~{prefix}:*", *rights.split())
            node.ask("ACL", "SETUSER", "default", "off")
        link = link_to(cluster.url.replace("://", "://shop:secret@"))
        keys = [f"{prefix}:{n}" for n in range(30)]

        assert link.exchange([Request.call(COUNT, (key,), ()) for key in keys]) == [1] * 30
        new = f"{prefix}:new"
        cluster.begin_move(slot_of(new), other_than(cluster, slot_of(new)))
        assert asyncio.run(link.aexchange(gets([*keys, new]))) == [b"1"] * 30 + [None]

        link.close()


# -- slots that move


def test_a_slot_that_has_moved_is_found_and_remembered(cluster: ValkeyCluster, exchange: Any, prefix: str) -> None:
    keys = [f"{prefix}:{n}" for n in range(30)]
    calls = [Request.call(COUNT, (key,), ()) for key in keys]
    assert exchange(calls) == [1] * 30
    cluster.move(slot_of(keys[0]), other_than(cluster, slot_of(keys[0])))

    assert exchange(calls) == [2] * 30
    before = sum(map(redirections, cluster.masters))
    assert exchange(calls) == [3] * 30
    assert sum(map(redirections, cluster.masters)) == before


def redirections(node: Node) -> int:
    """How often a server has answered MOVED or ASK."""
    errors = node.ask("INFO", "errorstats").decode()
    return sum(
        int(line.partition("count=")[2])
        for line in errors.splitlines()
        if line.startswith(("errorstat_MOVED", "errorstat_ASK"))
    )


def test_keys_of_a_slot_on_its_way_are_found_where_they_are(cluster: ValkeyCluster, exchange: Any, prefix: str) -> None:
    """Some are still here, some are there already, and some are nowhere: a script runs once for each."""
    keys = [f"{{{prefix}}}:{n}" for n in range(20)]
    slot = slot_of(prefix)
    calls = [Request.call(COUNT, (key,), ()) for key in keys]
    assert exchange(calls) == [1] * 20
    target = other_than(cluster, slot)
    cluster.begin_move(slot, target)
    cluster.move_keys(slot, target, 10)

    assert exchange(calls) == [2] * 20
    assert exchange(gets([*keys, f"{{{prefix}}}:new"])) == [b"2"] * 20 + [None]

    cluster.end_move(slot, target)
    assert exchange(calls) == [3] * 20


def test_a_script_whose_keys_are_here_and_there_waits_and_runs_once(
    cluster: ValkeyCluster, exchange: Any, prefix: str, monkeypatch: Any
) -> None:
    """The slot's move ends while the exchange pauses."""
    one, other, slot = f"{{{prefix}}}:1", f"{{{prefix}}}:2", slot_of(prefix)
    call = Request.call(COUNT_BOTH, (one, other), ())
    assert exchange([call]) == [[1, 1]]
    target = other_than(cluster, slot)
    cluster.begin_move(slot, target)
    cluster.move_keys(slot, target, 1)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            cluster.end_move(slot, target)

    async def apause(seconds: float) -> None:
        pause(seconds)

    monkeypatch.setattr("cacheworkers.core.driver.time.sleep", pause)
    monkeypatch.setattr("cacheworkers.core.driver.asyncio.sleep", apause)

    assert exchange([call]) == [[2, 2]]
    assert len(pauses) == 3


def test_patience_with_a_slot_on_its_way_ends_and_no_master_is_blamed(cluster: ValkeyCluster, prefix: str) -> None:
    link = link_to(cluster.url, timeout=0.2)
    one, other, slot = f"{{{prefix}}}:1", f"{{{prefix}}}:2", slot_of(prefix)
    call = Request.call(COUNT_BOTH, (one, other), ())
    link.exchange([call])
    target = other_than(cluster, slot)
    cluster.begin_move(slot, target)
    cluster.move_keys(slot, target, 1)

    with pytest.raises(StoreUnavailable, match="slot"):
        link.exchange([call])

    assert not link._health.breaker.is_open
    cluster.end_move(slot, target)
    assert link.exchange([call]) == [[2, 2]]
    link.close()


def test_what_concerns_every_master_takes_another_slot_when_one_is_on_its_way(
    cluster: ValkeyCluster, link: Transport, prefix: str
) -> None:
    slot = run(link._masters.masters())[0].slots[0][0]
    target = other_than(cluster, slot)
    cluster.begin_move(slot, target)

    found = link.on_masters(prefix, lambda key: [("SET", key, "x", "PX", "1000"), ("GET", key)])

    assert found == [[b"OK", b"x"]] * 3
    cluster.end_move(slot, target)


@pytest.mark.parametrize("how", ["threads", "tasks"])
def test_while_slots_move_no_script_is_lost_or_run_twice(cluster: ValkeyCluster, prefix: str, how: str) -> None:
    """Four threads or tasks count, over and over, in slots that go from master to master and back."""
    link = link_to(cluster.url)
    tags = [f"{prefix}{n}" for n in range(6)]
    keys = [f"{{{tag}}}:{n}" for tag in tags for n in range(5)]
    over = threading.Event()
    acknowledged: Counter[str] = Counter()

    def batch(seed: random.Random) -> tuple[list[str], list[Request]]:
        chosen = seed.sample(keys, 12)
        return chosen, [Request.call(COUNT, (key,), ()) for key in chosen]

    def count(number: int) -> Counter[str]:
        mine: Counter[str] = Counter()
        seed = random.Random(number)
        while not over.is_set():
            chosen, calls = batch(seed)
            assert all(reply >= 1 for reply in link.exchange(calls))
            mine.update(chosen)
        return mine

    async def acount(number: int) -> Counter[str]:
        mine: Counter[str] = Counter()
        seed = random.Random(number)
        while not over.is_set():
            chosen, calls = batch(seed)
            assert all(reply >= 1 for reply in await link.aexchange(calls))
            mine.update(chosen)
        return mine

    async def all_tasks() -> list[Counter[str]]:
        return await asyncio.gather(*map(acount, range(4)))

    with ThreadPoolExecutor(4) as threads:
        if how == "threads":
            counting = [threads.submit(count, number) for number in range(4)]
        else:
            counting = [threads.submit(asyncio.run, all_tasks())]
        for _ in range(3):
            for tag in tags:
                cluster.move(slot_of(tag), other_than(cluster, slot_of(tag)))
        over.set()
        for each in counting:
            found = each.result()
            for mine in found if isinstance(found, list) else [found]:
                acknowledged.update(mine)

    replies = link.exchange(gets(keys))
    assert {key: int(reply) for key, reply in zip(keys, replies, strict=True)} == dict(acknowledged)
    assert min(acknowledged.values()) > 3
    link.close()


def test_while_slots_move_readers_get_values_and_none_is_lost(cluster: ValkeyCluster, prefix: str) -> None:
    """Half are there before. Of the others one may move under its load, which another server's lease does not cover."""
    cache = Cache(Config(redis_url=cluster.url, store_timeout=5.0, namespace=prefix))
    loads: Counter[int] = Counter()

    @cache.loader(fresh_for=300, l1_for=0.0, early=0, tags=("all",), wait_for=20.0)
    def number(load: Load, n: int) -> int:
        loads[n] += 1
        return n * 10

    keys = cache._ports.store.keys
    slots = [slot_of(keys.entry(f"number[{n}]")) for n in range(40)]
    over = threading.Event()
    assert number.get_many(range(20)) == {n: n * 10 for n in range(20)}

    def read(seed: int) -> None:
        order = random.Random(seed).sample(range(40), 40)
        while not over.is_set():
            for n in order:
                assert number.get(n) == n * 10

    with ThreadPoolExecutor(4) as threads:
        reading = [threads.submit(read, seed) for seed in range(4)]
        for slot in slots:
            cluster.move(slot, other_than(cluster, slot))
        over.set()
        for each in reading:
            each.result()

    assert [loads[n] for n in range(20)] == [1] * 20
    assert all(1 <= loads[n] <= 1 + slots.count(slots[n]) for n in range(20, 40))
    cache.close()


def test_the_listener_tracks_a_master_that_joined(prefix: str) -> None:
    """What lies on it is dropped from memory when it changes there."""
    with ValkeyCluster(has_spare=True) as cluster:
        assert cluster.spare is not None
        here, there = (Cache(Config(redis_url=cluster.url, store_timeout=5.0, namespace=prefix)) for _ in range(2))

        @here.loader(tags=("n:{n}",), fresh_for=300, l1_for=300)
        def number(load: Load, n: int) -> int:
            return n * 10

        number.get(1)
        wait_until(lambda: here._ports.listener.is_up)
        slot = slot_of(here._ports.store.keys.entry("number[1]"))
        cluster.move(slot, cluster.spare)
        wait_until(lambda: number.read(1).tier == "store" or here._ports.l1.get("number[1]") is None)
        number.get(1)
        wait_until(lambda: len(here._ports.listener.connections) == 4 and here._ports.listener.is_up)
        wait_until(lambda: number.read(1).tier == "l1")

        there.invalidate("n:1")

        wait_until(lambda: here._ports.l1.get("number[1]") is None)
        here.close()
        there.close()


def test_memory_is_proven_by_the_last_reply_in_whatever_order_the_masters_answer(prefix: str, monkeypatch: Any) -> None:
    """The first ping is enough, also if the master that was asked last answers first."""
    monkeypatch.setattr("cacheworkers.store.tracking.listener.PING_EVERY", 600.0)
    process = Listener._process
    order: list[str] = []

    def process_backwards(listener: Listener, connection: Any) -> None:
        later = listener.connections[listener.connections.index(connection) + 1 :]
        if all(each.proven_at for each in later):
            process(listener, connection)
            order.append(connection.name)

    monkeypatch.setattr(Listener, "_process", process_backwards)
    with ValkeyCluster() as cluster:
        cache = Cache(Config(redis_url=cluster.url, store_timeout=5.0, namespace=prefix, l1_for=300.0))

        @cache.loader(fresh_for=300)
        def number(load: Load, n: int) -> int:
            return n * 10

        number.get(1)
        wait_until(lambda: cache._ports.listener.is_up)

        assert list(dict.fromkeys(order)) == [each.name for each in cache._ports.listener.connections[::-1]]
        cache.close()


def test_what_lies_on_a_master_that_nobody_listens_to_is_not_kept(prefix: str, monkeypatch: Any) -> None:
    """A master that has joined is used before the listener has noticed: its keys are not tracked yet."""
    monkeypatch.setattr("cacheworkers.store.tracking.listener.PING_EVERY", 600.0)
    with ValkeyCluster(has_spare=True) as cluster:
        assert cluster.spare is not None
        cache = Cache(Config(redis_url=cluster.url, store_timeout=5.0, namespace=prefix, l1_for=300.0))
        database = {1: 10}

        @cache.loader(tags=("n:{n}",), fresh_for=300)
        def number(load: Load, n: int) -> int:
            return database[n]

        number.get(1)
        wait_until(lambda: cache._ports.listener.is_up)
        cluster.move(slot_of(cache._ports.store.keys.entry("number[1]")), cluster.spare)
        wait_until(lambda: cache._ports.l1.get("number[1]") is None)
        number.get(1)
        assert number.read(1).tier == "store"
        assert len(cache._ports.listener.connections) == 3
        database[1] = 11

        cache.invalidate("n:1")

        assert number.get(1) == 11
        cache.close()


# -- masters that fail


def test_a_frozen_master_is_unavailable_and_its_late_replies_are_nobodys(prefix: str) -> None:
    """The others' replies to the same exchange, unread or read, are never taken for those to a later one."""
    with ValkeyCluster() as cluster:
        link = link_to(cluster.url, timeout=0.2)
        keys = [f"{prefix}:{n}" for n in range(30)]
        link.exchange([Request(("SET", key, key)) for key in keys])
        frozen = cluster.masters[0]
        theirs = [key for key in keys if cluster.owner(slot_of(key)) is not frozen]
        frozen.pause()

        with pytest.raises(StoreUnavailable):
            link.exchange(gets(keys))
        assert link.exchange(gets(theirs)) == [key.encode() for key in theirs]
        with pytest.raises(StoreUnavailable):
            asyncio.run(link.aexchange(gets(keys)))
        assert asyncio.run(link.aexchange(gets(theirs))) == [key.encode() for key in theirs]
        frozen.resume()

        backwards = keys[::-1]
        wait_until(lambda: answers(link, backwards) == [key.encode() for key in backwards])
        assert asyncio.run(link.aexchange(gets(backwards))) == [key.encode() for key in backwards]
        link.close()


def test_a_frozen_master_is_missed_by_its_own_readers_only(prefix: str) -> None:
    """What lies on the others comes from them again, for as long as it is frozen; its own readers wait no more."""
    with ValkeyCluster(cluster_require_full_coverage="no", cluster_node_timeout="600000") as cluster:
        link = link_to(cluster.url, breaker_for=0.05)
        keys = [f"{prefix}:{n}" for n in range(30)]
        link.exchange([Request(("SET", key, key)) for key in keys])
        frozen = cluster.masters[0]
        theirs = [key for key in keys if cluster.owner(slot_of(key)) is not frozen]
        its = [key for key in keys if key not in theirs]
        frozen.pause()
        assert answers(link, its) is None

        name = f"127.0.0.1:{frozen.port}"
        wait_until(lambda: link._masters.unavailable == {name})
        for _ in range(100):
            assert link.exchange(gets(theirs)) == [key.encode() for key in theirs]
            with pytest.raises(StoreUnavailable, match=f"{name} did not answer lately"):
                link.exchange(gets(its))
        with pytest.raises(StoreUnavailable, match=f"{name} did not answer lately"):
            link.on_masters("k", lambda key: [("GET", key)])
        with pytest.raises(StoreUnavailable, match=f"{name} did not answer lately"):
            asyncio.run(link.aexchange(gets(keys)))
        assert asyncio.run(link.aexchange(gets(theirs))) == [key.encode() for key in theirs]
        frozen.resume()

        wait_until(lambda: answers(link, keys) == [key.encode() for key in keys])
        assert not link._masters.unavailable
        link.close()


def test_two_masters_that_fail_one_after_the_other_leave_the_third(prefix: str) -> None:
    with ValkeyCluster(cluster_require_full_coverage="no", cluster_node_timeout="600000") as cluster:
        link = link_to(cluster.url, timeout=0.5, breaker_for=0.05)
        of: dict[Node, list[str]] = {}
        for n in range(60):
            of.setdefault(cluster.owner(slot_of(f"{prefix}:{n}")), []).append(f"{prefix}:{n}")
        first, second, third = of
        wait_until(lambda: answers(link, [key for keys in of.values() for key in keys]) is not None)

        first.pause()
        assert answers(link, of[first]) is None
        wait_until(lambda: answers(link, of[second]) is not None)
        second.pause()
        assert answers(link, of[second]) is None
        wait_until(lambda: answers(link, of[third]) is not None)
        assert answers(link, of[first]) is None and answers(link, of[second]) is None
        second.resume()
        wait_until(lambda: answers(link, of[second]) is not None)
        assert answers(link, of[first]) is None
        first.resume()

        wait_until(lambda: answers(link, [*of[first], *of[second], *of[third]]) is not None)
        link.close()


def answers(link: Transport, keys: Sequence[str]) -> list[Any] | None:
    try:
        return link.exchange(gets(keys))
    except StoreUnavailable:
        return None


def test_a_master_that_is_stopped_and_back_is_used_again(prefix: str) -> None:
    with ValkeyCluster(cluster_require_full_coverage="no") as cluster, asyncio.Runner() as runner:
        link = link_to(cluster.url)
        keys = [f"{prefix}:{n}" for n in range(30)]
        link.exchange([Request(("SET", key, 1)) for key in keys])
        runner.run(link.aexchange(gets(keys)))
        stopped = cluster.masters[0]
        theirs = [key for key in keys if cluster.owner(slot_of(key)) is not stopped]
        stopped.kill()

        with pytest.raises(StoreUnavailable):
            link.exchange(gets(keys))
        with pytest.raises(StoreUnavailable):
            runner.run(link.aexchange(gets(keys)))
        assert link.exchange(gets(theirs)) == runner.run(link.aexchange(gets(theirs))) == [b"1"] * len(theirs)
        stopped.start()

        wait_until(lambda: answers(link, keys) is not None)
        assert len(runner.run(link.aexchange(gets(keys)))) == 30
        link.close()


def test_a_replica_that_takes_over_is_found(prefix: str) -> None:
    """By reads, by invalidations and by the listener; the dead master was the one that the URL names."""
    with ValkeyCluster(has_replica=True, cluster_node_timeout="1000") as cluster:
        dead = cluster.masters[0]
        url = dead.url.replace("redis://", "cluster://")
        cache = Cache(Config(redis_url=url, store_timeout=1.0, breaker_for=0.05, namespace=prefix))
        database = dict.fromkeys(range(20), 0)

        @cache.loader(tags=("n:{n}",), fresh_for=300)
        def number(load: Load, n: int) -> int:
            return database[n]

        assert number.get_many(range(20)) == database
        wait_until(lambda: cache._ports.listener.is_up)
        dead.kill()

        def is_back(n: int) -> bool:
            database[n] += 1
            try:
                cache.invalidate(f"n:{n}")
            except Exception:
                return False
            return number.read(n).value == database[n] and number.peek(n) is not None

        for n in range(20):
            wait_until(lambda n=n: is_back(n), 60)  # type: ignore[misc]  # bound as it is now
        wait_until(lambda: cache._ports.listener.is_up and len(cache._ports.listener.connections) == 3)
        cache.close()


def test_nobody_there_is_unavailable() -> None:
    link = link_to("cluster://127.0.0.1:1", timeout=0.5)

    with pytest.raises(StoreUnavailable):
        link.exchange(gets(["a"]))
    with pytest.raises(StoreUnavailable):
        asyncio.run(link.aexchange(gets(["a"])))


def test_a_server_that_is_no_cluster_says_so(valkey: Valkey) -> None:
    link = link_to(valkey.url.replace("redis://", "cluster://"))

    with pytest.raises(Exception, match="cluster support disabled"):
        link.exchange(gets(["a"]))
