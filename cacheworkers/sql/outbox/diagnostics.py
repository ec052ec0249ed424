"""Probe: what the database says of the outbox and of its triggers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, func, inspect, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool, SingletonThreadPool, StaticPool

from cacheworkers.errors import CacheworkersError
from cacheworkers.sql.outbox.outbox import Outbox, age_of
from cacheworkers.sql.triggers.postgres_triggers import Triggers

T = TypeVar("T")


class DatabaseUnavailable(CacheworkersError):
    """The database does not answer."""


class OutboxFacts(msgspec.Struct, frozen=True):
    """The outbox as the database has it.

    Attributes:
        where: the database's URL, without a password.
        missing: what is not there: the table, or some of its columns.
        waiting: rows that wait to be delivered.
        lag: how old the oldest of them is, seconds.
    """

    where: str
    missing: tuple[str, ...]
    waiting: int
    lag: float


def outbox_facts(engine: Engine, outbox: Outbox) -> OutboxFacts:
    """Return what the database says of an outbox.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    table = outbox.table
    where = repr(engine.url)

    def look(connection: Connection) -> OutboxFacts:
        inspector = inspect(connection)
        if not inspector.has_table(table.name):
            return OutboxFacts(where, (f"the table {table.name}",), 0, 0.0)
        there = {column["name"] for column in inspector.get_columns(table.name)}
        missing = tuple(f"the column {table.name}.{name}" for name in table.c.keys() if name not in there)
        if missing:
            return OutboxFacts(where, missing, 0, 0.0)
        mine = (table.c.namespace == outbox.namespace) & table.c.delivered_at.is_(None)
        columns = (func.count(), func.min(table.c.written_at), func.current_timestamp())
        waiting, oldest, now = connection.execute(select(*columns).select_from(table).where(mine)).one()
        return OutboxFacts(where, (), int(waiting), 0.0 if oldest is None else age_of(oldest, now))

    return _looked(engine, look)


def bound_engines(sessions: Any) -> Iterator[Engine]:
    """Yield the engines that a session factory is bound to, as far as it says so; of async ones their sync half."""
    options = getattr(sessions, "kw", {})
    for bind in dict.fromkeys((options.get("bind"), *(options.get("binds") or {}).values())):
        engine = bind.sync_engine if isinstance(bind, AsyncEngine) else bind
        if isinstance(engine, Engine):
            yield engine


def is_autocommit(engine: Engine) -> bool:
    """Return whether an engine's statements are committed one by one."""
    level = engine.get_execution_options().get("isolation_level")
    return (level or getattr(engine.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


def check_outbox(outbox: Outbox, engine: Engine) -> None:
    """Make sure that a database has the outbox; of an async engine on a loop of its own, in a thread.

    Raises:
        ConfigError: it has not.
        SQLAlchemyError: the database does not answer.
    """
    on_connection(engine, outbox.check)


def on_connection(engine: Engine, do: Callable[[Connection], T]) -> T:
    """Return what a function makes of a connection; of an async engine, a new one on a loop of its own, in a thread.

    Raises:
        SQLAlchemyError, OSError: the database does not answer; and what the function raises.
    """
    if not engine.dialect.is_async:
        with engine.connect() as connection:
            return do(connection)

    async def done() -> T:
        async with AsyncEngine(_apart(engine)).connect() as connection:
            return await connection.run_sync(do)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, done()).result()


def answers(engine: Engine) -> str:
    """Return a database's URL, without its password, once it has answered.

    Raises:
        DatabaseUnavailable: it does not.
    """
    _looked(engine, lambda connection: connection.execute(select(1)).scalar_one())
    return repr(engine.url)


def trigger_faults(engines: Sequence[Engine], declared: Sequence[Triggers]) -> dict[str, str]:
    """Return what is wrong with the triggers of tables that are in none of some databases as they are declared.

    Raises:
        DatabaseUnavailable: one of them does not answer.
    """

    def look(connection: Connection) -> dict[str, str]:
        if connection.dialect.name != "postgresql":
            return {table: "is not in PostgreSQL" for triggers in declared for table in triggers.tables}
        return {table: fault for triggers in declared for table, fault in triggers.faults(connection).items()}

    first, *others = (_looked(engine, look) for engine in engines)
    return {table: fault for table, fault in first.items() if all(table in found for found in others)}


def _looked(engine: Engine, look: Callable[[Connection], T]) -> T:
    try:
        return on_connection(_apart(engine), look)
    except (OperationalError, InterfaceError, OSError) as error:
        reason = str(getattr(error, "orig", error)).strip().replace("\n", " ")
        raise DatabaseUnavailable(f"{engine.url!r} is unavailable: {type(error).__name__}: {reason}") from error


def _apart(engine: Engine) -> Engine:
    """Return an engine like this one whose connections are closed after use.

    A worker looks before its pool forks again: a connection that the engine kept would be its children's as well.
    """
    pool = engine.pool
    if isinstance(pool, StaticPool | SingletonThreadPool):  # SQLite in memory: its connection is the database
        return engine
    single = NullPool(pool._creator, dialect=engine.dialect, _dispatch=pool.dispatch)
    return Engine(single, engine.dialect, engine.url)
