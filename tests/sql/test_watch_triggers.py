"""Where triggers write the tags, a transaction reads its own writes, and so does its process after the commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ForeignKey, delete, event, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import UnwatchedWrite
from cacheworkers.sql.triggers import trigger_rows
from cacheworkers.testing.servers import wait_until

from .conftest import Product, Shop


def install(shop: Shop, *templates: str) -> None:
    with shop.engine.connect() as connection:
        shop.cache.triggers({"product": templates}).install(connection)
        connection.commit()


@pytest.fixture
def triggered(shop: Shop) -> Shop:
    """Products 1 and 2, of which the first is cached, priced 10; nothing waits in the outbox."""
    shop.add(1)
    shop.add(2, category_id=2)
    install(shop, "product:{id}", "category:{category_id}")
    assert shop.price.get(1) == 10
    return shop


def reprice(session: Session) -> None:
    session.get_one(Product, 1).price = 99
    session.flush()


def reprice_all(session: Session) -> None:
    session.execute(update(Product).values(price=99))


def reprice_by_text(session: Session) -> None:
    session.execute(text("UPDATE product SET price = 99"))


def reprice_unwatched(session: Session) -> None:
    session.execute(update(Product).values(price=99), execution_options={"cacheworkers_unwatched": True})


WAYS = [reprice, reprice_all, reprice_by_text, reprice_unwatched]


@pytest.mark.parametrize("way", WAYS)
def test_a_transaction_reads_its_own_writes(triggered: Shop, way: Callable[[Session], None]) -> None:
    """The tags of the change are in the outbox, unknown to the session: it reads nothing from the cache."""
    with triggered.sessions() as session:
        way(session)
        assert triggered.price.get(1) == 99
        session.rollback()

    assert triggered.price.get(1) == 10


def test_triggers_that_are_installed_while_a_process_runs_are_found(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the rows to them then, within a minute: until it does, each write is in the outbox twice."""
    shop.add(1)

    def rows_of_a_write() -> list[str]:
        with shop.sessions.begin() as session:
            session.get_one(Product, 1).price += 1
            session.flush()
            return list(session.scalars(select(shop.cache.outbox.table.c.source).order_by("id")))[seen:]

    seen = 0
    assert rows_of_a_write() == ["watch"]
    install(shop, "product:{id}", "category:{category_id}")
    seen = 1
    assert sorted(rows_of_a_write()) == ["trigger", "watch"]
    monkeypatch.setattr("cacheworkers.sql.watch.installed_triggers.ASKED_EVERY", 0.0)
    seen = 3
    assert rows_of_a_write() == ["trigger"]


@pytest.mark.parametrize("way", WAYS)
def test_a_process_reads_its_own_writes_after_the_commit(triggered: Shop, way: Callable[[Session], None]) -> None:
    """No drain has run."""
    with triggered.sessions.begin() as session:
        way(session)

    assert triggered.price.get(1) == 99
    assert {"product:1", "category:1"} <= set().union(*triggered.invalidated())
    wait_until(lambda: triggered.waiting() == 0)


def test_what_the_user_s_own_hook_changes_at_the_last_moment(triggered: Shop) -> None:
    event.listen(triggered.sessions, "before_commit", reprice_all)

    with triggered.sessions.begin() as session:
        session.connection()

    assert triggered.price.get(1) == 99


def test_an_async_session_is_no_different(triggered: Shop) -> None:
    async def main() -> None:
        async with triggered.async_sessions.begin() as session:
            await session.execute(update(Product).values(price=99))
            assert await triggered.price.aget(1) == 99
        assert await triggered.price.aget(1) == 99
        async with triggered.async_sessions.begin() as session:
            (await session.get_one(Product, 1)).price = 98
        assert await triggered.price.aget(1) == 98
        await triggered.async_engine.dispose()

    asyncio.run(main())


def test_a_change_is_forgotten_with_its_savepoint(triggered: Shop) -> None:
    with triggered.sessions.begin() as session:
        session.get_one(Product, 2)
        savepoint = session.begin_nested()
        reprice_all(session)
        assert triggered.price.get(1) == 99
        savepoint.rollback()
        assert triggered.price.read(1).tier == "store"

    assert triggered.invalidated() == []


