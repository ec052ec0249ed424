"""SQLAlchemy's undocumented names, each with what this package takes it for; an upgrade that fails here breaks that."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    ForeignKey,
    Integer,
    String,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry, relationship, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.util.concurrency import greenlet_spawn

from cacheworkers.sql import sqlalchemy_internals as internals


class Base(DeclarativeBase):
    pass


class Room(Base):
    __tablename__ = "internals_room"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    door_id: Mapped[int | None] = mapped_column(ForeignKey("internals_room.id"))
    door: Mapped[Room | None] = relationship(remote_side="Room.id", post_update=True)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


class End:
    """What `call_at_end` reports."""

    def __init__(self) -> None:
        self.reported: list[Any] = []

    def committing(self, connection: Connection) -> None:
        assert connection.in_transaction()
        self.reported.append("committing")

    def ended(self, is_committed: bool) -> None:
        self.reported.append(is_committed)


def test_all_mappers_are_those_of_all_registries() -> None:
    """Without it, a second class of a watched table in another registry is found by nobody, and loses its tags."""

    class Other:
        pass

    mine = registry()
    mine.map_imperatively(Other, Room.__table__)

    assert {Room, Other} <= {mapper.class_ for mapper in internals.all_mappers()}
    mine.dispose()


def test_a_class_that_waits_for_its_table_is_no_mapper_yet(engine: Engine) -> None:
    """Without it, a watch, and each flush after it, fails until all such classes are prepared."""

    class Reflected(DeferredReflection, DeclarativeBase):
        pass

    class Waiting(Reflected):
        __tablename__ = "internals_room"

    assert Waiting not in {mapper.class_ for mapper in internals.all_mappers()}
    Reflected.prepare(engine)
    assert [mapper.class_ for mapper in internals.mappers_of(Reflected.registry)] == [Waiting]
    Reflected.registry.dispose()


def test_a_plain_insert_has_the_values_of_one_row() -> None:
    """Without it, a row that ON CONFLICT updates, or the second of several, loses its tags."""
    from sqlalchemy.dialects.postgresql import insert as postgres_insert

    plain = insert(Room).values(id=1)
    others = (
        insert(Room),
        insert(Room).values([{"id": 1}, {"id": 2}]),
        insert(Room).from_select(["id"], select(Room.id)),
        postgres_insert(Room).values(id=1).on_conflict_do_nothing(),
        insert(Room).values(id=1).prefix_with("OR REPLACE"),
    )

    assert internals.is_plain_insert(plain)
    assert not any(internals.is_plain_insert(each) for each in others)


def test_the_parts_of_a_statement() -> None:
    """Without them, an UPDATE that changes keys, or more than one row, is taken for one that does not."""
    changed = update(Room).where(Room.id == 1, Room.name == "x").values(name="y").returning(Room.id)
    ordered = update(Room).ordered_values((Room.id, 2))

    is_returning, keys, conditions = internals.parts_of_statement(changed)
    assert is_returning and keys == {"name"} and len(conditions) == 2
    assert internals.parts_of_statement(ordered) == (False, frozenset({"id"}), ())
    assert internals.parts_of_statement(delete(Room)) == (False, frozenset(), ())


def test_statements_for_lists_of_mapped_rows(engine: Engine) -> None:
    """Without it, bulk operations run with one row and are refused with two."""
    found: list[bool] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        found.append(internals.is_for_mapped_rows(context))

    with Session(engine) as session:
        session.execute(insert(Room).values(id=1))
        session.execute(update(Room), [{"id": 1, "name": "x"}])
        session.bulk_save_objects([Room(id=2)])
        assert found == [False, True, True]
        session.execute(insert(Room).values(id=3))
        session.execute(update(Room).where(Room.id == 1).values(name="y"))
        session.execute(delete(Room).where(Room.id == 1))
    assert found[3:] == [False, False, False]


def test_a_connection_that_commits_each_statement(engine: Engine) -> None:
    with engine.connect() as connection:
        assert not internals.is_autocommit_on(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert internals.is_autocommit_on(connection)


def test_a_flush_is_running_between_its_first_and_last_statement(engine: Engine) -> None:
    """Without it, a flush's own statements are refused, or a hook's statements pass for them."""
    seen: list[bool] = []
    contexts: list[Any] = []
    with Session(engine) as session:
        event.listen(session, "before_flush", lambda session, context, _: contexts.append(context))
        event.listen(session, "before_flush", lambda *_: seen.append(internals.is_flushing(contexts[0])))
        event.listen(engine, "before_cursor_execute", lambda *_: seen.append(internals.is_flushing(contexts[0])))
        session.add(Room(id=1))
        session.flush()

    assert seen == [False, True]
    assert not internals.is_flushing(None)


def test_what_is_set_since_a_flush_is_known_by_its_names(engine: Engine) -> None:
    """Without it, a changed row loses its tags."""
    with Session(engine) as session:
        room = Room(id=1)
        session.add(room)
        session.flush()
        assert not internals.set_since_loaded(inspect(room))

        room.door_id = 1

        assert internals.set_since_loaded(inspect(room)).keys() == {"door_id"}


def test_second_updates_are_known_before_they_are_written(engine: Engine) -> None:
    """Without it, a row that only a `post_update` changes loses its tags."""
    contexts: list[Any] = []
    found: list[Any] = []

    def note(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            found.extend(state.obj() for state in internals.second_updates(contexts[-1]))

    with Session(engine) as session:
        event.listen(session, "before_flush", lambda session, context, _: contexts.append(context))
        event.listen(engine, "before_cursor_execute", note)
        room = Room(id=1, door=Room(id=2))
        session.add(room)
        session.flush()
        assert found == [room]


def test_the_unit_of_work_s_statements_are_known_from_others(engine: Engine) -> None:
    """Without it, a bulk statement in the middle of a flush passes for the flush's own."""
    contexts: list[Any] = [None]
    seen: list[tuple[str, bool]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("SELECT"):
            seen.append((statement.split()[0], internals.is_by_unit_of_work(context, contexts[-1])))

    def others(mapper: Any, connection: Connection, target: Room) -> None:
        if target.id == 2:
            connection.execute(insert(Room.__table__).values(id=3))  # type: ignore[arg-type]
            inner = Session(bind=connection)
            inner.bulk_insert_mappings(Room, [{"id": 4}])  # type: ignore[arg-type]
            inner.execute(update(Room), [{"id": 4, "door_id": 4}])

    event.listen(engine, "before_cursor_execute", note)
    event.listen(Room, "after_insert", others)
    try:
        with Session(engine) as session:
            event.listen(session, "before_flush", lambda session, context, _: contexts.append(context))
            room = Room(id=1, door=Room(id=2))
            session.add(room)
            session.flush()
            # A cache of compiled statements that is the user's own marks each statement.
            cached = session.connection().execution_options(compiled_cache={})
            cached.execute(insert(Room.__table__).values(id=5))  # type: ignore[arg-type]
            room.door = None
            session.flush()
            session.delete(room)
            session.flush()
    finally:
        event.remove(Room, "after_insert", others)

    bulk = [("INSERT", False), ("INSERT", False), ("UPDATE", False)]
    assert [each for each in seen if not each[1]] == [*bulk, ("INSERT", False)]
    assert {verb for verb, is_own in seen if is_own} == {"INSERT", "UPDATE", "DELETE"}


def test_variants_of_a_type_are_known() -> None:
    """Without it, a type that changes values on one database passes for one that does not."""
    assert internals.has_variants(Integer().with_variant(String(), "sqlite"))
    assert not internals.has_variants(Integer())


def test_options_of_a_factory_are_what_it_binds_to(engine: Engine) -> None:
    """Without it, nobody knows the database of the watched sessions."""
    assert internals.options_of(sessionmaker(engine))["bind"] is engine
    made = async_sessionmaker(create_async_engine("postgresql+psycopg://x/x"))
    assert internals.options_of(made)["bind"].dialect.is_async
    assert internals.options_of(None) == internals.options_of(Session) == {}


def test_autocommit_is_known_however_it_was_set() -> None:
    """Without it, a watched change and its outbox row are committed one after the other."""
    url = "sqlite://"
    assert internals.is_autocommit(create_engine(url, isolation_level="AUTOCOMMIT"))
    assert internals.is_autocommit(create_engine(url).execution_options(isolation_level="AUTOCOMMIT"))
    assert not internals.is_autocommit(create_engine(url))


def test_engines_that_differ_in_options_have_one_base(engine: Engine) -> None:
    """Without it, outbox rows are marked in a tenant's schema, and one engine a request is kept."""
    tenant = engine.execution_options(schema_translate_map={None: "a"}).execution_options(logging_token="b")

    assert internals.base_engine(tenant) is internals.base_engine(engine) is engine


@pytest.mark.parametrize("kind", [NullPool, QueuePool])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_twin_engine_has_the_listeners_of_the_other(tmp_path: Any, kind: Any, is_late: bool) -> None:
    """Without it, what listeners set up for row-level security does not hold in loads."""
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    received: list[str] = []

    def listen() -> None:
        for name in ("connect", "checkout", "engine_connect", "begin", "before_cursor_execute", "commit"):
            event.listen(engine, name, lambda *_, name=name: received.append(name))

    if not is_late:
        listen()
    twin = internals.engine_like(engine, kind)
    if is_late:
        listen()

    with twin.begin() as connection:
        connection.exec_driver_sql("SELECT 1")

    assert received == ["connect", "checkout", "engine_connect", "begin", "before_cursor_execute", "commit"]
    assert twin.pool is not engine.pool
    twin.dispose()


def test_a_twin_engine_may_have_another_isolation_level(tmp_path: Any) -> None:
    """Without it, loads of an AUTOCOMMIT engine have no deadline."""
    base = create_engine(f"sqlite:///{tmp_path}/a.db")
    autocommit = base.execution_options(isolation_level="AUTOCOMMIT")
    twin = internals.engine_on(autocommit, internals.engine_like(base, QueuePool).pool, "SERIALIZABLE")

    with twin.connect() as connection:
        assert connection.get_isolation_level() == "SERIALIZABLE"
    with base.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    twin.dispose()


def test_the_end_of_a_transaction_is_reported(engine: Engine) -> None:
    """Without it, a session that has joined somebody else's transaction is invalidated by the drain alone."""
    end = End()
    with engine.connect() as connection, connection.begin() as transaction:
        assert type(transaction).__name__ == "RootTransaction"
        internals.call_at_end(connection, end)
        assert internals.ends_of(connection) == (end,)
        assert end.reported == []

    assert end.reported == ["committing", True]


def test_a_transaction_that_is_rolled_back_or_closed_is_reported_so(engine: Engine) -> None:
    for way in ("rollback", "close"):
        end = End()
        with engine.connect() as connection:
            transaction = connection.begin()
            internals.call_at_end(connection, end)
            getattr(transaction, way)()
            with connection.begin():
                pass
        assert end.reported == [False]


def test_a_connection_is_collected_although_its_end_refers_to_it(engine: Engine) -> None:
    """Without it, a connection that is dropped in a transaction never goes back to its pool."""

    def drop() -> weakref.ref[Connection]:
        end, connection = End(), engine.connect()
        end.reported.append(connection)
        connection.begin()
        internals.call_at_end(connection, end)
        return weakref.ref(connection)

    dropped = drop()
    gc.collect()
    assert dropped() is None


def test_await_works_in_hooks_of_async_sessions() -> None:
    """Without it, a hook cannot invalidate on the loop that the session runs on."""

    async def answer() -> int:
        return 42

    def hook() -> int:
        assert internals.in_greenlet()
        return internals.await_(answer())

    assert asyncio.run(greenlet_spawn(hook)) == 42
    assert not internals.in_greenlet()


def test_first_connections_on_two_loops_do_not_wait_for_ever(database_url: str) -> None:
    """Without it, a load on the library's loop and a request on the application's hang, now and then, at the start."""
    engine = create_async_engine(database_url)
    first = internals.engine_like(engine.sync_engine, NullPool)
    is_second_there = threading.Event()
    is_first_there = threading.Event()
    done: list[str] = []

    def hold(*_: object) -> None:
        if is_first_there.is_set():
            return
        is_first_there.set()
        deadline = time.monotonic() + 20
        while not is_second_there.is_set() and time.monotonic() < deadline:
            internals.await_(asyncio.sleep(0.01))
        for _ in range(20):  # the second one goes on to the lock
            internals.await_(asyncio.sleep(0.01))

    event.listen(first, "connect", hold)

    async def connect(twin: Engine, name: str) -> None:
        async with AsyncEngine(twin).connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
            done.append(name)

    threads = [threading.Thread(target=asyncio.run, args=(connect(first, "first"),), daemon=True)]
    threads[0].start()
    assert is_first_there.wait(20)
    event.listen(engine.sync_engine, "do_connect", lambda *_: is_second_there.set())
    threads.append(threading.Thread(target=asyncio.run, args=(connect(engine.sync_engine, "second"),), daemon=True))
    threads[1].start()
    for thread in threads:
        thread.join(30)

    assert sorted(done) == ["first", "second"]  # in either order: after the lock, both go on


def test_a_first_value_is_read_in_a_transaction_and_fails_as_any_statement_does(engine: Engine) -> None:
    """Without it each watched commit costs another pass through SQLAlchemy's execution of statements."""
    statement = "INSERT INTO internals_room (name) VALUES (?) RETURNING id"
    with engine.connect() as connection:
        assert internals.first_value(connection, statement, ("hall",)) == 1
        connection.commit()
        assert internals.first_value(connection, statement, ("cellar",)) == 2
        with pytest.raises(OperationalError, match="no such table: nowhere") as failed:
            internals.first_value(connection, "SELECT 1 FROM nowhere", ())
        assert failed.value.statement == "SELECT 1 FROM nowhere"
    with engine.connect() as connection:
        assert connection.execute(select(Room.name)).scalars().all() == ["hall"]
