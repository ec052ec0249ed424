"""Watch: what a unit of work inserts, updates and deletes becomes tags, from old and new values.

The tags go into the outbox in the same transaction, with each flush.  After the commit they are invalidated at once;
after a rollback nothing is left of them.  Meanwhile the transaction's own context reads past the cache.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, event, inspect, select
from sqlalchemy.exc import NoInspectionAvailable, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_session, async_sessionmaker
from sqlalchemy.orm import Mapper, Session, SessionTransaction, object_session, sessionmaker
from sqlalchemy.util.concurrency import await_, in_greenlet

from cacheworkers.core.tags import check_tag
from cacheworkers.errors import ConfigError, UnwatchedWrite
from cacheworkers.flows.driver import Flow, arun, run
from cacheworkers.sql.outbox import Outbox

log = logging.getLogger("cacheworkers")

#: Column values of one row -> its tags.
TagsOf = Callable[[Any], Iterable[str]]
AnySession = Session | AsyncSession
_KEY = "cacheworkers"
_units: contextvars.ContextVar[tuple[weakref.ref[Unit], ...]] = contextvars.ContextVar("cacheworkers_units", default=())


class Row:
    """The column values of one row, old or new, as attributes; nothing is loaded by looking at it."""

    __slots__ = ("_name", "_values")

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name = name
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            columns = ", ".join(self._values)
            raise ConfigError(f"{self._name}.{name} is no column; a watched row has {columns}") from None


class Unit:
    """One session's open transaction, once it has changed something that is watched.

    Attributes:
        session: whose it is.
    """

    def __init__(self, session: Session, watch: Watch) -> None:
        self.session = session
        self._watch = watch
        self._written: list[tuple[SessionTransaction, tuple[str, ...], int]] = []
        self._pending: list[tuple[Any, Callable[[], Iterable[str]]]] = []
        self.is_open = True

    @property
    def async_session(self) -> AsyncSession | None:
        """The AsyncSession around it, if there is one."""
        return async_session(self.session)

    @property
    def tags(self) -> frozenset[str]:
        """What it has written so far and not committed."""
        return frozenset(tag for _, tags, _ in self._written for tag in tags)

    @property
    def has_pending(self) -> bool:
        """Whether it has changes that no flush has written yet."""
        session = self.session
        changed = itertools.chain(session.new, session.dirty, session.deleted)
        return any(self._watch.mapped(type(each)) is not None for each in changed)

    def flushed(self, tags: Sequence[str], row: int) -> None:
        """Note what a flush wrote."""
        session = self.session
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        self._written.append((transaction, tuple(tags), row))

    def rolled_back(self, transaction: SessionTransaction) -> None:
        """Forget what was written within a transaction or savepoint."""
        self._written = [each for each in self._written if transaction not in _chain(each[0])]

    def taken(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return tags and rows that are committed now, and forget them."""
        written, self._written = self._written, []
        return tuple(dict.fromkeys(tag for _, tags, _ in written for tag in tags)), tuple(row for _, _, row in written)


def dirty_here() -> Unit | None:
    """Return the unit of this context's open transaction that has changed what is watched; None in most contexts."""
    for reference in reversed(_units.get()):
        unit = reference()
        if unit is not None and unit.is_open:
            return unit
    return None


