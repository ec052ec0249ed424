"""Triggers are installed by whatever people use, whatever their tags hold, and say when a migration broke them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, ConfigError
from cacheworkers.ops.doctor import diagnose
from cacheworkers.sql.triggers.postgres_triggers import Triggers

Install = Callable[[Triggers, str], None]


def by_alembic(triggers: Triggers, url: str) -> None:
    with create_engine(url).begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        for statement in triggers.up():
            operations.execute(statement)


def by_text(triggers: Triggers, url: str) -> None:
    with create_engine(url).begin() as connection:
        for statement in triggers.up():
            connection.execute(text(statement))


def by_the_driver(triggers: Triggers, url: str) -> None:
    with create_engine(url).begin() as connection:
        for statement in triggers.up():
            connection.exec_driver_sql(statement)


def by_install(triggers: Triggers, url: str) -> None:
    with create_engine(url).begin() as connection:
        triggers.install(connection)


def by_async_psycopg(triggers: Triggers, url: str) -> None:
    asyncio.run(_by_async(triggers, url))


def by_asyncpg(triggers: Triggers, url: str) -> None:
    asyncio.run(_by_async(triggers, url.replace("+psycopg", "+asyncpg")))


async def _by_async(triggers: Triggers, url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(triggers.install)
    await engine.dispose()


@pytest.fixture
def shop(make_cache: Callable[..., Cache], database_url: str) -> Any:
    engine = create_engine(database_url)
    cache = make_cache(sessions=sessionmaker(engine))
    cache.outbox.create(engine)
    with engine.begin() as connection:
        connection.execute(text('CREATE TABLE product (id int PRIMARY KEY, category_id int, "a:b 50%" text)'))
        connection.execute(text('CREATE TABLE "odd \\:name 100%" (id int PRIMARY KEY)'))
    yield cache
    engine.dispose()


def written(url: str) -> set[str]:
    with create_engine(url).connect() as connection:
        rows = connection.execute(text("SELECT tags FROM cacheworkers_outbox")).scalars()
        return {tag for row in rows for tag in row.split("\n")}


def change(url: str, statement: str, **values: Any) -> None:
    with create_engine(url).begin() as connection:
        connection.execute(text(statement), values)


@pytest.mark.parametrize(
    "install", [by_alembic, by_text, by_the_driver, by_install, by_async_psycopg, by_asyncpg], ids=lambda f: f.__name__
)
def test_any_tag_is_installed_by_anything(shop: Cache, database_url: str, install: Install) -> None:
    """A colon before a word is a parameter to `text()`, a percent sign to drivers."""
    templates = ["product:{id}", "{category_id}:page", "100%:{id}", "%(id)s:{id}", ":all", "$x$\\:y:{id}", "it's"]
    triggers = shop.triggers({"product": templates, '"odd :name 100%"': [":odd:{id}"]})

    install(triggers, database_url)

    with create_engine(database_url).connect() as connection:
        assert triggers.faults(connection) == {}
    change(database_url, "INSERT INTO product VALUES (7, 3)")
    change(database_url, 'INSERT INTO "odd \\:name 100%" VALUES (1)')
    change(database_url, 'TRUNCATE "odd \\:name 100%"')
    product = {"product:7", "3:page", "100%:7", "%(id)s:7", ":all", "$x$\\:y:7", "it's"}
    assert written(database_url) == {*product, ":odd:1"}


def test_they_can_be_removed_by_text(shop: Cache, database_url: str) -> None:
    triggers = shop.triggers({"product": ["product:{id}"], '"odd :name 100%"': ["odd:{id}"]})
    by_install(triggers, database_url)

    for statement in triggers.down():
        change(database_url, statement)

    change(database_url, "INSERT INTO product VALUES (7, 3)")
    assert written(database_url) == set()


@pytest.mark.parametrize("value", ["me\ncategory:7", "\n", "me\r\ncategory:7\n", "a\x0bb"])
def test_a_value_forges_no_tag(shop: Cache, database_url: str, value: str, events: list[Any]) -> None:
    """Whoever may write a text into a row cannot invalidate what he likes."""
    by_install(_named(shop), database_url)

    change(database_url, "INSERT INTO named VALUES (1, :value)", value=value)
    change(database_url, "DELETE FROM named")
    shop.drain()

    assert {tag for event in events if type(event).__name__ == "Invalidated" for tag in event.tags} <= {"row:1"}
    assert shop.outbox_backlog().rows == 0


def _named(shop: Cache) -> Triggers:
    engine = shop._watching.engines[0]
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE named (id int PRIMARY KEY, name text)"))
    return shop.triggers({"named": ["name:{name}", "row:{id}"]})


@pytest.mark.parametrize(
    ("migration", "said"),
    [
        ("ALTER TABLE product RENAME COLUMN category_id TO group_id", "has no column 'category_id'"),
        ("ALTER TABLE product DROP COLUMN category_id", "has no column 'category_id'"),
        ("ALTER TABLE product ALTER COLUMN category_id TYPE numeric(10, 2)", "product.category_id is numeric"),
        ("ALTER TABLE product RENAME TO item", "there is no table product"),
        ("ALTER TABLE product DISABLE TRIGGER ALL", "missing or outdated"),
        ("CREATE SCHEMA ops; ALTER TABLE cacheworkers_outbox SET SCHEMA ops", "missing or outdated"),
    ],
)
def test_a_migration_that_breaks_them_is_said(shop: Cache, database_url: str, migration: str, said: str) -> None:
    triggers = shop.triggers({"product": ["product:{id}", "category:{category_id}"]})
    by_install(triggers, database_url)

    for statement in migration.split("; "):
        change(database_url, statement)

    with create_engine(database_url).connect() as connection:
        assert triggers.missing(connection) == ["product"]
    found = [each for each in diagnose(shop, is_running=False) if each.check == "triggers"]
    assert [each.level for each in found] == ["error"]
    assert said in found[0].what


def test_one_open_transaction_notifies_for_all(shop: Cache, database_url: str) -> None:
    """NOTIFY takes a lock of the whole server, held until the commit is on disk: the others' commits do not wait."""
    by_install(shop.triggers({"product": ["product:{id}"]}), database_url)
    first, second, listening = (create_engine(database_url).connect() for _ in range(3))
    driver: Any = listening.execution_options(isolation_level="AUTOCOMMIT").connection.driver_connection
    driver.execute(f"LISTEN cacheworkers_{shop.config.namespace.replace('-', '_')}")

    first.execute(text("INSERT INTO product VALUES (1, 1)"))
    second.execute(text("INSERT INTO product VALUES (2, 1)"))
    second.commit()
    assert list(driver.notifies(timeout=0.0)) == []
    first.commit()

    assert len(list(driver.notifies(timeout=5.0, stop_after=1))) == 1
    second.execute(text("INSERT INTO product VALUES (3, 1)"))
    second.commit()
    assert len(list(driver.notifies(timeout=5.0, stop_after=1))) == 1
    for each in (first, second, listening):
        each.close()


