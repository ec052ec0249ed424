"""Session classes: whose events a watch listens to, and whether their transactions are fit to be watched."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from cacheworkers.errors import ConfigError, UnwatchedWrite
from cacheworkers.sql.outbox.connections import shown_url
from cacheworkers.sql.sqlalchemy_internals import is_autocommit, is_autocommit_on, options_of


def session_class(sessions: Any) -> type[Session]:
    """Return the class of the sync sessions of a factory or class."""
    if isinstance(sessions, async_sessionmaker):
        inner: type[Session] = options_of(sessions).get("sync_session_class") or sessions.class_.sync_session_class
        return inner
    if isinstance(sessions, type) and issubclass(sessions, AsyncSession):
        return sessions.sync_session_class
    if isinstance(sessions, sessionmaker):
        return sessions.class_
    if isinstance(sessions, type) and issubclass(sessions, Session):
        return sessions
    raise ConfigError(f"watch takes a sessionmaker, a Session class or their async kinds, got {sessions!r}")


def watched_class(sessions: Any) -> type[Session]:
    """Return the class whose events are the watched sessions'.

    Events are the sync session's; an async factory or class gets one of its own, which keeps other sessions out of it.
    """
    kind = session_class(sessions)
    if isinstance(sessions, async_sessionmaker):
        kind = type(f"Watched{kind.__name__}", (kind,), {})
        sessions.configure(sync_session_class=kind)
    elif issubclass(sessions if isinstance(sessions, type) else Session, AsyncSession):
        kind = sessions.sync_session_class = type(f"Watched{kind.__name__}", (kind,), {})
    return kind


def check_engine(engine: Engine) -> None:
    """Make sure that an engine's transactions can be watched.  Its database is not asked: migrations import this, too.

    Raises:
        ConfigError: they are committed statement by statement.
    """
    if is_autocommit(engine):
        raise ConfigError(
            f"watched sessions need transactions, and {shown_url(engine)} has isolation_level='AUTOCOMMIT': "
            f"a change and its outbox row would be committed one after the other"
        )


def refuse_autocommit(connection: Connection) -> None:
    """Refuse to change watched rows where each statement is committed by itself.

    Raises:
        UnwatchedWrite: it is so on this connection.
    """
    if is_autocommit_on(connection):
        raise UnwatchedWrite(
            "watched rows are changed with isolation_level='AUTOCOMMIT': without a transaction, the outbox cannot be "
            "written in the same one"
        )
