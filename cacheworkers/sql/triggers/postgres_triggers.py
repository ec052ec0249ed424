"""Postgres triggers that write the outbox for psql, bulk statements and other services, and NOTIFY for the relay.

One function a table, and one trigger for each kind of statement: they run once a statement over its transition tables,
not once a row.  A function runs with the rights and the search path of its owner, whoever changes the table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, text, types

from cacheworkers.core.tag_text import TagKinds
from cacheworkers.errors import ConfigError, TagError
from cacheworkers.sql.outbox.outbox import ROW_TAGS, TABLE, TRIGGER, Outbox
from cacheworkers.sql.sqlalchemy_internals import all_mappers
from cacheworkers.sql.triggers.column_catalog import Column, check_kind, columns_of, in_full
from cacheworkers.sql.triggers.tag_sql import ALIKE, Name, Part, expression, literal, name_of, parsed

#: Changes with what the generated text does.
VERSION = 4
_EVENTS = {"INSERT": ("new",), "UPDATE": ("old", "new"), "DELETE": ("old",)}
#: `pg_trigger.tgtype` of INSERT, DELETE, UPDATE and TRUNCATE: a table's triggers together have them all.
_ALL_EVENTS = 4 + 8 + 16 + 32
#: Longest name that Postgres keeps, bytes; it cuts off what is longer.
_MAX_NAME = 63
_DIGEST = 12
#: What stands in a function's body for the full names of the outbox and of the table, until it is installed.
_OUTBOX, _CHANGED = "\x00outbox\x00", "\x00changed\x00"


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
        tag_kinds: TagKinds | None = None,
        notify: bool = True,
    ) -> None:
        """
        Args:
            templates: table -> tags with its columns in braces: `{"product": ["product:{id}"]}`.  Names are exact, as
                the database has them: `Order` is not `order`.  Quotes as in SQL: `{'"a b"."c.d"': ...}`.
            max_tag_bytes: longest tag; what a column makes longer is left out when it is delivered.
            notify: NOTIFY wakes the processes that drain; without it they find what is written when they next look.

        Raises:
            ConfigError: a table's name or a template is malformed.
        """
        self.namespace = namespace
        self._tag_kinds = TagKinds() if tag_kinds is None else tag_kinds
        self._notifies = notify
        self._outbox = name_of(outbox)
        self._tables: dict[str, _Triggered] = {}
        for table, each in templates.items():
            name = name_of(table)
            if isinstance(each, str) or not each:
                raise ConfigError(f"triggers on {table} take a list of tag templates, got {each!r}")
            if name in [known.name for known in self._tables.values()]:
                raise ConfigError(f"triggers on {table} are given twice, as {name.quoted}")
            tags = [parsed(table, template, max_tag_bytes) for template in each]
            self._tables[table] = _Triggered(name, _function_name(namespace, name), tags)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables, as they were given."""
        return tuple(self._tables)

    @property
    def channel(self) -> str:
        """What to LISTEN to."""
        return channel(self.namespace)

    def up(self) -> list[str]:
        """Return the statements that install: the same text for every driver, `text()`, and `op.execute` of Alembic."""
        statements = []
        for table, triggered in self._tables.items():
            function = triggered.function
            statements.append(self._creation(table))
            # Whoever may execute it could run code of his own with its owner's rights, by a trigger on a table of his
            # whose columns have casts of his.  Existing triggers need no such right.
            statements.append(f"REVOKE ALL ON FUNCTION {function}() FROM PUBLIC")
            statements += triggered.drops()
            for kind, sides in _EVENTS.items():
                tables = " ".join(f"{side.upper()} TABLE AS {side}_rows" for side in sides)
                statements.append(
                    f"CREATE TRIGGER {function}_{kind.lower()} AFTER {kind} ON {triggered.name.sql} "
                    f"REFERENCING {tables}\nFOR EACH STATEMENT EXECUTE FUNCTION {function}()"
                )
            # Before, because afterwards there are no rows, and TRUNCATE has no transition tables.
            statements.append(
                f"CREATE TRIGGER {function}_truncate BEFORE TRUNCATE ON {triggered.name.sql}\n"
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
            )
        return statements

    def down(self) -> list[str]:
        """Return the statements that remove them again."""
        statements = []
        for triggered in self._tables.values():
            statements += triggered.drops()
            statements.append(f"DROP FUNCTION IF EXISTS {triggered.function}()")
        return statements

    def sql(self) -> str:
        """Return what `install` runs, to be read before it runs."""
        return ";\n\n".join(self.up()) + ";\n"

    def digest(self, table: str) -> str:
        """Return the digest that differs between versions of a table's trigger."""
        return hashlib.sha256(self._body(self._tables[table]).encode()).hexdigest()[:_DIGEST]

    def check(self, connection: Connection) -> None:
        """Compare tables and columns with the database.

        Raises:
            ConfigError: it is not PostgreSQL; a table, a column or the outbox does not exist; a table cannot have such
                triggers; or a column's type has another text in Postgres than in Python.
        """
        _check_postgres(connection)
        names = [triggered.name.quoted for triggered in self._tables.values()]
        for table, triggered in self._tables.items():
            columns = _check_columns(connection, table, triggered)
            check_kind(connection, table, triggered.name, names)
            for tag in triggered.tags:
                self._check_kinds(table, tag, columns)
        columns_of(connection, self._outbox)

    def _check_kinds(self, table: str, tag: list[Part], columns: Mapping[str, Column]) -> None:
        """Make sure that loaders with such tags take arguments of the columns' types."""
        texts = tuple(each for part in tag for each in _texts_of(part))
        kinds = [columns[part.column].kind for part in tag if part.column is not None]
        try:
            self._tag_kinds.add_rows(f"triggers on {table}", texts, kinds)
        except TagError as error:
            raise ConfigError(str(error)) from None

    def install(self, connection: Connection) -> None:
        """Check, and install or replace, in one transaction.

        Args:
            connection: of any driver; with an AsyncEngine, `await connection.run_sync(triggers.install)`.

        Raises:
            ConfigError: see `check`.
        """
        _check_postgres(connection)
        with connection.begin_nested() if connection.in_transaction() else connection.begin():
            self.check(connection)
            _execute(connection, self.up())

    def remove(self, connection: Connection) -> None:
        """Remove them; nothing happens where there are none."""
        _check_postgres(connection)
        with connection.begin_nested() if connection.in_transaction() else connection.begin():
            _execute(connection, self.down())

    def missing(self, connection: Connection) -> list[str]:
        """Return the tables whose triggers do not do what was declared; see `faults`."""
        return list(self.faults(connection))

    def faults(self, connection: Connection) -> dict[str, str]:
        """Return what is wrong with tables: triggers are missing, disabled, outdated, broken, or of another outbox.

        Broken are those whose column was renamed, dropped or given another type: every write of the table fails.
        """
        _check_postgres(connection)
        found = text(
            f"SELECT bit_or(tgtype) & {_ALL_EVENTS} FROM pg_trigger WHERE tgrelid = to_regclass(:table) "
            f"AND tgenabled IN ('O', 'A') "
            f"AND obj_description(tgfoid, 'pg_proc') = CAST(:mark AS text) || {in_full('to_regclass(:outbox)')}"
        )
        faults = {}
        for table, triggered in self._tables.items():
            asked = {
                "table": triggered.name.quoted,
                "mark": f"{_mark(self.namespace)}{self.digest(table)} ",
                "outbox": self._outbox.quoted,
            }
            try:
                _check_columns(connection, table, triggered)
            except ConfigError as error:
                faults[table] = str(error)
                continue
            if connection.execute(found, asked).scalar_one() != _ALL_EVENTS:
                faults[table] = f"the triggers of {table} are missing or outdated"
        return faults

    def _creation(self, table: str) -> str:
        """Return what creates a table's function, once it has found the full names of outbox and table."""
        triggered = self._tables[table]
        outbox, changed = (literal(name.quoted) + "::regclass" for name in (self._outbox, triggered.name))
        body = self._body(triggered)
        for placeholder, variable in ((_OUTBOX, "outbox"), (_CHANGED, "changed")):
            body = body.replace(placeholder, f"$create$ || {variable} || $create$")
        return (
            "DO $install$\nDECLARE\n"
            "  -- In full: whoever changes the table may have another search_path, and another outbox on it.\n"
            f"  outbox CONSTANT text DEFAULT {in_full(outbox)};\n"
            f"  changed CONSTANT text DEFAULT {in_full(changed)};\n"
            f"BEGIN\nEXECUTE $create$\n{body}\n$create$;\n"
            f"EXECUTE 'COMMENT ON FUNCTION {triggered.function}() IS '\n"
            f"  || quote_literal('{_mark(self.namespace)}{self.digest(table)} ' || outbox);\n"
            "END\n$install$"
        )

    def _body(self, triggered: _Triggered) -> str:
        """Return what creates a table's function, with placeholders for the names of outbox and table."""

        def tags(side: str) -> str:
            rows = _CHANGED if side == "all" else f"{side}_rows"
            return " UNION ".join(f"SELECT {expression(tag)} AS tag FROM {rows}" for tag in triggered.tags)

        branches = "\n".join(
            f"  {'IF' if at == 0 else 'ELSIF'} TG_OP = '{kind}' THEN\n"
            f"    INSERT INTO {_OUTBOX} (namespace, source, tags)\n"
            # Line feeds separate tags: a value that holds one makes one illegal tag, not several.
            f"    SELECT '{self.namespace}', '{TRIGGER}', string_agg(replace(tag, chr(10), chr(13)), chr(10)) FROM (\n"
            f"      SELECT tag, row_number() OVER () / {ROW_TAGS} AS chunk FROM (\n"
            f"        {' UNION '.join(tags(side) for side in sides)}\n"
            f"      ) AS found\n"
            f"    ) AS numbered GROUP BY chunk;"
            for at, (kind, sides) in enumerate({**_EVENTS, "TRUNCATE": ("all",)}.items())
        )
        return (
            f"CREATE OR REPLACE FUNCTION {triggered.function}() RETURNS trigger LANGUAGE plpgsql\n"
            f"SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' AS $cacheworkers$\n"
            f"BEGIN\n{branches}\n  END IF;\n{self._notification()}  RETURN NULL;\nEND\n$cacheworkers$"
        )

    def _notification(self) -> str:
        if not self._notifies:
            return ""
        return (
            # Transactions that notify are committed one after the other, each waiting for the disk: NOTIFY takes a lock
            # of the whole server.  One of those that are open is enough to wake the relay.
            f"  IF pg_try_advisory_xact_lock({_lock_number(self.channel)}) THEN\n"
            f"    PERFORM pg_notify('{self.channel}', '');\n  END IF;\n"
        )


