"""Doctor on real servers: each finding where it is so, and none where the set-up is good."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import MetaData, Table, create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from cacheworkers import Cache, Config
from cacheworkers.ops.cli import gc
from cacheworkers.ops.doctor import Finding, diagnose, log_diagnosis, log_when_workers_start
from cacheworkers.ops.doctor.diagnose import RULES
from cacheworkers.ops.doctor.store_checks import check_pushes
from cacheworkers.store.diagnostics import acl
from cacheworkers.testing import Valkey

ROOT = Path(__file__).resolve().parents[2]
STORE_RULES = {
    "store-away",
    "store-version",
    "store-replica",
    "eviction-policy",
    "maxmemory",
    "memory-headroom",
    "persistence-snapshots",
    "config-hidden",
    "maxclients",
    "output-buffer",
    "clock-skew",
    "tracking-table",
    "tracking",
    "acl",
    "namespace-shared",
    "unstored-values",
    "foreign-keys",
    "failed-loads",
}
#: What the acl finding says to set, for the namespace of these tests.
FIX = "on >secret ~cw:* +@read +@write +@scripting +@connection -@dangerous +info +time +config|get"


@pytest.fixture
def store() -> Iterator[Valkey]:
    """A store that is set up well."""
    with Valkey(persist=True, maxmemory="100mb", maxmemory_policy="volatile-lru") as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("client-output-buffer-limit", "normal 33554432 8388608 60")
        yield server


@pytest.fixture
def client(store: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(store.url) as client:
        yield client


def looked(url: str, **options: Any) -> dict[str, Finding]:
    """What a cache's doctor says: check -> its worst finding."""
    config = {name: options.pop(name) for name in ("store_timeout",) if name in options}
    made = {name: options.pop(name) for name in ("sessions",) if name in options}
    cache = Cache(Config(redis_url=url, **config), **made)
    try:
        return worst(diagnose(cache, **options))
    finally:
        cache.close()


def worst(findings: list[Finding]) -> dict[str, Finding]:
    """They come worst first."""
    found: dict[str, Finding] = {}
    for finding in findings:
        found.setdefault(finding.check, finding)
    return found


def bad(found: dict[str, Finding]) -> dict[str, str]:
    """What is not ok: check -> level."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}


def test_a_good_store_has_no_finding(store: Valkey) -> None:
    found = looked(store.url)

    assert bad(found) == {}
    assert set(found) == STORE_RULES


def test_a_look_leaves_nothing_behind(store: Valkey, client: redis.Redis) -> None:
    """Probe keys are deleted, or gone within a second."""
    looked(store.url)

    left = [client.pttl(key) for key in client.keys("*")]
    assert -1 not in left and max(left, default=0) <= 1000


def configure(**settings: Any) -> Callable[[redis.Redis], None]:
    def act(client: redis.Redis) -> None:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)

    return act


def write(client: redis.Redis, kind: str, **options: Any) -> None:
    """Write 20 MB; one by one, for a large command's buffer would count as used for a while."""
    for n in range(2000):
        client.set(f"cw:{kind}:{{{n}}}", "x" * 10_000, **options)


def fill(client: redis.Redis) -> None:
    """Nearly all memory is used, and nothing may be evicted."""
    write(client, "e", ex=600)
    configure(maxmemory_policy="noeviction", maxmemory=int(client.info("memory")["used_memory"] * 1.1))(client)


def fill_with_tag_sets(client: redis.Redis) -> None:
    """Nearly all memory is used by what has no expiry; the policy would evict what has."""
    write(client, "t")
    configure(maxmemory=int(client.info("memory")["used_memory"] * 1.1))(client)


def fill_the_tracking_table(client: redis.Redis) -> None:
    """A process keeps as many entries as the store will track; its connection stays open with the client's."""
    client.config_set("tracking-table-max-keys", 20)
    connection: Any = client.connection_pool.make_connection()
    connection.connect()
    connection.send_command("HELLO", "3")
    connection.send_command("CLIENT", "TRACKING", "ON")
    for n in range(20):
        connection.send_command("EXISTS", f"key{n}")
    _open.append(connection)
    end = time.monotonic() + 20
    while client.info("stats")["tracking_total_keys"] < 20 and time.monotonic() < end:
        pass


