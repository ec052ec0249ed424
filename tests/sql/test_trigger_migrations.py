"""Triggers are installed after migrations, whichever of them have run: no run dies of what is missing."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, ConfigError
from cacheworkers.ops.doctor import diagnose
from cacheworkers.sql.triggers.postgres_triggers import Triggers

TEMPLATES = {"product": ["product:{id}", "brand:{brand_id}"], "review": ["review:{id}"]}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(make_cache: Callable[..., Cache], engine: Engine) -> Cache:
    return make_cache(sessions=sessionmaker(engine))


@pytest.fixture
def triggers(cache: Cache, engine: Engine) -> Triggers:
    """Of a table, a column and a second table, of which the database has the first only."""
    cache.outbox.create(engine)
    run(engine, "CREATE TABLE product (id int PRIMARY KEY)")
    return cache.triggers(TEMPLATES)


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def migrate(engine: Engine, triggers: Triggers, *statements: str) -> None:
    run(engine, *statements)
    with engine.begin() as connection:
        triggers.install(connection, skip_missing=True)


def written(engine: Engine, *statements: str) -> set[str]:
    run(engine, "DELETE FROM cacheworkers_outbox", *statements)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT tags FROM cacheworkers_outbox")).scalars()
        return {tag for row in rows for tag in row.split("\n")}


def faults(engine: Engine, triggers: Triggers) -> dict[str, str]:
    with engine.connect() as connection:
        return triggers.faults(connection)


def installed(connection: Connection) -> list[Any]:
    """Return the rows of triggers and functions: whatever replaces one makes its row another."""
    found = connection.execute(
        text(
            "SELECT t.oid, t.xmin::text, p.oid, p.xmin::text FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = tgfoid "
            "WHERE NOT tgisinternal ORDER BY t.oid"
        )
    )
    return [tuple(row) for row in found]


def test_what_a_later_migration_adds_is_installed_then(
    triggers: Triggers, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cacheworkers"):
        migrate(engine, triggers)

    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 tags of triggers on product are left out: it has no column brand_id",
        "1 of 1 tags of triggers on review are left out: there is no table review in this database, "
        'by search_path "$user", public',
    ]
    assert written(engine, "INSERT INTO product VALUES (1)") == {"product:1"}
    caplog.clear()
    migrate(engine, triggers, "ALTER TABLE product ADD brand_id int", "CREATE TABLE review (id int)")
    assert caplog.records == []
    assert faults(engine, triggers) == {}
    changes = ("INSERT INTO product VALUES (2, 3)", "INSERT INTO review VALUES (4)")
    assert written(engine, *changes) == {"product:2", "brand:3", "review:4"}


@pytest.mark.parametrize("lacks", ["no column 'brand_id'", "no table review"])
def test_by_default_it_fails_and_says_what_to_do(triggers: Triggers, engine: Engine, lacks: str) -> None:
    if "review" in lacks:
        run(engine, "ALTER TABLE product ADD brand_id int")

    with engine.begin() as connection, pytest.raises(ConfigError, match=f"{lacks}.*install.*skip_missing=True"):
        triggers.install(connection)

    assert lacks in " ".join(faults(engine, triggers).values())
    assert "skip_missing" not in " ".join(faults(engine, triggers).values())


def test_by_default_a_missing_outbox_is_said(triggers: Triggers, engine: Engine) -> None:
    run(
        engine, "ALTER TABLE product ADD brand_id int", "CREATE TABLE review (id int)", "DROP TABLE cacheworkers_outbox"
    )

    with (
        engine.begin() as connection,
        pytest.raises(ConfigError, match=r"no table cacheworkers_outbox.*outbox\.create"),
    ):
        triggers.install(connection)


def test_a_migration_backward_leaves_no_trigger_that_fails(triggers: Triggers, engine: Engine) -> None:
    migrate(engine, triggers, "ALTER TABLE product ADD brand_id int", "CREATE TABLE review (id int, name text)")
    migrate(engine, triggers, "ALTER TABLE product DROP brand_id", "ALTER TABLE review DROP id")

    assert written(engine, "INSERT INTO product VALUES (1)", "INSERT INTO review VALUES ('good')") == {"product:1"}
    migrate(engine, triggers, "DROP TABLE review", "ALTER TABLE product RENAME TO item")
    assert written(engine, "INSERT INTO item VALUES (2)") == set()
    with engine.connect() as connection:
        assert installed(connection) == []


def test_without_the_outbox_tables_can_be_written(triggers: Triggers, engine: Engine) -> None:
    migrate(engine, triggers)
    migrate(engine, triggers, "DROP TABLE cacheworkers_outbox")

    run(engine, "INSERT INTO product VALUES (1)")


def test_what_is_current_is_left_alone(triggers: Triggers, engine: Engine) -> None:
    """Also where a tag is left out.  A deployment that installs waits for nobody's transaction."""
    locks = text("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'product'::regclass")
    run(engine, "CREATE TABLE review (id int)")
    migrate(engine, triggers)
    with engine.begin() as connection:
        before = installed(connection)
        triggers.install(connection, skip_missing=True)

        assert len(before) == 8
        assert installed(connection) == before
        assert connection.execute(locks).scalar_one() == 0


