"""The sessions that loaders get, on Postgres: read-only, with a deadline, on connections of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from forked import exit_code, fork
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers.sql import sqlalchemy_internals
from cacheworkers.sql.load_sessions import LoadSessions
from cacheworkers.testing.servers import wait_until

ROWS = 50


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url, pool_size=1, max_overflow=0)
    with made.begin() as connection:
        connection.execute(text("CREATE TABLE product (id int PRIMARY KEY, price int)"))
        connection.execute(text(f"INSERT INTO product SELECT i, i * 10 FROM generate_series(1, {ROWS}) i"))
    yield made
    made.dispose()


def made(engine: Engine, pool_size: int = 2) -> LoadSessions:
    return LoadSessions(sessionmaker(engine), None, pool_size=pool_size)


def test_a_statement_is_cancelled_when_the_load_s_time_is_up(engine: Engine) -> None:
    """By the database itself: nobody has to watch it."""
    with made(engine).for_load(0.05) as session:
        assert session is not None
        with pytest.raises(OperationalError, match="statement timeout"):
            session.execute(text("SELECT pg_sleep(60)"))


def test_a_limit_is_the_session_s_only(engine: Engine) -> None:
    """The next load on the same connection has its own, and the user's engine none."""
    sessions = made(engine, pool_size=1)
    limits = []

    for load_for in (500.0, 50_000.0):
        with sessions.for_load(load_for) as session:
            assert session is not None
            pid, limit = session.execute(
                text("SELECT pg_backend_pid(), setting::int FROM pg_settings WHERE name = 'statement_timeout'")
            ).one()
            limits.append((pid, limit))
    with engine.connect() as connection:
        theirs = connection.scalar(text("SHOW statement_timeout"))

    assert limits[0][0] == limits[1][0]
    assert 400_000 < limits[0][1] <= 500_000 and 49_000_000 < limits[1][1] <= 50_000_000
    assert theirs == "0"


def test_a_second_transaction_of_a_load_has_what_is_left_of_its_time(engine: Engine) -> None:
    with made(engine).for_load(1000.0) as session:
        assert session is not None
        query = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
        first = session.scalar(query)
        session.rollback()
        session.execute(text("SELECT pg_sleep(0.01)"))
        session.rollback()
        second = session.scalar(query)

    assert 0 < second <= first - 10


@pytest.mark.parametrize("isolation_level", [None, "AUTOCOMMIT", "REPEATABLE READ"])
def test_a_load_cannot_write(engine: Engine, isolation_level: str | None) -> None:
    """Whatever the user's engine does by default; without a transaction there would be nothing to refuse."""
    options = {} if isolation_level is None else {"isolation_level": isolation_level}
    theirs = create_engine(engine.url, **options)

    with made(theirs).for_load(60.0) as session:
        assert session is not None
        with pytest.raises(InternalError, match="read-only transaction"):
            session.execute(text("UPDATE product SET price = 0"))

    with theirs.connect() as connection:
        assert connection.scalar(text("SELECT sum(price) FROM product WHERE id < 3")) == 30
        connection.execute(text("UPDATE product SET price = price"))
    theirs.dispose()


def test_an_autocommit_engine_s_loads_keep_their_deadline(engine: Engine) -> None:
    """`SET LOCAL` needs a transaction; the engine given by options, not at its creation."""
    with made(engine.execution_options(isolation_level="AUTOCOMMIT")).for_load(0.05) as session:
        assert session is not None
        with pytest.raises(OperationalError, match="statement timeout"):
            session.execute(text("SELECT pg_sleep(60)"))


def test_an_isolation_level_of_the_user_s_own_stays(engine: Engine) -> None:
    theirs = create_engine(engine.url, isolation_level="REPEATABLE READ")

    with made(theirs).for_load(60.0) as session:
        assert session is not None
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
    theirs.dispose()


def test_a_caller_that_has_used_up_its_own_pool_does_not_block_a_load(engine: Engine) -> None:
    with engine.connect() as held, made(engine).for_load(60.0) as session:
        assert session is not None
        held.execute(text("SELECT 1"))
        assert session.scalar(text("SELECT price FROM product WHERE id = 2")) == 20


