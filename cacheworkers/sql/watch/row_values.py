"""Rows: the column values that tags are made of, selected before a flush (locked where possible) and after it.

What a session has in memory may be older than the row: others commit meanwhile, and at READ COMMITTED an UPDATE then
works on values that the session has never seen.  So only keys are taken from memory, and what this very flush sets.
Whatever else a tag is made of is read from the database, and locked as the UPDATE or DELETE that follows locks it:

    here: loads item 1 in group 7    there: moves it to group 8, commits, invalidates both
    here: sets its price, commits    group 8 shows that price, and has to be invalidated

Nor is what this flush sets always what is stored: a type may change a value on its way (`stored_as_given`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Join, Over, Table, and_, bindparam, inspect, literal, or_, select
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.sql.visitors import iterate

from cacheworkers.errors import ConfigError
from cacheworkers.sql.sqlalchemy_internals import set_since_loaded
from cacheworkers.sql.watch.mapped_columns import (
    changed_names,
    computed_names,
    key_names,
    moving_names,
    once_per_mapper,
    row_columns,
    set_names,
    stored_as_given,
)

#: Most rows that one statement locks.
CHUNK = 500


class Row:
    """The column values of one row, old or new, as attributes."""

    # The names are mangled: a column may have any other, `_name` too.
    __slots__ = ("__fetch", "__names", "__title", "__values")

    def __init__(
        self,
        title: str,
        names: Iterable[str],
        values: Mapping[str, Any],
        fetch: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            title: the class or table, for errors.
            names: the columns there are.
            fetch: called once, when one is asked for that `values` does not have.
        """
        self.__title = title
        self.__names = names
        self.__values = values
        self.__fetch = fetch

    def __getattr__(self, name: str) -> Any:
        values = self.__values
        if name not in values and self.__fetch is not None and name in self.__names:
            fetch, self.__fetch = self.__fetch, None
            values = self.__values = {**fetch(), **values}
        try:
            return values[name]
        except KeyError:
            columns = ", ".join(self.__names)
            raise ConfigError(f"{self.__title}.{name} is not a column; a watched row has {columns}") from None


def is_by_key(row: Row) -> bool:
    """Return whether nothing was asked of a row so far but what it was given, its key: nothing was fetched."""
    return row._Row__fetch is not None


class Before:
    """The rows that one flush is about to change or delete, as the database has them.

    They are fetched when the first tag needs more than a key, all of a class together, and stay locked.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: dict[InstanceState[Any], Mapping[str, Any]] = {}
        self._expired: dict[InstanceState[Any], set[str]] = {}
        self._written: dict[InstanceState[Any], Mapping[str, Any]] = {}
        self._set: dict[InstanceState[Any], set[str]] = {}

    def note_written(self, state: InstanceState[Any], names: set[str]) -> None:
        """Note what memory has of an instance right before its statement: a hook after it may change that.

        Args:
            names: its attributes with a net change.
        """
        moving = moving_names(state.mapper)
        self._set.setdefault(state, set()).update(names)
        self._written[state] = {
            name: value
            for name in row_columns(state.mapper)
            if name not in moving and (value := state.dict.get(name)) is not None
        }

    def written(self, state: InstanceState[Any]) -> Mapping[str, Any]:
        """Return what memory had of an instance when it was written, and has of the rest now."""
        return {**state.dict, **self._written.get(state, {})}

    def row(self, connection: Connection, state: InstanceState[Any]) -> Row:
        """Return the row of an instance that has one."""
        mapper = state.mapper
        self._expired[state] = state.expired_attributes.difference(set_since_loaded(state))
        known = {
            name: value
            for name, column, value in zip(key_names(mapper), mapper.primary_key, state.identity or (), strict=True)
            if stored_as_given(column, value)
        }
        return Row(mapper.class_.__name__, row_columns(mapper), known, lambda: self._fetched(connection, state))

    def keeps_key(self, state: InstanceState[Any]) -> bool:
        """Return whether the flush has left an instance's primary key as it was."""
        keys = key_names(state.mapper)
        changed = self._set.get(state, set()) | moving_names(state.mapper)
        return changed.isdisjoint(keys) and not set_names(state, keys)

    def kept(self, state: InstanceState[Any]) -> Mapping[str, Any]:
        """Return what was fetched of a row, and what the flush has neither set nor left to the database since."""
        if not self._set.get(state, set()).isdisjoint(key_names(state.mapper)):
            return {}  # a row may refer to itself, and follow its own key
        changed = state.expired_attributes - self._expired.get(state, set()) | computed_names(state.mapper)
        changed |= self._set.get(state, set())  # one set to an expression may be loaded again by now
        return {name: value for name, value in self._rows.get(state, {}).items() if name not in changed}

    def _fetched(self, connection: Connection, state: InstanceState[Any]) -> Mapping[str, Any]:
        if state not in self._rows:
            self._fetch_all(connection, state.mapper)
        if state not in self._rows:  # not among the session's own: the flush found it by itself
            found = fetch(connection, state.mapper, [state.identity or ()], locks=True)
            self._rows[state] = found[0] if found else _in_memory(state)
        return self._rows[state]

    def _fetch_all(self, connection: Connection, mapper: Mapper[Any]) -> None:
        session = self._session
        states: dict[tuple[Any, ...], InstanceState[Any]] = {}
        deleted: set[InstanceState[Any]] = {inspect(each) for each in session.deleted}  # they may be unhashable
        for state in (*deleted, *(inspect(each) for each in session.dirty)):
            if state.mapper is not mapper or state.identity is None or state in self._rows:
                continue
            if state in deleted or changed_names(state):
                states[tuple(state.identity)] = state
        keys = key_names(mapper)
        for row in fetch(connection, mapper, list(states), locks=True):
            found = states.get(tuple(row[key] for key in keys))
            if found is not None:
                self._rows[found] = row


