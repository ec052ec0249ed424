"""Two-phase commits: what a watched session has changed is invalidated when the prepared transaction is committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Config
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import wait_until

from .conftest import Base, Product

pytestmark = pytest.mark.heavy


class PreparingPostgres(Postgres):
    """A server that keeps prepared transactions, which is off by default."""

    def command(self) -> tuple[Sequence[str], dict[str, Any]]:
        command, options = super().command()
        return [*command, "-c", "max_prepared_transactions=5"], options


@pytest.fixture
def url() -> Iterator[str]:
    with PreparingPostgres() as server:
        yield server.create_database("shop")


def test_the_second_phase_invalidates(url: str) -> None:
    events: list[Any] = []
    engine = create_engine(url)
    sessions = sessionmaker(engine, twophase=True)
    with Valkey() as store:
        cache = Cache(Config(redis_url=store.url), hook=events.append)
        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
        cache.watch(sessions, {Product: ["product:{id}"]})

        def invalidated() -> list[tuple[str, ...]]:
            return [event.tags for event in events if type(event).__name__ == "Invalidated"]

        with sessions() as session:
            session.add(Product(id=1, category_id=1, price=1))
            session.prepare()
            assert invalidated() == []
            session.commit()
            assert invalidated() == [("product:1",)]

            session.add(Product(id=2, category_id=1, price=1))
            session.prepare()
            session.rollback()
            assert invalidated() == [("product:1",)]

        def waiting() -> int:
            with engine.connect() as connection:
                return cache.outbox.waiting(connection)

        wait_until(lambda: waiting() == 0)
        cache.close()
    engine.dispose()
