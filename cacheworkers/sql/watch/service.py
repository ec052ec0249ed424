"""What a cache watches: sessions, the outbox they write, and its delivery."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from cacheworkers.errors import ConfigError, OutboxUnavailable
from cacheworkers.events import InvalidationUndelivered
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox.acknowledger import DeliveryAcknowledger
from cacheworkers.sql.outbox.diagnostics import bound_engines, on_connection
from cacheworkers.sql.outbox.outbox import Backlog, Outbox
from cacheworkers.sql.outbox.relay import drain_outbox, listening_engine_of, replay_to_a_new_store
from cacheworkers.sql.triggers.postgres_triggers import NotifyListener
from cacheworkers.sql.watch.flush_changes import TagsOf
from cacheworkers.sql.watch.session_hooks import AnySession, SessionHooks

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

log = logging.getLogger("cacheworkers")
#: How long a draining process waits at most before it looks again, seconds.
DRAIN_WITHIN = 1.0
#: How often it looks whether a store that was away is back, seconds.
_LOOK_EVERY = 0.05


class WatchService:
    """The watched sessions of one cache, and the way of their outbox rows into the store."""

    def __init__(self, ports: Ports, sessions: sessionmaker[Session] | None) -> None:
        self._ports = ports
        self.outbox = Outbox(ports.config.namespace)
        self._delivered = DeliveryAcknowledger(self.outbox)
        self._watches: list[SessionHooks] = []
        self._loaders = sessions
        #: What was given to `watch`; what it is bound to is looked up when it is needed, for that may come later.
        self._watched: list[Any] = []
        self._replayed: dict[Engine, str] = {}

    def watch(self, sessions: Any, mapping: Mapping[Any, TagsOf | Sequence[str]], *, check: bool) -> None:
        """Begin to watch sessions; see `Cache.watch`."""
        ports = self._ports
        watch = SessionHooks(
            mapping,
            self.outbox,
            max_tag_bytes=ports.config.max_tag_bytes,
            tag_kinds=ports.tag_kinds,
            invalidation=lambda tags: invalidate_tags(ports, tags, "hard"),
            delivered=self._delivered.note,
            undelivered=self._left_in_outbox,
            dirty=ports.coherence.bypass,
            clean=ports.coherence.unbypass,
        )
        watch.install(sessions, self._watches, check=check)
        self._watches.append(watch)
        self._watched.append(sessions)

    def of(self, session: AnySession, mode: str) -> SessionHooks:
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

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Of the databases with an outbox: those of the watched sessions; where none is known, those of the loaders.

        Loaders may read a replica, which no drain can write to.
        """
        return self._watched_engines or tuple(bound_engines(self._loaders))

    @property
    def databases(self) -> tuple[Engine, ...]:
        """All that are known, the loaders' too."""
        return tuple(dict.fromkeys((*self.engines, *bound_engines(self._loaders))))

    def drain(self, engine: Engine | None) -> int:
        """Deliver what the outboxes still hold; see `Cache.drain`."""
        asked = self._asked(engine, "drain")
        everywhere = dict.fromkeys((*asked, *self._watched_engines))
        failed = replay_to_a_new_store(self._ports, self.outbox, everywhere, self._replayed)
        rows = 0
        for each in asked:  # one that is away does not hold up the others
            try:
                if each not in failed:
                    rows += on_connection(each, self._drain)
            except (SQLAlchemyError, OSError) as error:
                failed[each] = error
        for each in failed.keys() - set(asked):
            log.warning("the outbox at %r cannot be replayed: %s", each.url, _reason(failed[each]))
        for each in asked:
            if each in failed:
                raise OutboxUnavailable(
                    f"the outbox at {each.url!r} cannot be drained: {_reason(failed[each])}"
                ) from failed[each]
        return rows

    @property
    def is_any(self) -> bool:
        """Whether anything is watched."""
        return bool(self._watches)

    def backlog(self, engine: Engine | None) -> Backlog:
        """Return what waits in the outbox; see `Cache.outbox_backlog`."""
        found = [Backlog(0, 0.0)]
        for each in self._asked(engine, "outbox_backlog"):
            try:
                found.append(on_connection(each, self.outbox.backlog))
            except (SQLAlchemyError, OSError) as error:
                raise OutboxUnavailable(f"the outbox at {each.url!r} cannot be read: {_reason(error)}") from error
        return Backlog(sum(each.rows for each in found), max(each.oldest_age for each in found))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return a query's rows; see `Cache.query`."""

        def rows(connection: Connection) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(text(sql))]

        try:
            return on_connection(self._asked(None, "query")[0], rows)
        except (SQLAlchemyError, OSError) as error:
            raise ConfigError(f"the query {sql!r} failed: {_reason(error)}") from error

    def drain_by_beat(self, *, is_needed: bool) -> None:
        """Drain all databases that are known.

        Args:
            is_needed: whether somebody is known to write the outbox: what then keeps it from being drained is logged.
        """
        try:
            if is_needed or self.engines:
                self.drain(None)
        except (ConfigError, OutboxUnavailable) as error:
            if is_needed:
                log.error("the outbox is not drained: %s", error, extra={"error": str(error)})
            raise

    def drain_until(self, stop: threading.Event, engine: Engine | None) -> None:
        """Drain until told to stop; see `Cache.drain_until`."""
        first, *others = self._asked(engine, "drain_until")
        threads = [
            threading.Thread(target=self._drain_until, args=(stop, each), name="cacheworkers-drain", daemon=True)
            for each in others
        ]
        for thread in threads:
            thread.start()
        self._drain_until(stop, first)
        for thread in threads:
            thread.join()

    def _drain_until(self, stop: threading.Event, engine: Engine) -> None:
        listening = listening_engine_of(engine)
        while not stop.is_set():
            try:
                self.drain(engine)  # whether or not anybody can listen
                with contextlib.nullcontext() if listening is None else listening.connect() as connection:
                    ear = None if connection is None else NotifyListener(connection, self._ports.config.namespace)
                    wait: Callable[[float], object] = ear.wait if ear else stop.wait
                    while not stop.is_set():
                        self.drain(engine)
                        wait(DRAIN_WITHIN)
            except Exception as error:  # the database or the store is away; the rows stay
                log.warning("the drain goes on in a second: %s", error)
                self._rest(stop)

    def _rest(self, stop: threading.Event) -> None:
        """Wait a while; not longer than until a store that is away is back: it still has what was changed meanwhile."""
        link = self._ports.store.link
        end = time.monotonic() + DRAIN_WITHIN
        is_away = not link.is_well
        while not stop.wait(min(DRAIN_WITHIN, _LOOK_EVERY)) and time.monotonic() < end:
            if is_away and link.is_well:
                return

    def close(self) -> None:
        """Stop the thread that removes delivered rows."""
        self._delivered.close()

    def reset(self) -> None:
        """Forget threads, as a child does after a fork."""
        self._delivered.reset()

    @property
    def _watched_engines(self) -> tuple[Engine, ...]:
        found = dict.fromkeys(engine for sessions in self._watched for engine in bound_engines(sessions))
        sync = {engine.url.set(drivername="") for engine in found if not engine.dialect.is_async}
        # An async engine beside one for threads is the same database, and the latter costs no loop.
        return tuple(
            engine for engine in found if not engine.dialect.is_async or engine.url.set(drivername="") not in sync
        )

    def _asked(self, engine: Engine | None, what: str) -> tuple[Engine, ...]:
        engines = self.engines if engine is None else (engine,)
        if not engines:
            raise ConfigError(
                f"{what} needs an engine: neither the sessions that this cache watches nor those of its loaders are "
                f"bound to one; watch a sessionmaker that is"
            )
        return engines

    def _drain(self, connection: Connection) -> int:
        return drain_outbox(self._ports, self.outbox, connection)

    def _left_in_outbox(self, rows: Sequence[int], error: Exception) -> None:
        """A commit's invalidation failed: this process at least forgets what it had; the drain does the rest."""
        self._ports.l1.clear()
        self._ports.emit(InvalidationUndelivered(len(rows), f"{type(error).__name__}: {error}"))


def _reason(error: Exception) -> str:
    """Return what the driver said, on one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
