"""Fixtures for your own suite; pytest finds them by itself.

`cacheworkers_redis_url` and `cacheworkers_database_url` are servers for the session: those that the environment
names, `TEST_REDIS_URL` and `TEST_DATABASE_URL`, else embedded ones that end with it.  `cacheworkers_start_workers`
starts real Celery workers for one test, as nodes of pytest-celery.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def cacheworkers_redis_url() -> Iterator[str]:
    """URL of a Redis or Valkey that tests may write to; use a namespace of your own."""
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        yield given
        return
    from cacheworkers.testing.servers import Valkey

    with Valkey() as server:
        yield server.url


@pytest.fixture(scope="session")
def cacheworkers_database_url() -> Iterator[str]:
    """SQLAlchemy URL of a Postgres database that tests may write to."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    from cacheworkers.testing.servers import Postgres

    with Postgres() as server:
        yield server.create_database("cacheworkers_test")


@pytest.fixture
def cacheworkers_start_workers(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start real workers: `cacheworkers_start_workers(app, "first", "second")` returns pytest-celery's cluster of them.

    Keywords are those of `cacheworkers.testing.celery_nodes.start_workers`.  They end with the test.
    """
    clusters = []

    def start(app: Any, *names: str, **options: Any) -> Any:
        from cacheworkers.testing.celery_nodes import start_workers

        clusters.append(start_workers(app, names or ("worker",), tmp_path, **options))
        return clusters[-1]

    yield start
    for cluster in clusters:
        for node in cluster:
            node.teardown()
