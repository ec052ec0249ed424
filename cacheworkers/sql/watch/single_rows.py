"""Single rows: INSERT of one row, and UPDATE or DELETE by primary key, made with SQLAlchemy's Core by hand.

What such a statement changes is known by its values and its key.  The old row is read and locked right before it, as an
UPDATE or DELETE would lock it; the new one is read right after it, where tags need more than the values given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Table, select
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Delete, ValuesBase
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList

from cacheworkers.errors import UnwatchedWrite
from cacheworkers.sql.sqlalchemy_internals import is_for_mapped_rows, is_plain_insert, parts_of_statement
from cacheworkers.sql.watch.cascades import Cascades, Values
from cacheworkers.sql.watch.mapped_columns import row_columns, tables_of
from cacheworkers.sql.watch.row_changes import Described, RowChanges
from cacheworkers.sql.watch.row_values import among
from cacheworkers.sql.watch.sql_writes import Writes
from cacheworkers.sql.watch.tag_rules import TagsByMode, merged


class SingleRow:
    """One row that a statement is about to change.

    Attributes:
        context: SQLAlchemy's own of the statement.
    """

    def __init__(
        self, connection: Connection, context: Any, table: Table, key: Values | None, described: Described
    ) -> None:
        """
        Args:
            key: of the row; None for one that is inserted with a key that the database makes.
        """
        self.context = context
        self._connection = connection
        self._table = table
        self._key = key
        self._changes = RowChanges(described)
        self._kind = _kind(context.compiled.statement)
        self._old: Values | None = None
        if self._kind != "insert":
            self._old = self._row(locks=True)
            if self._kind == "delete" and self._old is not None:
                self._changes.deleted(connection, table, self._old, are_stored=True)

    def tags(self, result: Any) -> TagsByMode:
        """Return the row's tags, old and new, once the statement has run.

        Raises:
            UnwatchedWrite: it has changed a row that was not there right before.
        """
        if self._kind == "insert":
            if self._key is None:
                self._key = dict(zip(self._table.primary_key, result.inserted_primary_key, strict=True))
            self._changes.inserted(self._connection, self._table, self._key)
        elif self._old is None and result.rowcount:
            raise UnwatchedWrite(
                f"a row of {self._table.name} was changed that another transaction has just committed, and its tags "
                f"are unknown; roll back and try again"
            )
        elif self._kind == "update" and self._old is not None:
            new = self._row(locks=False)
            assert new is not None
            changed = [column for column in self._table.columns if new[column] != self._old[column]]
            if changed:
                self._changes.updated(self._connection, self._table, self._old, new, changed)
        return merged(tags for _, tags in self._changes.tags())

    def _row(self, *, locks: bool) -> Values | None:
        assert self._key is not None
        statement = select(self._table).where(among(list(self._key), [list(self._key.values())]))
        if locks:
            statement = statement.with_for_update(key_share=self._kind == "update")
        row = self._connection.execute(statement).first()
        return None if row is None else dict(zip(self._table.columns, row, strict=True))


def single_row(
    connection: Connection, context: Any, writes: Writes, described: Described, cascades: Cascades
) -> SingleRow | None:
    """Return the one row that a statement is about to change; None if its key is not known."""
    statement: Any = getattr(context.compiled, "statement", None)
    kind = _kind(statement)
    if (
        not kind
        or not isinstance(statement, ValuesBase | Delete)
        or writes.opaque
        or len(context.compiled_parameters) != 1
        or context.compiled.ctes
    ):
        return None
    if is_for_mapped_rows(context):
        return None
    table = next((each for each in described if hash(each) == hash(statement.table)), None)
    if table is None or not table.primary_key or not _has_whole_rows(table, described):
        return None
    is_returning, values, where = parts_of_statement(statement)
    if is_returning and connection.dialect.name != "postgresql":
        return None  # its rows are read while others are asked for
    [parameters] = context.compiled_parameters
    if kind == "insert":
        if not is_plain_insert(statement):
            return None
        key = {column: parameters[column.key] for column in table.primary_key if column.key in parameters}
        if len(key) == len(table.primary_key):
            return SingleRow(connection, context, table, key, described)
        return None if is_returning else SingleRow(connection, context, table, None, described)
    if kind == "delete" and table in cascades.tables("ondelete"):
        return None
    if kind == "update" and not {column.key for column in table.primary_key}.isdisjoint(values):
        return None
    if kind == "update" and not {column.key for column in cascades.columns(table)}.isdisjoint(values):
        return None
    key = dict(_equalities(where, parameters, context.compiled.bind_names))
    key = {column: key[column] for column in table.primary_key if column in key}
    if len(key) < len(table.primary_key):
        return None
    return SingleRow(connection, context, table, key, described)


def _kind(statement: Any) -> str:
    for kind in ("insert", "update", "delete"):
        if getattr(statement, f"is_{kind}", False):
            return kind
    return ""


def _has_whole_rows(table: Table, described: Described) -> bool:
    """Return whether the tags of a table's rows are made of its columns alone."""
    for mapper, _ in described[table]:
        if mapper is not None and (
            tables_of(mapper) != (table,) or not all(isinstance(each, Column) for each in row_columns(mapper).values())
        ):
            return False
    return True


def _equalities(
    where: Sequence[Any], parameters: Mapping[str, Any], names: Mapping[Any, str]
) -> Iterator[tuple[Any, Any]]:
    """Yield the columns and values that a condition, all of whose parts must hold, asks to be equal."""
    for part in where:
        if isinstance(part, BooleanClauseList) and part.operator is operators.and_:
            yield from _equalities(list(part.clauses), parameters, names)
        elif isinstance(part, BinaryExpression) and part.operator is operators.eq:
            left, right = part.left, part.right
            if isinstance(left, BindParameter):
                left, right = right, left
            if isinstance(right, BindParameter) and right in names and names[right] in parameters:
                yield left, parameters[names[right]]
