"""Fixtures for your own suite; pytest finds them by itself.

`cacheworkers_redis_url` and `cacheworkers_database_url` are servers for the session: those that the environment
names, `TEST_REDIS_URL` and `TEST_DATABASE_URL`, else embedded ones that end with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

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
