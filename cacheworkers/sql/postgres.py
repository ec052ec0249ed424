"""Postgres: triggers that write the outbox for psql, bulk statements and other services; LISTEN, which wakes the drain.

One function a table, and one trigger for each kind of statement: they run once a statement over its transition tables,
not once a row.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from cacheworkers.core.tags import check_tag
from cacheworkers.errors import ConfigError, TagError
from cacheworkers.sql.outbox import TABLE, TRIGGER

#: Changes with what the generated text does.
VERSION = 2
#: Most tags of one outbox row that a trigger writes.
ROW_TAGS = 1000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")
_EVENTS = {"INSERT": ("new",), "UPDATE": ("old", "new"), "DELETE": ("old",)}
#: `pg_trigger.tgtype` of INSERT, DELETE, UPDATE and TRUNCATE: a table's triggers together have them all.
_ALL_EVENTS = 4 + 8 + 16 + 32
#: Longest name that Postgres keeps, bytes; it cuts off what is longer.
_MOST_NAME = 63


class Triggers:
    """The triggers of some tables, as SQL that is shown before it runs.

    Example:
        triggers = cache.triggers({"price": ["product:{product_id}"]})
        print(triggers.sql())
        triggers.install(engine.connect())
    """

    def __init__(
        self,
        namespace: str,
        templates: Mapping[str, Sequence[str]],
        outbox: str = TABLE,
        *,
        max_tag_bytes: int = 256,
    ) -> None:
        """
        Args:
            templates: table -> tags with its columns in braces: `{"product": ["product:{id}"]}`.
            max_tag_bytes: longest tag; what a column makes longer is left out when it is delivered.

        Raises:
            ConfigError: a table's name or a template is malformed.
        """
        self.namespace = namespace
        self._outbox = outbox
        self._tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        for table, each in templates.items():
            if not _NAME.fullmatch(table):
                raise ConfigError(f"a table must be a plain name, perhaps with its schema, got {table!r}")
            if isinstance(each, str) or not each:
                raise ConfigError(f"triggers on {table} take a list of tag templates, got {each!r}")
            self._tables[table] = [_parsed(table, template, max_tag_bytes) for template in each]

    @property
    def channel(self) -> str:
        """What to LISTEN to."""
        return channel(self.namespace)

    def up(self) -> list[str]:
        """Return the statements that install; for Alembic, `op.execute` each of them."""
        statements = []
        for table, templates in self._tables.items():
            name = self._name(table)
            statements.append(self._function(table, templates))
            statements += self._drops(table)
            for kind, sides in _EVENTS.items():
                tables = " ".join(f"{side.upper()} TABLE AS {side}_rows" for side in sides)
                statements.append(
                    f"CREATE TRIGGER {name}_{kind.lower()} AFTER {kind} ON {table} REFERENCING {tables}\n"
                    f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
                )
            # Before: there are no transition tables, and afterwards no rows.
            statements.append(
                f"CREATE TRIGGER {name}_truncate BEFORE TRUNCATE ON {table}\n"
                f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
            )
            statements.append(f"COMMENT ON FUNCTION {name}() IS '{self._comment(table)}'")
        return statements

    def down(self) -> list[str]:
        """Return the statements that remove them again."""
        statements = []
        for table in self._tables:
            statements += self._drops(table)
            statements.append(f"DROP FUNCTION IF EXISTS {self._name(table)}()")
        return statements

    def sql(self) -> str:
        """Return what `install` runs, to be read first."""
        return ";\n\n".join(self.up()) + ";\n"

    def digest(self, table: str) -> str:
        """Return what tells one version of a table's trigger from another."""
        body = self._function(table, self._tables[table])
        return hashlib.sha256(body.encode()).hexdigest()[:12]

    def check(self, connection: Connection) -> None:
        """Compare tables and columns with the database.

        Raises:
            ConfigError: a table, a column or the outbox is not there, or what is there cannot have such triggers.
        """
        for table, templates in self._tables.items():
            columns = _columns(connection, table)
            _check_kind(connection, table, self._tables)
            for column in (column for parts in templates for _, column in parts if column is not None):
                if column not in columns:
                    raise ConfigError(f"{table} has no column {column!r} for its tags; it has {', '.join(columns)}")
        _columns(connection, self._outbox)

    def install(self, connection: Connection) -> None:
        """Check, and install or replace, in one transaction.

        Raises:
            ConfigError: see `check`.
        """
        with connection.begin_nested() if connection.in_transaction() else connection.begin():
            self.check(connection)
            for statement in self.up():
                connection.exec_driver_sql(statement.replace("%", "%%"))

    def remove(self, connection: Connection) -> None:
        """Remove them; nothing happens where they are not."""
        with connection.begin_nested() if connection.in_transaction() else connection.begin():
            for statement in self.down():
                connection.exec_driver_sql(statement)

    def missing(self, connection: Connection) -> list[str]:
        """Return the tables whose triggers are not there, are disabled, or are not of this version."""
        there = text(
            f"SELECT bit_or(tgtype) & {_ALL_EVENTS} FROM pg_trigger WHERE tgrelid = to_regclass(:table) "
            "AND tgenabled IN ('O', 'A') AND obj_description(tgfoid, 'pg_proc') = :comment"
        )
        missing = []
        for table in self._tables:
            found = connection.execute(there, {"table": table, "comment": self._comment(table)}).scalar_one()
            if found != _ALL_EVENTS:
                missing.append(table)
        return missing

    def _name(self, table: str) -> str:
        """Return what a table's function is called, and its triggers begin with: short, and of this namespace alone."""
        name = f"cacheworkers_{self.namespace.replace('-', '_')}_{table.replace('.', '_')}"
        if "-" not in self.namespace and "." not in table and len(name) <= _MOST_NAME - len("_truncate"):
            return name
        digest = hashlib.sha256(f"{self.namespace} {table}".encode()).hexdigest()[:10]
        return f"{name[: _MOST_NAME - len('_truncate') - 11]}_{digest}"

    def _comment(self, table: str) -> str:
        return f"cacheworkers {self.namespace} v{VERSION} {self.digest(table)}"

    def _drops(self, table: str) -> list[str]:
        kinds = (*_EVENTS, "TRUNCATE")
        return [f"DROP TRIGGER IF EXISTS {self._name(table)}_{kind.lower()} ON {table}" for kind in kinds]

    def _function(self, table: str, templates: Sequence[Sequence[tuple[str, str | None]]]) -> str:
        name = self._name(table)

        def tags(side: str) -> str:
            rows = table if side == "all" else f"{side}_rows"
            return " UNION ".join(f"SELECT {_expression(parts)} AS tag FROM {rows}" for parts in templates)

        branches = "\n".join(
            f"  {'IF' if at == 0 else 'ELSIF'} TG_OP = '{kind}' THEN\n"
            f"    INSERT INTO {self._outbox} (namespace, source, tags)\n"
            f"    SELECT '{self.namespace}', '{TRIGGER}', string_agg(tag, E'\\n') FROM (\n"
            f"      SELECT tag, row_number() OVER () / {ROW_TAGS} AS chunk FROM (\n"
            f"        {' UNION '.join(tags(side) for side in sides)}\n"
            f"      ) AS found WHERE tag IS NOT NULL\n"
            f"    ) AS numbered GROUP BY chunk;"
            for at, (kind, sides) in enumerate({**_EVENTS, "TRUNCATE": ("all",)}.items())
        )
        return (
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $cacheworkers$\n"
            f"BEGIN\n{branches}\n  END IF;\n"
            f"  PERFORM pg_notify('{self.channel}', '');\n  RETURN NULL;\nEND\n$cacheworkers$"
        )


