"""Doctor on real workers and brokers: each finding where it is so, and none where the set-up is good."""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import MetaData, Table
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Config, Load
from cacheworkers.ops.doctor import Finding, diagnose
from cacheworkers.ops.doctor.diagnose import RULES
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.diagnostics import WorkerFacts

MakeShop = Callable[..., Any]
GOOD = {"maxmemory": "100mb", "maxmemory_policy": "volatile-lru"}


@pytest.fixture
def store() -> Iterator[Valkey]:
    with Valkey(persist=True, **GOOD) as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("client-output-buffer-limit", "normal 33554432 8388608 60")
        yield server


@pytest.fixture
def broker() -> Iterator[Valkey]:
    with Valkey(persist=True) as server:
        yield server


@pytest.fixture
def make(store: Valkey, broker: Valkey) -> Iterator[Callable[..., Cache]]:
    """Make caches with a Celery app of their own, nobody works for."""
    caches = []

    def made(broker_url: str = broker.url, redis_url: str = store.url, **conf: Any) -> Cache:
        app = Celery("doctor", broker=broker_url)
        app.conf.update(conf)
        cache = Cache(Config(redis_url=redis_url), celery=app)

        @cache.loader(load_for=30)
        def number(load: Load, n: int) -> int:
            return n

        caches.append(cache)
        return cache

    yield made
    for cache in caches:
        cache.close()


def worst(findings: list[Finding]) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for finding in findings:
        found.setdefault(finding.check, finding)
    return found


def bad(findings: list[Finding]) -> dict[str, str]:
    """What is not ok: check -> level."""
    return {check: finding.level for check, finding in worst(findings).items() if finding.level != "ok"}


def still(cache: Cache) -> dict[str, str]:
    """What is not ok apart from what needs running processes."""
    return bad(diagnose(cache, is_running=False))


def looked_until(cache: Cache, is_so: Callable[[list[Finding]], bool]) -> list[Finding]:
    """Look until something is found: workers on a busy machine may take longer to answer than a look waits."""
    looks: list[list[Finding]] = []

    def look() -> bool:
        looks.append(diagnose(cache))
        return is_so(looks[-1])

    wait_until(look)
    return looks[-1]


def test_a_good_set_up_has_no_finding(shop: MakeShop, store: Valkey, broker: Valkey) -> None:
    """Everything there is to look at is looked at, and nothing is worth a note."""
    here = shop(REDIS_URL=store.url, BROKER_URL=broker.url)
    module = here.module
    module.cache.outbox.create(module.engine)
    module.cache.watch(sessionmaker(module.engine), {Table("product", MetaData()): lambda row: ()})
    triggers = module.cache.triggers({"product": ["product:{id}"]})
    with module.engine.connect() as connection:
        triggers.install(connection)
        connection.commit()
    here.worker(
        "-B",
        "-c",
        "1",
        "--prefetch-multiplier",
        "1",
        "-s",
        str(here.tmp_path / "schedule"),
        CACHEWORKERS_GC_INTERVAL="1",
    )
    with redis.Redis.from_url(store.url) as client:
        tasks = {"collect_garbage", "drain_outbox", "warm"}
        wait_until(lambda: all(client.exists(f"cw:beat:{task}") for task in tasks))

    findings = looked_until(module.cache, lambda findings: bad(findings) == {})

    seldom = {
        "namespace-taken",
        "no-celery",
        "outbox-unbound",
        "broker-full",
        "shared-memory",
        "persistence-none",
        "check-failed",
        "sentinels",
    }
    assert {rule.check for rule in RULES} - set(worst(findings)) == seldom
    assert {finding.what.split()[0] for finding in findings if finding.check == "beat"} == tasks


def test_beat_that_stopped_is_found(make: Callable[..., Cache], store: Valkey) -> None:
    """An upkeep task that has not ended well for long, or never has."""
    cache = make()
    with redis.Redis.from_url(store.url) as client:
        for task in ("collect_garbage", "warm"):
            cache._ports.store.note_beat(task).run()
        client.pexpire("cw:beat:collect_garbage", client.pttl("cw:beat:collect_garbage") - 600_000)

    beat = {f.what.split()[0]: f for f in diagnose(cache) if f.check == "beat"}

    assert {task: finding.level for task, finding in beat.items()} == {
        "collect_garbage": "warning",
        "warm": "ok",
        "drain_outbox": "warning",
    }
    assert re.search(r"last ran 6[01]\d\.", beat["collect_garbage"].what)
    assert "no sign" in beat["drain_outbox"].what
    assert "no worker that answers takes queue cw.upkeep" in beat["drain_outbox"].what
    assert "no worker" not in beat["warm"].what