def test_many_loads_share_a_bounded_number_of_connections(engine: Engine) -> None:
    """Twice `pool_size` at most, when all are nested; `pool_size` of them are kept."""
    sessions = made(engine, pool_size=2)
    together = threading.Barrier(4)

    def load(first: bool) -> int:
        with sessions.for_load(60.0) as session:
            assert session is not None
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            if first:
                together.wait(60)
            return int(pid)

    with ThreadPoolExecutor(12) as threads:
        first = set(threads.map(load, [True] * 4))
        list(threads.map(load, [False] * 60))

    with engine.connect() as connection:
        others = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> :me")
        me = connection.scalar(text("SELECT pg_backend_pid()"))
        wait_until(lambda: (connection.rollback(), connection.scalar(others, {"me": me}))[1] == 2)
    assert len(first) == 4


def test_a_connection_that_the_server_has_closed_is_replaced(engine: Engine) -> None:
    """After a restart of the database no load fails because of a connection from before."""
    sessions = made(engine, pool_size=1)
    with sessions.for_load(60.0) as session:
        assert session is not None
        before = session.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": before})

    with sessions.for_load(60.0) as session:
        assert session is not None
        assert session.scalar(text("SELECT pg_backend_pid()")) != before


@pytest.mark.parametrize(("ping_after", "pings"), [(60.0, 0), (0.0, 2)])
def test_a_connection_that_was_just_used_is_not_asked_whether_it_is_alive(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, ping_after: float, pings: int
) -> None:
    """It saves a load one round trip of five; a firewall may have forgotten one that was idle for long."""
    monkeypatch.setattr(sqlalchemy_internals, "PING_AFTER", ping_after)
    pinged: list[object] = []
    ping = engine.dialect.do_ping
    monkeypatch.setattr(engine.dialect, "do_ping", lambda connection: pinged.append(connection) or ping(connection))
    sessions = made(engine, pool_size=1)

    for _ in range(3):
        with sessions.for_load(60.0) as session:
            assert session is not None and session.scalar(text("SELECT 1")) == 1

    assert len(pinged) == pings


def test_children_of_a_fork_get_their_own_rows(engine: Engine) -> None:
    """Engines used before the fork: without the reset, children read each other's answers."""
    sessions = made(engine, pool_size=1)

    def is_right(number: int) -> bool:
        with sessions.for_load(10.0) as session:
            assert session is not None
            query = text("SELECT price FROM product WHERE id = :id")
            return bool(session.scalar(query, {"id": number}) == number * 10)

    assert is_right(1)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    def reads() -> None:
        sessions.reset_after_fork()
        assert all(is_right(number % ROWS + 1) for number in range(100))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT price FROM product WHERE id = 3")) == 30

    assert [exit_code(child) for child in [fork(reads) for _ in range(4)]] == [0] * 4
    assert is_right(5)


def test_async_sessions_are_the_same(database_url: str, engine: Engine) -> None:
    """Deadline, read-only, rolled back, own pool; the caller's loop and pool are not touched."""
    theirs = create_async_engine(database_url, pool_size=1, max_overflow=0)
    sessions = LoadSessions(None, async_sessionmaker(theirs), pool_size=1)

    async def use() -> tuple[str, str, object]:
        async with theirs.connect(), sessions.afor_load(60.0) as session:
            assert session is not None
            price = await session.scalar(text("SELECT price FROM product WHERE id = 4"))
            with pytest.raises(DBAPIError) as refused:
                await session.execute(text("UPDATE product SET price = 0"))
        async with sessions.afor_load(0.05) as session:
            assert session is not None
            with pytest.raises(DBAPIError) as cancelled:
                await session.execute(text("SELECT pg_sleep(60)"))
        sessions.reset_after_fork()
        async with sessions.afor_load(60.0) as session:
            assert session is not None
            assert await session.scalar(text("SELECT 1")) == 1
        await theirs.dispose()
        return str(refused.value), str(cancelled.value), price

    refused, cancelled, price = asyncio.run(use())

    assert price == 40
    assert "read-only transaction" in refused
    assert "statement timeout" in cancelled


def test_a_cancelled_async_load_gives_its_connection_back(database_url: str, engine: Engine) -> None:
    """A reader that goes away in mid-query does not use the pool up."""
    theirs = create_async_engine(database_url)
    sessions = LoadSessions(None, async_sessionmaker(theirs), pool_size=1)

    async def load(seconds: float) -> int | None:
        async with sessions.afor_load(30.0) as session:
            assert session is not None
            await session.execute(text("SELECT pg_sleep(:s)"), {"s": seconds})
            return await session.scalar(text("SELECT 7"))

    async def use() -> int | None:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(load(60.0), 0.05)
        return await load(0.0)

    assert asyncio.run(use()) == 7