def test_they_can_do_without_notify(shop: Cache, database_url: str) -> None:
    quiet = shop.triggers({"product": ["product:{id}"]}, notify=False)
    by_install(quiet, database_url)

    assert "notify" not in quiet.sql()
    change(database_url, "INSERT INTO product VALUES (7, 3)")
    assert written(database_url) == {"product:7"}


def test_another_database_says_what_works_there(shop: Cache) -> None:
    triggers = shop.triggers({"product": ["product:{id}"]})
    with create_engine("sqlite://").connect() as connection:
        for do in (triggers.install, triggers.remove, triggers.missing, triggers.check):
            with pytest.raises(ConfigError, match=r"made for PostgreSQL.*is sqlite: watch sessions there"):
                do(connection)


def test_an_async_connection_is_shown_how(shop: Cache, database_url: str) -> None:
    async def install() -> None:
        async with create_async_engine(database_url).connect() as connection:
            wrong: Any = connection
            shop.triggers({"product": ["product:{id}"]}).install(wrong)

    with pytest.raises(ConfigError, match=r"await connection.run_sync\(triggers.install\)"):
        asyncio.run(install())


def test_a_connection_with_a_transaction_keeps_it(shop: Cache, database_url: str) -> None:
    def roll_back(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        shop.triggers({"product": ["product:{id}"]}).install(connection)
        connection.rollback()

    with create_engine(database_url).connect() as connection:
        roll_back(connection)

    change(database_url, "INSERT INTO product VALUES (7, 3)")
    assert written(database_url) == set()
