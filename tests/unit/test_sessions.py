"""The sessions that loaders get, on SQLite: whose engine, which connections, what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from cacheworkers import Cache, Config, ConfigError
from cacheworkers.runtime.loader_sessions import sessions_for_loads
from cacheworkers.sql.load_sessions import LoadSessions


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


def engine_of(session: Session) -> Engine:
    bind = session.get_bind()
    return bind.engine if isinstance(bind, Connection) else bind


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'shop.db'}", pool_size=1, max_overflow=0)
    Base.metadata.create_all(made)
    with Session(made) as session:
        session.add(Product(id=1, price=10))
        session.commit()
    yield made
    made.dispose()


def test_without_factories_there_is_no_session() -> None:
    with LoadSessions(None, None, pool_size=1).for_load(1.0) as session:
        assert session is None


def test_closing_closes_the_connections_of_loads(engine: Engine) -> None:
    """An application that makes a cache a test, or a tenant, must not run out of them; a later load has new ones."""
    opened: list[object] = []
    closed: list[object] = []
    event.listen(engine, "connect", lambda connection, record: opened.append(connection))
    event.listen(engine, "close", lambda connection, record: closed.append(connection))
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)

    with sessions.for_load(1.0) as session:
        assert session is not None and session.scalar(text("SELECT price FROM product")) == 10
    sessions.close()
    assert len(opened) == 1 and closed == opened

    with sessions.for_load(1.0) as session:
        assert session is not None and session.scalar(text("SELECT price FROM product")) == 10
    sessions.close()
    assert len(opened) == 2 and closed == opened


def test_a_connection_is_taken_at_the_first_query_only(engine: Engine) -> None:
    """A loader that needs no database takes none of its connections."""
    connected: list[object] = []
    event.listen(engine, "connect", lambda connection, record: connected.append(connection))
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)

    with sessions.for_load(1.0):
        before = len(connected)
    with sessions.for_load(1.0) as session:
        assert session is not None
        price = session.scalar(text("SELECT price FROM product"))

    assert (before, len(connected), price) == (0, 1, 10)


def test_a_caller_that_holds_the_last_connection_does_not_block_a_load(engine: Engine) -> None:
    """Loads have a pool of their own: a reader may load while it holds the only connection of its own pool."""
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)

    with engine.connect() as held, sessions.for_load(1.0) as session:
        assert session is not None
        assert held.scalar(text("SELECT price FROM product")) == session.scalar(text("SELECT price FROM product"))


def test_a_load_inside_a_load_gets_a_connection_too(engine: Engine) -> None:
    """The inner one would else wait for the outer's, which waits for the inner."""
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)

    with sessions.for_load(1.0) as outer, sessions.for_load(1.0) as inner:
        assert outer is not None and inner is not None
        assert outer.scalar(text("SELECT 1")) == inner.scalar(text("SELECT 1"))
        assert outer.connection().connection.dbapi_connection is not inner.connection().connection.dbapi_connection


def test_connections_are_kept_and_used_again(engine: Engine) -> None:
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=2)
    seen = set()

    for _ in range(5):
        with sessions.for_load(1.0) as session:
            assert session is not None
            seen.add(id(session.connection().connection.dbapi_connection))

    assert len(seen) == 1


def test_a_session_is_new_and_keeps_the_factory_s_options(engine: Engine) -> None:
    """Own identity map, the user's class and options."""

    class Mine(Session):
        pass

    factory = sessionmaker(engine, class_=Mine, expire_on_commit=False, info={"who": "shop"})
    sessions = LoadSessions(factory, None, pool_size=1)

    with sessions.for_load(1.0) as first, sessions.for_load(1.0) as second:
        assert isinstance(first, Mine) and isinstance(second, Mine)
        assert first.info["who"] == "shop" and not first.expire_on_commit
        assert first.get(Product, 1) is not second.get(Product, 1)


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_loader_has_changed_is_rolled_back(engine: Engine, raises: bool) -> None:
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)

    with pytest.raises(ValueError) if raises else sessions.for_load(1.0), sessions.for_load(1.0) as session:
        assert session is not None
        session.execute(text("UPDATE product SET price = 0"))
        if raises:
            raise ValueError

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT price FROM product")) == 10