class Watch:
    """The hooks of one cache in the user's sessions."""

    def __init__(
        self,
        mapping: Mapping[Any, TagsOf],
        outbox: Outbox,
        *,
        max_tag_bytes: int,
        invalidation: Callable[[tuple[str, ...]], Flow[Any]],
        delivered: Callable[[Session, tuple[int, ...]], None],
        undelivered: Callable[[tuple[int, ...], Exception], None],
        dirty: Callable[[], None],
        clean: Callable[[], None],
    ) -> None:
        """
        Args:
            mapping: mapped class or association `Table` -> row to tags.
            invalidation: makes the flow that invalidates tags, once they are committed.
            delivered: called with the outbox rows when that has succeeded; `undelivered` when it has failed.
            dirty, clean: called when a transaction first changes what is watched, and when it has ended.

        Raises:
            ConfigError: a key is no mapped class and no `Table`.
        """
        self._outbox = outbox
        self._max_tag_bytes = max_tag_bytes
        self._invalidation = invalidation
        self._delivered = delivered
        self._undelivered = undelivered
        self._dirty = dirty
        self._clean = clean
        self._classes: dict[type, TagsOf] = {}
        self._tables: dict[Table, TagsOf] = {}
        self._of_class: dict[type, TagsOf | None] = {}
        for key, tags_of in mapping.items():
            if isinstance(key, Table):
                self._tables[key] = tags_of
                continue
            try:
                mapper: Any = inspect(key)
            except NoInspectionAvailable:
                mapper = None
            if not isinstance(mapper, Mapper):
                raise ConfigError(f"watch takes mapped classes and tables, {key!r} is neither")
            self._classes[key] = tags_of
        self._watched_tables: set[Any] = set(self._tables)
        for mapper in map(inspect, self._classes):
            self._watched_tables.update(mapper.tables)
        self._triggered: dict[Any, frozenset[str]] = {}
        self._target: type = Session

    def mapped(self, kind: type) -> TagsOf | None:
        """Return the tags function of a class, or that of the nearest watched class above it."""
        try:
            return self._of_class[kind]
        except KeyError:
            found = next((self._classes[each] for each in kind.__mro__ if each in self._classes), None)
            self._of_class[kind] = found
            return found

    def install(self, sessions: Any, others: Sequence[Watch] = (), *, check: bool = True) -> None:
        """Hook into a sessionmaker, a Session class, or their async kinds.

        Raises:
            ConfigError: it is none of these, one of `others` watches it already, or the outbox table is not there.
        """
        target = _sync_target(sessions)
        self._target = target.class_ if isinstance(target, sessionmaker) else target
        if any(issubclass(self._target, other._target) for other in others):
            raise ConfigError(f"{sessions!r} is watched already; give all classes in one mapping")
        for engine in _engines(sessions) if check else ():
            try:
                self._outbox.check(engine)
            except SQLAlchemyError as error:
                log.warning("the outbox of %r could not be checked: %s", engine.url, error)
        hooks: dict[str, Callable[..., Any]] = {
            "transient_to_pending": self._on_pending,
            "before_flush": self._on_before_flush,
            "after_flush": self._on_after_flush,
            "do_orm_execute": self._on_execute,
            "after_commit": self._on_after_commit,
            "after_soft_rollback": self._on_rollback,
            "after_transaction_end": self._on_end,
        }
        for name, hook in hooks.items():
            event.listen(target, name, hook)
        for key in self._classes:
            mapper: Any = inspect(key)
            for attribute in mapper.column_attrs:
                event.listen(getattr(key, attribute.key), "set", self._on_set, propagate=True)

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
        """
        if isinstance(session, AsyncSession):
            raise ConfigError("an AsyncSession is given to ainvalidate(session=...), not to invalidate")
        for tag in tags:
            check_tag(tag, self._max_tag_bytes)
        row = self._outbox.write(self._connection(session), tags)
        self._touched(session).flushed(tags, row)

    # -- hooks

    def _on_set(self, target: Any, *_: Any) -> None:
        session = object_session(target)
        if session is not None and self.covers(session):
            self._touched(session)

    def _on_pending(self, session: Session, instance: Any) -> None:
        if self.mapped(type(instance)) is not None:
            self._touched(session)

    def _on_before_flush(self, session: Session, context: Any, instances: Any) -> None:
        changes: list[tuple[Any, TagsOf]] = []
        tags: list[str] = []
        triggered = self._tables_with_triggers(session)
        for kind, group in (("new", session.new), ("dirty", session.dirty), ("deleted", session.deleted)):
            for instance in group:
                if kind == "dirty" and not session.is_modified(instance):
                    continue
                self._collect_links(session, instance, kind, changes, triggered)
                tags_of = self.mapped(type(instance))
                if tags_of is None or self._is_triggered(type(instance), triggered):
                    continue
                if kind != "new":
                    tags += self._tags(tags_of, _old(session, instance))
                if kind != "deleted":
                    changes.append((instance, tags_of))
        if tags or changes:
            unit = self._touched(session)
            unit._pending = [(None, lambda tags=tuple(tags): tags)]  # type: ignore[misc]  # bound now
            for instance, tags_of in changes:
                unit._pending.append((instance, lambda i=instance, t=tags_of: self._tags(t, _new(session, i))))  # type: ignore[misc]

    def _on_after_flush(self, session: Session, context: Any) -> None:
        unit: Unit | None = session.info.get(_KEY)
        if unit is None or not unit._pending:
            return
        pending, unit._pending = unit._pending, []
        tags = list(dict.fromkeys(tag for _, found in pending for tag in found()))
        if tags:
            unit.flushed(tags, self._outbox.write(self._connection(session), tags))

    def _on_execute(self, state: Any) -> None:
        """Refuse statements that change watched rows without the unit of work's knowledge."""
        if not (state.is_insert or state.is_update or state.is_delete):
            return
        if state.execution_options.get("cacheworkers_unwatched"):
            return
        table: Any = getattr(state.statement, "table", None)
        if table not in self._watched_tables:
            return
        if table.name in self._tables_with_triggers(state.session):
            return
        raise UnwatchedWrite(
            f"a bulk statement on {table.name} passes the unit of work by, and its tags are unknown; install triggers "
            f"(cache.triggers), or give execution_options(cacheworkers_unwatched=True) and invalidate yourself"
        )

    def _on_after_commit(self, session: Session) -> None:
        unit: Unit | None = session.info.get(_KEY)
        if unit is None or session.get_nested_transaction() is not None:
            return
        tags, rows = unit.taken()
        if not tags:
            return
        try:  # the commit has succeeded: nothing may be raised here
            _drive(self._invalidation(tags))
        except Exception as error:
            self._undelivered(rows, error)
        else:
            self._delivered(session, rows)

    def _on_rollback(self, session: Session, transaction: SessionTransaction) -> None:
        unit: Unit | None = session.info.get(_KEY)
        if unit is not None:
            unit._pending = []
            unit.rolled_back(transaction)

    def _on_end(self, session: Session, transaction: SessionTransaction) -> None:
        unit: Unit | None = session.info.get(_KEY)
        if unit is not None and transaction.parent is None:
            del session.info[_KEY]
            unit.is_open = False
            self._clean()

    # -- inside

    def _touched(self, session: Session) -> Unit:
        """Return the session's unit; from now on reads of this context go past the cache."""
        unit: Unit | None = session.info.get(_KEY)
        if unit is None:
            unit = session.info[_KEY] = Unit(session, self)
            self._dirty()
            open_units = tuple(each for each in _units.get() if (found := each()) is not None and found.is_open)
            _units.set((*open_units, weakref.ref(unit)))
        return unit

    def _connection(self, session: Session) -> Connection:
        """Return the connection on which the watched tables are changed; the outbox is beside them."""
        mapper: Any = inspect(next(iter(self._classes))) if self._classes else None
        where = {"mapper": mapper} if mapper is not None else None
        return session.connection(bind_arguments=where)

    def _tags(self, tags_of: TagsOf, row: Row) -> list[str]:
        found = tags_of(row)
        if isinstance(found, str):
            raise ConfigError(f"a watch function returns a collection of tags, got the text {found!r}")
        return [check_tag(tag, self._max_tag_bytes) for tag in found]

    def _collect_links(
        self, session: Session, instance: Any, kind: str, changes: list[Any], triggered: frozenset[str]
    ) -> None:
        """Note rows of watched association tables that come or go with an instance's collections."""
        if not self._tables:
            return
        state: Any = inspect(instance)
        for relation in state.mapper.relationships:
            table: Any = relation.secondary
            if table not in self._tables or table.name in triggered:
                continue
            history = state.attrs[relation.key].load_history() if kind != "new" else state.attrs[relation.key].history
            others = [*history.added, *history.deleted]
            if kind == "deleted":
                others += history.unchanged
            for other in others:
                if other is not None:
                    changes.append((_Link(relation, instance, other), self._tables[table]))

    def _is_triggered(self, kind: type, triggered: frozenset[str]) -> bool:
        mapper: Any = inspect(kind)
        return bool(triggered) and all(table.name in triggered for table in mapper.tables)

    def _tables_with_triggers(self, session: Session) -> frozenset[str]:
        """Return the tables whose triggers write the outbox themselves; asked once for each engine."""
        from cacheworkers.sql.postgres import tables_with_triggers

        connection = self._connection(session)
        if connection.dialect.name != "postgresql":
            return frozenset()
        found = self._triggered.get(connection.engine)
        if found is None:
            found = self._triggered[connection.engine] = tables_with_triggers(connection, self._outbox.namespace)
        return found