class After:
    """The rows of one flush as it has written them; what memory does not know is fetched, a class together."""

    def __init__(self, before: Before, written: Sequence[tuple[Connection, InstanceState[Any]]]) -> None:
        self._before = before
        self._written = written
        self._rows: dict[InstanceState[Any], Mapping[str, Any]] = {}

    def row(self, connection: Connection, state: InstanceState[Any]) -> Row:
        """Return the row of an instance that was inserted or updated."""
        mapper = state.mapper
        columns = row_columns(mapper)
        values = self._before.written(state)
        changed = set_names(state)
        kept: Mapping[str, Any] = {}
        if state.key is None:  # inserted: what it has is what was written, and the server made the rest
            known = {name: values[name] for name in columns if name in values}
        else:
            mine = changed.union(key_names(mapper), moving_names(mapper))
            known = {name: values[name] for name in columns if name in values and name in mine}
            kept = self._before.kept(state)
        known = {name: value for name, value in known.items() if stored_as_given(columns[name], value)}
        kept = {name: value for name, value in kept.items() if name not in changed}
        return Row(mapper.class_.__name__, columns, {**kept, **known}, lambda: self._fetched(connection, state))

    def _fetched(self, connection: Connection, state: InstanceState[Any]) -> Mapping[str, Any]:
        mapper = state.mapper
        if state not in self._rows:
            alike = {
                tuple(mapper.primary_key_from_instance(each.obj())): each
                for where, each in self._written
                if where is connection and each.mapper is mapper
            }
            keys = key_names(mapper)
            for row in fetch(connection, mapper, list(alike)):
                found = alike.get(tuple(row[key] for key in keys))
                if found is not None:
                    self._rows[found] = row
        if state not in self._rows:  # its key is stored as another value
            rows = fetch(connection, mapper, [mapper.primary_key_from_instance(state.obj())])
            # A mapping that does not select its own row, by a join that has no match say: what memory has must do.
            self._rows[state] = rows[0] if rows else {name: state.dict.get(name) for name in row_columns(mapper)}
        return self._rows[state]


def fetch(
    connection: Connection, mapper: Mapper[Any], identities: Sequence[Sequence[Any]], *, locks: bool = False
) -> list[Mapping[str, Any]]:
    """Return rows by their primary keys, as this transaction sees them; those that are not there are left out."""
    names = tuple(row_columns(mapper))
    found: list[Mapping[str, Any]] = []
    locks_alone = locks and not _can_lock(mapper)
    locks = locks and not locks_alone
    for at in range(0, len(identities), CHUNK):
        chunk = identities[at : at + CHUNK]
        if locks_alone:
            _lock(connection, mapper, chunk)
        if len(mapper.primary_key) == 1:
            rows = connection.execute(_statements(mapper)[locks], {"keys": [values[0] for values in chunk]})
        else:
            rows = connection.execute(_select(mapper, among(mapper.primary_key, chunk), locks))
        found += [dict(zip(names, row, strict=True)) for row in rows]
    return found


@once_per_mapper
def _statements(mapper: Mapper[Any]) -> dict[bool, Any]:
    """Return what selects rows by a list `keys`, without and with a lock: making it takes as long as its round trip."""
    where = mapper.primary_key[0].in_(bindparam("keys", expanding=True))
    return {locks: _select(mapper, where, locks) for locks in (False, True)}


def _select(mapper: Mapper[Any], where: Any, locks: bool) -> Any:
    statement = select(*row_columns(mapper).values()).select_from(mapper.persist_selectable).where(where)
    # The lock of an UPDATE, and in one order, so that two sessions cannot each wait for the other.
    return statement.order_by(*mapper.primary_key).with_for_update(key_share=True) if locks else statement


@once_per_mapper
def _can_lock(mapper: Mapper[Any]) -> bool:
    """Return whether PostgreSQL locks the rows of a class where it selects them."""
    selected = (mapper.persist_selectable, *row_columns(mapper).values())
    parts = [part for each in selected if not isinstance(each, Column) for part in iterate(each)]
    return not any(isinstance(part, Over) or (isinstance(part, Join) and (part.isouter or part.full)) for part in parts)


def _lock(connection: Connection, mapper: Mapper[Any], identities: Sequence[Sequence[Any]]) -> None:
    """Lock the rows of the table that has a class's primary key."""
    key = mapper.primary_key
    if all(isinstance(column.table, Table) and column.table is key[0].table for column in key):
        statement = select(literal(1)).select_from(key[0].table).where(among(key, identities)).order_by(*key)
        connection.execute(statement.with_for_update(key_share=True)).all()


def among(columns: Sequence[Any], options: Sequence[Sequence[Any]]) -> Any:
    """Return the condition that columns have one of some lists of values."""
    if len(columns) == 1:
        return columns[0].in_([values[0] for values in options])
    return or_(*(and_(*(c == value for c, value in zip(columns, values, strict=True))) for values in options))


def _in_memory(state: InstanceState[Any]) -> Mapping[str, Any]:
    """Return what a session knows of a row that is no longer there; its flush is about to fail."""
    values: dict[str, Any] = dict.fromkeys(row_columns(state.mapper))
    for name in values:
        history = state.attrs[name].history
        known = (*history.deleted, *history.unchanged)
        values[name] = known[0] if known else None
    return values
