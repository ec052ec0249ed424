"""Watch: what a unit of work inserts, updates and deletes becomes tags, from old and new values.

The tags go into the outbox in the same transaction, with each flush.  After the commit they are invalidated at once;
after a rollback nothing is left of them.  Meanwhile the transaction's own context reads past the cache.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, event, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapper, Session, SessionTransaction, object_session, sessionmaker
from sqlalchemy.util import concurrency

from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.core.tag_text import TagKinds
from cacheworkers.core.tags import check_tag
from cacheworkers.errors import CallError, ConfigError, UnwatchedWrite
from cacheworkers.sql.outbox.diagnostics import bound_engines, check_outbox, is_autocommit
from cacheworkers.sql.outbox.outbox import Outbox
from cacheworkers.sql.triggers.trigger_rows import written_by_triggers
from cacheworkers.sql.watch.dirty_transactions import DirtyTransaction, enter
from cacheworkers.sql.watch.flush_changes import Flush, TagsOf
from cacheworkers.sql.watch.mapping import WatchMapping

log = logging.getLogger("cacheworkers")

#: Waits for an awaitable within SQLAlchemy's greenlet; called `await_only` before SQLAlchemy 2.1.
_await: Callable[[Any], Any] = getattr(concurrency, "await_", None) or getattr(concurrency, "await_only")  # noqa: B009

AnySession = Session | AsyncSession


class SessionHooks:
    """The hooks of one cache in the user's sessions."""

    def __init__(
        self,
        mapping: Mapping[Any, TagsOf | Sequence[str]],
        outbox: Outbox,
        *,
        max_tag_bytes: int,
        tag_kinds: TagKinds,
        invalidation: Callable[[tuple[str, ...]], Flow[Any]],
        delivered: Callable[[Engine, tuple[int, ...]], None],
        undelivered: Callable[[tuple[int, ...], Exception], None],
        dirty: Callable[[], None],
        clean: Callable[[], None],
    ) -> None:
        """
        Args:
            mapping: mapped class or association `Table` -> row to tags, or tag templates.
            invalidation: makes the flow that invalidates tags, once they are committed.
            delivered: called with the outbox rows when that has succeeded; `undelivered` when it has failed.
            dirty, clean: called when a transaction first changes what is watched, and when it has ended.

        Raises:
            ConfigError: a key is no mapped class and no `Table`, or makes no legal tags.
        """
        self._outbox = outbox
        self._max_tag_bytes = max_tag_bytes
        self._invalidation = invalidation
        self._delivered = delivered
        self._undelivered = undelivered
        self._dirty = dirty
        self._clean = clean
        self._watched = WatchMapping(mapping, max_tag_bytes, tag_kinds)
        self._triggered: dict[Any, frozenset[Table]] = {}
        self._sessions: weakref.WeakKeyDictionary[Connection, weakref.ref[Session]] = weakref.WeakKeyDictionary()
        self._heard: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._target: type = Session

    def install(self, sessions: Any, others: Sequence[SessionHooks] = (), *, check: bool = True) -> None:
        """Hook into a sessionmaker, a Session class, or their async kinds.

        Raises:
            ConfigError: it is none of these, one of `others` watches it already, its transactions are autocommitted,
                or the outbox table is not there.
        """
        target = _sync_target(sessions)
        self._target = target.class_ if isinstance(target, sessionmaker) else target
        if any(issubclass(self._target, other._target) for other in others):
            raise ConfigError(f"{sessions!r} is watched already; give all classes in one mapping")
        for engine in bound_engines(sessions):
            if is_autocommit(engine):
                raise ConfigError(
                    f"watched sessions need transactions, and {engine.url!r} has isolation_level='AUTOCOMMIT': "
                    f"a change and its outbox row would be committed one after the other"
                )
            if not check:
                continue
            try:
                check_outbox(self._outbox, engine)
            except SQLAlchemyError as error:
                log.warning("the outbox of %r could not be checked: %s", engine.url, error)
        hooks: dict[str, Callable[..., Any]] = {
            "transient_to_pending": self._on_pending,
            "after_begin": self._on_begin,
            "before_flush": self._on_before_flush,
            "after_flush": self._on_after_flush,
            "after_commit": self._on_after_commit,
            "after_soft_rollback": self._on_rollback,
            "after_transaction_end": self._on_end,
        }
        for name, hook in hooks.items():
            event.listen(target, name, hook)
        for key, mapper in self._watched.mappers():
            for attribute in mapper.column_attrs:
                event.listen(getattr(key, attribute.key), "set", self._on_set, propagate=True)
            event.listen(key, "before_insert", self._on_insert, propagate=True)
            event.listen(key, "before_update", self._on_update, propagate=True)
            event.listen(key, "before_delete", self._on_delete, propagate=True)
        event.listen(Mapper, "before_update", self._on_parent_update)
        event.listen(Mapper, "before_delete", self._on_parent_delete)

    def covers(self, session: AnySession) -> bool:
        """Return whether a session is one of those it watches."""
        return isinstance(session.sync_session if isinstance(session, AsyncSession) else session, self._target)

    async def aadd(self, session: AnySession, tags: Sequence[str]) -> None:
        """Do what `add` does, for an AsyncSession too."""
        if isinstance(session, AsyncSession):
            await session.run_sync(self.add, tags)
        else:
            self.add(session, tags)

    def add(self, session: AnySession, tags: Sequence[str]) -> None:
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
            check_tag(tag, self._max_tag_bytes)
        connection = self._connection(session)
        row = self._outbox.write(connection, tags)
        self._touched(session).flushed(tags, row, connection.engine)

    # -- hooks

    def _on_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        self._sessions[connection] = weakref.ref(session)
        engine = connection.engine
        if engine not in self._heard:
            self._heard.add(engine)
            event.listen(engine, "before_cursor_execute", self._on_statement)
            event.listen(engine, "commit", self._on_connection_commit)

    def _on_set(self, target: Any, *_: Any) -> None:
        session = object_session(target)
        if session is not None and self.covers(session):
            self._touched(session)

    def _on_pending(self, session: Session, instance: Any) -> None:
        if self._watched.of(type(instance)) is not None:
            self._touched(session)

    def _on_before_flush(self, session: Session, context: Any, instances: Any) -> None:
        flush = session.info[self, Flush] = Flush(
            session, context, self._watched.cascades, self._watched.described, self._has_triggers
        )
        # Here too: one that is replaced by another of the same key becomes an UPDATE, and is never deleted.
        for instance in session.deleted:
            tags_of = self._watched.of(type(instance))
            if tags_of is not None:
                flush.deletes(session.connection(bind_arguments={"mapper": inspect(type(instance))}), instance, tags_of)

    def _on_insert(self, mapper: Any, connection: Connection, instance: Any) -> None:
        flush, tags_of = self._flush_of(instance), self._watched.of(type(instance))
        if flush is not None and tags_of is not None:
            flush.inserts(connection, inspect(instance), tags_of)

    def _on_update(self, mapper: Any, connection: Connection, instance: Any) -> None:
        flush, tags_of = self._flush_of(instance), self._watched.of(type(instance))
        if flush is not None and tags_of is not None:
            flush.updates(connection, inspect(instance), tags_of)

    def _on_delete(self, mapper: Any, connection: Connection, instance: Any) -> None:
        flush, tags_of = self._flush_of(instance), self._watched.of(type(instance))
        if flush is not None and tags_of is not None:
            flush.deletes(connection, instance, tags_of)

    def _on_parent_update(self, mapper: Any, connection: Connection, instance: Any) -> None:
        flush = self._flush_of(instance)
        if flush is not None and self._watched.cascades:
            flush.updates_parent(connection, inspect(instance))

    def _on_parent_delete(self, mapper: Any, connection: Connection, instance: Any) -> None:
        flush = self._flush_of(instance)
        if flush is not None and self._watched.cascades:
            flush.deletes_parent(connection, inspect(instance))

    def _on_after_flush(self, session: Session, context: Any) -> None:
        flush: Flush | None = session.info.pop((self, Flush), None)
        if flush is None:
            return
        for connection, tables in flush.left.items():
            # Now that the rows are written, nobody can drop the triggers before this transaction ends.
            if gone := self._without_triggers(connection, tables):
                self._triggered.clear()
                names = ", ".join(table.name for table in gone)
                raise UnwatchedWrite(
                    f"the triggers of {names} have gone, and what they would have written to the outbox is "
                    f"unknown; roll back and try again"
                )
            self._touched(session).leaves_untold(connection)
        for connection, tags in flush.tags().items():
            if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
                raise UnwatchedWrite(
                    "watched rows were changed with isolation_level='AUTOCOMMIT': without a transaction, the outbox "
                    "cannot be written in the same one"
                )
            row = self._outbox.write(connection, tags)
            self._touched(session).flushed(tags, row, connection.engine)

    def _on_statement(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        """Refuse statements that change watched rows without the unit of work's knowledge."""
        session = self._session_on(connection)
        if session is None or not (names := self._watched.statements.changes(statement)):
            return
        if context.execution_options.get("cacheworkers_unwatched"):
            self._touched(session).leaves_untold(connection)
            return
        flush: Flush | None = session.info.get((self, Flush))
        if flush is not None and flush.is_running:
            table = getattr(getattr(context.compiled, "statement", None), "table", None)
            if "compiled_cache" in context.execution_options and self._watched.knows(table):
                # The unit of work's own, which its hooks have noted.
                flush.updates_again(connection, self._watched.of)
                return
            if table in self._watched.links and flush.links(connection, table, context.compiled_parameters):
                return
        tables = self._watched.affected(statement)
        missing = self._without_triggers(connection, tables, context.execution_options)
        if tables and not missing:
            self._touched(session).leaves_untold(connection)
            return
        wanted = {table.name for table in missing} or names
        raise UnwatchedWrite(
            f"a statement that changes {', '.join(sorted(names))} passes the unit of work by, and its tags are "
            f"unknown; install triggers (cache.triggers) on {', '.join(sorted(wanted))}, or "
            f"give execution_options(cacheworkers_unwatched=True) and invalidate yourself"
        )

    def _on_connection_commit(self, connection: Connection) -> None:
        """Learn what triggers have written, while nobody else sees it: it is invalidated with all the rest."""
        session = self._session_on(connection)
        unit: DirtyTransaction | None = session.info.get(self) if session is not None else None
        if unit is None or not unit.has_untold_on(connection):
            return
        for row, tags in written_by_triggers(connection, self._outbox, self._max_tag_bytes):
            unit.flushed(tags, row, connection.engine)

    def _on_after_commit(self, session: Session) -> None:
        unit: DirtyTransaction | None = session.info.get(self)
        if unit is None or session.get_nested_transaction() is not None:
            return
        tags, rows = unit.taken()
        if not tags:
            return
        try:  # the commit has succeeded: nothing may be raised here
            _drive(self._invalidation(tags))
        except Exception as error:
            self._undelivered(tuple(row for _, row in rows), error)
        else:
            for engine in {engine for engine, _ in rows}:
                self._delivered(engine, tuple(row for where, row in rows if where is engine))

    def _on_rollback(self, session: Session, transaction: SessionTransaction) -> None:
        session.info.pop((self, Flush), None)
        unit: DirtyTransaction | None = session.info.get(self)
        if unit is not None:
            unit.rolled_back(transaction)

    def _on_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        for connection in [each for each, whose in list(self._sessions.items()) if whose() is session]:
            del self._sessions[connection]
        unit: DirtyTransaction | None = session.info.pop(self, None)
        if unit is not None:
            unit.close()

    # -- inside

    def _session_on(self, connection: Connection) -> Session | None:
        """Return the watched session whose transaction is on a connection."""
        reference = self._sessions.get(connection)
        return reference() if reference is not None else None

    def _flush_of(self, instance: Any) -> Flush | None:
        """Return the running flush of an instance's session, if that is watched."""
        session = object_session(instance)
        found: Flush | None = None if session is None else session.info.get((self, Flush))
        return found

    def _touched(self, session: Session) -> DirtyTransaction:
        """Return the session's unit; from now on reads of this context go past the cache."""
        unit: DirtyTransaction | None = session.info.get(self)
        if unit is None:
            self._dirty()
            unit = session.info[self] = DirtyTransaction(session, self._clean)
            enter(unit)
        return unit

    def _connection(self, session: Session) -> Connection:
        """Return the connection on which the watched tables are changed; the outbox is beside them."""
        mapper = next((mapper for _, mapper in self._watched.mappers()), None)
        return session.connection(bind_arguments={"mapper": mapper} if mapper is not None else None)

    def _has_triggers(self, connection: Connection, tables: frozenset[Table]) -> bool:
        """Return whether triggers of all these tables write the outbox themselves; asked once for each engine."""
        if connection.dialect.name != "postgresql":
            return False
        schemas = connection.get_execution_options().get("schema_translate_map") or {}
        where = (connection.engine, frozenset(schemas.items()))
        found = self._triggered.get(where)
        if found is None:
            watched = self._watched.tables()
            found = frozenset(watched) - frozenset(self._without_triggers(connection, watched))
            self._triggered[where] = found
        return tables <= found

    def _without_triggers(
        self, connection: Connection, tables: Iterable[Table], options: Mapping[str, Any] | None = None
    ) -> list[Table]:
        """Return the tables whose triggers are not there now.

        Args:
            options: the statement's, instead of the connection's: they may put tables into other schemas.
        """
        if connection.dialect.name != "postgresql":
            return list(tables)
        from cacheworkers.sql.triggers.postgres_triggers import have_triggers

        schemas = (connection.get_execution_options() if options is None else options).get("schema_translate_map") or {}
        quote = connection.dialect.identifier_preparer.quote
        names = {
            ".".join(quote(name) for name in (schemas.get(table.schema, table.schema), table.name) if name): table
            for table in tables
        }
        found = have_triggers(connection, self._outbox.namespace, list(names))
        return [table for name, table in names.items() if name not in found]


def _drive(flow: Flow[Any]) -> None:
    """Run a flow in a session hook: on the running loop, if it is an AsyncSession's."""
    if concurrency.in_greenlet():
        _await(arun(flow))
    else:
        run(flow)


def _sync_target(sessions: Any) -> Any:
    """Return what SQLAlchemy takes session events for."""
    if isinstance(sessions, async_sessionmaker):
        # Events are the sync session's; a class of its own keeps other sessions out of it.
        inner = sessions.kw.get("sync_session_class") or sessions.class_.sync_session_class
        watched = type(f"Watched{inner.__name__}", (inner,), {})
        sessions.configure(sync_session_class=watched)
        return watched
    if isinstance(sessions, type) and issubclass(sessions, AsyncSession):
        sessions.sync_session_class = type("WatchedSession", (sessions.sync_session_class,), {})
        return sessions.sync_session_class
    if isinstance(sessions, sessionmaker) or (isinstance(sessions, type) and issubclass(sessions, Session)):
        return sessions
    raise ConfigError(f"watch takes a sessionmaker, a Session class or their async kinds, got {sessions!r}")
