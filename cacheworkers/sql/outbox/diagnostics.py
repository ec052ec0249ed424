"""Diagnostics: what a database says about itself, its outbox, its triggers and a pooler before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import InterfaceError, OperationalError

from cacheworkers.errors import CacheworkersError
from cacheworkers.sql.outbox.connections import on_connection, shown_url, without_pool
from cacheworkers.sql.outbox.outbox import Outbox
from cacheworkers.sql.triggers.postgres_triggers import Triggers, installed_functions

T = TypeVar("T")


class DatabaseUnavailable(CacheworkersError):
    """The database does not answer."""


class OutboxFacts(msgspec.Struct, frozen=True):
    """The state of an outbox.

    Attributes:
        where: the database's URL, without a password.
        missing: the table, or those of its columns that do not exist.
        waiting: rows that wait to be delivered.
        lag: how old the oldest of them is, seconds.
    """

    where: str
    missing: tuple[str, ...]
    waiting: int
    lag: float


def outbox_facts(engine: Engine, outbox: Outbox) -> OutboxFacts:
    """Return the state of an outbox.

    Raises:
        DatabaseUnavailable: it does not answer.
    """

    def inspection(connection: Connection) -> OutboxFacts:
        missing = outbox.missing(connection)
        waiting, lag = (0, 0.0) if missing else outbox.backlog(connection)
        return OutboxFacts(shown_url(engine), missing, waiting, lag)

    return _inspected(engine, inspection)


def answers(engine: Engine) -> str:
    """Return a database's URL, without its password, once it has answered.

    Raises:
        DatabaseUnavailable: it does not.
    """
    _inspected(engine, lambda connection: connection.execute(select(1)).scalar_one())
    return shown_url(engine)


class PoolerFacts(msgspec.Struct, frozen=True):
    """What is between an engine and its Postgres.

    Attributes:
        is_there: a pooler such as PgBouncer answers in the server's place.
        prepares: the engine's driver keeps prepared statements on its connections.
        setting: what makes it keep none.
    """

    is_there: bool
    prepares: bool
    setting: str


def pooler_facts(engine: Engine) -> PoolerFacts | None:
    """Return what is between an engine and its database; None for a driver that does not say.

    Raises:
        DatabaseUnavailable: it does not answer.
    """

    def inspection(connection: Connection) -> PoolerFacts | None:
        driver: Any = connection.connection.driver_connection
        match connection.dialect.driver:
            case "psycopg" | "psycopg_async":
                pid, prepares = driver.info.backend_pid, driver.prepare_threshold is not None
                setting = 'connect_args={"prepare_threshold": None}'
            case "asyncpg":
                pid, prepares = driver.get_server_pid(), bool(driver._config.statement_cache_size)
                setting = 'connect_args={"statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}'
            case _:
                return None
        # A pooler makes up the process number that a client is given for cancelling.
        return PoolerFacts(pid != connection.execute(select(func.pg_backend_pid())).scalar_one(), prepares, setting)

    return _inspected(engine, inspection) if engine.dialect.name == "postgresql" else None


class ServerLimits(msgspec.Struct, frozen=True):
    """What a Postgres server is, and how long it lets a transaction of this engine wait.

    Attributes:
        is_replica: it replays another server's changes.
        idle_for: after how many seconds without a statement it ends a transaction; 0 for never.
        transaction_for: after how many seconds it ends any transaction; 0 for never.
    """

    is_replica: bool
    idle_for: float
    transaction_for: float


def server_limits(engine: Engine) -> ServerLimits | None:
    """Return what a Postgres server is and allows; None for other databases.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    names = ("idle_in_transaction_session_timeout", "transaction_timeout")  # the second since PostgreSQL 17

    def inspection(connection: Connection) -> ServerLimits:
        is_replica = bool(connection.execute(select(func.pg_is_in_recovery())).scalar_one())
        query = text("SELECT name, setting FROM pg_settings WHERE name IN (:idle, :whole)")  # milliseconds
        rows = connection.execute(query, {"idle": names[0], "whole": names[1]})
        found = {str(name): float(setting) for name, setting in rows}
        idle_for, transaction_for = (found.get(name, 0.0) / 1000 for name in names)
        return ServerLimits(is_replica, idle_for, transaction_for)

    return _inspected(engine, inspection) if engine.dialect.name == "postgresql" else None


def trigger_faults(engines: Sequence[Engine], declared: Sequence[Triggers]) -> dict[str, str]:
    """Return what is wrong with the triggers of tables that are in none of some databases as they are declared.

    Raises:
        DatabaseUnavailable: one of them does not answer.
    """

    def inspection(connection: Connection) -> dict[str, str]:
        if connection.dialect.name != "postgresql":
            return {table: "is not in PostgreSQL" for triggers in declared for table in triggers.tables}
        return {table: fault for triggers in declared for table, fault in triggers.faults(connection).items()}

    first, *others = (_inspected(engine, inspection) for engine in engines)
    return {table: fault for table, fault in first.items() if all(table in found for found in others)}


class LeftTriggers(msgspec.Struct, frozen=True):
    """A function whose triggers write an outbox, and are not among those that are declared.

    Attributes:
        namespace: whose rows they write.
        function: as SQL names it.
        tables: that have them.
        lag: how long the oldest row of the namespace waits, seconds.
    """

    namespace: str
    function: str
    tables: str
    lag: float


def left_triggers(engine: Engine, outbox: Outbox, declared: Sequence[Triggers]) -> list[LeftTriggers]:
    """Return the triggers in a Postgres that are not declared: what was taken out, and those of other namespaces.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    names = {name for triggers in declared for name in triggers.functions}

    def inspection(connection: Connection) -> list[LeftTriggers]:
        found = [each for each in installed_functions(connection, outbox) if each[1] not in names]
        lags = outbox.lags(connection) if found else {}
        return [LeftTriggers(space, shown, tables, lags.get(space, 0.0)) for space, _, shown, tables in found]

    return _inspected(engine, inspection)


def _inspected(engine: Engine, inspection: Callable[[Connection], T]) -> T:
    try:
        return on_connection(without_pool(engine), inspection)
    except (OperationalError, InterfaceError, OSError) as error:
        reason = str(getattr(error, "orig", error)).strip().replace("\n", " ")
        raise DatabaseUnavailable(f"{shown_url(engine)} is unavailable: {type(error).__name__}: {reason}") from error
