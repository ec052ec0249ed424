"""Sessions for loads: new, read-only, with a deadline, on a pool of the library's own.

A load in a reader's process must not wait for a connection that the reader itself holds, and a connection used before
a fork must not be used after it.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool, SingletonThreadPool

from cacheworkers.errors import ConfigError, LoadTimeout
from cacheworkers.sql.sqlalchemy_internals import (
    SHARED_POOLS,
    AsyncLoadPool,
    LoadPool,
    base_engine,
    engine_like,
    engine_on,
    engine_within,
    first_value,
    is_autocommit,
    options_of,
    transaction_on_shared,
)

log = logging.getLogger("cacheworkers")

#: How long a load waits for a connection of the library's pool, seconds.
POOL_TIMEOUT = 10.0
#: The user's connections that this load, or one that it is inside of, has for itself.
_held: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("cacheworkers_connections", default=frozenset())


def is_held_by_load(connection: Connection) -> bool:
    """Whether the load that runs here has one of the user's connections: its savepoints are its own."""
    return id(connection) in _held.get()


class LoadSessions:
    """Makes the sessions that loaders get, from the user's own session factories.

    Their engines are the library's own: made like the user's, on a pool that keeps `pool_size` connections.  It lends
    as many again, since a load inside a load takes a second one while the first is held.  An engine that keeps no
    connections has a twin that keeps none; one whose connection is shared by all (SQLite in memory) is used as it is,
    and a transaction that somebody has open there stays so.
    Whatever listens to the user's engine listens to them too: what a listener sets up at `begin`, `checkout` or
    `connect`, row-level security say, holds in loads.

    Sessions that are bound to a connection, as in tests that roll everything back, load on it one after the other, each
    in a savepoint.

    Attributes:
        reads_replica: the last load's database was a Postgres that replays another's changes.
    """

    reads_replica = False

    def __init__(
        self,
        sync: sessionmaker[Session] | None,
        async_: async_sessionmaker[AsyncSession] | None,
        *,
        pool_size: int,
    ) -> None:
        """
        Raises:
            ConfigError: either is something else, or the async sessions are bound to a connection.
        """
        for name, given, kind in (("sessions", sync, sessionmaker), ("async_sessions", async_, async_sessionmaker)):
            if given is not None and not isinstance(given, kind):
                raise ConfigError(f"{name} must be a {kind.__name__}, got {given!r}: {kind.__name__}(engine)")
        self._sync = sync
        self._async = async_
        if any(isinstance(each, AsyncConnection) for each in _bound_to(options_of(async_))):
            raise ConfigError(
                "async_sessions is bound to an AsyncConnection, which belongs to the loop that has opened it, while "
                "loads run on a loop of the library's own; bind them to the engine, or give sync sessions"
            )
        self._pool_size = pool_size
        #: Engine without the options that were given it later -> the library's own like it, which has the pool.
        self._own: dict[Engine, Engine] = {}
        #: Engine, of a request perhaps -> its options, and one with these on that pool.
        self._twins: weakref.WeakKeyDictionary[Engine, tuple[Any, Engine]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._turns: dict[int, threading.Lock] = {}

    @contextlib.contextmanager
    def for_load(self, load_for: float) -> Iterator[Session | None]:
        """Give a new session whose statements must end within `load_for` seconds; None when none are configured.

        It takes a connection at its first query, is always rolled back, and closed.  Read-only transactions and
        statement timeouts are Postgres's; elsewhere a loader must not commit.
        """
        if self._sync is None:
            yield None
            return
        options = options_of(self._sync)
        connections = [each for each in _bound_to(options) if isinstance(each, Connection)]
        if connections:
            yield from self._on_connections(connections, load_for)
            return
        session = self._sync(**_binds(options, self._bind))
        self._limit(session, load_for)
        try:
            yield session
        finally:
            session.close()

    @contextlib.asynccontextmanager
    async def afor_load(self, load_for: float) -> AsyncIterator[AsyncSession | None]:
        """Give a new AsyncSession; see `for_load`."""
        if self._async is None:
            yield None
            return
        session = self._async(**_binds(options_of(self._async), self._bind))
        self._limit(session.sync_session, load_for)
        try:
            yield session
        finally:
            await session.close()

    def _limit(self, session: Session, load_for: float) -> None:
        """Let the session's statements take what is left of the load's time, and no longer, and write nothing."""
        until = time.monotonic() + load_for

        def begun(session: Session, transaction: Any, connection: Connection) -> None:
            if _is_postgres(connection.engine):
                left = max(1, int((until - time.monotonic()) * 1000))
                # One statement, and one that is allowed at any time: a listener may have begun the transaction already.
                limits = (
                    f"SELECT pg_is_in_recovery(), set_config('statement_timeout', '{left}', true), "
                    f"set_config('transaction_read_only', 'on', true)"
                )
                self._note_replica(connection, first_value(connection, limits, ()))

        event.listen(session, "after_begin", begun)

    def _note_replica(self, connection: Connection, is_replica: bool | None) -> None:
        if is_replica and not self.reads_replica:
            log.warning(
                "loads read a replica, %r: what is loaded soon after an invalidation of its tags is kept as stale; "
                "give loaders a hold_off_for above the replica's lag, or bind their sessions to the primary",
                connection.engine.url,
            )
        self.reads_replica = bool(is_replica)

    def close(self) -> None:
        """Close the connections of the library's own pools, those of threads."""
        for engine in self._taken(is_async=False):
            engine.dispose()

    async def aclose(self) -> None:
        """Close the connections of the library's own pools, those of the loop it runs on."""
        for engine in self._taken(is_async=True):
            await AsyncEngine(engine).dispose()

    def reset_after_fork(self) -> None:
        """Forget inherited connections without closing them: the parent uses them still."""
        self._lock = threading.Lock()
        self._turns = {}
        self._twins.clear()
        theirs = (bind for factory in (self._sync, self._async) for bind in _bound_to(options_of(factory)))
        for engine in (*self._own.values(), *theirs):
            if isinstance(engine, AsyncEngine):
                engine = engine.sync_engine
            if isinstance(engine, Engine):
                engine.dispose(close=False)

    def _taken(self, *, is_async: bool) -> list[Engine]:
        """Return the library's own engines of one kind, and forget them: a load that comes later makes a new one."""
        with self._lock:
            pairs = [pair for pair in self._own.items() if pair[0].dialect.is_async is is_async]
            for theirs, _ in pairs:
                del self._own[theirs]
            self._twins.clear()
        return [own for _, own in pairs]

    def _on_connections(self, connections: list[Connection], load_for: float) -> Iterator[Session]:
        """Give a session on somebody's own connections: nothing of their settings or transactions is changed.

        Raises:
            LoadTimeout: another load had one of them for all of `load_for` seconds.
        """
        assert self._sync is not None
        held, until = _held.get(), time.monotonic() + load_for
        wanted = sorted({id(each) for each in connections} - held)
        token = _held.set(held.union(wanted))
        with contextlib.ExitStack() as stack:
            stack.callback(_held.reset, token)
            for each in wanted:
                turn = self._turns.setdefault(each, threading.Lock())
                if not turn.acquire(timeout=max(0.0, until - time.monotonic())):
                    raise LoadTimeout(
                        f"the connection that the sessions are bound to was in use for {load_for} seconds"
                    )
                stack.callback(turn.release)
            session = self._sync(join_transaction_mode="create_savepoint")
            stack.callback(session.close)
            yield session

    def _bind(self, bind: Any) -> Any:
        """Return the library's own engine for one of the user's."""
        engine = bind.sync_engine if isinstance(bind, AsyncEngine) else bind
        if isinstance(engine.pool, SHARED_POOLS):
            return _guest(bind)
        options = engine.get_execution_options()
        with self._lock:
            known, own = self._twins.get(engine, (None, None))
            if own is None or known is not options:  # options may be added to an engine
                # Without a transaction there is nothing to make read-only, and no limit to set for its length.
                level = "READ COMMITTED" if _is_postgres(engine) and is_autocommit(engine) else None
                own = engine_on(engine, self._with_pool(base_engine(engine)).pool, level)
                self._twins[engine] = options, own
        return AsyncEngine(own) if isinstance(bind, AsyncEngine) else own

    def _with_pool(self, engine: Engine) -> Engine:
        """Return an engine like the user's, with a pool of its own."""
        own = self._own.get(engine)
        if own is not None:
            return own
        if isinstance(engine.pool, NullPool):
            own = engine_like(engine, NullPool)
        else:
            own = engine_like(
                engine,
                AsyncLoadPool if engine.dialect.is_async else LoadPool,
                pre_ping=True,
                pool_size=self._pool_size,
                max_overflow=self._pool_size,
                timeout=POOL_TIMEOUT,
            )
        self._own[engine] = own
        return own


def guest_binds(sessions: Any) -> dict[str, Any]:
    """Return what a session of a factory is bound to, so that it ends nobody's transaction on a shared connection."""
    return _binds(options_of(sessions), _guest)


def _guest(bind: Any) -> Any:
    engine = bind.sync_engine if isinstance(bind, AsyncEngine) else bind
    shared = transaction_on_shared(engine) if isinstance(engine, Engine) else None
    if shared is None:
        return bind
    within = engine_within(engine, shared)
    return AsyncEngine(within) if isinstance(bind, AsyncEngine) else within


def _binds(options: Mapping[str, Any], instead_of: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what a session is bound to instead of the factory's own `bind` and `binds`."""
    found: dict[str, Any] = {}
    if options.get("bind") is not None:
        found["bind"] = instead_of(options["bind"])
    if options.get("binds"):
        found["binds"] = {each: instead_of(bind) for each, bind in options["binds"].items()}
    return found


def _bound_to(options: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a session factory is bound to, as far as it says so."""
    yield from filter(None, (options.get("bind"), *(options.get("binds") or {}).values()))


def refuse_database_per_thread(sessions: sessionmaker[Session] | None) -> None:
    """Check that loads, which run on other threads than reads, see the same database.

    Raises:
        ConfigError: it is SQLite's in memory, on a pool that makes one for each thread.
    """
    bind = options_of(sessions).get("bind")
    if isinstance(bind, Engine) and isinstance(bind.pool, SingletonThreadPool):
        raise ConfigError(
            f"sessions must be of a database that other threads see, {bind!r} makes one for each: "
            'create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}), a file, or '
            "Config(testing=True), with which loads run in the thread that reads"
        )


def _is_postgres(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"
