"""Session classes: whose events a watch listens to, and whether their transactions and outbox are fit to be watched."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from cacheworkers.errors import ConfigError, UnwatchedWrite
from cacheworkers.sql.outbox.diagnostics import check_outbox
from cacheworkers.sql.outbox.outbox import Outbox
from cacheworkers.sql.sqlalchemy_internals import is_autocommit, is_autocommit_on, options_of

#: How long `watch` waits for a database that has not answered whether it has the outbox, seconds.
CHECKED_WITHIN = 5.0
log = logging.getLogger("cacheworkers")


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


def check_engine(engine: Engine, outbox: Outbox, check: bool) -> None:
    """Make sure that an engine's transactions can be watched, and with `check` that its database has the outbox.

    Raises:
        ConfigError: they are committed statement by statement, or it has no outbox.
    """
    if is_autocommit(engine):
        raise ConfigError(
            f"watched sessions need transactions, and {engine.url!r} has isolation_level='AUTOCOMMIT': "
            f"a change and its outbox row would be committed one after the other"
        )
    if check:
        try:
            check_outbox(outbox, engine, timeout=CHECKED_WITHIN)
        except (SQLAlchemyError, OSError) as error:
            log.warning(
                "the outbox of %r could not be checked; commits fail where it is missing: %s", engine.url, error
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