class Ear:
    """A connection that listens for triggers' notifications."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        """
        Args:
            connection: psycopg's, to be used for nothing else; put into autocommit.
        """
        self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        self._connection.exec_driver_sql(f"LISTEN {channel(namespace)}")
        self._driver: Any = self._connection.connection.driver_connection

    def wait(self, seconds: float) -> bool:
        """Return when a notification has come, or after so many seconds; True if one has."""
        return any(True for _ in self._driver.notifies(timeout=seconds, stop_after=1))


def channel(namespace: str) -> str:
    """Return the name that a namespace's triggers notify."""
    return "cacheworkers_" + namespace.replace("-", "_")


def have_triggers(connection: Connection, namespace: str, tables: Sequence[str]) -> frozenset[str]:
    """Return which of some tables have enabled triggers that write this namespace's outbox.

    Args:
        tables: names as SQL has them, quoted where that is needed.
    """
    found = connection.execute(
        text(
            f"SELECT name FROM unnest(CAST(:tables AS text[])) AS name WHERE {_ALL_EVENTS} = ("
            f"SELECT bit_or(tgtype) & {_ALL_EVENTS} FROM pg_trigger WHERE tgrelid = to_regclass(name) "
            "AND NOT tgisinternal AND tgenabled IN ('O', 'A') "
            "AND starts_with(obj_description(tgfoid, 'pg_proc'), :mark))"
        ),
        {"tables": list(tables), "mark": f"cacheworkers {namespace} v"},
    )
    return frozenset(str(row[0]) for row in found)