def test_a_rolled_back_savepoint_takes_nothing_else_along(triggered: Shop) -> None:
    with triggered.sessions.begin() as session:
        reprice(session)
        with session.begin_nested() as savepoint:
            session.execute(delete(Product).where(Product.id == 2))
            savepoint.rollback()

    assert triggered.invalidated() == [{"product:1", "category:1"}]


def test_rows_of_others_are_left_to_the_drain(triggered: Shop) -> None:
    """A commit delivers what it has written, and waits for nothing else."""
    with Session(triggered.engine) as other, other.begin():
        other.get_one(Product, 2).price = 98

    with triggered.sessions.begin() as session:
        reprice(session)

    assert triggered.invalidated() == [{"product:1", "category:1"}]
    wait_until(lambda: triggered.waiting() == 1)
    triggered.cache.drain()
    assert triggered.invalidated()[1:] == [{"product:2", "category:2"}]


def test_more_than_a_commit_should_wait_for_is_left_to_the_drain(
    triggered: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_rows, "MAX_TAGS", 3)

    with triggered.sessions.begin() as session:
        reprice(session)
        reprice_all(session)

    assert triggered.invalidated() == [{"product:1", "category:1"}]
    wait_until(lambda: triggered.waiting() == 1)


def test_a_value_that_makes_no_legal_tag_fails_no_commit(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    install(shop, "{slug}", "product:{id}")

    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=1, price=10, slug="x" * 300))

    assert shop.invalidated() == [{"product:1"}]
    assert "skipped a tag in the outbox" in caplog.text