_open: list[Any] = []


BREAKS: dict[str, tuple[Callable[[redis.Redis], None], dict[str, str]]] = {
    "allkeys-lru": (configure(maxmemory_policy="allkeys-lru"), {"eviction-policy": "error"}),
    "volatile-ttl": (configure(maxmemory_policy="volatile-ttl"), {"eviction-policy": "error"}),
    "no maxmemory": (configure(maxmemory=0), {"maxmemory": "warning"}),
    "full": (fill, {"memory-headroom": "warning"}),
    "full of tag sets": (fill_with_tag_sets, {"memory-headroom": "warning"}),
    "snapshots": (configure(appendonly="no", save="3600 1 60 1000"), {"persistence-snapshots": "warning"}),
    "no limit of buffers": (
        lambda client: client.config_set("client-output-buffer-limit", "normal 0 0 0"),
        {"output-buffer": "note"},
    ),
    "a limit of all clients together": (
        lambda client: [
            client.config_set("client-output-buffer-limit", "normal 0 0 0"),
            client.config_set("maxmemory-clients", "5%"),
        ],
        {},
    ),
    "nothing on disk": (configure(appendonly="no", save=""), {"persistence-none": "note"}),
    "a full tracking table": (fill_the_tracking_table, {"tracking-table": "warning"}),
}


@pytest.mark.parametrize("case", BREAKS)
def test_each_setting_that_hurts_is_found(case: str, store: Valkey, client: redis.Redis) -> None:
    act, expected = BREAKS[case]
    act(client)

    found = looked(store.url)

    assert bad(found) == expected
    for check in expected:
        assert found[check].what and found[check].why and found[check].fix


def test_a_full_store_that_can_evict_is_no_finding(store: Valkey, client: redis.Redis) -> None:
    """A cache fills its memory: that is what it is for."""
    write(client, "e", ex=600)
    configure(maxmemory=int(client.info("memory")["used_memory"] * 1.1))(client)

    assert bad(looked(store.url)) == {}


def test_snapshots_are_enough_where_the_outbox_is_replayed_for_longer(
    store: Valkey, client: redis.Redis, database_url: str
) -> None:
    configure(appendonly="no", save="3600 1")(client)
    engine = create_engine(database_url)

    def look(replay_for: float) -> dict[str, str]:
        cache = Cache(Config(redis_url=store.url, replay_for=replay_for), sessions=sessionmaker(engine))
        cache.outbox.create(engine)
        cache.watch(sessionmaker(engine), {Table("product", MetaData()): lambda row: ()})
        cache._ports.store.note_beat("collect_garbage").run()
        found = bad(worst(diagnose(cache)))
        cache.close()
        return found

    assert look(replay_for=7200.0) == {}
    assert look(replay_for=600.0) == {"persistence-snapshots": "warning"}
    engine.dispose()


def test_a_replica_is_found(store: Valkey, client: redis.Redis) -> None:
    with Valkey() as master:
        client.replicaof("127.0.0.1", master.port)

        found = looked(store.url)

    assert found["store-replica"].level == "error"


