"""Servers for the whole suite, and caches that are closed after each test."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import HealthCheck, settings
from rabbitmq import RabbitMQ, rabbitmq_program
from sqlalchemy import make_url

from cacheworkers import Cache, Config
from cacheworkers.policy import Policy
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.celery_settings import PUBLISHER

_names = itertools.count(1)

# Each of hundreds of processes would compile the package again, and pytest rewrite every test module.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Examples are bounded in number, not in time: a busy machine is no finding.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# Nor is it one where a test does not say itself how long something may take: store and workers may answer late.
_PATIENCE: Any = {Config: {"store_timeout": 5.0}, Policy: {"wait_for": 20.0}}
if not os.environ.get("CACHEWORKERS_TEST_DEFAULTS"):  # `make test-defaults` keeps what is shipped
    for _kind, _defaults in _PATIENCE.items():
        _kind.__init__.__kwdefaults__.update(_defaults)


#: Marker -> the programs of which one has to be installed, for PyPI has none of them, or be named by the variable.
PROGRAMS = {
    "promtool": ("PROMTOOL", ("promtool",)),
    "prometheus": ("PROMETHEUS", ("prometheus",)),
    "compose": ("DOCKER_COMPOSE", ("docker-compose",)),
    "mariadb": ("MARIADBD", ("mariadbd", "/usr/sbin/mariadbd")),
    "pgbouncer": ("PGBOUNCER", ("pgbouncer", "/usr/sbin/pgbouncer")),
    "rabbitmq": ("RABBITMQ_SERVER", ("rabbitmq-server",)),
    "browser": ("CHROMIUM", ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")),
}
_left_out: dict[str, int] = {}


@pytest.fixture(autouse=True)
def _root_log_level() -> Iterator[None]:
    """Set back what a framework sets as it starts, in a page's block: Litestar has all loggers log from INFO on."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


#: Threads of a cache that end when it is closed.
_OF_A_CACHE = tuple(
    f"cacheworkers-{name}" for name in ("accesses", "health", "listener", "loop", "outbox", "publisher", "release")
)


@pytest.fixture(scope="module", autouse=True)
def _caches_are_closed() -> Iterator[None]:
    """A file leaves no cache open: once its store has been stopped it would log in a test of another file."""
    before = {*threading.enumerate()}
    yield

    def left() -> list[str]:
        threads = [each for each in threading.enumerate() if each not in before and each.name.startswith(_OF_A_CACHE)]
        return [each.name for each in threads]

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not left(), within=20.0)
    assert not left(), "a test of this file has not closed its cache"


def _program(marker: str) -> str | None:
    variable, names = PROGRAMS[marker]
    if marker == "rabbitmq":
        return rabbitmq_program()
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)


#: The longest files, then folders with long files: they go first, so that at the end of the suite no worker waits for
#: another one's long file.  Those that compute and those that wait take turns, since they run beside each other.
FIRST = (
    "integration/test_page.py",
    "integration/test_cluster.py",
    "docs/test_tutorials.py",
    "integration/test_rabbitmq.py",
    "docs/test_code_blocks.py",
    "integration/test_replicas.py",
    "integration/test_workers.py",
    "integration/test_listener.py",
    "model/test_protocol_model.py",
    "integration/test_pools.py",
    "integration/test_rollout.py",
    "property/test_history.py",
)
LONG = ("integration", "model", "web", "docs", "flows")


