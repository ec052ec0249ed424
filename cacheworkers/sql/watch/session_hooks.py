"""The hooks of one cache in the user's sessions: what a flush changes becomes tags; other writes are refused.

The tags of old and new rows are written in the same transaction, with each flush.  After the commit they are
invalidated; after a rollback nothing is left of them.  Meanwhile the transaction's own context reads past the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, event, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from cacheworkers.core.tag_templates import check_tag
from cacheworkers.errors import CallError, ConfigError, UnwatchedWrite
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox.connections import bound_engines
from cacheworkers.sql.outbox.outbox import Outbox, in_rows
from cacheworkers.sql.sqlalchemy_internals import is_autocommit_on
from cacheworkers.sql.triggers.trigger_rows import written_by_triggers
from cacheworkers.sql.watch import watched_connections
from cacheworkers.sql.watch.delivery import Delivery
from cacheworkers.sql.watch.dirty_transactions import DirtyTransaction, Written, enter
from cacheworkers.sql.watch.flush_changes import Flush
from cacheworkers.sql.watch.installed_triggers import InstalledTriggers
from cacheworkers.sql.watch.joined_transactions import outlives
from cacheworkers.sql.watch.mapping import WatchMapping
from cacheworkers.sql.watch.row_changes import RowChanges
from cacheworkers.sql.watch.session_classes import check_engine, refuse_autocommit, session_class, watched_class
from cacheworkers.sql.watch.single_rows import single_row
from cacheworkers.sql.watch.statements import refusal
from cacheworkers.sql.watch.unflushed import unflushed_of
from cacheworkers.sql.watch.views import Views
from cacheworkers.sql.watch.watched_connections import SessionState, state_for, state_of

log = logging.getLogger("cacheworkers")

EitherSession = Session | AsyncSession


class SessionHooks:
    """The hooks of one cache in one session factory or class."""

    def __init__(
        self,
        mapping: WatchMapping,
        outbox: Outbox,
        delivery: Delivery,
        ports: Ports,
        *,
        is_seen_by_loaders: Callable[[Connection], bool],
    ) -> None:
        """
        Args:
            is_seen_by_loaders: whether the cache's loaders read on a connection.
        """
        self.outbox = outbox
        self.deliver = delivery.deliver
        self.is_seen_by_loaders = is_seen_by_loaders
        self._ports = ports
        self._mapping = mapping
        self._views = Views()
        self._triggers = InstalledTriggers(outbox, mapping)
        self._target: type = Session

    def install(self, sessions: Any, others: Sequence[SessionHooks] = (), *, check: bool = False) -> None:
        """Hook into a sessionmaker, a Session class, or their async kinds; nothing is changed if that is refused.

        Raises:
            ConfigError: it is none of these, one of `others` watches it already, its transactions are autocommitted,
                or, with `check`, the outbox table is not there.
        """
        kind = session_class(sessions)
        if any(issubclass(kind, other._target) for other in others):
            raise ConfigError(f"{sessions!r} is watched already; give all classes in one mapping")
        for engine in bound_engines(sessions):
            check_engine(engine)
            if check:
                self.outbox.check(engine)
        self._target = kind = watched_class(sessions)
        for name, hook in self._hooks_of_sessions().items():
            # Before the user's own: what they read there has to be invalidated by then.
            event.listen(kind, name, hook, insert=name == "after_commit")
        watched_connections.listen(self)

    def remove(self) -> None:
        """Leave sessions as they were: what they change from here on is nobody's to invalidate."""
        for name, hook in self._hooks_of_sessions().items():
            if event.contains(self._target, name, hook):
                event.remove(self._target, name, hook)
        watched_connections.forget(self)

    def _hooks_of_sessions(self) -> dict[str, Callable[..., Any]]:
        return {
            "transient_to_pending": self._on_pending,
            "after_begin": self._on_begin,
            "before_flush": self._on_before_flush,
            **self._hooks_of_writing(),
        }

    @property
    def tables(self) -> list[str]:
        """Names of the watched tables."""
        return [table.name for table in self._mapping.tables()]

    def covers(self, session: EitherSession) -> bool:
        """Return whether a session is one of those it watches."""
        return isinstance(session.sync_session if isinstance(session, AsyncSession) else session, self._target)

    async def aadd(self, session: EitherSession, tags: Sequence[str], mode: Literal["hard", "soft"]) -> None:
        """Do what `add` does, for an AsyncSession too."""
        if isinstance(session, AsyncSession):
            await session.run_sync(self.add, tags, mode)
        else:
            self.add(session, tags, mode)

    def add(self, session: EitherSession, tags: Sequence[str], mode: Literal["hard", "soft"]) -> None:
        """Write tags to the outbox in a session's transaction; they are invalidated after its commit.

        Raises:
            ConfigError: it is an AsyncSession, which needs `aadd`.
            CallError: there are no tags.
        """
        if not tags:
            raise CallError("invalidate takes at least one tag")
        if isinstance(session, AsyncSession):
            raise ConfigError("an AsyncSession is given to ainvalidate(session=...), not to invalidate")
        for tag in tags:
            check_tag(tag, self._ports.config.max_tag_bytes)
        self._write(session, self._connection(session), {mode: list(tags)})

    @property
    def mapping(self) -> WatchMapping:
        """What it watches."""
        return self._mapping

    def assigned(self, session: Session, kind: type, name: str) -> None:
        """Note that an attribute of a session's instance is set."""
        state = state_of(self, session)
        if (state is None or state.dirty is None) and self.covers(session):
            rules = self._mapping.of(kind)
            if rules is not None and rules.matters(name):
                self._dirty(session)

    def adopt(self, session: Session, connection: Connection, context: Any) -> None:
        """Watch a session of another kind that is about to flush on a connection with a watched transaction."""
        if self.covers(session) or state_of(self, session) is not None:
            return
        for name, hook in self._hooks_of_writing().items():
            event.listen(session, name, hook)
        event.listen(session, "before_flush", self._on_before_flush)
        state_for(self, session).begin_on(connection)
        self._on_before_flush(session, context, None)

    def before_statement(self, state: SessionState, connection: Connection, statement: str, context: Any) -> None:
        """Refuse a statement that changes watched rows without the unit of work's knowledge."""
        statements = self._mapping.statements
        writes = statements.writes(statement, connection.dialect.name)
        session = state.session if any(writes) else None
        if session is None:
            return
        writes = self._views.resolved(connection, writes, statements.tables)
        names = statements.changed_by(writes)
        if not names:
            return
        if context.execution_options.get("cacheworkers_unwatched"):
            self._dirty(session).note_unknown(connection)
            return
        if state.flush is not None and state.flush.is_running and self._is_noted(state.flush, connection, context):
            return
        tables = self._mapping.affected(writes)
        missing = self._triggers.missing(connection, tables, context.execution_options)
        if tables and not missing:
            self._dirty(session).note_unknown(connection)
            return
        if not is_autocommit_on(connection):
            mapping = self._mapping
            state.single = single_row(connection, context, writes, mapping.described, mapping.cascades)
            if state.single is not None:
                return
        wanted = {table.name for table in missing} or names
        raise UnwatchedWrite(refusal(writes.opaque, names, wanted))

    def after_statement(self, state: SessionState, connection: Connection, result: Any) -> None:
        """Write the tags of a single row that a statement has changed outside the unit of work."""
        single, session = state.single, state.session
        if single is None or single.context is not result.context or session is None:
            return
        state.single = None
        self._write(session, connection, single.tags(result))

    def before_commit(self, state: SessionState, connection: Connection) -> None:
        """Learn what triggers have written, while nobody else sees it: it is invalidated with all the rest."""
        dirty = state.dirty
        if dirty is not None and dirty.has_unknown_on(connection):
            for each in self.written_by_triggers(connection):
                dirty.note_written(each.tags, each.row, connection, each.mode)

    def written_by_triggers(self, connection: Connection) -> list[Written]:
        """Return what triggers have written in a connection's transaction."""
        found = written_by_triggers(connection, self.outbox, self._ports.config.max_tag_bytes)
        return [Written(None, connection, row, tags, mode) for row, tags, mode in found]

    # -- events of sessions

    def _hooks_of_writing(self) -> dict[str, Callable[..., Any]]:
        return {
            "after_flush": self._on_after_flush,
            "after_commit": self._on_after_commit,
            "after_soft_rollback": self._on_rollback,
            "after_transaction_end": self._on_end,
        }

    def _on_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        state_for(self, session).begin_on(connection)

    def _on_pending(self, session: Session, instance: Any) -> None:
        if self._mapping.of(type(instance)) is not None:
            self._dirty(session)

    def _on_before_flush(self, session: Session, context: Any, instances: Any) -> None:
        mapping = self._mapping
        changes = RowChanges(mapping.described)
        flush = Flush(session, context, mapping.of, mapping.cascades, changes, self._triggers.cover)
        state_for(self, session).flush = flush
        # Here too: one that is replaced by another of the same key becomes an UPDATE, and is never deleted.
        for instance in session.deleted:
            if mapping.of(type(instance)) is not None:
                flush.deletes(session.connection(bind_arguments={"mapper": inspect(type(instance))}), instance)

    def _on_after_flush(self, session: Session, context: Any) -> None:
        state = state_of(self, session)
        if state is None or state.flush is None:
            return
        flush, state.flush = state.flush, None
        for connection, tables in flush.left.items():
            self._triggers.check_still_there(connection, tables)
            self._dirty(session).note_unknown(connection)
        for connection, tags in flush.tags().items():
            refuse_autocommit(connection)
            self._write(session, connection, tags)

    def _on_after_commit(self, session: Session) -> None:
        state = state_of(self, session)
        if state is not None and not session.in_nested_transaction():
            self.committed(state)

    def committed(self, state: SessionState) -> None:
        """Invalidate what a session has written, now or when the transactions that it has joined are committed."""
        if state.dirty is None:
            return
        written, unknown = state.dirty.take_committed()
        open_ = [each for each in (*(each.connection for each in written), *unknown) if each.in_transaction()]
        for connection in dict.fromkeys(open_):  # the session has joined it, other code ends it
            there = [each for each in written if each.connection is connection]
            outlives(self, there, connection, connection in unknown)
        self.deliver([each for each in written if each.connection not in open_])

    def _on_rollback(self, session: Session, transaction: SessionTransaction) -> None:
        state = state_of(self, session)
        if state is not None:
            state.flush = None
            if state.dirty is not None:
                state.dirty.rolled_back(transaction)

    def _on_end(self, session: Session, transaction: SessionTransaction) -> None:
        state = state_of(self, session)
        if transaction.parent is None and state is not None:
            state.end()

    # -- inside

    def _is_noted(self, flush: Flush, connection: Connection, context: Any) -> bool:
        """Return whether the mapper events have noted what a flush's statement changes, or it is noted now."""
        table: Any = getattr(getattr(context.compiled, "statement", None), "table", None)
        if is_autocommit_on(connection) and table in self._mapping.described:
            if not self._triggers.cover(connection, frozenset({table})):
                refuse_autocommit(connection)
        if self._mapping.knows(table) and flush.has_made(context):
            flush.before_statement(connection)
            return True
        return table in self._mapping.associations and flush.links(
            connection, table, context.compiled.statement, context.compiled_parameters
        )

    def _dirty(self, session: Session) -> DirtyTransaction:
        """Return the session's dirty transaction; from now on reads of this context go past the cache."""
        state = state_for(self, session)
        if state.dirty is None:
            coherence = self._ports.coherence
            coherence.bypass()
            state.dirty = DirtyTransaction(
                self._ports, session, lambda session: unflushed_of(session, self._mapping.of), coherence.unbypass
            )
            enter(state.dirty)
        return state.dirty

    def _write(self, session: Session, connection: Connection, tags: Mapping[Any, Sequence[str]]) -> None:
        """Write tags by mode to the outbox."""
        for mode, named in tags.items():
            for part in in_rows(list(named)):
                row = self.outbox.write(connection, part)
                state_for(self, session).begin_on(connection)  # again, if its owner has ended it and goes on
                self._dirty(session).note_written(part, row, connection, mode)

    def _connection(self, session: Session) -> Connection:
        """Return the connection on which the watched tables are changed; the outbox is beside them."""
        mapper = next((mapper for _, mapper in self._mapping.mappers()), None)
        return session.connection(bind_arguments={"mapper": mapper} if mapper is not None else None)