def test_only_the_table_that_is_not_current_is_installed_again(triggers: Triggers, engine: Engine) -> None:
    migrate(engine, triggers, "CREATE TABLE review (id int)")
    with engine.connect() as connection:
        before = installed(connection)

    migrate(engine, triggers, "ALTER TABLE product ADD brand_id int")

    with engine.connect() as connection:
        kept = {*before} & {*installed(connection)}
    assert len(kept) == 4
    assert written(engine, "INSERT INTO product VALUES (1, 2)") == {"product:1", "brand:2"}


ENV = """
from alembic import context
from sqlalchemy import create_engine

with create_engine(context.config.attributes["url"]).connect() as connection:
    context.configure(connection=connection, target_metadata=context.config.attributes["metadata"], {options})
    with context.begin_transaction():
        context.run_migrations()
        context.config.attributes["triggers"].install(connection, skip_missing=True)
"""
REVISION = """
import sqlalchemy as sa
from alembic import context, op

revision, down_revision = {revision!r}, {before!r}


def upgrade():
    {up}


def downgrade():
    {down}
"""
OUTBOX = "context.config.attributes['metadata'].{}(op.get_bind())"
STEPS = [
    (
        f"{OUTBOX.format('create_all')}; op.create_table('product', sa.Column('id', sa.Integer))",
        f"{OUTBOX.format('drop_all')}; op.drop_table('product')",
    ),
    ("op.add_column('product', sa.Column('brand_id', sa.Integer))", "op.drop_column('product', 'brand_id')"),
    ("op.create_table('review', sa.Column('id', sa.Integer))", "op.drop_table('review')"),
]


@pytest.mark.parametrize("each", [False, True], ids=["one transaction", "one a migration"])
def test_alembic_installs_them_at_the_end_of_env_py(cache: Cache, engine: Engine, tmp_path: Path, each: bool) -> None:
    """Upwards, to the middle, down to nothing, and up again."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV.format(options=f"transaction_per_migration={each}"))
    for at, (up, down) in enumerate(STEPS):
        written_as = REVISION.format(revision=f"r{at}", before=f"r{at - 1}" if at else None, up=up, down=down)
        (tmp_path / "versions" / f"r{at}.py").write_text(written_as)
    config = AlembicConfig()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    triggers = cache.triggers(TEMPLATES)
    config.attributes.update(url=engine.url, metadata=cache.outbox.metadata, triggers=triggers)

    command.upgrade(config, "head")
    assert faults(engine, triggers) == {}
    command.downgrade(config, "r0")
    assert written(engine, "INSERT INTO product VALUES (1)") == {"product:1"}
    command.downgrade(config, "base")
    command.current(config)
    command.upgrade(config, "head")
    assert faults(engine, triggers) == {}
    assert written(engine, "INSERT INTO product VALUES (1, 2)") == {"product:1", "brand:2"}


@pytest.mark.parametrize("skip_missing", [False, True])
def test_an_empty_list_removes_what_a_table_had(
    cache: Cache, engine: Engine, skip_missing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its column, or the table, has gone: each write of it would fail for ever."""
    cache.outbox.create(engine)
    run(engine, "CREATE TABLE product (id int)", "CREATE TABLE review (id int, product_id int)")
    before = cache.triggers({"product": ["product:{id}"], "review": ["reviews:{product_id}"]})
    with engine.begin() as connection:
        before.install(connection)
    run(engine, "ALTER TABLE review RENAME product_id TO item_id")

    now = cache.triggers({"product": ["product:{id}"], "review": [], "gone": []})
    assert faults(engine, now) == {
        "review": "the triggers of review are still there, and it is declared to have none",
    }
    with engine.begin() as connection:
        now.install(connection, skip_missing=skip_missing)

    assert faults(engine, now) == {} and caplog.records == []
    assert written(engine, "INSERT INTO review VALUES (1, 2)", "INSERT INTO product VALUES (3)") == {"product:3"}


