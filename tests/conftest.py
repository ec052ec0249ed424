"""Servers for the whole suite, and caches that are closed after each test."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import make_url

from cacheworkers import Cache, Config
from cacheworkers.policy import Policy
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.workers.settings import PUBLISHER

_names = itertools.count(1)

# Examples are bounded in number, not in time: a busy machine is no finding.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# Nor is it one where a test does not say itself how long something may take: store and workers may answer late.
_PATIENCE: Any = {Config: {"store_timeout": 5.0}, Policy: {"wait_for": 20.0}}
for _kind, _defaults in _PATIENCE.items():
    _kind.__init__.__kwdefaults__.update(_defaults)


#: Marker -> the programs of which one has to be installed, for PyPI has none of them, or be named by the variable.
PROGRAMS = {
    "promtool": ("PROMTOOL", ("promtool",)),
    "compose": ("DOCKER_COMPOSE", ("docker-compose",)),
    "browser": ("CHROMIUM", ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")),
}
_left_out: dict[str, int] = {}


def _program(marker: str) -> str | None:
    variable, names = PROGRAMS[marker]
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of programs that are not on this machine; the summary says so."""
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
def docker_compose() -> str:
    found = _program("compose")
    assert found is not None, "tests that need docker-compose carry the marker `compose`"
    return found


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
    """Make a database anew on the server of another, and return its URL."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    made = make_url(url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(made.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    return made


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    return postgres.create_database(f"test{next(_names)}")


@pytest.fixture
def patient_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker may take longer to answer than readers would wait for it."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        monkeypatch.setitem(PUBLISHER, name, 2.0)


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def make_cache(valkey: Valkey, events: list[Any]) -> Iterator[Callable[..., Cache]]:
    """Make caches on the suite's store, each test in a namespace of its own."""
    namespace = f"t{next(_names)}"
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