def _texts_of(part: Part) -> Iterator[str | None]:
    """Yield a part's text, and None for its field, as `TagTemplates.skeletons` has them."""
    if part.text:
        yield part.text
    if part.column is not None:
        yield None


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


def channel(namespace: str) -> str:
    """Return the name that a namespace's triggers notify."""
    return "cacheworkers_" + namespace.replace("-", "_")


def have_triggers(connection: Connection, outbox: Outbox, tables: Sequence[str]) -> frozenset[str]:
    """Return which of some tables have enabled triggers that write this outbox, the one that the connection sees.

    Args:
        tables: names as SQL has them, quoted where that is needed.
    """
    found = connection.execute(
        text(
            f"SELECT name FROM unnest(CAST(:tables AS text[])) AS name WHERE {_ALL_EVENTS} = ("
            f"SELECT bit_or(tgtype) & {_ALL_EVENTS} FROM pg_trigger, obj_description(tgfoid, 'pg_proc') AS comment "
            f"WHERE tgrelid = to_regclass(name) AND NOT tgisinternal AND tgenabled IN ('O', 'A') "
            f"AND starts_with(comment, :mark) "
            f"AND substr(comment, length(:mark) + {_DIGEST} + 2) = {in_full('to_regclass(:outbox)')})"
        ),
        {"tables": list(tables), "mark": _mark(outbox.namespace), "outbox": outbox.quoted_name},
    )
    return frozenset(str(row[0]) for row in found)


