"""What a cache watches: sessions, the outbox they write, and its delivery."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from cacheworkers.errors import ConfigError, OutboxUnavailable
from cacheworkers.events import Undelivered
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.delivery import Delivered
from cacheworkers.sql.drain import drain_outbox, sync_engine_of
from cacheworkers.sql.flush import TagsOf
from cacheworkers.sql.outbox import Backlog, Outbox
from cacheworkers.sql.postgres import Ear
from cacheworkers.sql.watch import AnySession, Watch

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

log = logging.getLogger("cacheworkers")
#: How long a draining process waits at most before it looks again, seconds.
DRAIN_WITHIN = 1.0


class Watching:
    """The watched sessions of one cache, and the way of their outbox rows into the store."""

    def __init__(self, ports: Ports, sessions: sessionmaker[Session] | None) -> None:
        self._ports = ports
        self.outbox = Outbox(ports.config.namespace)
        self._delivered = Delivered(self.outbox)
        self._watches: list[Watch] = []
        #: Of the database with the outbox, as far as it is known.
        self.engine: Engine | None = sync_engine_of(sessions.kw.get("bind")) if sessions else None

    def watch(self, sessions: Any, mapping: Mapping[Any, TagsOf | Sequence[str]], *, check: bool) -> None:
        """Begin to watch sessions; see `Cache.watch`."""
        ports = self._ports
        watch = Watch(
            mapping,
            self.outbox,
            max_tag_bytes=ports.config.max_tag_bytes,
            invalidation=lambda tags: invalidate_tags(ports, tags, "hard"),
            delivered=self._delivered.note,
            undelivered=self._left_in_outbox,
            dirty=ports.gate.bypass,
            clean=ports.gate.unbypass,
        )
        watch.install(sessions, self._watches, check=check)
        self._watches.append(watch)
        self.engine = self.engine or sync_engine_of(getattr(sessions, "kw", {}).get("bind"))

    def of(self, session: AnySession, mode: str) -> Watch:
        """Return the watch that covers a session.

        Raises:
            ConfigError: none does, or the mode is not one that a commit can carry.
        """
        if mode != "hard":
            raise ConfigError(f'invalidate(session=...) is always "hard", got mode {mode!r}')
        for watch in self._watches:
            if watch.covers(session):
                return watch
        raise ConfigError(f"invalidate(session=...) takes a session that cache.watch covers, got {session!r}")

    def drain(self, engine: Engine | None) -> int:
        """Deliver what the outbox still holds; see `Cache.drain`."""
        known = self._known(engine, "drain")
        try:
            return drain_outbox(self._ports, self.outbox, known)
        except SQLAlchemyError as error:
            raise OutboxUnavailable(f"the outbox at {known.url!r} cannot be drained: {_reason(error)}") from error

    @property
    def is_any(self) -> bool:
        """Whether anything is watched."""
        return bool(self._watches)

    def backlog(self, engine: Engine | None) -> Backlog:
        """Return what waits in the outbox; see `Cache.outbox_backlog`."""
        known = self._known(engine, "outbox_backlog")
        try:
            with known.connect() as connection:
                return self.outbox.backlog(connection)
        except SQLAlchemyError as error:
            raise OutboxUnavailable(f"the outbox at {known.url!r} cannot be read: {_reason(error)}") from error

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return a query's rows; see `Cache.query`."""
        try:
            with self._known(None, "query").connect() as connection:
                return [tuple(row) for row in connection.execute(text(sql))]
        except SQLAlchemyError as error:
            raise ConfigError(f"the query {sql!r} failed: {_reason(error)}") from error

    def drain_if_watching(self) -> None:
        """Drain, where there is a database to drain."""
        if self.engine is not None:
            self.drain(None)

    def drain_until(self, stop: threading.Event, engine: Engine | None) -> None:
        """Drain until told to stop; see `Cache.drain_until`."""
        engine = self._known(engine, "drain_until")
        while not stop.is_set():
            try:
                with engine.connect() as connection:
                    ear = Ear(connection, self._ports.config.namespace) if engine.dialect.driver == "psycopg" else None
                    wait: Callable[[float], object] = ear.wait if ear else stop.wait
                    while not stop.is_set():
                        self.drain(engine)
                        wait(DRAIN_WITHIN)
            except Exception as error:  # the database or the store is away; the rows stay
                log.warning("the drain goes on in a second: %s", error)
                stop.wait(DRAIN_WITHIN)

    def close(self) -> None:
        """Stop the thread that removes delivered rows."""
        self._delivered.close()

    def reset(self) -> None:
        """Forget threads, as a child does after a fork."""
        self._delivered.reset()

    def _known(self, engine: Engine | None, what: str) -> Engine:
        known = engine or self.engine
        if known is None:
            raise ConfigError(f"{what} needs an engine: no session that this cache watches is bound to one")
        return known

    def _left_in_outbox(self, rows: Sequence[int], error: Exception) -> None:
        """A commit's invalidation failed: this process at least forgets what it had; the drain does the rest."""
        self._ports.l1.clear()
        self._ports.emit(Undelivered(len(rows), f"{type(error).__name__}: {error}"))


def _reason(error: SQLAlchemyError) -> str:
    """Return what the driver said, on one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
