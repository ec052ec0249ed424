"""Rows: the column values that tags are made of, as they were before a flush and as they are after it.

What a session has in memory may be older than the row: others commit meanwhile, and at READ COMMITTED an UPDATE then
works on values that the session has never seen.  So only keys are taken from memory, and what this very flush sets.
Whatever else a tag is made of is read from the database, and locked as the UPDATE or DELETE that follows locks it:

    here: loads item 1 in group 7    there: moves it to group 8, commits, invalidates both
    here: sets its price, commits    group 8 shows that price, and has to be invalidated
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Column, Connection, Table, and_, bindparam, inspect, or_, select
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.exc import UnmappedColumnError

from cacheworkers.errors import ConfigError

#: Most rows that one statement locks.
CHUNK = 500
_statements: weakref.WeakKeyDictionary[Mapper[Any], dict[bool, Any]] = weakref.WeakKeyDictionary()


class Row:
    """The column values of one row, old or new, as attributes."""

    __slots__ = ("_fetch", "_name", "_names", "_values")

    def __init__(
        self,
        name: str,
        names: Iterable[str],
        values: Mapping[str, Any],
        fetch: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            names: the columns there are.
            fetch: called once, when one is asked for that `values` does not have.
        """
        self._name = name
        self._names = names
        self._values = values
        self._fetch = fetch

    def __getattr__(self, name: str) -> Any:
        values = self._values
        if name not in values and self._fetch is not None and name in self._names:
            fetch, self._fetch = self._fetch, None
            values = self._values = {**fetch(), **values}
        try:
            return values[name]
        except KeyError:
            columns = ", ".join(self._names)
            raise ConfigError(f"{self._name}.{name} is no column; a watched row has {columns}") from None


class Before:
    """The rows that one flush is about to change or delete, as the database has them.

    They are fetched when the first tag needs more than a key, all of a class together, and stay locked.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: dict[InstanceState[Any], Mapping[str, Any]] = {}
        self._expired: dict[InstanceState[Any], set[str]] = {}

    def row(self, connection: Connection, state: InstanceState[Any]) -> Row:
        """Return the row of an instance that has one."""
        mapper = state.mapper
        identity = state.identity or ()
        self._expired[state] = state.expired_attributes & state.unmodified
        known = dict(zip(key_names(mapper), identity, strict=True))
        return Row(mapper.class_.__name__, names_of(mapper), known, lambda: self._fetched(connection, state))

    def kept(self, state: InstanceState[Any]) -> Mapping[str, Any]:
        """Return what was fetched of a row, and what the flush has not left to the database since."""
        changed = state.expired_attributes - self._expired.get(state, set()) | computed_names(state.mapper)
        return {name: value for name, value in self._rows.get(state, {}).items() if name not in changed}

    def _fetched(self, connection: Connection, state: InstanceState[Any]) -> Mapping[str, Any]:
        if state not in self._rows:
            self._fetch_all(connection, state.mapper)
        if state not in self._rows:  # not among the session's own: a flush has come upon it by itself
            found = fetch(connection, state.mapper, [state.identity or ()], locks=True)
            self._rows[state] = found[0] if found else _in_memory(state)
        return self._rows[state]

    def _fetch_all(self, connection: Connection, mapper: Mapper[Any]) -> None:
        session = self._session
        states: dict[tuple[Any, ...], InstanceState[Any]] = {}
        for instance in (*session.deleted, *(each for each in session.dirty if session.is_modified(each))):
            state: InstanceState[Any] = inspect(instance)
            if state.mapper is mapper and state.identity is not None and state not in self._rows:
                states[tuple(state.identity)] = state
        keys = key_names(mapper)
        for row in fetch(connection, mapper, list(states), locks=True):
            found = states.get(tuple(row[key] for key in keys))
            if found is not None:
                self._rows[found] = row


def after(connection: Connection, state: InstanceState[Any], kept: Mapping[str, Any]) -> Row:
    """Return an instance's row as it was just flushed.

    Args:
        kept: what was fetched of it before, and was not changed without this session's knowledge.
    """
    mapper = state.mapper
    names = names_of(mapper)
    values = state.dict
    if state.key is None:  # inserted: what it has is what was written, and the server made the rest
        known = {name: values[name] for name in names if name in values}
    else:
        keys = key_names(mapper)
        moving = _moving(mapper)
        known = {
            name: values[name]
            for name in names
            if name in values and (name in keys or name in moving or state.attrs[name].history.has_changes())
        }
    known = {name: value for name, value in known.items() if not isinstance(value, ClauseElement)}

    def missing() -> Mapping[str, Any]:
        identity = mapper.primary_key_from_instance(state.obj())
        [found] = fetch(connection, mapper, [identity]) or [{}]
        return found

    return Row(mapper.class_.__name__, names, {**kept, **known}, missing)


def fetch(
    connection: Connection, mapper: Mapper[Any], identities: Sequence[Sequence[Any]], *, locks: bool = False
) -> list[Mapping[str, Any]]:
    """Return rows by their primary keys, as this transaction sees them; those that are not there are left out."""
    names = names_of(mapper)
    found: list[Mapping[str, Any]] = []
    for at in range(0, len(identities), CHUNK):
        chunk = identities[at : at + CHUNK]
        if len(mapper.primary_key) == 1:
            rows = connection.execute(_statement(mapper, locks), {"keys": [values[0] for values in chunk]})
        else:
            rows = connection.execute(_select(mapper, among(mapper.primary_key, chunk), locks))
        found += [dict(zip(names, row, strict=True)) for row in rows]
    return found


def _statement(mapper: Mapper[Any], locks: bool) -> Any:
    """Return what selects rows by a list `keys`; made once, for it takes as long as its round trip."""
    made = _statements.setdefault(mapper, {})
    if locks not in made:
        made[locks] = _select(mapper, mapper.primary_key[0].in_(bindparam("keys", expanding=True)), locks)
    return made[locks]


def _select(mapper: Mapper[Any], where: Any, locks: bool) -> Any:
    columns = [attribute.columns[0] for attribute in mapper.column_attrs]
    statement = select(*columns).select_from(mapper.persist_selectable).where(where)
    # The lock of an UPDATE, and in one order, so that two sessions cannot each wait for the other.
    return statement.order_by(*mapper.primary_key).with_for_update(key_share=True) if locks else statement


def among(columns: Sequence[Any], options: Sequence[Sequence[Any]]) -> Any:
    """Return the condition that columns have one of some lists of values."""
    if len(columns) == 1:
        return columns[0].in_([values[0] for values in options])
    return or_(*(and_(*(c == value for c, value in zip(columns, values, strict=True))) for values in options))


def names_of(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the attributes of a mapped class that are columns."""
    return tuple(attribute.key for attribute in mapper.column_attrs)


