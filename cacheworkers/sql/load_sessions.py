"""Sessions for loads: new, read-only, with a deadline, on a pool of the library's own.

A load in a reader's process must not wait for a connection that the reader itself holds, and a connection used before
a fork must not be used after it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from cacheworkers.errors import ConfigError
from cacheworkers.sql.outbox.diagnostics import is_autocommit

#: How long a load waits for a connection of the library's pool, seconds.
POOL_TIMEOUT = 10.0
#: Event of an engine -> whether its listeners, as SQLAlchemy keeps them, return the statement.
_STATEMENT_EVENTS = {
    "before_execute": True,
    "after_execute": False,
    "before_cursor_execute": True,
    "after_cursor_execute": False,
}


class Sessions:
    """Makes the sessions that loaders get, from the user's own session factories.

    Their engines are the library's own: made like the user's, on a pool that keeps `pool_size` connections.  It lends
    as many again, for a load inside a load takes a second one while the first is held.  An engine that keeps no
    connections has a twin that keeps none; one whose connection is shared by all (SQLite in memory) is used as it is.
    """

    def __init__(
        self,
        sync: sessionmaker[Session] | None,
        async_: async_sessionmaker[AsyncSession] | None,
        *,
        pool_size: int,
    ) -> None:
        self._sync = sync
        self._async = async_
        self._pool_size = pool_size
        self._own: dict[Engine, Engine] = {}
        self._bound: dict[tuple[Any, bool], Any] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def for_load(self, load_for: float, *, read_only: bool = True) -> Iterator[Session | None]:
        """Give a new session whose statements must end within `load_for` seconds; None when none are configured.

        It takes a connection at its first query, is always rolled back, and closed.  Read-only transactions and
        statement timeouts are Postgres's; elsewhere a loader must not commit.
        """
        if self._sync is None:
            yield None
            return
        session = self._sync(**self._binds(self._sync.kw, read_only))
        _limit(session, load_for)
        try:
            yield session
        finally:
            session.close()

    @contextlib.asynccontextmanager
    async def afor_load(self, load_for: float, *, read_only: bool = True) -> AsyncIterator[AsyncSession | None]:
        """Give a new AsyncSession; see `for_load`."""
        if self._async is None:
            yield None
            return
        session = self._async(**self._binds(self._async.kw, read_only))
        _limit(session.sync_session, load_for)
        try:
            yield session
        finally:
            await session.close()

    def reset_after_fork(self) -> None:
        """Forget inherited connections without closing them: the parent uses them still."""
        self._lock = threading.Lock()
        theirs = [
            engine
            for factory in (self._sync, self._async)
            if factory is not None
            for engine in (factory.kw.get("bind"), *(factory.kw.get("binds") or {}).values())
        ]
        for engine in (*self._own.values(), *theirs):
            if isinstance(engine, AsyncEngine):
                engine = engine.sync_engine
            if isinstance(engine, Engine):
                engine.dispose(close=False)

    def _binds(self, options: Mapping[str, Any], read_only: bool) -> dict[str, Any]:
        """Return what a session is bound to instead of the factory's own `bind` and `binds`."""
        found: dict[str, Any] = {}
        if options.get("bind") is not None:
            found["bind"] = self._bind(options["bind"], read_only)
        if options.get("binds"):
            found["binds"] = {each: self._bind(bind, read_only) for each, bind in options["binds"].items()}
        return found

    def _bind(self, bind: Any, read_only: bool) -> Any:
        """Return the library's own engine for one of the user's; made once."""
        bound = self._bound.get((bind, read_only))
        if bound is None:
            with self._lock:
                bound = self._bound[bind, read_only] = self._make(bind, read_only)
        return bound

    def _make(self, bind: Any, read_only: bool) -> Any:
        if isinstance(bind, AsyncEngine):
            return AsyncEngine(self._make(bind.sync_engine, read_only))
        if not isinstance(bind, Engine):
            return bind  # a connection is somebody's own, with a transaction that is not ours to limit
        own = self._own.get(bind)
        if own is None:
            own = self._own[bind] = self._like(bind)
        # An engine with options shares the pool, and costs no round trip: the driver says it all in BEGIN.
        return own.execution_options(postgresql_readonly=True) if read_only and _is_postgres(own) else own

    def _like(self, engine: Engine) -> Engine:
        """Return an engine like the user's, with a pool of its own."""
        pool = engine.pool
        if isinstance(pool, StaticPool | SingletonThreadPool):
            return engine
        # What the user's engine does to each new connection, this one does too.
        same: dict[str, Any] = {"recycle": pool._recycle, "dialect": engine.dialect, "_dispatch": pool.dispatch}
        copied: Pool
        if isinstance(pool, NullPool):
            copied = NullPool(pool._creator, **same)
        else:
            kind: Any = AsyncAdaptedQueuePool if engine.dialect.is_async else QueuePool
            size = {"pool_size": self._pool_size, "max_overflow": self._pool_size, "timeout": POOL_TIMEOUT}
            copied = kind(pool._creator, pre_ping=True, **size, **same)
        options = dict(engine.get_execution_options())
        if _is_postgres(engine) and is_autocommit(engine):
            # Without a transaction there is nothing to make read-only, and no limit to set for its length.
            options["isolation_level"] = "READ COMMITTED"
        own = Engine(
            copied,
            engine.dialect,
            engine.url,
            echo=engine.echo,
            execution_options=options,
            hide_parameters=engine.hide_parameters,
        )
        # ... and to each statement: tracing, SQL comments.
        for name, returns in _STATEMENT_EVENTS.items():
            for listener in getattr(engine.dispatch, name):
                event.listen(own, name, listener, retval=returns)
        return own


def refuse_database_per_thread(sessions: sessionmaker[Session] | None) -> None:
    """Check that loads, which run on other threads than reads, see the same database.

    Raises:
        ConfigError: it is SQLite's in memory, on a pool that makes one for each thread.
    """
    bind = None if sessions is None else sessions.kw.get("bind")
    if isinstance(bind, Engine) and isinstance(bind.pool, SingletonThreadPool):
        raise ConfigError(
            f"sessions must be of a database that other threads see, {bind!r} makes one for each: "
            'create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}), a file, or '
            "Config(testing=True), with which loads run in the thread that reads"
        )


def _is_postgres(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"


def _limit(session: Session, load_for: float) -> None:
    """Let the session's statements take what is left of the load's time, and no longer."""
    until = time.monotonic() + load_for

    def begun(session: Session, transaction: Any, connection: Any) -> None:
        if connection.dialect.name == "postgresql":
            left = max(1, int((until - time.monotonic()) * 1000))
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {left}")

    event.listen(session, "after_begin", begun)
