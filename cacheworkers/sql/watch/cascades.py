"""Cascades: rows that the database itself changes, because a row is deleted or renamed that they refer to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, ForeignKeyConstraint, Table, literal, select
from sqlalchemy.exc import NoReferencedColumnError, NoReferencedTableError

from cacheworkers.errors import ConfigError
from cacheworkers.sql.watch.row_values import CHUNK, among

_INERT = (None, "NO ACTION", "RESTRICT")
Values = Mapping[Any, Any]


class Change(NamedTuple):
    """A row of `table` that goes, or becomes `new`; by column."""

    table: Table
    old: Values
    new: Values | None


class Cascades:
    """What happens to some tables through foreign keys `ON DELETE` and `ON UPDATE`, as their metadata has them."""

    def __init__(self, tables: Iterable[Table]) -> None:
        """
        Raises:
            ConfigError: a key sets a default, which only the database knows.
        """
        self._to: dict[Table, list[ForeignKeyConstraint]] = {}
        #: Tables that may not be truncated: one of the tables refers to them, whatever the key says.
        self.truncating: set[Table] = set()
        affected = list(tables)
        seen = set(affected)
        while affected:
            table = affected.pop()
            for key in _keys(table):
                referred = key.referred_table
                self.truncating.add(referred)
                actions = (_action(key.ondelete), _action(key.onupdate))
                if "SET DEFAULT" in actions:
                    raise ConfigError(
                        f"the foreign key of {table.name} to {referred.name} is SET DEFAULT, which watched sessions "
                        f"cannot follow; use triggers (cache.triggers) for {table.name}"
                    )
                if any(action not in _INERT for action in actions) and key not in self._to.get(referred, ()):
                    self._to.setdefault(referred, []).append(key)
                    if referred not in seen:
                        seen.add(referred)
                        affected.append(referred)

    def __bool__(self) -> bool:
        return bool(self._to)

    def __contains__(self, table: Table) -> bool:
        return table in self._to

    def tables(self, event: str) -> set[Table]:
        """Return the tables whose `"ondelete"` or `"onupdate"` changes others."""
        return {
            table for table, keys in self._to.items() if any(_action(getattr(k, event)) not in _INERT for k in keys)
        }

    def columns(self, table: Table) -> set[Any]:
        """Return the columns of a table that keys refer to."""
        return {element.column for key in self._to.get(table, ()) for element in key.elements}

    def reached(self, tables: Iterable[Table], events: Sequence[str]) -> set[Table]:
        """Return the tables that the database may change when rows of some others are.

        Args:
            events: "ondelete", "onupdate": what happens to those rows.
        """
        found: set[Table] = set()
        waiting = list(tables)
        while waiting:
            for key in self._to.get(waiting.pop(), ()):
                if key.table not in found and any(_action(getattr(key, event)) not in _INERT for event in events):
                    found.add(key.table)
                    waiting.append(key.table)
        return found

    def of_delete(
        self, connection: Connection, table: Table, rows: Sequence[Values], seen: set[Any] | None = None
    ) -> Iterator[Change]:
        """Yield what the deletion of rows is going to change, and lock it.

        Args:
            rows: values of at least `columns(table)`.
        """
        seen = set() if seen is None else seen
        for key in self._to.get(table, ()):
            action = _action(key.ondelete)
            if action in _INERT:
                continue
            found = [row for row in _referring(connection, key, rows) if _is_new(seen, key.table, row)]
            if action == "CASCADE":
                yield from (Change(key.table, row, None) for row in found)
                if found:
                    yield from self.of_delete(connection, key.table, found, seen)
            else:
                yield from self._moved(connection, key.table, found, dict.fromkeys(key.columns), seen)

    def of_update(
        self, connection: Connection, table: Table, row: Values, changes: Values, seen: set[Any] | None = None
    ) -> Iterator[Change]:
        """Yield what new values in a row are going to change elsewhere, and lock it."""
        seen = set() if seen is None else seen
        for key in self._to.get(table, ()):
            moved = {each.parent: changes[each.column] for each in key.elements if each.column in changes}
            action = _action(key.onupdate)
            if not moved or action in _INERT:
                continue
            found = [each for each in _referring(connection, key, [row]) if _is_new(seen, key.table, each)]
            yield from self._moved(
                connection, key.table, found, moved if action == "CASCADE" else dict.fromkeys(key.columns), seen
            )

    def _moved(
        self, connection: Connection, table: Table, rows: Sequence[Values], changes: Values, seen: set[Any]
    ) -> Iterator[Change]:
        for row in rows:
            yield Change(table, row, {**row, **changes})
            yield from self.of_update(connection, table, row, changes, seen)


def lock(connection: Connection, table: Table, key: Sequence[Any], values: Sequence[Any]) -> None:
    """Keep others from referring to a row again, as its deletion would."""
    connection.execute(select(literal(1)).select_from(table).where(among(key, [values])).with_for_update()).all()


def _referring(connection: Connection, key: ForeignKeyConstraint, rows: Sequence[Values]) -> list[Values]:
    """Return the rows that refer to some others by a key, locked."""
    table = key.table
    options = [[row[each.column] for each in key.elements] for row in rows]
    options = [values for values in options if None not in values]
    found: list[Values] = []
    for at in range(0, len(options), CHUNK):
        statement = select(table).where(among([each.parent for each in key.elements], options[at : at + CHUNK]))
        rows_there = connection.execute(statement.order_by(*table.primary_key).with_for_update())
        found += [dict(zip(table.columns, row, strict=True)) for row in rows_there]
    return found


def _is_new(seen: set[Any], table: Table, row: Values) -> bool:
    """Return whether a row is met for the first time: rows may refer to one another in a ring."""
    name = (table, *(str(row[column]) for column in table.primary_key or table.columns))
    if name in seen:
        return False
    seen.add(name)
    return True


def _action(rule: str | None) -> str | None:
    return rule.upper() if rule else None


def _keys(table: Table) -> Iterator[ForeignKeyConstraint]:
    """Yield a table's foreign keys whose other end is known."""
    for key in table.foreign_key_constraints:
        try:
            for element in key.elements:
                _ = element.column
        except (NoReferencedTableError, NoReferencedColumnError):
            continue  # of a table that this metadata does not have
        yield key
