"""Flush: what one flush of a watched session changes, gathered while it runs, as tags of old and new rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, Connection, Table, inspect, select
from sqlalchemy.orm import InstanceState, Mapper, Session

from cacheworkers.errors import UnwatchedWrite
from cacheworkers.sql.watch.cascades import Cascades, Change, Values, lock
from cacheworkers.sql.watch.row_values import (
    Before,
    Row,
    after,
    among,
    computed_names,
    fetch,
    is_computed,
    key_names,
    name_of,
    names_of,
    tables_of,
)

#: Column values of one row -> its tags.
TagsOf = Callable[[Any], Iterable[str]]
#: How the rows of a table are described: by a mapped class, or, for association tables, by the columns alone.
Described = Mapping[Table, Sequence[tuple[Mapper[Any] | None, Callable[[Row], list[str]]]]]


class Captured(NamedTuple):
    """An instance that the flush writes: its tags before, and what makes those after."""

    connection: Connection
    old: list[str]
    tags_of: Callable[[Row], list[str]] | None
    was_modified: bool


class Flush:
    """One flush, from its beginning to its last statement."""

    def __init__(
        self,
        session: Session,
        context: Any,
        cascades: Cascades,
        described: Described,
        has_triggers: Callable[[Connection, frozenset[Table]], bool],
    ) -> None:
        """
        Args:
            context: SQLAlchemy's own of this flush.
            has_triggers: whether triggers write the tags of all of some tables, as far as that is known.
        """
        self._session = session
        self._has_triggers = has_triggers
        # Weakly: SQLAlchemy drops it when the flush has ended, also if it had nothing to do.
        self._context = weakref.ref(context)
        self._cascades = cascades
        self._described = described
        self._before = Before(session)
        self._captured: dict[InstanceState[Any], Captured] = {}
        self._changes: list[tuple[Connection, list[str]]] = []
        #: Rows as a cascade leaves them, where the database computes a part of them when it does.
        self._computed: list[tuple[Connection, Table, Mapper[Any] | None, Values, Callable[[Row], list[str]]]] = []
        #: What was left to triggers.
        self.left: dict[Connection, set[Table]] = {}

    @property
    def is_running(self) -> bool:
        """Whether it is writing now."""
        context = self._context()
        transaction = getattr(context, "transaction", None)
        return transaction is not None and transaction.is_active

    def deletes(self, connection: Connection, instance: Any, tags_of: Callable[[Row], list[str]]) -> None:
        """Note an instance that is going to be deleted, or replaced by another of the same key."""
        state: InstanceState[Any] = inspect(instance)
        if self._is_ours(connection, state):
            self._captured[state] = Captured(connection, tags_of(self._before.row(connection, state)), None, True)

    def updates(self, connection: Connection, state: InstanceState[Any], tags_of: Callable[[Row], list[str]]) -> None:
        """Note an instance that is going to be updated, perhaps."""
        if self._is_ours(connection, state):
            is_modified = self._session.is_modified(state.obj())
            old = tags_of(self._before.row(connection, state))
            self._captured[state] = Captured(connection, old, tags_of, is_modified)

    def inserts(self, connection: Connection, state: InstanceState[Any], tags_of: Callable[[Row], list[str]]) -> None:
        """Note an instance that is going to be inserted."""
        if self._is_ours(connection, state):
            self._captured[state] = Captured(connection, [], tags_of, True)

    def updates_again(self, connection: Connection, find: Callable[[type], Any]) -> None:
        """Note instances that only a second UPDATE of the flush writes, before it does."""
        context: Any = self._context()
        for states, _ in list(context.post_update_states.values()):
            for state in states:
                tags_of = find(state.mapper.class_)
                if tags_of is not None and state.key is not None and self._is_ours(connection, state):
                    old = tags_of(self._before.row(connection, state))
                    self._captured[state] = Captured(connection, old, tags_of, True)

    def links(self, connection: Connection, table: Table, parameters: Sequence[Mapping[str, Any]]) -> bool:
        """Note rows of an association table that a statement writes; False if it does not tell which."""
        keys = {column.key for column in table.columns}
        if self._leave(connection, {table}):
            return True
        tags: list[str] = []
        for each in parameters:
            new = {key: value for key, value in each.items() if key in keys}
            old = {key[4:]: value for key, value in each.items() if key[:4] == "old_" and key[4:] in keys}
            if len(new) + len(old) != len(each) or not each:
                return False
            for _, tags_of in self._described[table]:
                for values in filter(None, (old, {**old, **new})):
                    tags += tags_of(Row(table.name, keys, values))
        self._changes.append((connection, tags))
        return True

    def deletes_parent(self, connection: Connection, state: InstanceState[Any]) -> None:
        """Note what the database deletes together with an instance."""
        for table in tables_of(state.mapper):
            if table in self._cascades:
                values = self._referred(table, state, self._before.row(connection, state))
                lock(connection, table, list(values), list(values.values()))
                self._follow(connection, self._cascades.of_delete(connection, table, [values]))

    def updates_parent(self, connection: Connection, state: InstanceState[Any]) -> None:
        """Note what the database changes together with an instance."""
        for table in tables_of(state.mapper):
            if table not in self._cascades:
                continue
            changes = {}
            for column in self._cascades.columns(table):
                name = name_of(state.mapper, column)
                history = state.attrs[name].history if name is not None else None
                if history is None or not history.added or history.deleted == history.added:
                    continue
                [changes[column]] = history.added
                if isinstance(changes[column], ClauseElement):
                    raise UnwatchedWrite(
                        f"{state.mapper.class_.__name__}.{name} is set to an SQL expression, and the database changes "
                        f"other rows with it, whose tags are unknown; set it to a value"
                    )
            if changes:
                values = self._referred(table, state, self._before.row(connection, state))
                self._follow(connection, self._cascades.of_update(connection, table, values, changes))

    def tags(self) -> dict[Connection, list[str]]:
        """Return the tags of all that was written, by connection; each once."""
        changes = list(self._changes)
        for connection, table, mapper, values, tags_of in self._computed:
            row = _row_now(connection, table, mapper, values)
            changes.append((connection, tags_of(row) if row is not None else []))
        for state, (connection, tags, new_tags_of, is_modified) in self._captured.items():
            if new_tags_of is None:
                changes.append((connection, tags))
            elif is_modified or self._session.is_modified(state.obj()):
                new = new_tags_of(after(connection, state, self._before.kept(state)))
                changes.append((connection, [*tags, *new]))
        found: dict[Connection, dict[str, None]] = {}
        for connection, tags in changes:
            if tags:
                found.setdefault(connection, {}).update(dict.fromkeys(tags))
        return {connection: list(tags) for connection, tags in found.items()}

    def _is_ours(self, connection: Connection, state: InstanceState[Any]) -> bool:
        """Return whether an instance is met for the first time, and no trigger writes its tags."""
        return state not in self._captured and not self._leave(connection, tables_of(state.mapper))

    def _leave(self, connection: Connection, tables: Iterable[Any]) -> bool:
        """Return whether the tags of all these tables are left to triggers."""
        affected = frozenset(tables)
        if not self._has_triggers(connection, affected):
            return False
        self.left.setdefault(connection, set()).update(affected)
        return True

    def _referred(self, table: Table, state: InstanceState[Any], row: Row) -> Values:
        columns = self._cascades.columns(table)
        return {column: getattr(row, name) for column in columns if (name := name_of(state.mapper, column)) is not None}

    def _follow(self, connection: Connection, changes: Iterable[Change]) -> None:
        for table, old, new in changes:
            if table in self._described and self._leave(connection, {table}):
                continue
            tags: list[str] = []
            for mapper, tags_of in self._described.get(table, ()):
                tags += tags_of(_described_row(connection, table, mapper, old))
                if new is None:
                    continue
                if any(is_computed(column) for column in new) or (mapper is not None and computed_names(mapper)):
                    self._computed.append((connection, table, mapper, new, tags_of))
                else:
                    tags += tags_of(_described_row(connection, table, mapper, new))
            self._changes.append((connection, tags))


def _described_row(connection: Connection, table: Table, mapper: Mapper[Any] | None, values: Values) -> Row:
    """Return a table's row as a mapped class has it; what other tables add is fetched."""
    if mapper is None:
        return Row(table.name, [column.key for column in table.columns], {c.key: v for c, v in values.items()})
    known = {name: value for column, value in values.items() if (name := name_of(mapper, column)) is not None}
    identity = [known[name] for name in key_names(mapper)]

    def missing() -> Mapping[str, Any]:
        [found] = fetch(connection, mapper, [identity]) or [{}]
        return found

    return Row(mapper.class_.__name__, names_of(mapper), known, missing)


def _row_now(connection: Connection, table: Table, mapper: Mapper[Any] | None, values: Values) -> Row | None:
    """Return a table's row by the key it has now, as this transaction sees it; None if it is gone again."""
    if mapper is not None:
        known = {name: value for column, value in values.items() if (name := name_of(mapper, column)) is not None}
        rows = fetch(connection, mapper, [[known[name] for name in key_names(mapper)]])
        return Row(mapper.class_.__name__, names_of(mapper), rows[0]) if rows else None
    key = list(table.primary_key) or [column for column in values if not is_computed(column)]
    there = connection.execute(select(table).where(among(key, [[values[column] for column in key]]))).first()
    names = table.columns.keys()
    return Row(table.name, names, dict(zip(names, there, strict=True))) if there is not None else None
