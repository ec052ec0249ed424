"""One suite on every way to run the store and the broker; docs/reference/topologies.md has its table."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from typing import Any

from stages import Stage

from cacheworkers import CacheworkersError, Config
from cacheworkers.ops.doctor import diagnose
from cacheworkers.ops.doctor.store_checks import check_sentinels
from cacheworkers.ops.exporter import Exporter
from cacheworkers.testing.servers import wait_until

#: Each test has numbers of its own: a stage serves them all.
_numbers = itertools.count(1, 20)


def own() -> list[int]:
    first = next(_numbers)
    return list(range(first, first + 20))


def test_reads(stage: Stage) -> None:
    """On threads, on a loop, one by one and together; a second read comes from memory or from the store."""
    some = own()

    assert stage.number.get(some[0]) == some[0] * 10
    assert asyncio.run(stage.number.aget(some[1])) == some[1] * 10
    assert stage.number.get_many(some) == {n: n * 10 for n in some}
    assert {stage.number.read(n).tier for n in some} <= {"l1", "store"}
    other, number = stage.another(l1_entries=0)
    assert {number.read(n).tier for n in some} == {"store"}
    other.close()


def test_misses(stage: Stage) -> None:
    """Many readers of few numbers: one load each."""
    some = own()[:4]
    values: list[int] = []
    readers = [threading.Thread(target=lambda n=n: values.append(stage.number.get(n))) for n in some * 6]

    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert sorted(values) == sorted(n * 10 for n in some * 6)
    assert sorted(n for n in stage.loads() if n in some) == some


def test_revalidation(stage: Stage) -> None:
    """A stale value is served, and a new one follows without a reader that waits."""
    [n, *_] = own()
    stage.number.get(n)
    stage.change(n, 7)

    stage.cache.invalidate(f"n:{n}", mode="soft")

    assert stage.number.get(n) in (n * 10, 7)
    wait_until(lambda: stage.number.get(n) == 7)
    assert stage.loads().count(n) == 2


def test_warm(stage: Stage) -> None:
    some = own()

    stage.number.warm(some).wait()

    assert all(stage.number.peek(n) is not None for n in some)
    assert sorted(n for n in stage.loads() if n in some) == some


def test_invalidate(stage: Stage) -> None:
    """An acknowledged invalidation is seen by this process immediately, and leaves the memory of another."""
    [n, *_] = own()
    other, number = stage.another()
    wait_until(lambda: number.read(n).tier == "l1")
    stage.number.get(n)
    stage.change(n, 7)

    stage.cache.invalidate(f"n:{n}")

    assert stage.number.get(n) == 7
    wait_until(lambda: number.get(n) == 7)
    other.close()


def test_doctor(stage: Stage) -> None:
    """All servers are found and asked; what is found wrong is no fault of the topology."""
    findings = diagnose(stage.cache, timeout=60.0)

    bad = [finding for finding in findings if finding.level in ("warning", "error")]
    assert {finding.check for finding in bad} <= {"maxmemory", "beat", "no-celery", "prefetch"}, bad
    servers = [finding for finding in findings if finding.check == "store-version"]
    assert len(servers) == (3 if stage.store.kind.shape == "cluster" else 1)
    sentinels = [finding.level for finding in findings if finding.check == "sentinels"]
    assert sentinels == ["ok"] * (stage.store.kind.shape == "sentinel")

    asked = stage.store.sentinels
    for named in range(1, len(asked)):  # too few: all are listed
        [finding] = check_sentinels(Config(redis_url=stage.store.url_of(asked[:named])))
        assert finding.level == "warning"
        assert f"redis_url names {named} Sentinel" in finding.what and "3 watch 'shop'" in finding.what
        assert all(f"127.0.0.1:{sentinel.port}" in finding.what for sentinel in asked)


def test_metrics(stage: Stage) -> None:
    samples = [sample for family in Exporter(stage.cache).collect() for sample in family.samples]

    up = {sample.labels["server"]: sample.value for sample in samples if sample.name == "cacheworkers_up"}
    assert up["store"] == 1.0 and set(up.values()) == {1.0}
    assert all(sample.value > 0 for sample in samples if sample.name == "cacheworkers_store_memory_bytes")


def test_failover(stage: Stage) -> None:
    """Under readers and a writer: no read is older than what was acknowledged before it began, and all of it heals.

    With replicas an invalidation is acknowledged when one of them has it (`Config.replicas`): without, replication is
    asynchronous, and a master that dies takes what it has just acknowledged with it.
    """
    some = own()[:5]
    cache, number = stage.another(l1_entries=0, replicas=min(1, stage.store.replicas))
    versions = dict.fromkeys(some, 1)
    acknowledged = dict.fromkeys(some, 1)
    for n in some:
        stage.change(n, 1)
    is_over = threading.Event()
    wrong: list[Any] = []

    def write() -> None:
        for n in itertools.cycle(some):
            if is_over.wait(0.02):
                return
            versions[n] += 1
            version = versions[n]
            stage.change(n, version)
            while not is_over.is_set():
                with contextlib.suppress(CacheworkersError):
                    cache.invalidate(f"n:{n}")
                    acknowledged[n] = version
                    break
                is_over.wait(0.02)

    def read() -> None:
        for n in itertools.cycle(some):
            if is_over.wait(0.005):
                return
            at_least = acknowledged[n]
            with contextlib.suppress(CacheworkersError):
                found = number.read(n)
                if found.value < at_least:
                    wrong.append((n, found, at_least))

    threads = [threading.Thread(target=work) for work in (write, read, read)]
    for thread in threads:
        thread.start()
    with stage.store.failing_over():
        pass

    def is_healed() -> bool:
        with contextlib.suppress(CacheworkersError):
            cache.invalidate(*(f"n:{n}" for n in some))
            return all(number.get(n) and number.peek(n) is not None for n in some)
        return False

    try:
        wait_until(is_healed)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    cache.close()
    wait_until(lambda: stage.number.read(some[0]).tier == "l1")
