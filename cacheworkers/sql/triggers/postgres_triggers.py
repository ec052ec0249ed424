"""Postgres triggers that write the outbox for psql, bulk statements and other services, and NOTIFY for the relay.

One function a table, and one trigger for each kind of statement: they run once a statement over its transition tables,
not once a row.  A function runs with the rights and the search path of its owner, whoever changes the table.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from cacheworkers.core.tag_text import TagKinds
from cacheworkers.errors import ConfigError, TagError
from cacheworkers.sql.outbox.connections import shown_url
from cacheworkers.sql.outbox.outbox import HOW_TO_MAKE_IT, TABLE, Outbox
from cacheworkers.sql.tag_options import Mode, TagOptions
from cacheworkers.sql.triggers.column_catalog import Column, check_columns, check_kind, columns_of, in_full
from cacheworkers.sql.triggers.tag_sql import Name, Part, name_of, parsed
from cacheworkers.sql.triggers.trigger_function import DIGEST, EVENTS, Tag, TriggerFunction

log = logging.getLogger("cacheworkers")

#: Changes with what the generated text does.
VERSION = 4
#: `pg_trigger.tgtype` of INSERT, DELETE, UPDATE and TRUNCATE: a table's triggers together have them all.
_ALL_EVENTS = 4 + 8 + 16 + 32
#: Longest name that Postgres keeps, bytes; it cuts off what is longer.
_MAX_NAME = 63
_FULL = in_full("to_regclass(:outbox)")
_LATER = "; where a later migration adds it, run `triggers.install(connection, skip_missing=True)` after all migrations"


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
        columns: Mapping[str, Collection[str]] | None = None,
        ignore: Mapping[str, Collection[str]] | None = None,
        mode: Mode | Mapping[str, Mode] = "hard",
        notify: bool = True,
    ) -> None:
        """
        Args:
            templates: table -> tags with its columns in braces: `{"product": ["product:{id}"]}`.  Names are exact, as
                the database has them: `Order` is not `order`.  Quotes as in SQL: `{'"a b"."c.d"': ...}`.  An empty
                list has `install` remove the triggers that a table had.
            columns, ignore, mode: as `Cache.watch` has them, by table or template.
            max_tag_bytes: longest tag; what a column makes longer is left out when it is delivered.
            notify: NOTIFY wakes the processes that drain; without it they find what is written when they next look.

        Raises:
            ConfigError: a table's name or a template is malformed.
        """
        self.namespace = namespace
        self._tag_kinds = TagKinds() if tag_kinds is None else tag_kinds
        self._outbox = name_of(outbox)
        self._tables: dict[str, TriggerFunction] = {}
        choices = TagOptions("triggers", templates, columns, ignore, mode)
        for table, each in templates.items():
            name = name_of(table)
            if isinstance(each, str):
                raise ConfigError(f"triggers on {table} take a list of tag templates, got {each!r}")
            if name in [known.table for known in self._tables.values()]:
                raise ConfigError(f"triggers on {table} are given twice, as {name.quoted}")
            ignored = choices.ignored(table)
            tags = [
                Tag(
                    parsed(table, template, max_tag_bytes),
                    choices.columns(table, template),
                    ignored,
                    choices.mode(table, template),
                )
                for template in each
            ]
            self._tables[table] = TriggerFunction(
                namespace, name, _function_name(namespace, name), tags, self.channel if notify else None
            )

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables, as they were given."""
        return tuple(self._tables)

    @property
    def functions(self) -> list[str]:
        """The names of the functions, whether or not they are installed."""
        return [triggered.name for triggered in self._tables.values()]

    def templates(self) -> dict[str, list[str]]:
        """Return the tables' names, without a schema, each with its tags as templates."""
        return {
            each.table.table: [
                "".join(part.text + (f"{{{part.column}}}" if part.column is not None else "") for part in tag.parts)
                for tag in each.tags
            ]
            for each in self._tables.values()
        }

    @property
    def channel(self) -> str:
        """What to LISTEN to."""
        return channel(self.namespace)

    def up(self) -> list[str]:
        """Return the statements that install: the same text for every driver, `text()`, and `op.execute` of Alembic."""
        statements = []
        for triggered in self._tables.values():
            function = triggered.name
            if not triggered.tags:
                statements.append(triggered.removal)
                continue
            statements.append(triggered.creation(self._outbox, f"{_mark(self.namespace)}{triggered.digest} "))
            # Whoever may execute it could run code of his own with its owner's rights, by a trigger on a table of his
            # whose columns have casts of his.  Existing triggers need no such right.
            statements.append(f"REVOKE ALL ON FUNCTION {function}() FROM PUBLIC")
            statements += triggered.drops()
            for kind, sides in EVENTS.items():
                tables = " ".join(f"{side.upper()} TABLE AS {side}_rows" for side in sides)
                statements.append(
                    f"CREATE TRIGGER {function}_{kind.lower()} AFTER {kind} ON {triggered.table.sql} "
                    f"REFERENCING {tables}\nFOR EACH STATEMENT EXECUTE FUNCTION {function}()"
                )
            # Before, because afterwards there are no rows, and TRUNCATE has no transition tables.
            statements.append(
                f"CREATE TRIGGER {function}_truncate BEFORE TRUNCATE ON {triggered.table.sql}\n"
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
            )
        return statements

    def down(self) -> list[str]:
        """Return the statements that remove them again."""
        return [triggered.removal for triggered in self._tables.values()]

    def sql(self) -> str:
        """Return what `install` runs, to be read before it runs."""
        return ";\n\n".join(self.up()) + ";\n"

    def digest(self, table: str) -> str:
        """Return the digest that differs between versions of a table's trigger."""
        return self._tables[table].digest

    def check(self, connection: Connection) -> None:
        """Compare tables and columns with the database.

        Raises:
            ConfigError: it is not PostgreSQL; a table, a column or the outbox does not exist; a table cannot have such
                triggers; or a column's type has another text in Postgres than in Python.
        """
        _check_postgres(connection)
        tagged = {table: triggered for table, triggered in self._tables.items() if triggered.tags}
        names = [triggered.table.quoted for triggered in tagged.values()]
        for table, triggered in tagged.items():
            columns = check_columns(connection, table, triggered, _LATER)
            check_kind(connection, table, triggered.table, names)
            for tag in triggered.tags:
                self._check_kinds(table, tag.parts, columns)
        if tagged:  # else the outbox may be missing, too: nothing writes it
            columns_of(connection, self._outbox, f"; {HOW_TO_MAKE_IT}")

    def _check_kinds(self, table: str, tag: list[Part], columns: Mapping[str, Column]) -> None:
        """Make sure that loaders with such tags take arguments of the columns' types."""
        texts = tuple(each for part in tag for each in _texts_of(part))
        kinds = [columns[part.column].kind for part in tag if part.column is not None]
        try:
            self._tag_kinds.add_rows(f"triggers on {table}", texts, kinds)
        except TagError as error:
            raise ConfigError(str(error)) from None

    def install(self, connection: Connection, *, skip_missing: bool = False) -> None:
        """Check, and install or replace, in one transaction.

        Args:
            connection: of any driver; with an AsyncEngine, `await connection.run_sync(triggers.install)`.
            skip_missing: for use after each run of migrations, also backward.  Tags whose table or column is missing
                are left out, which is logged, and triggers without tags are removed; triggers that are current stay,
                without a lock on their table.

        Raises:
            ConfigError: see `check`.
        """
        _check_postgres(connection)
        with connection.begin_nested() if connection.in_transaction() else connection.begin():
            wanted = self._without_missing(connection) if skip_missing else self
            wanted.check(connection)
            if skip_missing:
                wanted = wanted._with({table: wanted._tables[table] for table in wanted.faults(connection)})
            _execute(connection, wanted.up())

    def _without_missing(self, connection: Connection) -> Triggers:
        """Return those whose tables and columns exist, and remove the others."""
        found = {}
        for table, triggered in self._tables.items():
            tags: list[Tag] = []
            try:
                columns_of(connection, self._outbox)
                columns = columns_of(connection, triggered.table)
            except ConfigError as error:
                why = str(error)
            else:
                tags = [tag for tag in triggered.tags if columns.keys() >= set(tag.names)]
                lacks = {name for tag in triggered.tags for name in tag.names} - columns.keys()
                why = f"it has no column {', '.join(sorted(lacks))}"
            if tags != triggered.tags:
                without = len(triggered.tags) - len(tags)
                log.warning(
                    "%d of %d tags of triggers on %s are left out: %s", without, len(triggered.tags), table, why
                )
            if tags:
                found[table] = triggered._replace(tags=tags)
            else:  # those that are there would fail each write
                _execute(connection, self._with({table: triggered}).down())
        return self._with(found)

    def _with(self, tables: dict[str, TriggerFunction]) -> Triggers:
        """Return triggers on these tables, else the same."""
        same = copy.copy(self)
        same._tables = tables
        return same

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
            f"AND obj_description(tgfoid, 'pg_proc') = CAST(:mark AS text) || {_FULL}"
        )
        faults = {}
        for table, triggered in self._tables.items():
            if not triggered.tags:
                known = text("SELECT 1 FROM pg_trigger WHERE tgfoid = to_regproc(:name)")
                if connection.execute(known, {"name": triggered.name}).first():
                    faults[table] = f"the triggers of {table} are still there, and it is declared to have none"
                continue
            asked = {
                "table": triggered.table.quoted,
                "mark": f"{_mark(self.namespace)}{self.digest(table)} ",
                "outbox": self._outbox.quoted,
            }
            try:
                check_columns(connection, table, triggered)
            except ConfigError as error:
                faults[table] = str(error)
                continue
            if connection.execute(found, asked).scalar_one() != _ALL_EVENTS:
                faults[table] = f"the triggers of {table} are missing or outdated"
        return faults