def tables_of(mapper: Mapper[Any]) -> list[Table]:
    """Return the tables of a mapped class, those it inherits too."""
    return [table for table in mapper.tables if isinstance(table, Table)]


def name_of(mapper: Mapper[Any], column: Any) -> str | None:
    """Return the attribute of a mapped class that is a column; None if it has none."""
    try:
        return mapper.get_property_by_column(column).key
    except UnmappedColumnError:
        return None


def key_names(mapper: Mapper[Any]) -> list[str]:
    """Return the attributes of a mapped class's primary key, in its order."""
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def is_computed(column: Any) -> bool:
    """Return whether the database works a column out anew when its row changes: an expression counts too."""
    if not isinstance(column, Column):
        return True
    on_update: Any = column.onupdate
    is_sql = on_update is not None and (on_update.is_clause_element or on_update.is_sequence)
    return is_sql or column.computed is not None or column.server_onupdate is not None


def computed_names(mapper: Mapper[Any]) -> set[str]:
    """Return the attributes whose values an UPDATE leaves to the database, whatever it sets."""
    return {each.key for each in mapper.column_attrs if any(is_computed(column) for column in each.columns)}


def _moving(mapper: Mapper[Any]) -> set[str]:
    """Return the attributes that a flush changes without a trace in their history."""
    return {
        attribute.key
        for attribute in mapper.column_attrs
        for column in attribute.columns
        if getattr(column, "onupdate", None) is not None or column is mapper.version_id_col
    }


def _in_memory(state: InstanceState[Any]) -> Mapping[str, Any]:
    """Return what a session knows of a row that is no longer there; its flush is about to fail."""
    values: dict[str, Any] = dict.fromkeys(names_of(state.mapper))
    for name in values:
        history = state.attrs[name].history
        known = (*history.deleted, *history.unchanged)
        values[name] = known[0] if known else None
    return values