class _Link:
    """A row of an association table, of two instances that may not have their keys yet."""

    def __init__(self, relation: Any, one: Any, other: Any) -> None:
        self.relation, self.one, self.other = relation, one, other

    def row(self) -> Row:
        """Return its column values."""
        values: dict[str, Any] = {}
        for pairs, instance in (
            (self.relation.synchronize_pairs, self.one),
            (self.relation.secondary_synchronize_pairs, self.other),
        ):
            mapper: Any = inspect(instance).mapper
            for column, linked in pairs:
                values[linked.key] = getattr(instance, mapper.get_property_by_column(column).key)
        return Row(self.relation.secondary.name, values)


def _old(session: Session, instance: Any) -> Row:
    """Return an instance's row as the transaction knows it before this flush."""
    state: Any = inspect(instance)
    values: dict[str, Any] = {}
    for attribute in state.mapper.column_attrs:
        history = state.attrs[attribute.key].history
        if history.deleted:
            values[attribute.key] = history.deleted[0]
        elif not history.added and history.unchanged:
            values[attribute.key] = history.unchanged[0]
        else:
            return _fetched(session, state)  # expired, or overwritten before it was loaded
    return Row(state.mapper.class_.__name__, values)


def _new(session: Session, instance: Any) -> Row:
    """Return an instance's row as it was just flushed."""
    if isinstance(instance, _Link):
        return instance.row()
    state: Any = inspect(instance)
    keys = [attribute.key for attribute in state.mapper.column_attrs]
    values = {key: state.dict[key] for key in keys if key in state.dict}
    if len(values) < len(keys):
        return _fetched(session, state)  # the server computed some
    return Row(state.mapper.class_.__name__, values)


