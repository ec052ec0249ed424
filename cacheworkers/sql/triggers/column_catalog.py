"""Column catalog: what Postgres knows about the tables that get triggers, and whether their columns suit tags."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection, text, types

from cacheworkers.core.tag_text import TextKind
from cacheworkers.errors import ConfigError
from cacheworkers.sql.sqlalchemy_internals import all_mappers
from cacheworkers.sql.triggers.tag_sql import ALIKE, Name, literal

if TYPE_CHECKING:
    from cacheworkers.sql.triggers.trigger_function import TriggerFunction


class Column(NamedTuple):
    """A column's type, and of which kind its text is, the same in Postgres and in Python; None if it is not."""

    type: str
    kind: TextKind | None


def in_full(relation: str) -> str:
    """Return the SQL of the name, with its schema, of the relation that some SQL finds."""
    return (
        f"(SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_catalog.pg_class AS c "
        f"JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace WHERE c.oid = {relation})"
    )


def key_of(table: str) -> str:
    """Return the SQL of what selects a table's primary key, by the SQL of the table's number; NULL without one."""
    return (
        "(SELECT string_agg(quote_ident(attname) || '::text', ', ') FROM pg_catalog.pg_index "
        f"JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey) "
        f"WHERE indisprimary AND indrelid = {table})"
    )


def columns_of(connection: Connection, table: Name, remedy: str = "") -> dict[str, Column]:
    """Return a table's columns.

    Args:
        remedy: what the error ends with.

    Raises:
        ConfigError: there is no such table.
    """
    found = connection.execute(
        text(
            "SELECT attname, format_type(atttypid, atttypmod), format_type(COALESCE(NULLIF(typbasetype, 0), atttypid), "
            "NULL), typtype = 'd', COALESCE(collisdeterministic, true) FROM pg_attribute "
            "JOIN pg_type AS t ON t.oid = atttypid LEFT JOIN pg_collation AS c ON c.oid = attcollation "
            "WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ),
        {"table": table.quoted},
    )
    columns = {
        str(name): Column(str(kind), _kind_of(base, is_domain=is_domain) if is_exact else None)
        for name, kind, base, is_domain, is_exact in found
    }
    if not columns:
        where = f" in schema {table.schema}" if table.schema is not None else ""
        exact = f"; names are exact, {table.table!r} has capitals" if table.table != table.table.lower() else ""
        path = "" if where else f", by search_path {connection.execute(text('SHOW search_path')).scalar_one()}"
        raise ConfigError(f"there is no table {table.table}{where} in this database{path}{exact}{remedy}")
    return columns


def check_columns(
    connection: Connection, table: str, triggered: TriggerFunction, remedy: str = ""
) -> dict[str, Column]:
    """Return a table's columns, once those of its tags exist and have the same text in Postgres and in Python.

    Args:
        remedy: what the error ends with where the table or a column does not exist.
    """
    columns = columns_of(connection, triggered.table, remedy)
    for column in (name for tag in triggered.tags for name in tag.names):
        if column not in columns:
            raise ConfigError(f"{table} has no column {column!r} for its tags; it has {', '.join(columns)}{remedy}")
    for column in (name for tag in triggered.tags for name in tag.own):
        if columns[column].kind is None or _is_decorated(triggered.table, column):
            raise ConfigError(
                f"{table}.{column} is {columns[column].type}, and the text of that in Postgres is not the one "
                f"in Python, or it holds texts equal that differ, so that triggers, sessions and loaders would "
                f"make different tags of a row; tags of triggers take columns of {', '.join(ALIKE)}, with a "
                f"deterministic collation, and not those of an Enum or a TypeDecorator"
            )
    if any(tag.columns is not None for tag in triggered.tags):
        oid = literal(triggered.table.quoted) + "::regclass"
        if connection.exec_driver_sql(f"SELECT {key_of(oid)}").scalar_one() is None:
            raise ConfigError(f"triggers(columns=) need the primary key of {table}, which has none; use ignore=")
    return columns


def check_kind(connection: Connection, table: str, name: Name, others: Iterable[str]) -> None:
    """Make sure that a relation can have triggers that see all its changes.

    Raises:
        ConfigError: it is no table, or a partition of one that is not among the others.
    """
    kind, wholes = connection.execute(
        text(
            "SELECT relkind::text, (SELECT array_agg(inhparent::regclass::text) FROM pg_inherits "
            "WHERE inhrelid = c.oid AND NOT EXISTS ("
            "SELECT 1 FROM unnest(CAST(:others AS text[])) AS other WHERE to_regclass(other) = inhparent)) "
            "FROM pg_class AS c WHERE oid = to_regclass(:table)"
        ),
        {"table": name.quoted, "others": list(others)},
    ).one()
    if kind not in ("r", "p"):
        names = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
        raise ConfigError(f"{table} is {names.get(kind, 'no table')}, and can have no triggers that see its rows")
    if wholes:
        raise ConfigError(
            f"{table} is a partition of {', '.join(wholes)}, and statements on the whole table fire no triggers of its "
            f"partitions; give both"
        )


def _kind_of(base: str, *, is_domain: bool) -> TextKind | None:
    """Return the kind of a type's text, by the name of what it is, or is a domain over."""
    # pg_typeof gives triggers a domain, not that it is a boolean.
    return None if is_domain and base == "boolean" else ALIKE.get(base)


def _is_decorated(name: Name, column: str) -> bool:
    """Return whether a mapped table has an Enum or TypeDecorator there, whose text in Python is another."""
    for table in (table for mapper in all_mappers() for table in mapper.tables):
        is_it = getattr(table, "name", None) == name.table and name.schema in (None, getattr(table, "schema", None))
        found = table.columns.get(column) if is_it else None
        if found is not None and (
            isinstance(found.type, types.TypeDecorator) or getattr(found.type, "enum_class", None) is not None
        ):
            return True
    return False
