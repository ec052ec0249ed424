"""The outbox in a schema of its own: sessions, triggers, the drain and doctor find it there, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine, event, select, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, ConfigError
from cacheworkers.ops.doctor import diagnose
from cacheworkers.sql.outbox.outbox import TRIGGER
from cacheworkers.testing.servers import wait_until

from .conftest import Base, Product, Shop, Unrelated

SCHEMA = 'cache "tags"'
QUOTED = '"cache ""tags"""'


@pytest.fixture
def shop(make_cache: Callable[..., Cache], database_url: str, events: list[Any]) -> Any:
    shop = Shop(lambda **options: make_cache(outbox_schema=SCHEMA, **options), database_url, events).watch()
    yield shop
    shop.engine.dispose()
    shop.async_engine.sync_engine.dispose(close=False)


def sources(shop: Shop) -> list[str]:
    with shop.engine.connect() as connection:
        return list(connection.execute(text(f"SELECT source FROM {QUOTED}.cacheworkers_outbox ORDER BY id")).scalars())


def test_a_commit_writes_there_and_the_drain_delivers_from_there(shop: Shop) -> None:
    shop.add(1)
    with shop.sessions.begin() as session:
        session.get_one(Product, 1).price = 7
    assert shop.invalidated() == [{"product:1", "category:1"}]

    with shop.engine.begin() as connection:
        shop.cache.outbox.write(connection, ["product:9"], TRIGGER)
    assert shop.cache.drain() == 1
    assert sources(shop) == ["watch", "trigger"]
    wait_until(lambda: shop.waiting() == 0)  # a commit's own row is marked by a thread


def test_triggers_write_there_and_sessions_rely_on_them(shop: Shop) -> None:
    triggers = shop.cache.triggers({"product": ["product:{id}", "category:{category_id}"]})
    with shop.engine.begin() as connection:
        triggers.install(connection)
        assert triggers.faults(connection) == {}
    shop.add(1)
    with shop.sessions.begin() as session:
        session.execute(text("UPDATE product SET price = 8"))

    assert sources(shop) == ["trigger", "trigger"]
    assert shop.invalidated() == [{"product:1", "category:1"}]


def test_what_empties_the_users_schema_leaves_it_alone(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        shop.cache.outbox.write(connection, ["product:9"], TRIGGER)
    everything = MetaData()
    everything.reflect(shop.engine)
    everything.drop_all(shop.engine)

    assert shop.cache.drain() == 1


def test_doctor_looks_there(shop: Shop) -> None:
    assert {each.check: each.level for each in diagnose(shop.cache)}["outbox-missing"] == "ok"

    with shop.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {QUOTED} CASCADE")
        connection.exec_driver_sql("CREATE TABLE cacheworkers_outbox (id integer)")

    [missing] = [each for each in diagnose(shop.cache) if each.check == "outbox-missing"]
    assert missing.level == "error" and f"lacks the table {SCHEMA}.cacheworkers_outbox" in missing.what


def test_watch_looks_there(make_cache: Callable[..., Cache], database_url: str) -> None:
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)
    make_cache().outbox.create(engine)
    cache = make_cache(outbox_schema=SCHEMA)

    with pytest.raises(ConfigError, match=r"which .* does not have"):
        cache.watch(sessionmaker(engine), {Product: ["product:{id}"]}, check=True)
    with engine.begin() as connection:
        cache.outbox.create(connection)
    cache.watch(sessionmaker(engine), {Product: ["product:{id}"]}, check=True)
    engine.dispose()


def test_who_may_not_create_schemas_creates_the_table_in_one_that_is_there(
    make_cache: Callable[..., Cache], database_url: str
) -> None:
    engine = create_engine(database_url)
    cache = make_cache(outbox_schema="tags_of_plain")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE plain_creator")
        connection.exec_driver_sql("CREATE SCHEMA tags_of_plain AUTHORIZATION plain_creator")
        connection.exec_driver_sql("SET ROLE plain_creator")
        cache.outbox.create(connection)
        assert cache.outbox.waiting(connection) == 0
        connection.rollback()  # the role too: it is of all databases
    engine.dispose()


def test_an_attached_database_of_sqlite_is_a_schema(
    make_cache: Callable[..., Cache], tmp_path: Path, events: list[Any]
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    event.listen(
        engine, "connect", lambda driver, _: driver.execute(f"ATTACH DATABASE '{tmp_path / 'tags.db'}' AS tags")
    )
    cache = make_cache(outbox_schema="tags", sessions=sessionmaker(engine))
    Base.metadata.create_all(engine, tables=[Base.metadata.tables["unrelated"]])
    cache.outbox.create(engine)
    sessions = sessionmaker(engine)
    cache.watch(sessions, {Unrelated: ["text:{id}"]})

    with sessions.begin() as session:
        session.add(Unrelated(id=1, text="x"))
    assert [set(each.tags) for each in events if type(each).__name__ == "Invalidated"] == [{"text:1"}]
    with engine.connect() as connection:
        assert connection.execute(select(cache.outbox.table.c.tags)).scalars().all() == ["text:1"]
    engine.dispose()
