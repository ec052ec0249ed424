"""Metrics: every event counts, names are Prometheus', processes add up, and an exporter says who is away."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import typing
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.up import free_port
from cacheworkers import Cache, Config, ConfigError, Load, events
from cacheworkers.ops import exporter
from cacheworkers.ops.exporter import Exporter, serve_cache
from cacheworkers.ops.metrics import COUNTERS, HISTOGRAMS, LOSSES, SUMS, Metrics, exposition, serve
from cacheworkers.sql.outbox.outbox import Backlog
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event
]


def example(kind: type[events.Event]) -> events.Event:
    """An event with some value in every field."""
    values: dict[Any, Any] = {str: "x", int: 3, float: 0.5, tuple[str, ...]: ("t",)}
    fields = typing.get_type_hints(kind)
    return kind(**{name: values.get(type_, "stored") for name, type_ in fields.items()})


def read(text: bytes) -> dict[tuple[str, ...], float]:
    """Return (name, label values in the order of their names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_changes_a_metric(kind: type[events.Event]) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    if kind in (events.StoreBack, events.ListenerUp):  # they end a loss
        lost = events.StoreLost("gone") if kind is events.StoreBack else events.ListenerDown("m", "gone")
        metrics(lost)
    before = generate_latest(registry)

    metrics(example(kind))

    assert generate_latest(registry) != before


def test_values_are_those_of_the_events() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    metrics(events.Served("product", "stale", "store", 70.0, 0.003))
    metrics(events.MemoryHits("product", 41))
    metrics(events.Loaded("product", "product[1]", "stored", 0.2, 1, "worker"))
    metrics(events.GarbageCollected(7, 1, 2, 0.1))
    metrics(events.StoreLost("gone"))

    found = read(generate_latest(registry))
    assert found["cacheworkers_reads_total", "stale", "product", "store"] == 1
    assert found["cacheworkers_reads_total", "fresh", "product", "l1"] == 41
    assert found["cacheworkers_age_served_seconds_sum", "product"] == 70.0
    assert found["cacheworkers_age_served_seconds_bucket", "60.0", "product"] == 0
    assert found["cacheworkers_load_seconds_count", "product", "stored", "worker"] == 1
    assert found["cacheworkers_gc_removed_total", "members"] == 7
    assert found["cacheworkers_store_lost",] == 1
    metrics(events.StoreBack())
    assert read(generate_latest(registry))["cacheworkers_store_lost",] == 0


def test_labels_never_hold_calls_or_tags() -> None:
    """A label with a value per product would be a time series per product."""
    labels = {label for _, names in COUNTERS.values() for label in names}
    labels |= {label for _, names, _ in HISTOGRAMS.values() for label in names}

    assert labels == {
        "loader",
        "freshness",
        "tier",
        "kind",
        "reason",
        "queue",
        "mode",
        "outcome",
        "what",
        "where",
        "task",
    }
    assert not set(COUNTERS) & (set(HISTOGRAMS) | set(SUMS) | set(LOSSES))


def test_events_of_somebody_else_are_left_alone() -> None:
    class Foreign(events.Event, frozen=True):
        pass

    registry = CollectorRegistry()
    Metrics(registry)(Foreign())
    assert b"Foreign" not in generate_latest(registry)


def test_reads_of_a_cache_are_counted_in_every_tier(valkey: Valkey) -> None:
    registry = CollectorRegistry()
    cache = Cache(
        Config(redis_url=valkey.url, namespace="metrics", store_timeout=5.0, access_report_interval=0.0),
        hook=Metrics(registry),
    )

    @cache.loader(fresh_for=300, tags=("m:{n}",))
    def number(load: Load, n: int) -> int:
        return n

    number.invalidate(1)
    assert number.get(1) == 1
    wait_until(lambda: number.read(1).tier == "l1")
    for _ in range(50):
        number.get(1)
    cache.invalidate("m:1")
    assert cache.report_accesses() == 0, "access_report_interval=0 reports nothing"
    cache.close()

    def loads() -> float:
        found = read(generate_latest(registry))
        return sum(value for key, value in found.items() if key[0] == "cacheworkers_load_seconds_count")

    wait_until(lambda: loads() == 1)  # a load is counted after it is answered
    found = read(generate_latest(registry))
    assert found["cacheworkers_reads_total", "fresh", "number", "l1"] >= 50
    assert found["cacheworkers_invalidations_total", "hard"] == 2


SHARES = """
import sys, os
from prometheus_client import CollectorRegistry
from cacheworkers import events
from cacheworkers.ops.metrics import Metrics
metrics = Metrics()
metrics(events.MemoryHits("product", int(sys.argv[1])))
metrics(events.MemoryUsed(int(sys.argv[1]), 0, 0))
print("counted", flush=True)
sys.stdin.read()
"""


def test_processes_that_share_a_directory_add_up_and_the_dead_keep_their_counts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARES, reads], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for reads in ("30", "12")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"counted\n"
        both = read(exposition())
        assert both["cacheworkers_reads_total", "fresh", "product", "l1"] == 42
        assert both["cacheworkers_memory_entries",] == 42

        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()

        one = read(exposition())
        assert one["cacheworkers_reads_total", "fresh", "product", "l1"] == 42
        assert one["cacheworkers_memory_entries",] == 12
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()


def test_a_port_that_is_taken_is_said_to_be() -> None:
    port = free_port(9900)
    stop = serve(port, registry=CollectorRegistry())
    try:
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*another exporter"):
            serve(port, registry=CollectorRegistry())
    finally:
        stop()