def test_doctor_finds_triggers_that_are_declared_no_more(
    make_cache: Callable[..., Cache], cache: Cache, engine: Engine
) -> None:
    """Those of another namespace, too, once nobody has drained what they write for an hour."""
    cache.outbox.create(engine)
    run(engine, "CREATE TABLE product (id int)", "CREATE TABLE review (id int)")
    old = make_cache(namespace="old", sessions=sessionmaker(engine))
    with engine.begin() as connection:
        cache.triggers({"product": ["product:{id}"]}).install(connection)
        old.triggers({"product": ["product:{id}"]}).install(connection)
        Triggers(cache.config.namespace, {"review": ["review:{id}"]}).install(connection)
        # What writes another outbox, as of an application in another schema, is not this one's.
        connection.execute(text("CREATE SCHEMA other"))
        connection.execute(text("CREATE TABLE other.cacheworkers_outbox (LIKE cacheworkers_outbox INCLUDING ALL)"))
        connection.execute(text("CREATE TABLE other.brand (id int)"))
        brands = {"other.brand": ["brand:{id}"]}
        Triggers(cache.config.namespace, brands, "other.cacheworkers_outbox").install(connection)

    def left() -> tuple[str, list[str]]:
        [found] = [each for each in diagnose(cache, is_running=False) if each.check == "triggers-left"]
        return found.level, sorted(re.findall(r"of function (\w+)", found.what))

    mine, others = f"cacheworkers_{cache.config.namespace}_review", "cacheworkers_old_product"
    run(engine, "INSERT INTO product VALUES (1)")
    assert left() == ("warning", [mine])
    run(
        engine, "UPDATE cacheworkers_outbox SET written_at = written_at - interval '61 minutes' WHERE namespace = 'old'"
    )
    assert left() == ("warning", sorted([mine, others]))
    run(engine, f"DROP FUNCTION {mine}() CASCADE", f"DROP FUNCTION {others}() CASCADE")
    assert left() == ("ok", [])


def test_a_drain_logs_what_is_not_installed(
    triggers: Triggers, cache: Cache, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a change of namespace, when nothing else of it shows before somebody asks doctor."""
    stop = threading.Event()
    stop.set()
    migrate(engine, triggers, "ALTER TABLE product ADD brand_id int", "CREATE TABLE review (id int)")
    cache.drain_until(stop)
    assert caplog.messages == []
    run(engine, f"DROP TRIGGER {triggers.functions[1]}_update ON review")

    cache.drain_until(stop)

    assert caplog.messages == [
        "nothing to drain: the triggers of review are missing or outdated; `triggers.install` after the migrations"
    ]


def test_a_drain_begins_although_the_database_is_away(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache(sessions=sessionmaker(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/shop")))
    cache.triggers(TEMPLATES)
    stop = threading.Event()
    stop.set()

    cache.drain_until(stop)
