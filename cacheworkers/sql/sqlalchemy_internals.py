"""SQLAlchemy's undocumented names: all that this package uses, so that an upgrade is checked in one place.

Each function has a test of its own in tests/sql/test_sqlalchemy_internals.py, which says what breaks without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from sqlalchemy import (
    AsyncAdaptedQueuePool,
    Connection,
    Engine,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.orm import InstanceState, Mapper, persistence, registry
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.util import concurrency

in_greenlet = concurrency.in_greenlet
#: SQLAlchemy 2.0 calls it `await_only`.
await_: Callable[[Any], Any] = getattr(concurrency, "await_", None) or getattr(concurrency, "await_only")  # noqa: B009

#: How long a connection may be idle, seconds, without being asked whether it is alive: no firewall forgets it so soon.
PING_AFTER = 5.0
#: The functions that execute what a flush writes, and what bulk operations write.
_EMITTING = frozenset(
    function.__code__ for name, function in vars(persistence).items() if re.fullmatch(r"_emit_\w+_statements", name)
)


def all_mappers() -> list[Mapper[Any]]:
    """Return the mappers of all registries, by name: one table can be mapped in several."""
    found = {mapper for each in _all_registries() for mapper in mappers_of(each)}
    return sorted(found, key=lambda mapper: (mapper.class_.__module__, mapper.class_.__qualname__))


def mappers_of(classes: registry) -> set[Mapper[Any]]:
    """Return the mappers of a registry.

    Classes that wait for their tables (`DeferredReflection`, `AbstractConcreteBase`) have none yet, at which
    `registry.mappers` fails.
    """
    return {manager.mapper for manager in list(classes._managers) if manager.is_mapped}


def first_value(connection: Connection, statement: str, parameters: Any) -> Any:
    """Return the first value that a statement returns: by the driver's cursor, at half the cost of `exec_driver_sql`.

    Listeners and the log of statements do not learn of it.  Errors are SQLAlchemy's own, as of any statement.
    """
    if not connection.in_transaction():
        connection.begin()
    cursor: Any = None
    raw = connection.connection
    try:
        cursor = raw.cursor()
        connection.dialect.do_execute(cursor, statement, parameters)
        found = cursor.fetchone()[0]
        cursor.close()
    except BaseException as error:  # it tells those of the driver from others, and lost connections from the rest
        connection._handle_dbapi_exception(error, statement, parameters, cursor, None)
    return found


def is_flushing(flush_context: Any) -> bool:
    """Return whether a flush executes its statements now, by the context that `before_flush` is given."""
    transaction = getattr(flush_context, "transaction", None)
    return transaction is not None and transaction.is_active


def set_since_loaded(state: InstanceState[Any]) -> Mapping[str, Any]:
    """Return the attributes of an instance that were set since it was loaded or flushed, to another value or not."""
    return state.committed_state


def second_updates(flush_context: Any) -> Iterator[InstanceState[Any]]:
    """Yield the instances that a flush writes by a second UPDATE (`post_update`), which no mapper event announces."""
    for states, _ in list(flush_context.post_update_states.values()):
        yield from states


def is_autocommit_on(connection: Connection) -> bool:
    """Return whether a connection's statements are committed one by one."""
    level = connection.get_execution_options().get("isolation_level")
    return level == "AUTOCOMMIT" or (level is None and is_autocommit(connection.engine))


def is_plain_insert(statement: Any) -> bool:
    """Return whether an INSERT has values of its own for one row, and neither ON CONFLICT nor a prefix: OR REPLACE."""
    return bool(statement._values) and not (
        statement._multi_values
        or statement.select is not None
        or getattr(statement, "_post_values_clause", None) is not None
        or statement._prefixes
    )


def parts_of_statement(statement: Any) -> tuple[bool, frozenset[str], tuple[Any, ...]]:
    """Return whether an INSERT, UPDATE or DELETE returns rows, the keys of the columns it sets, and its conditions."""
    ordered = getattr(statement, "_ordered_values", None) or ()
    values = {**dict(getattr(statement, "_values", None) or {}), **dict(ordered)}
    keys = frozenset(str(getattr(each, "key", each)) for each in values)
    return bool(statement._returning), keys, tuple(getattr(statement, "_where_criteria", ()))


