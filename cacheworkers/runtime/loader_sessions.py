"""The sessions that loaders get: pooled ones of their own, or in tests those of the user's own factories."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from cacheworkers.config import Config

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    from cacheworkers.sql.load_sessions import LoadSessions


def sessions_for_loads(
    sessions: sessionmaker[Session] | None, async_sessions: async_sessionmaker[AsyncSession] | None, config: Config
) -> LoadSessions | CallersSessions:
    """Return what makes the loaders' sessions; SQLAlchemy is imported only where there are some.

    A `scoped_session` is as good as its factory: a load has a session of its own.

    Raises:
        ConfigError: it makes no sessions of its kind, or the database exists once for each thread.
    """
    sessions = getattr(sessions, "session_factory", sessions)
    async_sessions = getattr(async_sessions, "session_factory", async_sessions)
    if config.testing or (sessions is None and async_sessions is None):
        return CallersSessions(sessions, async_sessions)
    from cacheworkers.sql.load_sessions import LoadSessions, refuse_database_per_thread

    refuse_database_per_thread(sessions)
    return LoadSessions(sessions, async_sessions, pool_size=config.bulkhead)


class CallersSessions:
    """Sessions of the user's own factories, as they are when a load begins: for tests; None where there are none.

    A fixture may bind them to a connection whose transaction it rolls back; loads see what is in it.
    """

    reads_replica = False

    def __init__(self, sync: Any, async_: Any) -> None:
        self._sync = sync
        self._async = async_

    @contextlib.contextmanager
    def for_load(self, load_for: float) -> Iterator[Any]:
        """Give a session; None when there is no factory."""
        with contextlib.nullcontext() if self._sync is None else _guest_session(self._sync) as session:
            yield session

    @contextlib.asynccontextmanager
    async def afor_load(self, load_for: float) -> AsyncIterator[Any]:
        """Give an AsyncSession; None when there is no factory."""
        async with contextlib.nullcontext() if self._async is None else _guest_session(self._async) as session:
            yield session

    def close(self) -> None:
        """Do nothing: the engines are the user's."""

    async def aclose(self) -> None:
        """Do nothing: the engines are the user's."""

    def reset_after_fork(self) -> None:
        """Do nothing: the engines are the user's."""


def _guest_session(factory: Any) -> Any:
    from cacheworkers.sql.load_sessions import guest_binds

    return factory(**guest_binds(factory))