def test_the_exporter_says_what_the_store_has_and_who_is_away() -> None:
    with Valkey() as server:
        cache = Cache(Config(redis_url=server.url, breaker_for=0.0))

        @cache.loader(fresh_for=300)
        def number(load: Load, n: int) -> int:
            return n

        number.get(1)
        cache.report_accesses()
        port = free_port(9900)
        stop = serve_cache(cache, port)

        def asked() -> dict[tuple[str, ...], float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                return read(answer.read())

        try:
            found = asked()
            assert found["cacheworkers_up", "store"] == 1
            assert found["cacheworkers_store_keys",] >= 1
            assert found["cacheworkers_access_score", "number"] == pytest.approx(1, abs=0.1)

            server.kill()
            wait_until(lambda: asked()["cacheworkers_up", "store"] == 0)
            assert ("cacheworkers_store_keys",) not in asked()
        finally:
            stop()
            cache.close()


def test_a_database_that_never_answers_holds_up_no_scrape(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver waits for ever; it is not asked again meanwhile, and the other servers' numbers are there."""
    monkeypatch.setattr(exporter, "ANSWER_WITHIN", 1.0)
    monkeypatch.setattr(Cache, "is_watching", True)
    goes_on, asked = threading.Event(), []

    def backlog(cache: Cache) -> Backlog:
        asked.append(cache)
        goes_on.wait(60)
        return Backlog(3, 0.0)

    monkeypatch.setattr(Cache, "outbox_backlog", backlog)
    cache = Cache(Config(redis_url=valkey.url))
    collector = exporter.Exporter(cache)

    def up() -> dict[str, float]:
        [found] = [family for family in collector.collect() if family.name == "cacheworkers_up"]
        return {sample.labels["server"]: sample.value for sample in found.samples}

    for _ in range(2):
        found = up()
        assert (found["store"], found["outbox"]) == (1, 0)
    assert len(asked) == 1
    goes_on.set()
    wait_until(lambda: up()["outbox"] == 1)
    cache.close()


@pytest.mark.usefixtures("patient_publisher")
def test_queues_report_how_long_they_are_and_how_old_their_oldest_message_is(valkey: Valkey) -> None:
    from celery import Celery

    app = Celery("queues", broker=valkey.url)
    config = Config(redis_url=valkey.url, namespace="oldest", store_timeout=5.0)
    cache = Cache(config, celery=app)

    @cache.loader(fresh_for=300)
    def number(load: Load, n: int) -> int:
        return n

    for n in range(3):
        assert number.revalidate(n)

    wait_until(lambda: cache.queues()[0].length >= 1)
    by_name = {queue.name: queue for queue in cache.queues()}
    assert list(by_name) == ["oldest.miss", "oldest.revalidate", "oldest.warm", "oldest.upkeep"]
    first = by_name["oldest.miss"].oldest_age
    assert first is not None and 0 <= first < 60
    wait_until(lambda: (cache.queues()[0].oldest_age or 0.0) > first)
    assert by_name["oldest.warm"] == msgspec.structs.replace(by_name["oldest.warm"], length=0, oldest_age=None)

    app.send_task("cacheworkers.collect_garbage", queue="oldest.upkeep")
    assert cache.queues()[3].oldest_age is not None, "beat's messages carry their instant too"
    cache.close()


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:{port}/0", "unheard-of://127.0.0.1", "unheard.of:Transport://"])
def test_a_broker_that_is_away_is_an_error_that_says_so(valkey: Valkey, broker: str) -> None:
    """So is one whose transport is not installed; the store's numbers are there all the same."""
    from celery import Celery

    from cacheworkers import BrokerUnavailable

    app = Celery("away", broker=broker.format(port=free_port(20000)), set_as_current=False)
    cache = Cache(Config(redis_url=valkey.url, namespace="away", store_timeout=5.0), celery=app)

    with pytest.raises(BrokerUnavailable, match="the broker does not answer"):
        cache.queues()
    up = {family.name: family for family in Exporter(cache).collect()}["cacheworkers_up"]
    cache.close()

    assert {sample.labels["server"]: sample.value for sample in up.samples} == {"broker": 0, "store": 1}


def test_a_foreign_message_has_no_age(make_cache: Callable[..., Cache], valkey: Valkey) -> None:
    import redis
    from celery import Celery

    app = Celery("foreign", broker=valkey.url)
    cache = Cache(Config(redis_url=valkey.url, namespace="foreign", store_timeout=5.0), celery=app)
    client = redis.Redis.from_url(valkey.url)
    client.lpush("foreign.miss", b"no json at all")

    found = cache.queues()[0]

    assert (found.length, found.oldest_age) == (1, None)
    client.delete("foreign.miss")
    client.close()
    cache.close()


def test_caches_of_one_process_add_up() -> None:
    registry = CollectorRegistry()
    for metrics in (Metrics(registry), Metrics(registry)):
        metrics(events.MemoryHits("product", 2))

    assert read(generate_latest(registry))["cacheworkers_reads_total", "fresh", "product", "l1"] == 4


def test_the_exporter_says_when_upkeep_last_ran(valkey: Valkey) -> None:
    """A beat that is dead sends nothing that could be counted: the sign that its tasks leave gets old instead."""
    from celery import Celery

    config = Config(redis_url=valkey.url, namespace="upkept", store_timeout=5.0, gc_interval=60)
    cache = Cache(config, celery=Celery("upkept", broker=valkey.url))
    cache._ports.store.note_beat("collect_garbage").run()

    registry = CollectorRegistry()
    registry.register(Exporter(cache))
    found = read(exposition(registry))

    assert 0 <= found["cacheworkers_upkeep_age_seconds", "collect_garbage"] < 600
    assert found["cacheworkers_upkeep_interval_seconds", "collect_garbage"] == 60
    assert found["cacheworkers_upkeep_age_seconds", "drain_outbox"] == 86400, "it has never run"
    cache.close()