def test_upkeep_leaves_a_sign_when_it_has_ended_well(make: Callable[..., Cache], store: Valkey) -> None:
    """A sweep that the store refuses has not."""
    upkeep = make()._runtime.workers.app.tasks["cacheworkers.collect_garbage"]
    with redis.Redis.from_url(store.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-scan")
        upkeep()
        failed = client.exists("cw:beat:collect_garbage")
        client.delete("cw:tick:collect_garbage")  # the next period
        client.execute_command("ACL", "SETUSER", "default", "+scan")
        upkeep()

        assert (failed, client.exists("cw:beat:collect_garbage")) == (0, 1)


def test_queues_without_a_worker_are_found(shop: MakeShop, store: Valkey, broker: Valkey) -> None:
    here = shop(REDIS_URL=store.url, BROKER_URL=broker.url)
    here.worker("-c", "1", "-X", "cw.warm,cw.upkeep")

    def unserved(findings: list[Finding]) -> dict[str, str]:
        return {f.what.split()[0]: f.level for f in findings if f.check == "queue-unserved"}

    expected = {"cw.miss": "ok", "cw.revalidate": "ok", "cw.warm": "warning", "cw.upkeep": "warning"}
    findings = looked_until(here.module.cache, lambda findings: unserved(findings) == expected)

    [fix] = {each.fix for each in findings if each.check == "queue-unserved" and each.level == "warning"}
    assert fix.startswith("celery -A shop") and " -Q cw.warm,cw.upkeep; " in fix


def test_workers_of_another_application_leave_beat_its_grace(
    make: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They answer on the same broker, and have run for long; this cache's have just begun."""
    cache = make()
    running = {"other.upkeep": 9000.0, "cw.upkeep": 12.0}
    facts = [WorkerFacts("celery@host", frozenset({queue}), frozenset(), uptime=up) for queue, up in running.items()]
    module = sys.modules["cacheworkers.ops.doctor.diagnose"]
    monkeypatch.setattr(module, "worker_facts", lambda app: facts)

    findings = list(module._check_beat(cache.internals.app, cache.config, cache.internals.runtime.marks))

    assert findings and {finding.level for finding in findings} == {"ok"}
    assert "workers were started 12 s ago" in findings[0].what


def test_a_worker_that_is_older_than_its_store_has_a_minute_to_leave_its_mark(
    make: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was restarted, and its marks are gone; a worker that came later has left none where it is not here."""
    cache, levels = make(), {}
    module = sys.modules["cacheworkers.ops.doctor.worker_checks"]
    look = functools.partial(module.check_workers, cache.internals.app, cache.config, cache._ports.store)
    for uptime in (9000.0, 0.0, None):
        facts = [WorkerFacts("celery@host", frozenset({"cw.miss"}), frozenset(), uptime=uptime)]
        monkeypatch.setattr(module, "worker_facts", lambda app, facts=facts: facts)
        levels[uptime] = [each for each in look(cache._runtime.marks) if each.check == "worker-store"]
    monkeypatch.setattr(module, "ALIVE_EVERY", -module.ALIVE_MARGIN)
    monkeypatch.setattr(
        module, "worker_facts", lambda app: [WorkerFacts("old", frozenset({"cw.miss"}), frozenset(), uptime=9e3)]
    )
    late = [each.level for each in look(cache._runtime.marks) if each.check == "worker-store"]

    assert [each.level for found in levels.values() for each in found] == ["ok", "error", "error"]
    assert "the mark of celery@host yet: the store was started " in levels[9000.0][0].what
    assert late == ["error"]


def test_a_worker_of_an_older_deploy_is_found(shop: MakeShop, store: Valkey, broker: Valkey) -> None:
    here = shop(REDIS_URL=store.url, BROKER_URL=broker.url)
    here.worker("-c", "1")

    @here.module.cache.loader()
    def brand_new(load: Load, n: int) -> int:
        return n

    def other(load: Load, product_id: int) -> float:
        return 1.5

    other.__module__ = here.module.__name__
    here.module.cache.loader(name="product", replace=True)(other)
    here.module.cache.loader(name="strict", replace=True, version=2)(here.module.strict.__wrapped__)
    here.module.cache._ports.store.note_marks(["loader extra of shop.extra"], time.time()).run()

    findings = looked_until(here.module.cache, lambda findings: bad(findings).get("loader-unknown") == "warning")

    assert "does not know brand_new, extra, of " in worst(findings)["loader-unknown"].what
    assert "shop.extra" in worst(findings)["loader-unknown"].what
    release = worst(findings)["loader-release"]
    assert (release.level, "version, types or tags of product, strict differ" in release.what) == ("warning", True)


def test_a_backlog_is_found(make: Callable[..., Cache], broker: Valkey) -> None:
    """Readers wait for what is in the miss queue: less of it is too much."""
    cache = make()
    with redis.Redis.from_url(broker.url) as client:
        client.lpush("cw.miss", *["{}"] * 101)
        client.lpush("cw.warm", *["{}"] * 101)
        client.lpush("cw.revalidate", *["{}"] * 1001)

    lengths = {f.what: f.level for f in diagnose(cache) if f.check == "queue-backlog"}

    assert lengths == {
        "cw.miss has 101 messages": "warning",
        "cw.warm has 101 messages": "ok",
        "cw.revalidate has 1,001 messages": "warning",
        "cw.upkeep has 0 messages": "ok",
    }


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, {}),
        ({"task_annotations": {"*": {"acks_late": False}}}, {}),  # our tasks state their own
        ({"task_annotations": {"cacheworkers.load.number": {"acks_late": False}}}, {"acks-late": "warning"}),
        ({"broker_transport_options": {"visibility_timeout": 60}}, {"visibility-timeout": "warning"}),
        ({"broker_transport_options": {"visibility_timeout": 600}}, {}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_each_setting_that_hurts_is_found(
    make: Callable[..., Cache], conf: dict[str, Any], expected: dict[str, str]
) -> None:
    assert still(make(**conf)) == expected


def test_a_result_backend_that_a_task_uses_is_no_finding(make: Callable[..., Cache]) -> None:
    cache = make(result_backend="redis://127.0.0.1:1/0")

    @cache._runtime.workers.app.task(name="shop.report", shared=False)
    def report() -> int:
        return 1

    assert still(cache) == {}


def test_one_server_for_broker_and_store_is_found(make: Callable[..., Cache], store: Valkey) -> None:
    """A note where its policy evicts entries and never queues; else a warning: full, it refuses messages."""
    cache = make(broker_url=store.url.replace("/0", "/1"))
    evicting = still(cache)
    with redis.Redis.from_url(store.url) as client:
        client.config_set("maxmemory-policy", "noeviction")

    refusing = still(cache)

    assert evicting == {"shared-instance": "note"}
    assert refusing == {"shared-instance": "note", "shared-memory": "warning"}


def test_a_broker_that_evicts_queues_is_found(make: Callable[..., Cache], broker: Valkey) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    assert still(make()) == {"broker-eviction": "error"}


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_broker_that_is_away_is_one_finding(make: Callable[..., Cache], broker: Valkey, how: str) -> None:
    """The store is looked at all the same; there is nothing to be said of workers."""
    cache = make()
    getattr(broker, how)()

    findings = diagnose(cache)

    assert bad(findings) == {"broker-away": "error", "beat": "warning"}
    assert worst(findings)["tracking"].level == "ok"


@pytest.mark.parametrize("is_store", [False, True])
def test_a_broker_that_is_full_is_not_away(
    make: Callable[..., Cache], broker: Valkey, store: Valkey, is_store: bool
) -> None:
    """It answers, and refuses messages: what helps is memory, and neither a start nor another address."""
    full = store if is_store else broker
    cache = make(broker_url=full.url)
    with redis.Redis.from_url(full.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)

    found = looked_until(cache, lambda findings: "broker-full" in bad(findings))

    assert "broker-away" not in bad(found)
    assert "is out of memory, and takes no messages" in worst(found)["broker-full"].what
    assert "maxmemory" in worst(found)["broker-full"].fix
    assert [finding.check for finding in found].count("broker-full") == 1


def test_workers_log_what_is_wrong_when_they_start(shop: MakeShop, store: Valkey, broker: Valkey) -> None:
    """Warnings and errors only, and nothing of what needs the other processes: they start now."""
    with redis.Redis.from_url(store.url) as client:
        client.config_set("maxmemory", 0)
    here = shop(REDIS_URL=store.url, BROKER_URL=broker.url, LOG_DIAGNOSIS="1")

    here.worker("-c", "1")

    log: Path = here.tmp_path / "worker0.log"
    wait_until(lambda: "doctor: maxmemory:" in log.read_text())
    said = [line.partition("doctor: ")[2].split(":")[0] for line in log.read_text().splitlines() if "doctor: " in line]
    assert said == ["maxmemory"]


def test_a_store_that_is_away_does_not_delay_a_worker(shop: MakeShop, store: Valkey, broker: Valkey) -> None:
    here = shop(REDIS_URL=store.url, BROKER_URL=broker.url, LOG_DIAGNOSIS="1")
    store.pause()

    here.worker("-c", "1")

    log: Path = here.tmp_path / "worker0.log"
    wait_until(lambda: "doctor: store-away:" in log.read_text())
    assert here.workers[0].poll() is None


def test_a_worker_that_reserves_more_than_it_runs_is_found(shop: MakeShop, store: Valkey, broker: Valkey) -> None:
    here = shop(REDIS_URL=store.url, BROKER_URL=broker.url)
    here.worker("-c", "1")

    findings = looked_until(here.module.cache, lambda findings: bad(findings).get("prefetch") == "note")

    assert worst(findings)["prefetch"].what.endswith("reserves 4 messages for 1 slots")


def test_a_process_without_a_loader_is_found(store: Valkey, broker: Valkey) -> None:
    """The command line imports less than a web process where the cache's module declares none."""
    cache = Cache(Config(redis_url=store.url), celery=Celery("doctor", broker=broker.url))

    assert bad(diagnose(cache, is_running=False)).get("no-loaders") == "warning"

    cache.close()
