"""Changes of rows outside mapped instances: by cascades, association tables and single-row Core statements.

A row of a table may have several descriptions: by the mapped classes of that table, each with tags of its own, or, for
an association table, by the columns alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, select
from sqlalchemy.orm import Mapper

from cacheworkers.sql.watch.cascades import Change, Values
from cacheworkers.sql.watch.mapped_columns import is_computed, name_of, row_columns, stored_as_given
from cacheworkers.sql.watch.row_values import Row, among
from cacheworkers.sql.watch.tag_rules import TagRule, TagRules, TagsByMode, add

#: Table -> the classes that describe its rows, or None for the columns alone, and their tags.
Described = Mapping[Table, Sequence[tuple[Mapper[Any] | None, TagRules]]]


class _RowGone(Exception):
    """A row is not there: it has no tags."""


class RowChanges:
    """What becomes of some rows, and their tags."""

    def __init__(self, described: Described) -> None:
        self._described = described
        self._found: list[tuple[Connection, TagsByMode]] = []
        #: Rows that are looked at when all is written, by what is known of them.
        self._later: list[tuple[Connection, Sequence[TagRule], Row]] = []
        #: Whether triggers write the tags of a table's rows.
        self.leaves: Callable[[Connection, Table], bool] = lambda connection, table: False

    def deleted(self, connection: Connection, table: Table, values: Values, *, are_stored: bool = False) -> None:
        """Note a row that is about to go.

        Args:
            values: some of its values, which identify it.
            are_stored: whether they were read from the database.
        """
        for mapper, rules in self._described.get(table, ()):
            self._note(connection, rules.concerning(None), _row(connection, table, mapper, values, are_stored))

    def all_deleted(self, connection: Connection, table: Table, values: Values) -> None:
        """Note all rows with some values that are about to go."""
        if all(column in values for column in table.primary_key or table.columns):
            self.deleted(connection, table, values)
            return
        for row in connection.execute(select(table).where(among(list(values), [list(values.values())]))):
            self.deleted(connection, table, dict(zip(table.columns, row, strict=True)), are_stored=True)

    def inserted(self, connection: Connection, table: Table, values: Values) -> None:
        """Note a row that is about to come."""
        for mapper, rules in self._described.get(table, ()):
            row = _row(connection, table, mapper, values, are_stored=False)
            self._later.append((connection, rules.concerning(None), row))

    def updated(self, connection: Connection, table: Table, old: Values, new: Values, changed: Iterable[Any]) -> None:
        """Note a row that is about to change.

        Args:
            old: its values now, read from the database.
            new: what is known of them afterwards, its primary key at least.
            changed: the columns.
        """
        for mapper, rules in self._described.get(table, ()):
            concerned = rules.concerning({name for each in changed if (name := _name(mapper, each)) is not None})
            if concerned:
                self._note(connection, concerned, _row(connection, table, mapper, old, are_stored=True))
                # A type may change the value that another row's key was set to on its way here, too.
                self._later.append((connection, concerned, _row(connection, table, mapper, new, are_stored=False)))

    def follow(self, connection: Connection, changes: Iterable[Change]) -> None:
        """Note what the database changes by itself."""
        for table, old, new in changes:
            if table in self._described and self.leaves(connection, table):
                continue
            if new is None:
                self.deleted(connection, table, old, are_stored=True)
                continue
            known = {column: value for column, value in new.items() if not is_computed(column)}
            self.updated(
                connection, table, old, known, [each for each in new if is_computed(each) or new[each] != old[each]]
            )

    def tags(self) -> list[tuple[Connection, TagsByMode]]:
        """Return the tags of all of them, old and new, once all is written."""
        for connection, rules, row in self._later:
            self._note(connection, rules, row)
        self._later.clear()
        return self._found

    def _note(self, connection: Connection, rules: Iterable[TagRule], row: Row) -> None:
        tags: TagsByMode = {}
        with contextlib.suppress(_RowGone):
            add(tags, rules, row)
            self._found.append((connection, tags))


def _row(connection: Connection, table: Table, mapper: Mapper[Any] | None, values: Values, are_stored: bool) -> Row:
    """Return a table's row as a class has it, by some of its values; what these do not hold is fetched."""
    columns: Mapping[str, Any] = row_columns(mapper) if mapper is not None else dict(table.columns.items())
    known = {
        name: value
        for column, value in values.items()
        if (name := _name(mapper, column)) is not None and (are_stored or stored_as_given(column, value))
    }
    key = list(table.primary_key)
    if any(column not in values for column in key) or not key:
        key = list(values)

    def missing() -> Mapping[str, Any]:
        source = table if mapper is None else mapper.persist_selectable
        statement = select(*columns.values()).select_from(source).where(among(key, [[values[each] for each in key]]))
        row = connection.execute(statement).first()
        if row is None:
            raise _RowGone
        return dict(zip(columns, row, strict=True))

    return Row(table.name if mapper is None else mapper.class_.__name__, columns, known, missing)


def _name(mapper: Mapper[Any] | None, column: Any) -> str | None:
    """Return what a class calls a column."""
    key: str = column.key
    return key if mapper is None else name_of(mapper, column)