class _Triggered(NamedTuple):
    """A table, its function, whose name its triggers' begin with, and its tags."""

    name: Name
    function: str
    tags: list[list[Part]]

    def drops(self) -> list[str]:
        kinds = (*_EVENTS, "TRUNCATE")
        return [f"DROP TRIGGER IF EXISTS {self.function}_{kind.lower()} ON {self.name.sql}" for kind in kinds]


def _function_name(namespace: str, table: Name) -> str:
    """Return what a table's function is called, and its triggers begin with: short, and of this namespace alone."""
    plain = ".".join(part for part in table if part is not None)
    name = re.sub(r"[^a-z0-9_]", "_", f"cacheworkers_{namespace}_{plain}")
    if name == f"cacheworkers_{namespace}_{plain}" and len(name) <= _MAX_NAME - len("_truncate"):
        return name
    # Without quotes where it needs none: older versions had such names only, and these are to be replaced.
    distinct = plain if re.fullmatch(r"[\w.]+", plain) and "." not in table.table else table.quoted
    digest = hashlib.sha256(f"{namespace} {distinct}".encode()).hexdigest()[:10]
    return f"{name[: _MAX_NAME - len('_truncate') - 11]}_{digest}"


def _mark(namespace: str) -> str:
    """Return what the comments of this version's functions begin with; a digest and the outbox's full name follow."""
    return f"cacheworkers {namespace} v{VERSION} "