def _parsed(table: str, template: str, max_tag_bytes: int) -> list[tuple[str, str | None]]:
    """Return a template's parts: text, and the column that follows it."""
    try:
        parsed = list(string.Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"tag template {template!r} of {table} is malformed: {error}") from None
    parts: list[tuple[str, str | None]] = []
    for before, name, spec, conversion in parsed:
        if name is not None and (spec or conversion or not _NAME.fullmatch(name) or "." in name):
            raise ConfigError(f"tag template {template!r} of {table} may hold plain columns only, as {{id}}")
        parts.append((before, name))
    try:  # a column adds at least nothing: what is illegal without it is so with it
        check_tag("".join(text for text, _ in parts) or ("?" if parts else ""), max_tag_bytes)
    except TagError as error:
        raise ConfigError(f"tag template {template!r} of {table} makes no legal tag: {error}") from None
    return parts


def _expression(parts: Sequence[tuple[str, str | None]]) -> str:
    """Return the SQL of one tag; NULL where a column is NULL."""
    words = []
    for before, column in parts:
        if before:
            words.append("'" + before.replace("'", "''") + "'")
        if column is not None:
            words.append(f'"{column}"::text')
    return " || ".join(words)


def _columns(connection: Connection, table: str) -> list[str]:
    schema, _, name = table.rpartition(".")
    found = connection.execute(
        text(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped "
            "ORDER BY attnum"
        ),
        {"table": table},
    )
    columns = [str(row[0]) for row in found]
    if not columns:
        raise ConfigError(f"there is no table {name}{f' in schema {schema}' if schema else ''} in this database")
    return columns


def _check_kind(connection: Connection, table: str, others: Iterable[str]) -> None:
    """Make sure that a relation can have the triggers, and that they would see what changes it.

    Raises:
        ConfigError: it is no table, or a part of one that is not among the others.
    """
    kind, wholes = connection.execute(
        text(
            "SELECT relkind::text, (SELECT array_agg(inhparent::regclass::text) FROM pg_inherits "
            "WHERE inhrelid = c.oid AND NOT EXISTS ("
            "SELECT 1 FROM unnest(CAST(:others AS text[])) AS other WHERE to_regclass(other) = inhparent)) "
            "FROM pg_class AS c WHERE oid = to_regclass(:table)"
        ),
        {"table": table, "others": list(others)},
    ).one()
    if kind not in ("r", "p"):
        names = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
        raise ConfigError(f"{table} is {names.get(kind, 'no table')}, and can have no triggers that see its rows")
    if wholes:
        raise ConfigError(
            f"{table} is a part of {', '.join(wholes)}, and statements on the whole fire no triggers of its "
            f"parts; give both"
        )