def _texts_of(part: Part) -> Iterator[str | None]:
    """Yield a part's text, and None for its field, as `TagTemplates.skeletons` has them."""
    if part.text:
        yield part.text
    if part.column is not None:
        yield None


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
            f"AND substr(comment, length(:mark) + {DIGEST} + 2) = {_FULL})"
        ),
        {"tables": list(tables), "mark": _mark(outbox.namespace), "outbox": outbox.quoted_name},
    )
    return frozenset(str(row[0]) for row in found)


def installed_functions(connection: Connection, outbox: Outbox) -> list[tuple[str, str, str, str]]:
    """Return whose triggers write this outbox: namespaces, functions, how SQL calls these, and their tables."""
    found = connection.execute(
        text(
            "SELECT split_part(comment, ' ', 2), proname::text, pg_proc.oid::regproc::text, "
            "string_agg(DISTINCT tgrelid::regclass::text, ', ') "
            "FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid, obj_description(tgfoid, 'pg_proc') AS comment "
            f"WHERE starts_with(comment, 'cacheworkers ') "
            f"AND right(comment, length({_FULL}) + 1) = ' ' || {_FULL} GROUP BY 1, 2, 3 ORDER BY 3"
        ),
        {"outbox": outbox.quoted_name},
    )
    return [tuple(row) for row in found]


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


def _check_postgres(connection: Any) -> None:
    if not isinstance(connection, Connection):
        raise ConfigError(
            f"triggers take a SQLAlchemy Connection, got {type(connection).__name__}; with an AsyncConnection, "
            f"`await connection.run_sync(triggers.install)`"
        )
    if connection.dialect.name != "postgresql":
        raise ConfigError(
            f"triggers are made for PostgreSQL, and {shown_url(connection.engine)} is {connection.dialect.name}: watch "
            f"sessions there (cache.watch), or give tags to cache.invalidate(..., session=)"
        )


def _execute(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