def test_the_user_s_listeners_and_options_are_on_the_library_s_engine_too(engine: Engine) -> None:
    """PRAGMAs at connect, tracing of statements, schema translation."""
    pragmas: list[object] = []
    statements: list[str] = []

    def comment(c: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return statement + " /* shop */", parameters

    event.listen(engine, "connect", lambda connection, record: pragmas.append(connection))
    event.listen(engine, "before_cursor_execute", comment, retval=True)
    event.listen(engine, "after_cursor_execute", lambda c, cursor, statement, *rest: statements.append(statement))

    mine = engine.execution_options(tenant="a")
    sessions = LoadSessions(sessionmaker(mine), None, pool_size=1)

    with sessions.for_load(1.0) as session:
        assert session is not None
        session.scalar(text("SELECT 42"))
        options = session.connection().get_execution_options()

    assert len(pragmas) == 1
    assert statements == ["SELECT 42 /* shop */"]
    assert options["tenant"] == "a"


def test_each_engine_of_several_has_its_own_twin(tmp_path: Path, engine: Engine) -> None:
    """Factories with `binds` go to the database that each table is in."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    sessions = LoadSessions(sessionmaker(binds={Product: other}, bind=engine), None, pool_size=1)

    with sessions.for_load(1.0) as session:
        assert session is not None
        found = session.get(Product, 1), session.scalar(text("SELECT count(*) FROM product"))
        twins = {str(session.get_bind(Product).url), str(engine_of(session).url)}  # type: ignore[union-attr]
        mine = {id(session.get_bind(Product)), id(session.get_bind())}

    assert found == (None, 1)
    assert twins == {str(other.url), str(engine.url)}
    assert not mine & {id(other), id(engine)}
    other.dispose()


def test_a_connection_shared_by_all_stays_shared() -> None:
    """A twin of a database in memory would be another, empty database."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)

    with sessions.for_load(1.0) as session:
        assert session is not None
        assert session.scalar(text("SELECT count(*) FROM product")) == 0
    engine.dispose()


def test_an_engine_that_keeps_no_connections_has_a_twin_that_keeps_none(engine: Engine) -> None:
    """Behind a pooler such as PgBouncer, kept connections are what the user does not want."""
    theirs = create_engine(engine.url, poolclass=NullPool)
    closed: list[object] = []
    event.listen(theirs, "close", lambda connection, record: closed.append(connection))
    sessions = LoadSessions(sessionmaker(theirs), None, pool_size=1)

    with sessions.for_load(1.0) as session:
        assert session is not None
        assert session.scalar(text("SELECT price FROM product")) == 10

    assert len(closed) == 1


def test_a_factory_bound_later_is_followed(engine: Engine) -> None:
    """`configure(bind=...)` after the cache was made, as tests do."""
    factory = sessionmaker()
    sessions = LoadSessions(factory, None, pool_size=1)
    factory.configure(bind=engine)

    with sessions.for_load(1.0) as session:
        assert session is not None
        assert session.scalar(text("SELECT price FROM product")) == 10


def test_a_child_of_a_fork_leaves_the_parent_s_connections_alone(engine: Engine) -> None:
    """Its pools begin empty, the library's and the user's; nothing of the parent's is closed."""
    closed: list[object] = []
    event.listen(engine, "close", lambda connection, record: closed.append(connection))
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)
    with sessions.for_load(1.0) as session:
        assert session is not None
        before = session.connection().connection.dbapi_connection

    sessions.reset_after_fork()

    with sessions.for_load(1.0) as session:
        assert session is not None
        after = session.connection().connection.dbapi_connection
    assert after is not before
    assert closed == []
    assert before is not None
    before.execute("SELECT 1")  # type: ignore[attr-defined]


def test_engines_of_requests_share_one_pool(engine: Engine) -> None:
    """A factory is bound again for each tenant, `engine.execution_options(...)`: no connections for each of them."""
    opened: list[object] = []
    event.listen(engine, "connect", lambda connection, record: opened.append(connection))
    factory = sessionmaker()
    sessions = LoadSessions(factory, None, pool_size=1)

    for number in range(5):
        factory.configure(bind=engine.execution_options(tenant=number))
        with sessions.for_load(1.0) as session:
            assert session is not None and session.scalar(text("SELECT price FROM product")) == 10
            assert session.connection().get_execution_options()["tenant"] == number
    sessions.close()

    assert len(opened) == 1


def test_options_that_an_engine_gets_later_hold_in_loads(engine: Engine) -> None:
    sessions = LoadSessions(sessionmaker(engine), None, pool_size=1)
    for tenant in ("a", "b"):
        engine.update_execution_options(tenant=tenant)
        with sessions.for_load(1.0) as session:
            assert session is not None
            assert session.connection().get_execution_options()["tenant"] == tenant
    sessions.close()


def test_a_scoped_session_gives_loads_sessions_of_their_own(engine: Engine) -> None:
    """As `watch` takes one; the session that a thread has there is not the load's."""
    scoped = scoped_session(sessionmaker(engine))
    given: Any = scoped
    sessions = sessions_for_loads(given, None, Config())

    with sessions.for_load(1.0) as session:
        assert isinstance(session, Session) and session is not scoped()


@pytest.mark.parametrize("name", ["sessions", "async_sessions"])
def test_what_makes_no_sessions_is_refused(engine: Engine, name: str) -> None:
    """An engine, a session, a class, or the other kind of factory, which would fail at the first load."""
    other: Any = async_sessionmaker() if name == "sessions" else sessionmaker(engine)
    given: list[Any] = [engine, Session, Session(engine), lambda: Session(engine), other]

    for each in given:
        with pytest.raises(ConfigError, match=rf"^{name} must be a (async_)?sessionmaker, got "):
            Cache(**{name: each})
