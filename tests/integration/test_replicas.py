"""`Config.replicas`: what is acknowledged survives a failover to a replica that had it; and nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis
from mutation import Mutation, python, script

from cacheworkers import Cache, Config, Load
from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.errors import InvalidationIncomplete
from cacheworkers.flows import invalidate as invalidating
from cacheworkers.flows import write_loaded
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import FaultProxy, Stepper, Valkey
from cacheworkers.testing.servers import free_port, wait_until

#: `store_timeout` where a replica is waited for in vain, seconds; elsewhere it may take its time.
HASTY = 2.0


class Pair:
    """A master, and a replica that is replicated to through a network that can be held up."""

    def __init__(self, master: Valkey, replica: Valkey, network: FaultProxy) -> None:
        self.master, self.replica, self.network = master, replica, network
        self._caches: list[Cache] = []
        self.prices = {1: 10}

    def cache(self, at: Valkey, **options: Any) -> tuple[Cache, Any]:
        """A cache on one of them, and its loader."""
        cache = Cache(Config(redis_url=at.url, **{"store_timeout": 20.0, "breaker_for": 0.0, **options}))
        self._caches.append(cache)

        @cache.loader(tags=("n:{n}",), fresh_for=300, jitter=0.0, early=0.0, load_for=30.0)
        def number(load: Load, n: int) -> int:
            return self.prices[n]

        return cache, number

    def fail_over(self) -> None:
        """The master dies, and the replica follows it with what it has."""
        self.master.kill()
        self.network.cut()
        self.client(self.replica).execute_command("REPLICAOF", "NO", "ONE")

    def client(self, server: Valkey) -> Any:
        return redis.Redis.from_url(server.url, decode_responses=True)

    def keys(self, server: Valkey) -> set[str]:
        return set(self.client(server).keys("cw:*"))

    def close(self) -> None:
        for cache in self._caches:
            cache.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Valkey(repl_diskless_sync_delay="0") as master, FaultProxy(master.url) as network:
        port = network.url.rpartition(":")[2].partition("/")[0]
        with Valkey(replicaof=f"127.0.0.1 {port}") as replica:
            found = Pair(master, replica, network)
            wait_until(lambda: found.client(replica).info("replication")["master_link_status"] == "up")
            yield found
            found.close()


def aside(cache: Cache) -> Callable[[], Any]:
    return lambda: asyncio.run(cache.ainvalidate("n:1"))


@pytest.mark.parametrize("is_async", [False, True])
def test_an_acknowledged_invalidation_is_on_the_replica(pair: Pair, is_async: bool) -> None:
    cache, number = pair.cache(pair.master, replicas=1)
    assert number.get(1) == 10
    wait_until(lambda: "cw:e:{number[1]}" in pair.keys(pair.replica))

    done = aside(cache)() if is_async else cache.invalidate("n:1")

    assert pair.keys(pair.replica) & {"cw:e:{number[1]}", "cw:t:{n:1}"} == set()
    assert pair.client(pair.replica).get("cw:v:{n:1}") == str(done.seq)


@pytest.mark.parametrize("is_async", [False, True])
def test_nothing_is_acknowledged_while_the_replica_is_away(pair: Pair, is_async: bool) -> None:
    """The entry is gone all the same; once the replica is back, invalidations are acknowledged again."""
    cache, number = pair.cache(pair.master, replicas=1, store_timeout=HASTY)
    number.get(1)
    pair.replica.pause()

    with pytest.raises(InvalidationIncomplete, match=r"0 of 1 replicas acknowledged it within 1\.6 s"):
        aside(cache)() if is_async else cache.invalidate("n:1")
    with pytest.raises(InvalidationIncomplete, match="0 of 1 replicas"):
        number.invalidate(1)
    assert number.peek(1) is None
    pair.replica.resume()

    wait_until(lambda: is_acknowledged(cache, "n:1"))


def test_what_replicas_lack_is_not_cached_either(pair: Pair) -> None:
    """An entry whose tags a failover may lose could never be invalidated: who loads it has it, uncached."""
    cache, _ = pair.cache(pair.master, replicas=1, store_timeout=HASTY)
    pair.replica.pause()

    result = loading(cache).finish()["number[1]"]

    assert (result.outcome, result.payload) == ("conflict", b"10")
    assert "0 of 1 replicas" in str(result.error)
    assert "cw:e:{number[1]}" not in pair.keys(pair.master)
    wait_until(lambda: "cw:l:{number[1]}" not in pair.keys(pair.master))
    pair.replica.resume()


def test_an_invalidation_outlives_the_master(pair: Pair) -> None:
    """Neither the old entry nor a load that was under way brings the old value back."""
    cache, number = pair.cache(pair.master, replicas=1)
    assert number.get(1) == 10
    going, entry, fence = begun(cache)
    pair.prices[1] = 11
    cache.invalidate("n:1")

    pair.fail_over()

    cache, number = pair.cache(pair.replica)
    [registered] = cache._ports.store.register([("number[1]", ["n:1"], 60.0)], load_for=30).run()
    assert registered.newest > entry.seq
    assert cache._ports.store.write([(entry, fence)]).run() == [False]
    assert number.get(1) == 11
    going.crash()


def test_without_it_a_failover_loses_an_acknowledged_invalidation(pair: Pair) -> None:
    """What the option is for: replication is asynchronous."""
    cache, number = pair.cache(pair.master, replicas=0)
    assert number.get(1) == 10
    wait_until(lambda: "cw:e:{number[1]}" in pair.keys(pair.replica))
    pair.network.hold_replies()
    pair.prices[1] = 11
    cache.invalidate("n:1")

    pair.fail_over()

    _, number = pair.cache(pair.replica)
    assert number.get(1) == 10


def test_the_tags_of_a_written_entry_are_on_the_replica(pair: Pair) -> None:
    """Before the write: a load whose registration is lost, but whose lease is not, would be found by nobody."""
    cache, _ = pair.cache(pair.master, replicas=1)
    going = loading(cache).until("write")

    assert pair.client(pair.replica).zscore("cw:t:{n:1}", "number[1]") is not None
    going.finish()


def test_a_load_whose_registration_a_failover_has_lost_is_not_written(pair: Pair) -> None:
    """The replica has its lease, and no member of its tag: written there, no invalidation would find it."""
    cache, number = pair.cache(pair.master)
    assert number.get(1) == 10
    going, entry, fence = begun(cache)
    wait_until(lambda: pair.client(pair.replica).hget("cw:l:{number[1]}", "fence") == fence)

    pair.fail_over()

    cache, _ = pair.cache(pair.replica)
    assert pair.client(pair.replica).hget("cw:l:{number[1]}", "fence") == fence
    assert cache._ports.store.write([(entry, fence)]).run() == [False]
    assert "cw:l:{number[1]}" not in pair.keys(pair.replica)
    going.crash()


def loading(cache: Cache) -> Stepper[Any]:
    """A worker that has a claim for number[1] in its hands."""
    ports, spec = cache._ports, cache._loaders["number"]
    seen = envelope.version_of(ports.store.get("number[1]").run())
    token = secrets.token_hex(8)
    ports.store.claim("number[1]", token, lease_for=30, seen=seen).run()
    return Stepper(
        load(ports, spec, [LoadRequest("number", "number[1]", token, seen.hex(), "revalidate")], ports.worker)
    )


def begun(cache: Cache) -> tuple[Stepper[Any], Entry, str]:
    """A load under way, which keeps its lease while it is referred to; what it is going to write, and its fence."""
    going = loading(cache).until("load ")
    fence = cache._ports.store.lease("number[1]").run()["fence"]
    raw = cache._ports.store.get("number[1]").run()
    assert raw is not None
    return going, msgspec.structs.replace(envelope.unpack(raw), write_id=bytes.fromhex(fence)), fence


# -- on a Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, list[Valkey]]]:
    """URL of a Cluster of three masters with one replica each, and the replicas."""
    with contextlib.ExitStack() as stack:
        options = {"cluster_enabled": "yes", "repl_diskless_sync_delay": "0"}
        servers = [stack.enter_context(Valkey(cluster_port=str(free_port()), **options)) for _ in range(6)]
        clients = [redis.Redis.from_url(server.url) for server in servers]
        for client, (first, last) in zip(clients[:3], ((0, 5460), (5461, 10922), (10923, 16383)), strict=True):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port, server._config["cluster_port"])
        for client in clients:
            wait_until(lambda c=client: c.execute_command("CLUSTER INFO")["cluster_known_nodes"] == "6")
        for master, replica in zip(clients[:3], clients[3:], strict=True):
            name = master.execute_command("CLUSTER MYID")
            wait_until(lambda c=replica, n=name: _replicates(c, n))
        for client in clients:
            wait_until(lambda c=client: c.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        for client in clients[3:]:
            wait_until(lambda c=client: c.info("replication").get("master_link_status") == "up")
        yield servers[0].url.replace("redis://", "cluster://"), servers[3:]


def _replicates(client: Any, name: Any) -> bool:
    with contextlib.suppress(redis.ResponseError):  # it does not know that master yet
        return bool(client.execute_command("CLUSTER REPLICATE", name))
    return False


def test_every_master_of_a_cluster_waits_for_its_own(cluster: tuple[str, list[Valkey]]) -> None:
    """One master without its replica is enough for nothing to be acknowledged."""
    url, replicas = cluster
    cache = Cache(Config(redis_url=url, replicas=1, store_timeout=20.0, breaker_for=0.0))
    hasty = Cache(Config(redis_url=url, replicas=1, store_timeout=HASTY, breaker_for=0.0))

    @cache.loader(tags=("all",), fresh_for=300)
    def number(load: Load, n: int) -> int:
        return n

    assert number.get_many(range(1, 31)) == {n: n for n in range(1, 31)}
    assert cache.invalidate("all").entries == 30
    assert sum(_entries(replica) for replica in replicas) == 0

    for replica in replicas:
        replica.pause()
        with pytest.raises(InvalidationIncomplete, match="0 of 1 replicas"):
            hasty.invalidate("all")
        replica.resume()
        wait_until(lambda: is_acknowledged(hasty, "all"))
    assert asyncio.run(cache.ainvalidate("all")).seq > 0
    hasty.close()
    cache.close()


def _entries(server: Valkey) -> int:
    return len(redis.Redis.from_url(server.url).keys("cw:e:*"))


def is_acknowledged(cache: Cache, tag: str) -> bool:
    with contextlib.suppress(InvalidationIncomplete):
        return cache.invalidate(tag).seq > 0
    return False


def no_invalidation_waits(pair: Pair) -> None:
    test_nothing_is_acknowledged_while_the_replica_is_away(pair, False)


@pytest.mark.parametrize(
    ("part", "race"),
    [
        (python(invalidating, "_acknowledged", "        yield from replicated(ports)\n", ""), no_invalidation_waits),
        (
            python(write_loaded, "write", "yield from replicated(ports)\n", "pass\n"),
            test_what_replicas_lack_is_not_cached_either,
        ),
        (
            script("WRITE", 'held[2] == string.match(redis.call("INFO", "server"), "run_id:(%x+)")', "true"),
            test_a_load_whose_registration_a_failover_has_lost_is_not_written,
        ),
    ],
)
def test_removed_part_is_missed(pair: Pair, monkeypatch: pytest.MonkeyPatch, part: Mutation, race: Any) -> None:
    part(monkeypatch)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        race(pair)