def test_an_outage_of_the_store_leaves_the_rows(triggered: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit stands, and the drain delivers them."""

    def broken(tags: Any) -> Any:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(triggered.cache._watching._delivery, "_invalidation", broken)
        with triggered.sessions.begin() as session:
            reprice(session)

    assert triggered.invalidated() == [] and triggered.waiting() == 1
    triggered.cache.drain()
    assert triggered.price.get(1) == 99


# -- what a statement changes besides


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int] = mapped_column(default=0)


class Child(Base):
    __tablename__ = "child"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id", ondelete="CASCADE"))


class Family:
    """Parents and children, of whom those that are named have triggers."""

    def __init__(self, shop: Shop, watched: tuple[Any, ...], triggers: tuple[str, ...]) -> None:
        self.shop = shop
        Base.metadata.create_all(shop.engine)
        with Session(shop.engine) as session, session.begin():
            session.add(Parent(id=1))
            session.flush()
            session.add(Child(id=5, parent_id=1))
        self.sessions = sessionmaker(shop.engine)
        shop.cache.watch(self.sessions, {kind: [f"{kind.__tablename__}:{{id}}"] for kind in watched})
        with shop.engine.connect() as connection:
            shop.cache.triggers({name: [f"{name}:{{id}}"] for name in triggers}).install(connection)
            connection.commit()


CASCADING: list[Any] = [delete(Parent), text("DELETE FROM parent"), text("TRUNCATE parent CASCADE")]


@pytest.mark.parametrize("statement", CASCADING)
def test_a_bulk_deletion_is_refused_where_what_goes_with_it_has_no_triggers(unwatched: Shop, statement: Any) -> None:
    """The parents' triggers do not cover the children."""
    family = Family(unwatched, (Parent, Child), ("parent",))

    with family.sessions() as session, pytest.raises(UnwatchedWrite, match=r"changes parent.*triggers\) on child,"):
        session.execute(statement)


@pytest.mark.parametrize("statement", CASCADING)
def test_a_bulk_deletion_runs_where_what_goes_with_it_has_triggers(unwatched: Shop, statement: Any) -> None:
    """Whether what is deleted is itself watched or not."""
    family = Family(unwatched, (Child,), ("child",))

    with family.sessions.begin() as session:
        session.execute(statement)

    assert unwatched.invalidated() == [{"child:5"}]


def test_a_bulk_update_needs_only_the_triggers_of_its_table(unwatched: Shop) -> None:
    family = Family(unwatched, (Parent, Child), ("parent",))

    with family.sessions.begin() as session:
        session.execute(update(Parent).values(price=1))

    assert unwatched.invalidated() == [{"parent:1"}]


def test_tables_of_one_name_without_triggers_are_distinguished(unwatched: Shop) -> None:
    """In two databases, say: that one name has no triggers is so of each of its tables."""

    class Other(DeclarativeBase):
        pass

    class Namesake(Other):
        __tablename__ = "product"
        id: Mapped[int] = mapped_column(primary_key=True)

    sessions = sessionmaker(unwatched.engine)
    unwatched.cache.watch(sessions, {Product: ["product:{id}"], Namesake: ["namesake:{id}"]})

    with sessions.begin() as session:
        session.add(Product(id=1, category_id=1, price=1))

    assert unwatched.invalidated() == [{"product:1"}]


# -- a schema for each tenant

TENANT = {None: "tenant-1"}


@pytest.fixture
def tenants(triggered: Shop) -> Shop:
    """A shop that has a second table of products, in a tenant's schema."""
    with triggered.engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "tenant-1"')
        connection.exec_driver_sql('CREATE TABLE "tenant-1".product (LIKE product INCLUDING ALL)')
    return triggered


def test_triggers_of_a_table_are_not_those_of_a_tenant_s(tenants: Shop) -> None:
    """The session writes the tags of a table that has none, and refuses bulk statements on it."""
    engine = tenants.engine.execution_options(schema_translate_map=TENANT)

    with tenants.sessions.begin() as session:
        session.add(Product(id=7, category_id=7, price=1))
    with tenants.sessions(bind=engine) as session:
        session.add(Product(id=8, category_id=8, price=1))
        session.commit()
        with pytest.raises(UnwatchedWrite, match="product"):
            reprice_all(session)

    assert tenants.invalidated() == [{"product:7", "category:7"}, {"product:8", "category:8"}]
    with tenants.sessions() as session, pytest.raises(UnwatchedWrite, match="product"):
        session.execute(update(Product).values(price=1), execution_options={"schema_translate_map": TENANT})


def test_a_tenant_s_triggers_are_received(tenants: Shop) -> None:
    """Whatever its schema is called."""
    engine = tenants.engine.execution_options(schema_translate_map=TENANT)
    with tenants.engine.begin() as connection:
        connection.exec_driver_sql(
            'CREATE TRIGGER tenant_insert AFTER INSERT ON "tenant-1".product REFERENCING NEW TABLE AS new_rows '
            f"FOR EACH STATEMENT EXECUTE FUNCTION {function_of(tenants)}()"
        )
        for kind, tables in (
            ("UPDATE", "OLD TABLE AS old_rows NEW TABLE AS new_rows"),
            ("DELETE", "OLD TABLE AS old_rows"),
        ):
            connection.exec_driver_sql(
                f'CREATE TRIGGER tenant_{kind} AFTER {kind} ON "tenant-1".product REFERENCING {tables} '
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function_of(tenants)}()"
            )
        connection.exec_driver_sql(
            'CREATE TRIGGER tenant_truncate BEFORE TRUNCATE ON "tenant-1".product '
            f"FOR EACH STATEMENT EXECUTE FUNCTION {function_of(tenants)}()"
        )

    with tenants.sessions(bind=engine) as session:
        session.add(Product(id=8, category_id=8, price=1))
        session.commit()

    assert tenants.invalidated() == [{"product:8", "category:8"}]
    with tenants.engine.connect() as connection:
        assert connection.execute(select(tenants.cache.outbox.table.c.source)).scalars().all() == ["trigger"]


def function_of(shop: Shop) -> str:
    """The function of the installed triggers, which works for any table of the same columns."""
    with shop.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT proname FROM pg_proc WHERE proname LIKE 'cacheworkers%%'")
        return str(found.scalar_one())