def _place(item: pytest.Item) -> int:
    folder = item.path.parent.name
    file = f"{folder}/{item.path.name}"
    if file in FIRST:
        return FIRST.index(file)
    return len(FIRST) + (LONG.index(folder) if folder in LONG else len(LONG))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; leave out the tests of programs that are not on this machine, as the summary says."""
    items.sort(key=_place)
    for marker in PROGRAMS:
        if _program(marker) is None:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)
            _left_out[marker] = len(left_out)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for marker, count in _left_out.items():
        if count:
            variable, names = PROGRAMS[marker]
            terminalreporter.write_line(
                f"{count} tests marked {marker} did NOT run: no {names[0]} on the path, and {variable} names none",
                yellow=True,
            )


@pytest.fixture(scope="session")
def chromium() -> str:
    found = _program("browser")
    assert found is not None, "tests that need a browser carry the marker `browser`"
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    found = _program("promtool")
    assert found is not None, "tests that need promtool carry the marker `promtool`"
    return found


@pytest.fixture(scope="session")
def prometheus() -> str:
    found = _program("prometheus")
    assert found is not None, "tests that need Prometheus carry the marker `prometheus`"
    return found


@pytest.fixture(scope="session")
def docker_compose() -> str:
    found = _program("compose")
    assert found is not None, "tests that need docker-compose carry the marker `compose`"
    return found


@pytest.fixture(scope="session")
def rabbitmq_node() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server


@pytest.fixture
def rabbitmq(rabbitmq_node: RabbitMQ) -> Iterator[str]:
    """URL of a RabbitMQ without queues of tests before."""
    rabbitmq_node.clear()
    yield rabbitmq_node.url


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        yield cast(Valkey, SimpleNamespace(url=given, port=urlsplit(given).port or 6379))
        return
    with Valkey() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield cast(Postgres, SimpleNamespace(create_database=lambda name: database_beside(given, name)))
        return
    with Postgres() as server:
        yield server


def database_beside(url: str, name: str) -> str:
    """Make a database again on the server of another, and return its URL."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    made = make_url(url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(made.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    return made


@pytest.fixture(scope="session")
def emptied_databases() -> list[str]:
    """URLs of databases that tests before have left as they were made: a new one is hundreds of files."""
    return []


@pytest.fixture
def database_url(postgres: Postgres, emptied_databases: list[str]) -> Iterator[str]:
    url = emptied_databases.pop() if emptied_databases else postgres.create_database(f"test{next(_names)}")
    yield url
    if is_emptied(url):
        emptied_databases.append(url)


#: What a test may leave behind in a database that dropping its schemas does not take away.
LEFT_BEHIND = """
SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())
     + (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = (
         SELECT oid FROM pg_database WHERE datname = current_database()))
     + (SELECT count(*) FROM pg_extension WHERE extname NOT IN ('plpgsql', 'pg_stat_statements'))
     + (SELECT count(*) FROM pg_event_trigger)
"""
OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> %s
"""
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' AND nspname <> 'information_schema'"


def is_emptied(url: str) -> bool:
    """Make a database what it was when it was new, if that can be done."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    try:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True, connect_timeout=10) as connection:
            if connection.execute(LEFT_BEHIND.encode()).fetchone() != (0,):
                return False
            connection.execute(OTHERS.encode(), [connection.info.backend_pid])
            for (name,) in connection.execute(SCHEMAS.encode()).fetchall():
                connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(name)))
            connection.execute("CREATE SCHEMA public AUTHORIZATION pg_database_owner")
            connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
            connection.execute("CREATE EXTENSION pg_stat_statements")
            connection.execute("SELECT pg_stat_statements_reset()")
    except psycopg.Error:
        return False
    return True


@pytest.fixture
def patient_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker may take longer to answer than readers would wait for it."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        monkeypatch.setitem(PUBLISHER, name, 2.0)


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def namespaces(valkey: Valkey) -> Iterator[set[bytes]]:
    """Names that the tests of a file have taken; their keys go with them, since each makes every later SCAN longer."""
    names: set[bytes] = set()
    yield names
    with redis.Redis.from_url(valkey.url) as client:
        keys = [key for key in client.scan_iter(count=10_000) if key.partition(b":")[0] in names]
        for at in range(0, len(keys), 10_000):
            client.unlink(*keys[at : at + 10_000])


@pytest.fixture
def make_cache(valkey: Valkey, namespaces: set[bytes], events: list[Any]) -> Iterator[Callable[..., Cache]]:
    """Make caches on the suite's store, each test in a namespace of its own."""
    namespace = f"t{next(_names)}"
    namespaces.add(namespace.encode())
    caches = []

    def make(**options: Any) -> Cache:
        kept = {name: options.pop(name) for name in ("celery", "sessions", "async_sessions") if name in options}
        settings = {"redis_url": valkey.url, "namespace": namespace, **options}
        cache = Cache(Config(**settings), hook=events.append, **kept)
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        cache.close()


@pytest.fixture
def cache(make_cache: Callable[..., Cache]) -> Cache:
    return make_cache()