def is_by_unit_of_work(context: Any, flush_context: Any) -> bool:
    """Return whether a flush has made a statement for its mapped rows, by the execution contexts of both.

    Not so what `bulk_*` and ORM statements make in its hooks: they go through the same functions without a flush.
    """
    cache = context.execution_options.get("compiled_cache")
    frame = sys._getframe(1) if cache is not None and flush_context is not None else None
    while frame is not None:
        if frame.f_code in _EMITTING:
            found = frame.f_locals
            return found["uowtransaction"] is flush_context and found["base_mapper"]._compiled_cache is cache
        frame = frame.f_back
    return False


def is_for_mapped_rows(context: Any) -> bool:
    """Return whether a flush, `bulk_*` or an ORM statement with a list of rows has made a statement."""
    return "compiled_cache" in context.execution_options


def has_variants(kind: Any) -> bool:
    """Return whether a column type is another one on some databases (`with_variant`)."""
    return bool(kind._variant_mapping)


def variants_of(kind: Any) -> tuple[Any, ...]:
    """Return what a column type is on some databases instead (`with_variant`)."""
    return tuple(kind._variant_mapping.values())


def options_of(sessions: Any) -> dict[str, Any]:
    """Return what a sessionmaker, sync or async, gives to each session; empty for what is none."""
    found: dict[str, Any] = getattr(sessions, "kw", {})
    return found


def base_engine(engine: Engine) -> Engine:
    """Return the engine that one with other execution options was made from, and whose pool it shares."""
    while isinstance(proxied := getattr(engine, "_proxied", None), Engine):
        engine = proxied
    return engine