def _fetched(session: Session, state: Any) -> Row:
    """Return an instance's row from the database, as this transaction sees it."""
    mapper = state.mapper
    keys = [attribute.key for attribute in mapper.column_attrs]
    identity = state.identity or mapper.primary_key_from_instance(state.obj())
    where = [column == value for column, value in zip(mapper.primary_key, identity, strict=True)]
    columns = [attribute.columns[0] for attribute in mapper.column_attrs]
    statement = select(*columns).select_from(mapper.persist_selectable).where(*where)
    found = session.connection().execute(statement).one_or_none()
    values = dict.fromkeys(keys) if found is None else dict(zip(keys, found, strict=True))
    return Row(mapper.class_.__name__, values)


def _drive(flow: Flow[Any]) -> None:
    """Run a flow in a session hook: on the running loop, if it is an AsyncSession's."""
    if in_greenlet():
        await_(arun(flow))
    else:
        run(flow)


def _chain(transaction: SessionTransaction | None) -> Iterator[SessionTransaction]:
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


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


def _engines(sessions: Any) -> Iterator[Engine]:
    """Yield the engines that a factory binds its sessions to; async ones are checked by their first transaction."""
    bind = getattr(sessions, "kw", {}).get("bind")
    if isinstance(bind, Engine) and not isinstance(bind, AsyncEngine):
        yield bind
