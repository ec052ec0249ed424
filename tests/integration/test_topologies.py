"""The same promises on a Cluster of three masters, and behind Sentinels through a failover."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from cacheworkers import Cache, Config, Load, UnsafeStore
from cacheworkers.ops.doctor import diagnose
from cacheworkers.testing import Valkey
from cacheworkers.testing.cluster import ValkeyCluster
from cacheworkers.testing.servers import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """URL of a Cluster of three masters."""
    with ValkeyCluster() as cluster:
        yield cluster.url


def made(url: str, **options: Any) -> tuple[Cache, Any, dict[int, int], list[int]]:
    """A cache, a loader with a tag of its own and one for all, what it reads, and what it has loaded."""
    cache = Cache(Config(redis_url=url, **{"store_timeout": 5.0, **options}))
    database = {n: n * 10 for n in range(1, 101)}
    loads: list[int] = []

    @cache.loader(tags=("n:{n}", "all"), fresh_for=300)
    def number(load: Load, n: int) -> int:
        loads.append(n)
        return database[n]

    return cache, number, database, loads


def test_a_cluster_loads_serves_and_invalidates(cluster: str) -> None:
    """Entries, leases and tag sets lie on different masters; a tag finds all of them."""
    cache, number, database, loads = made(cluster, namespace="c1", tag_shards={"all": 4})
    assert [number.get(n) for n in range(1, 51)] == [n * 10 for n in range(1, 51)]
    assert number.get_many(range(1, 51)) == {n: n * 10 for n in range(1, 51)}
    assert len(loads) == 50

    database[7] = 1
    cache.invalidate("n:7")
    assert number.get(7) == 1
    done = cache.invalidate("all")
    assert done.entries == 50
    assert all(number.peek(n) is None for n in range(1, 51))
    assert sorted(cache.calls_of("all")) == []
    cache.close()


def test_pushes_of_every_master_reach_l1(cluster: str) -> None:
    cache, number, _, _ = made(cluster, namespace="c2")
    other, _, _, _ = made(cluster, namespace="c2")
    for n in range(1, 31):
        number.get(n)
    wait_until(lambda: cache._ports.listener.is_up)
    for n in range(1, 31):
        number.get(n)
        wait_until(lambda n=n: number.read(n).tier == "l1")

    other.invalidate("all")

    wait_until(lambda: len(cache._ports.l1) == 0)
    cache.close()
    other.close()


def test_a_cluster_from_an_event_loop(cluster: str) -> None:
    cache, number, database, loads = made(cluster, namespace="c3")

    async def main() -> None:
        assert await asyncio.gather(*(number.aget(n) for n in range(1, 51))) == [n * 10 for n in range(1, 51)]
        database[7] = 1
        await cache.ainvalidate("n:7")
        assert await number.aget(7) == 1

    asyncio.run(main())
    assert len(loads) == 51
    cache.close()


def test_a_sweep_of_a_cluster_leaves_nothing_but_the_sequence(cluster: str) -> None:
    cache, number, _, _ = made(cluster, namespace="c4")
    for n in range(1, 31):
        number.get(n)
    client = cache._ports.store.link.client()
    for n in range(1, 31):
        client.delete(cache._ports.store.keys.entry(f"number[{n}]"))
        for tag in ("all", f"n:{n}"):
            client.zadd(cache._ports.store.keys.tag_set(tag), {f"number[{n}]": 1})

    done = cache.collect_garbage()
    again = cache.collect_garbage()

    assert (done.members, again.members) == (60, 0)
    assert client.exists(cache._ports.store.keys.tag_set("all")) == 0
    cache.close()


def test_doctor_looks_at_every_master_of_a_cluster(cluster: str) -> None:
    """One of three with a policy that hurts is found, by its name."""
    cache, _, _, _ = made(cluster, namespace="c5")
    client = cache._ports.store.link.client()
    one, *others = client.get_primaries()
    client.execute_command("CONFIG SET", "maxmemory-policy", "allkeys-lru", target_nodes=one)

    findings = diagnose(cache)

    client.execute_command("CONFIG SET", "maxmemory-policy", "noeviction", target_nodes=one)
    policies = {finding.what.split()[0]: finding.level for finding in findings if finding.check == "eviction-policy"}
    assert policies == {one.name: "error", **{each.name: "ok" for each in others}}
    assert {f.check: f.level for f in findings if f.check in ("tracking", "acl")} == {"tracking": "ok", "acl": "ok"}
    assert "check-failed" not in {finding.check for finding in findings}
    cache.close()


def test_a_store_that_becomes_unsafe_is_logged_once_by_those_that_run_and_not_used_by_those_that_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Valkey() as server:
        running, number, _, _ = made(server.url, namespace="policy")
        marks = running.internals.runtime.marks
        number.get(1)
        set_policy = running._ports.store.link.client().config_set
        for policy in ("allkeys-lru", "allkeys-lru", "volatile-lru", "allkeys-random"):
            set_policy("maxmemory-policy", policy)
            marks._noted_at = 0.0
            marks.note()
        starting, other, _, _ = made(server.url, namespace="policy2")

        assert number.read(1).tier != "load" and other.read(1).tier == "load"
        with pytest.raises(UnsafeStore):
            starting._ports.store.note_worker("celery@host").run()  # as a worker of any queue does when it is ready

        found = [line for line in caplog.messages if "has maxmemory-policy" in line]
        assert [line.split("maxmemory-policy ")[1].split(":")[0] for line in found] == [
            "allkeys-lru",
            "allkeys-random",
            "allkeys-random",
        ]
        for cache in (running, starting):
            cache.close()


def test_doctor_asks_sentinels_for_the_master() -> None:
    with Valkey() as master, Sentinel(master.port, down_after=600.0) as sentinel:
        cache, _, _, _ = made(f"sentinel://127.0.0.1:{sentinel.port}/shop")

        findings = {finding.check: finding.level for finding in diagnose(cache)}

        cache.close()
    assert findings["store-replica"] == findings["tracking"] == findings["acl"] == "ok"
    assert findings["sentinels"] == "warning"
    assert "check-failed" not in findings


def test_sentinels_lead_to_the_master_and_to_the_next_one() -> None:
    """After a failover reads and invalidations go on, at the new master."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Valkey())
        replica = stack.enter_context(Valkey(replicaof=f"127.0.0.1 {master.port}"))
        sentinels = [stack.enter_context(Sentinel(master.port)) for _ in range(3)]
        where = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        watching = redis.Redis(port=sentinels[0].port, decode_responses=True)
        wait_until(lambda: watching.sentinel_master("shop")["num-slaves"] == 1)
        wait_until(lambda: watching.sentinel_master("shop")["num-other-sentinels"] == 2)
        cache, number, database, _ = made(f"sentinel://{where}/shop", breaker_for=0.1)
        assert number.get(1) == 10

        master.kill()
        wait_until(lambda: watching.sentinel_master("shop")["port"] == replica.port)

        def is_back() -> bool:
            database[1] += 1
            with contextlib.suppress(Exception):
                cache.invalidate("n:1")
                return number.read(1).value == database[1] and number.peek(1) is not None
            return False

        wait_until(is_back)
        cache.close()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_replaced_master_that_goes_on_is_not_asked(is_async: bool) -> None:
    """It believes to be the master for seconds, and has the old entry; the connections to it were open all the time."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Valkey())
        replica = stack.enter_context(Valkey(replicaof=f"127.0.0.1 {master.port}"))
        sentinels = [stack.enter_context(Sentinel(master.port)) for _ in range(3)]
        asked = [redis.Redis(port=sentinel.port, decode_responses=True) for sentinel in sentinels]
        for each in asked:
            wait_until(lambda each=each: each.sentinel_master("shop")["num-slaves"] == 1)
            wait_until(lambda each=each: each.sentinel_master("shop")["num-other-sentinels"] == 2)
        where = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        options = {"l1_for": 0, "store_timeout": 0.5, "breaker_for": 0.1}
        reader, number, database, _ = made(f"sentinel://{where}/shop", **options)
        writer, _, _, _ = made(f"sentinel://{where}/shop", **options)
        loop = asyncio.new_event_loop()

        def read() -> Any:
            return loop.run_until_complete(number.aget(1)) if is_async else number.get(1)

        assert read() == 10
        master.pause()
        wait_until(lambda: all(each.sentinel_master("shop")["port"] == replica.port for each in asked))
        database[1] = 11

        def is_acknowledged() -> bool:
            with contextlib.suppress(Exception):
                writer.invalidate("n:1")
                return True
            return False

        wait_until(is_acknowledged)
        master.resume()
        wait_until(master.is_ready)

        assert [read() for _ in range(10)] == [11] * 10
        assert redis.Redis(port=master.port).role()[0] == b"master"
        reader.close()
        writer.close()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Sentinel(Valkey):
    """A Sentinel that watches one master."""

    def __init__(self, master: int, down_after: float = 0.5) -> None:
        """
        Args:
            down_after: how long the master may be silent, seconds.
        """
        super().__init__()
        self._master = master
        self._down_after_ms = int(down_after * 1000)

    def command(self) -> Any:
        """Return the command line, after writing its file."""
        words, options = super().command()
        file = self.dir / "sentinel.conf"
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {self._master} 2\n"
            f"sentinel down-after-milliseconds shop {self._down_after_ms}\nsentinel failover-timeout shop 5000\n"
        )
        return [words[0], str(file), "--sentinel"], options