def test_a_push_is_found_by_a_process_that_was_paused(store: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than pushes are waited for, after its own write: an hour passes between any two lines."""
    hours = itertools.count()
    monkeypatch.setattr(
        "cacheworkers.store.diagnostics.server_facts.time", SimpleNamespace(monotonic=lambda: 3600.0 * next(hours))
    )
    monkeypatch.setattr("cacheworkers.store.diagnostics.server_facts.LAST_LOOK_FOR", 20.0)

    (found,) = check_pushes(Config(redis_url=store.url))

    assert found.level == "ok"


def test_an_answer_that_took_long_is_no_skew(store: Valkey) -> None:
    hours = itertools.count()

    found = looked(store.url, now=lambda: time.time() + 3600 * (next(hours) - 1))["clock-skew"]

    assert found.level == "ok"


def test_skewed_clocks_are_found(store: Valkey) -> None:
    ahead = looked(store.url, now=lambda: time.time() + 10)["clock-skew"]
    near = looked(store.url, now=lambda: time.time() + 1)["clock-skew"]

    assert (ahead.level, near.level) == ("warning", "ok")
    assert re.search(r"is -(8|9|10)\.\d\d s", ahead.what)


# -- rights


def with_rights(store: Valkey, client: redis.Redis, rights: str) -> str:
    """URL of the store for a user with these rights."""
    client.execute_command("ACL", "SETUSER", "shop", "reset", *rights.split())
    return store.url.replace("redis://", "redis://shop:secret@")


def test_the_rights_that_the_finding_names_are_enough(store: Valkey, client: redis.Redis) -> None:
    """What `fix` says to set makes everything ok."""
    rule = next(rule for rule in RULES if rule.check == "acl")
    assert FIX.split(" ", 2)[2].replace("~cw:*", "~namespace:*") in rule.fix

    assert bad(looked(with_rights(store, client, FIX))) == {}


@pytest.mark.parametrize(
    ("less", "expected", "shown"),
    [
        ("-zadd", {"acl": "error"}, "ZADD"),
        ("-@scripting", {"acl": "error"}, "EVAL"),
        ("resetkeys ~cw:e:* ~cw:l:*", {"acl": "error", "check-failed": "warning"}, "the key cw:unstored"),
        ("-client|tracking", {"tracking": "error"}, ""),
        ("-config|get", {"config-hidden": "note"}, ""),
        ("-info", {"acl": "error", "check-failed": "warning"}, "INFO"),
    ],
)
def test_missing_rights_are_found(
    store: Valkey, client: redis.Redis, less: str, expected: dict[str, str], shown: str
) -> None:
    found = looked(with_rights(store, client, f"{FIX} {less}"))

    assert bad(found) == expected
    assert shown in found["acl"].what


def test_the_rights_that_are_tried_are_those_that_are_used() -> None:
    """Every command of the scripts and of the store is tried."""
    package = Path(acl.__file__).parents[1]
    used = set()
    for path in package.glob("commands/lua/*.lua"):
        used |= set(re.findall(r'redis\.p?call\("([A-Z]+)"', path.read_text()))
    for path in (*package.glob("commands/*.py"), package / "connections/transport.py"):
        used |= set(re.findall(r'(?:Request\(\(|_words = \(|execute_command\()"([A-Z]+)"', path.read_text()))

    used.remove("LPUSH")  # of a message, with its claim: where that is forbidden, it is published
    assert used == set(acl.TRIED) | set(acl.TRIED_ALONE)


# -- proxies


class Relay:
    """A TCP relay on loopback that spreads connections over servers, and may change what they answer."""

    def __init__(self, *ports: int, change: Callable[[bytes], bytes] = lambda data: data) -> None:
        self._ports = itertools.cycle(ports)
        self._change = change
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", next(self._ports)))
                threading.Thread(target=self._pass, args=(near, far, lambda data: data), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, self._change), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                sink.sendall(change(data))
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def test_a_balancer_in_front_of_two_servers_is_found(store: Valkey) -> None:
    """Tracking is accepted by one server, and the write goes to the other."""
    with Valkey() as other:
        relay = Relay(store.port, other.port)

        (found,) = check_pushes(Config(redis_url=relay.url))

        relay.close()
    assert found.level == "error"
    assert "was not pushed" in found.what


@pytest.mark.parametrize(
    ("command", "expected"),
    [("CLIENT", {"tracking": "error"}), ("HELLO", {"tracking": "error", "check-failed": "warning"})],
)
def test_a_server_without_what_tracking_needs_is_found(command: str, expected: dict[str, str]) -> None:
    """Some hosted servers and proxies take commands away; without HELLO no connection is made at all."""

    class Hosted(Valkey):
        def command(self) -> tuple[Sequence[str], dict[str, Any]]:
            words, options = super().command()
            return [*words, "--rename-command", command, ""], options

    with Hosted(persist=True, maxmemory="100mb", maxmemory_policy="volatile-lru") as hosted:
        assert bad(looked(hosted.url)).items() - {("output-buffer", "note")} == expected.items()


def test_an_old_version_is_found(store: Valkey) -> None:
    """A server that calls itself Redis 6.2, since nobody ships one any more."""
    relay = Relay(store.port, change=lambda data: data.replace(b"redis_version:7.2.4", b"redis_version:6.2.4"))

    found = looked(relay.url)["store-version"]

    relay.close()
    assert found.level == "error"


# -- what is away


def test_a_store_that_is_down_is_one_finding(store: Valkey) -> None:
    store.kill()

    found = looked(store.url)

    assert bad(found) == {"store-away": "error"}
    assert str(store.port) in found["store-away"].what


def test_a_frozen_store_is_one_finding(store: Valkey) -> None:
    store.pause()

    assert bad(looked(store.url, store_timeout=1.0)) == {"store-away": "error"}


def test_a_wrong_password_is_said(store: Valkey, client: redis.Redis) -> None:
    url = with_rights(store, client, FIX).replace("secret", "wrong")

    found = looked(url)["store-away"]

    assert found.level == "error"
    assert "username-password" in found.what and "wrong" not in found.what


# -- the database


@pytest.fixture
def watched(store: Valkey, database_url: str) -> Iterator[Cache]:
    """A cache that watches, with the outbox in place."""
    engine = create_engine(database_url)
    cache = Cache(Config(redis_url=store.url), sessions=sessionmaker(engine))
    cache.outbox.create(engine)
    cache.watch(sessionmaker(engine), {Table("product", MetaData()): lambda row: ()})
    cache._ports.store.note_beat("collect_garbage").run()  # by hand: it has no Celery
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE price (product_id int)"))
    yield cache
    cache.close()
    engine.dispose()


def engine_of(cache: Cache) -> Any:
    return cache._watching.engines[0]


def run_sql(cache: Cache, statement: str) -> None:
    with engine_of(cache).begin() as connection:
        connection.execute(text(statement))


def test_a_good_database_has_no_finding(watched: Cache) -> None:
    triggers = watched.triggers({"price": ["product:{product_id}"]})
    with engine_of(watched).connect() as connection:
        triggers.install(connection)
        connection.commit()
    run_sql(watched, "INSERT INTO price VALUES (1)")

    found = worst(diagnose(watched))

    assert bad(found) == {}
    assert set(found) == STORE_RULES | {
        "database-away",
        "pooler",
        "replica-loads",
        "transaction-limits",
        "outbox-unknown",
        "outbox-missing",
        "outbox-lag",
        "triggers",
        "triggers-left",
        "no-celery",
    }
    assert found["outbox-lag"].what.startswith("1 rows wait")


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("DROP TABLE cacheworkers_outbox", "lacks the table cacheworkers_outbox"),
        ("ALTER TABLE cacheworkers_outbox DROP COLUMN source", "lacks the column cacheworkers_outbox.source"),
    ],
)
def test_a_missing_outbox_is_found(watched: Cache, statement: str, shown: str) -> None:
    run_sql(watched, statement)

    found = worst(diagnose(watched))

    assert bad(found) == {"outbox-missing": "error"}
    assert shown in found["outbox-missing"].what


def test_a_look_leaves_no_connection_in_the_engine(watched: Cache) -> None:
    """Children that a worker forks later would share it."""
    engine_of(watched).dispose()

    findings = worst(diagnose(watched))

    assert findings["outbox-lag"].level == "ok"
    assert engine_of(watched).pool.checkedin() == 0


def test_sqlite_in_memory_is_looked_at_where_it_is(store: Valkey) -> None:
    """Another connection would be another database.  Without Celery it counts who collects garbage by hand."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    cache = Cache(Config(redis_url=store.url), sessions=sessionmaker(engine))
    cache.outbox.create(engine)
    cache.watch(sessionmaker(engine), {Table("product", MetaData()): lambda row: ()})

    forgotten = worst(diagnose(cache))
    starting = bad(worst(diagnose(cache, is_running=False)))
    collected = CliRunner().invoke(gc, obj=(cache, lambda result: None))
    found = worst(diagnose(cache))

    cache.close()
    assert bad(forgotten) == {"no-celery": "warning"} and "celery=app" in forgotten["no-celery"].fix
    assert starting == {} and collected.exit_code == 0
    assert bad(found) == {}
    assert found["outbox-lag"].what.startswith("0 rows wait")


def test_a_row_that_waits_for_long_is_found(watched: Cache) -> None:
    """Another namespace's rows, and delivered ones, do not count."""
    row = "INSERT INTO cacheworkers_outbox (namespace, source, tags, written_at, delivered_at) VALUES"
    run_sql(watched, f"{row} ('other', 'watch', 'a', now() - interval '1 hour', NULL)")
    run_sql(watched, f"{row} ('cw', 'watch', 'a', now() - interval '1 hour', now())")
    before = worst(diagnose(watched))
    run_sql(watched, f"{row} ('cw', 'watch', 'a', now() - interval '1 minute', NULL)")

    found = worst(diagnose(watched))

    assert bad(before) == {}
    assert bad(found) == {"outbox-lag": "warning"}
    assert re.search(r"1 rows wait, the oldest for [67]\d\.", found["outbox-lag"].what)


def test_missing_and_outdated_triggers_are_found(watched: Cache) -> None:
    declared = watched.triggers({"price": ["product:{product_id}"]})
    missing = worst(diagnose(watched))
    older = type(declared)("cw", {"price": ["price:{product_id}"]})
    with engine_of(watched).connect() as connection:
        older.install(connection)
        connection.commit()

    outdated = worst(diagnose(watched))

    assert bad(missing) == bad(outdated) == {"triggers": "error"}
    assert "price" in missing["triggers"].what


def test_a_database_that_is_down_is_one_finding(store: Valkey) -> None:
    engine = create_engine("postgresql+psycopg://shop:secret@127.0.0.1:1/shop")

    found = looked(store.url, sessions=sessionmaker(engine))

    assert bad(found) == {"database-away": "error"}
    assert "127.0.0.1:1/shop" in found["database-away"].what and "secret" not in found["database-away"].what


def test_a_database_that_never_answers_costs_the_timeout(store: Valkey) -> None:
    """It takes connections and says nothing; the other checks are made all the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = create_engine(f"postgresql+psycopg://shop@127.0.0.1:{silent.getsockname()[1]}/shop")

        found = looked(store.url, sessions=sessionmaker(engine), timeout=4.0)

    assert bad(found) == {"database-away": "error"}
    assert "no answer to database within 4 s" in found["database-away"].what
    assert set(found) == STORE_RULES | {"database-away"}


# -- the log


def test_only_warnings_and_errors_are_logged(
    store: Valkey, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With the finding's parts as fields."""
    configure(maxmemory_policy="allkeys-lru", appendonly="no", maxmemory=0)(client)
    cache = Cache(Config(redis_url=store.url))

    findings = log_diagnosis(cache)

    cache.close()
    lines = [record for record in caplog.records if record.name == "cacheworkers"]
    logged = [record for record in lines if "check" in record.__dict__]
    assert "this process does not use it" in lines[0].message
    said = [(record.levelname, record.__dict__["check"]) for record in logged]
    assert said == [("ERROR", "eviction-policy"), ("WARNING", "maxmemory")]
    assert logged[0].__dict__["fix"] == findings[0].fix
    assert bad(worst(findings))["persistence-none"] == "note"


def test_without_celery_no_worker_starts_and_none_logs(store: Valkey) -> None:
    cache = Cache(Config(redis_url=store.url))

    log_when_workers_start(cache)

    assert bad(worst(diagnose(cache))) == {}
    cache.close()