def is_autocommit(engine: Engine) -> bool:
    """Return whether an engine's statements are committed one by one."""
    level = engine.get_execution_options().get("isolation_level")
    return (level or getattr(engine.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


def engine_like(engine: Engine, kind: type[Pool], **pool_options: Any) -> Engine:
    """Return an engine on a pool of its own, whose connections and statements go through the same listeners.

    Those that are added to the engine later count too.
    """
    pool = engine.pool
    if engine.dialect.is_async:
        _share_first_connect(pool)
    made = kind(pool._creator, recycle=pool._recycle, dialect=engine.dialect, **pool_options)
    made.__dict__["dispatch"] = pool.dispatch
    return engine_on(engine, made)


#: Pools of one connection for all, or for all of a thread.
SHARED_POOLS = (StaticPool, SingletonThreadPool)


class LoadPool(QueuePool):
    """A pool with `pre_ping` that asks a connection only if it may have been lost unnoticed.

    That is one that has been idle for `PING_AFTER` seconds, to whose socket the server has sent something, its end say,
    or whose driver does not tell.
    """

    def _do_get(self) -> Any:
        record: Any = super()._do_get()
        if time.monotonic() < record.__dict__.get("idle_since", 0.0) + PING_AFTER:
            with contextlib.suppress(Exception):
                poll = select.poll()
                poll.register(record.driver_connection.fileno(), select.POLLIN)
                record.fresh = not poll.poll(0)
        return record

    def _do_return_conn(self, record: Any) -> None:
        record.idle_since = time.monotonic()
        super()._do_return_conn(record)


class AsyncLoadPool(LoadPool, AsyncAdaptedQueuePool):
    """The same for an async engine."""


def engine_on(engine: Engine, pool: Pool, isolation_level: str | None = None) -> Engine:
    """Return an engine on another pool, with the options that the engine has now, and the same listeners.

    Args:
        isolation_level: instead of the engine's own, which is set by a listener; then listeners are only copied.
    """
    twin = Engine(
        pool,
        engine.dialect,
        engine.url,
        echo=engine.echo,
        execution_options=dict(engine.get_execution_options()),
        hide_parameters=engine.hide_parameters,
    )
    twin._has_events = True
    if isolation_level is None:
        twin.__dict__["dispatch"] = engine.dispatch
    else:
        twin.dispatch._update(base_engine(engine).dispatch, only_propagate=False)
        twin.update_execution_options(isolation_level=isolation_level)
    return twin


def transaction_on_shared(engine: Engine) -> Any:
    """Return the driver's connection that all share, SQLite's in memory, if somebody's transaction is open on it."""
    pool: Any = engine.pool
    record = None
    if isinstance(pool, StaticPool):
        record = vars(pool).get("connection")
    elif isinstance(pool, SingletonThreadPool):
        record = getattr(pool._conn, "current", lambda: None)()
    connection = record and record.dbapi_connection
    driver = connection and engine.dialect.get_driver_connection(connection)
    return connection if getattr(driver, "in_transaction", False) else None


class _Guest:
    """A driver's connection for one who must not end the transaction that somebody else has open on it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _nothing(self) -> None: ...

    commit = rollback = close = terminate = _nothing


def engine_within(engine: Engine, connection: Any) -> Engine:
    """Return an engine on a shared connection that leaves the transaction there open.

    It has none of the engine's listeners: those of `begin` may begin.
    """
    pool = NullPool(lambda: _Guest(connection), dialect=engine.dialect)
    return Engine(pool, engine.dialect, engine.url, execution_options=dict(engine.get_execution_options()))


class LockOfLoops:
    """A lock for the greenlets of several event loops.

    SQLAlchemy has all connections wait for the first one of an engine, on a lock of one event loop: a waiter on another
    loop would never wake up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> bool:
        while not self._lock.acquire(blocking=False):
            await_(asyncio.sleep(0.005))
        return True

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _share_first_connect(pool: Pool) -> None:
    """Let connections on several event loops wait for the first connection of an async engine."""
    listeners: Any = pool.dispatch.connect
    if hasattr(listeners, "_exec_once_mutex") and not isinstance(listeners._exec_once_mutex, LockOfLoops):
        listeners._exec_once_mutex = LockOfLoops()


class TransactionEnd(Protocol):
    """What is called when a connection's outermost transaction ends."""

    def committing(self, connection: Connection) -> None:
        """Called right before its COMMIT; must not raise."""

    def ended(self, is_committed: bool) -> None:
        """Called right after its COMMIT or ROLLBACK; must not raise."""


#: Where a connection has what it was given: that may refer to the connection, and both are collected.
_ENDS = "cacheworkers_ends"
_classes: dict[type, type] = {}


def call_at_end(connection: Connection, end: TransactionEnd) -> None:
    """Have the end of a connection's outermost transaction reported, whoever ends it.

    SQLAlchemy has an event before a COMMIT and none after it, so the transaction gets a subclass of its class.
    """
    transaction: Any = connection.get_transaction()
    kind = type(transaction)
    if kind not in _classes.values():
        vars(connection)[_ENDS] = []
        transaction.__class__ = _reporting(kind)
    vars(connection)[_ENDS].append(end)


def ends_of(connection: Connection) -> tuple[TransactionEnd, ...]:
    """Return what `call_at_end` was given for a connection's transaction."""
    return tuple(vars(connection).get(_ENDS, ()))


def _reporting(kind: type) -> type:
    found = _classes.get(kind)
    if found is not None:
        return found

    def commit(self: Any) -> None:
        connection: Connection = self.connection
        if self.is_active:
            for end in vars(connection).get(_ENDS, []):  # which may have others called, too
                end.committing(connection)
        kind.commit(self)  # type: ignore[attr-defined]  # a kind of Transaction
        _end(connection, True)

    def ending(name: str) -> Callable[[Any], None]:
        original = getattr(kind, name)

        def end(self: Any) -> None:
            connection: Connection = self.connection
            try:
                original(self)
            finally:
                _end(connection, False)

        return end

    members = {"__slots__": (), "commit": commit, "rollback": ending("rollback"), "close": ending("close")}
    made = _classes[kind] = type(f"Reporting{kind.__name__}", (kind,), members)
    return made


def _end(connection: Connection, is_committed: bool) -> None:
    for end in vars(connection).pop(_ENDS, []):
        end.ended(is_committed)
