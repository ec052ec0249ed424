"""WatchService: the watched sessions of one cache, the outbox that they write, and its backlog."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.orm import scoped_session

from cacheworkers.errors import ConfigError, OutboxUnavailable
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox.acknowledger import DeliveryAcknowledger
from cacheworkers.sql.outbox.connections import bound_engines, on_connection, shown_url, sync_half
from cacheworkers.sql.outbox.diagnostics import DatabaseUnavailable, trigger_faults
from cacheworkers.sql.outbox.outbox import Backlog, Outbox, reason
from cacheworkers.sql.outbox.relay import drain_outbox, replay_to_a_new_store
from cacheworkers.sql.outbox.relay_loop import RelayLoop
from cacheworkers.sql.sqlalchemy_internals import options_of
from cacheworkers.sql.tag_options import Mode
from cacheworkers.sql.watch.delivery import Delivery
from cacheworkers.sql.watch.flush_changes import TagMapping
from cacheworkers.sql.watch.mapping import WatchMapping
from cacheworkers.sql.watch.session_hooks import EitherSession, SessionHooks
from cacheworkers.sql.watch.trigger_differences import tags_without_trigger

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    from cacheworkers.sql.triggers.postgres_triggers import Triggers

log = logging.getLogger("cacheworkers")
AnySession = EitherSession | scoped_session[Any] | async_scoped_session[Any]
#: How often a process logs that it cannot drain the outbox, seconds.
DRAIN_FAULT_LOGGED_EVERY = 60.0


class WatchService:
    """The watched sessions of one cache, and the way of their outbox rows into the store."""

    def __init__(self, ports: Ports, sessions: sessionmaker[Session] | async_sessionmaker[AsyncSession] | None) -> None:
        self._ports = ports
        self.outbox = Outbox(ports.config.namespace, ports.config.outbox_schema)
        self._acknowledger = DeliveryAcknowledger(self.outbox)
        self._delivery = Delivery(ports, self._acknowledger.acknowledge)
        self._hooks: list[SessionHooks] = []
        self._loaders = sessions
        #: What was given to `watch`.  What it is bound to is asked when it is needed: that may be configured later.
        self._watched: list[Any] = []
        self._replayed: dict[Engine, str] = {}
        self._drain_fault_logged_until = 0.0
        self._compared: set[tuple[str, str]] = set()

    def watch(
        self,
        sessions: Any,
        mapping: TagMapping | Any,
        *,
        columns: Mapping[Any, Collection[str]] | None,
        ignore: Mapping[Any, Collection[str]] | None,
        mode: Mode | Mapping[Any, Mode],
        check: bool,
    ) -> None:
        """Begin to watch sessions; see `Cache.watch`."""
        sessions = getattr(sessions, "session_factory", sessions)  # of a scoped_session
        max_tag_bytes = self._ports.config.max_tag_bytes
        parsed = WatchMapping(mapping, max_tag_bytes, self._ports.tag_kinds, columns=columns, ignore=ignore, mode=mode)
        hooks = SessionHooks(
            parsed, self.outbox, self._delivery, self._ports, is_seen_by_loaders=self._is_seen_by_loaders
        )
        hooks.install(sessions, self._hooks, check=check)
        self._hooks.append(hooks)
        self._watched.append(sessions)

    def compare(self, triggers: Sequence[Triggers]) -> None:
        """Log once of each table with triggers which tags of the watch they do not write."""
        for hooks in self._hooks if triggers else ():
            with contextlib.suppress(ConfigError):  # a class that is not watched: flushes say it
                for table, tags in tags_without_trigger(hooks.mapping, triggers):
                    named = ", ".join(tags)
                    if (table, named) not in self._compared:
                        self._compared.add((table, named))
                        log.warning(
                            "cache.watch has tags for %s that cache.triggers does not have: %s.  Watched sessions "
                            "leave the rows of a table with triggers to these, so that nobody invalidates these tags: "
                            "give both the same, and install the triggers again",
                            table,
                            named,
                            extra={"table": table, "tags": tags},
                        )

    def add(self, session: AnySession, tags: Sequence[str], mode: str) -> None:
        """Write tags to the outbox in a session's transaction; see `Cache.invalidate`."""
        session = _current(session)
        self._covering(session, mode).add(session, tags, "soft" if mode == "soft" else "hard")

    async def aadd(self, session: AnySession, tags: Sequence[str], mode: str) -> None:
        """Do what `add` does, for an AsyncSession too."""
        session = _current(session)
        await self._covering(session, mode).aadd(session, tags, "soft" if mode == "soft" else "hard")

    def _covering(self, session: EitherSession, mode: str) -> SessionHooks:
        """Return the hooks that cover a session.

        Raises:
            ConfigError: none do, or the mode is not one that a commit can carry.
        """
        if mode not in ("hard", "soft"):
            raise ConfigError(f'invalidate(session=...) is "hard" or "soft", got mode {mode!r}')
        for hooks in self._hooks:
            if hooks.covers(session):
                return hooks
        raise ConfigError(f"invalidate(session=...) takes a session that cache.watch covers, got {session!r}")

    def _is_seen_by_loaders(self, connection: Connection) -> bool:
        """Return whether loaders read on a connection itself, with what is not committed there."""
        options = options_of(self._loaders)
        binds = (options.get("bind"), *(options.get("binds") or {}).values())
        return any(each is connection for each in binds)

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
            log.warning("the outbox at %r cannot be replayed: %s", each.url, reason(failed[each]))
        for each in asked:
            if each in failed:
                raise OutboxUnavailable(
                    f"the outbox at {shown_url(each)} cannot be drained: {reason(failed[each])}"
                ) from failed[each]
        return rows

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the watched tables."""
        return tuple(dict.fromkeys(name for hooks in self._hooks for name in hooks.tables))

    @property
    def is_any(self) -> bool:
        """Whether anything is watched."""
        return bool(self._hooks)

    def backlog(self, engine: Engine | None) -> Backlog:
        """Return what waits in the outbox; see `Cache.outbox_backlog`."""
        found = [Backlog(0, 0.0)]
        for each in self._asked(engine, "outbox_backlog"):
            try:
                found.append(on_connection(each, self.outbox.backlog))
            except (SQLAlchemyError, OSError) as error:
                raise OutboxUnavailable(f"the outbox at {shown_url(each)} cannot be read: {reason(error)}") from error
        return Backlog(sum(each.rows for each in found), max(each.oldest_age for each in found))

    def drain_by_beat(self, *, is_needed: bool) -> None:
        """Drain all databases that are known.

        Args:
            is_needed: whether somebody is known to write the outbox: what then keeps it from being drained is logged.
        """
        try:
            if is_needed or self.engines:
                self.drain(None)
        except (ConfigError, OutboxUnavailable) as error:
            if is_needed and time.monotonic() >= self._drain_fault_logged_until:
                self._drain_fault_logged_until = time.monotonic() + DRAIN_FAULT_LOGGED_EVERY
                log.error("the outbox is not drained: %s", error, extra={"error": str(error)})
            raise
        if self._drain_fault_logged_until:
            self._drain_fault_logged_until = 0.0
            log.warning("the outbox is drained again")

    def drain_until(self, stop: threading.Event, engine: Engine | None, triggers: Sequence[Triggers]) -> None:
        """Drain until asked to stop, and log once which triggers are not there; see `Cache.drain_until`."""
        engines = self._asked(engine, "drain_until")
        with contextlib.suppress(DatabaseUnavailable):
            for fault in trigger_faults(engines, triggers).values():
                log.warning("nothing to drain: %s; `triggers.install` after the migrations", fault)
        RelayLoop(self.drain, self.outbox.namespace).run(engines, stop)

    def close(self) -> None:
        """Stop the thread that removes delivered rows, and stop watching."""
        self._acknowledger.close()
        for hooks in self._hooks:
            hooks.remove()

    def reset(self) -> None:
        """Forget threads, as a child does after a fork."""
        self._delivery.reset()
        self._acknowledger.reset()

    @property
    def _watched_engines(self) -> tuple[Engine, ...]:
        found = dict.fromkeys(engine for sessions in self._watched for engine in bound_engines(sessions))
        sync = {engine.url.set(drivername="") for engine in found if not engine.dialect.is_async}
        # An async engine beside one for threads is the same database, and the latter costs no loop.
        return tuple(
            engine for engine in found if not engine.dialect.is_async or engine.url.set(drivername="") not in sync
        )

    def _asked(self, engine: Engine | None, what: str) -> tuple[Engine, ...]:
        engines = self.engines if engine is None else (sync_half(engine),)
        if not engines:
            raise ConfigError(
                f"{what} needs an engine: neither the sessions that this cache watches nor those of its loaders are "
                f"bound to one; watch a sessionmaker that is, or bind it before, as an application's factory does "
                f"(`-A 'module:create_app()'` on the command line)"
            )
        return engines

    def _drain(self, connection: Connection) -> int:
        return drain_outbox(self._ports, self.outbox, connection)


def _current(session: AnySession) -> EitherSession:
    """Return the session that a registry has for this thread or context."""
    return session() if isinstance(session, scoped_session | async_scoped_session) else session