def _lock_number(channel_name: str) -> int:
    """Return the number of the advisory lock that whoever notifies a channel holds."""
    return int.from_bytes(hashlib.sha256(channel_name.encode()).digest()[:8], signed=True)


def _check_postgres(connection: Any) -> None:
    if not isinstance(connection, Connection):
        raise ConfigError(
            f"triggers take a SQLAlchemy Connection, got {type(connection).__name__}; with an AsyncConnection, "
            f"`await connection.run_sync(triggers.install)`"
        )
    if connection.dialect.name != "postgresql":
        raise ConfigError(
            f"triggers are made for PostgreSQL, and {connection.engine.url!r} is {connection.dialect.name}: watch "
            f"sessions there (cache.watch), or give tags to cache.invalidate(..., session=)"
        )


def _check_columns(connection: Connection, table: str, triggered: _Triggered) -> dict[str, Column]:
    """Return a table's columns, once those of its tags exist and have the same text in Postgres and in Python."""
    columns = columns_of(connection, triggered.name)
    for column in (part.column for tag in triggered.tags for part in tag if part.column is not None):
        if column not in columns:
            raise ConfigError(f"{table} has no column {column!r} for its tags; it has {', '.join(columns)}")
        if columns[column].kind is None or _is_decorated(triggered.name, column):
            raise ConfigError(
                f"{table}.{column} is {columns[column].type}, and the text of that in Postgres is not the one "
                f"in Python, or it holds texts equal that differ, so that triggers, sessions and loaders would "
                f"make different tags of a row; tags of triggers take columns of {', '.join(ALIKE)}, with a "
                f"deterministic collation, and not those of an Enum or a TypeDecorator"
            )
    return columns


def _execute(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
