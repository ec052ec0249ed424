"""Sessions for loads: new, read-only, with a deadline, on a pool of the library's own.

A load in a reader's process must not wait for a connection that the reader itself holds, and a connection used before
a fork must not be used after it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, SingletonThreadPool, StaticPool

#: How long a load waits for a connection of the library's pool, seconds; the pool is as large as the bulkhead.
POOL_TIMEOUT = 30.0


class Sessions:
    """Makes the sessions that loaders get, from the user's own session factories."""

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
        self._engine: Engine | None = None
        self._async_engine: AsyncEngine | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def for_load(self, load_for: float, *, read_only: bool = True) -> Iterator[Session | None]:
        """Give a new session whose statements may take `load_for` seconds; None when none are configured.

        It takes a connection at its first query, is always rolled back, and closed.
        """
        if self._sync is None:
            yield None
            return
        session = self._sync(bind=self._the_engine())
        _prepare(session, load_for, read_only)
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
        session = self._async(bind=self._the_async_engine())
        _prepare(session.sync_session, load_for, read_only)
        try:
            yield session
        finally:
            await session.close()

    def reset_after_fork(self) -> None:
        """Forget inherited connections without closing them: the parent uses them still."""
        self._lock = threading.Lock()
        for engine in (self._engine, _bind_of(self._sync)):
            if isinstance(engine, Engine):
                engine.dispose(close=False)
        for async_engine in (self._async_engine, _bind_of(self._async)):
            if isinstance(async_engine, AsyncEngine):
                async_engine.sync_engine.dispose(close=False)

    def _the_engine(self) -> Any:
        bind = _bind_of(self._sync)
        if not isinstance(bind, Engine):
            return bind
        with self._lock:
            if self._engine is None:
                self._engine = self._own(bind)
        return self._engine

    def _the_async_engine(self) -> Any:
        bind = _bind_of(self._async)
        if not isinstance(bind, AsyncEngine):
            return bind
        with self._lock:
            if self._async_engine is None:
                self._async_engine = AsyncEngine(self._own(bind.sync_engine, is_async=True))
        return self._async_engine

    def _own(self, engine: Engine, *, is_async: bool = False) -> Engine:
        """Return an engine like the user's, with a pool of its own; one connection shared by all stays shared."""
        pool = engine.pool
        if isinstance(pool, StaticPool | SingletonThreadPool | NullPool):
            return engine
        kind: Any = AsyncAdaptedQueuePool if is_async else QueuePool
        own = kind(
            pool._creator,
            pool_size=self._pool_size,
            max_overflow=0,
            timeout=POOL_TIMEOUT,
            pre_ping=True,
            dialect=engine.dialect,
        )
        copied = Engine(own, engine.dialect, engine.url)
        # What the user's engine does to each new connection, this one does too.
        own.dispatch._update(pool.dispatch, only_propagate=False)
        return copied


def _bind_of(factory: Any) -> Any:
    return None if factory is None else factory.kw.get("bind")


def _prepare(session: Session, load_for: float, read_only: bool) -> None:
    """At the session's first statement, make its transaction read-only and bounded in time."""

    def begun(session: Session, transaction: Any, connection: Any) -> None:
        if connection.dialect.name != "postgresql":
            return
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, int(load_for * 1000))}")
        if read_only:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    event.listen(session, "after_begin", begun)
