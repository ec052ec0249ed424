"""The sessions that loaders get: none, those of the user's own factories in tests, or pooled ones of their own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from cacheworkers.config import Config

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    from cacheworkers.sql.load_sessions import Sessions


def sessions_for_loads(
    sessions: sessionmaker[Session] | None, async_sessions: async_sessionmaker[AsyncSession] | None, config: Config
) -> Sessions | NoSessions | CallersSessions:
    """Return what makes the loaders' sessions; SQLAlchemy is imported only where there are some.

    Raises:
        ConfigError: the database exists once for each thread.
    """
    if sessions is None and async_sessions is None:
        return NoSessions()
    if config.testing:
        return CallersSessions(sessions, async_sessions)
    from cacheworkers.sql.load_sessions import Sessions, refuse_database_per_thread

    refuse_database_per_thread(sessions)
    return Sessions(sessions, async_sessions, pool_size=config.bulkhead)


class NoSessions:
    """The sessions of a cache that was given none: `load.session` is None, and SQLAlchemy stays unimported."""

    reads_replica = False

    @contextlib.contextmanager
    def for_load(self, load_for: float) -> Iterator[None]:
        """Give None."""
        yield None

    @contextlib.asynccontextmanager
    async def afor_load(self, load_for: float) -> AsyncIterator[None]:
        """Give None."""
        yield None

    def close(self) -> None:
        """Do nothing: there are no connections."""

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""

    def reset_after_fork(self) -> None:
        """Do nothing: there are no connections."""


class CallersSessions:
    """Sessions of the user's own factories, as they are when a load begins: for tests.

    A fixture may bind them to a connection whose transaction it rolls back; loads see what is in it.
    """

    reads_replica = False

    def __init__(self, sync: Any, async_: Any) -> None:
        self._sync = sync
        self._async = async_

    @contextlib.contextmanager
    def for_load(self, load_for: float) -> Iterator[Any]:
        """Give a session; None when there is no factory."""
        if self._sync is None:
            yield None
            return
        with self._sync() as session:
            yield session

    @contextlib.asynccontextmanager
    async def afor_load(self, load_for: float) -> AsyncIterator[Any]:
        """Give an AsyncSession; None when there is no factory."""
        if self._async is None:
            yield None
            return
        async with self._async() as session:
            yield session

    def close(self) -> None:
        """Do nothing: the engines are the user's."""

    async def aclose(self) -> None:
        """Do nothing: the engines are the user's."""

    def reset_after_fork(self) -> None:
        """Do nothing: the engines are the user's."""
