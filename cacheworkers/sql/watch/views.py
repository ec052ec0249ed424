"""Views and partitions: which tables a write to another relation changes, by the database's own definitions."""

from __future__ import annotations

import weakref
from collections.abc import Collection

from sqlalchemy import Connection, Pool, text

from cacheworkers.sql.watch.sql_tokens import Grammar, tokens_of
from cacheworkers.sql.watch.sql_writes import Writes
from cacheworkers.sql.watch.statement_cursor import Name

_QUERIES: dict[str, tuple[str, Grammar]] = {
    "postgresql": (
        "SELECT viewname, definition FROM pg_catalog.pg_views WHERE schemaname NOT IN ('pg_catalog', "
        "'information_schema') UNION ALL "
        # A partition's rows are its parent's, and an UPDATE of a parent changes those of tables that inherit from it.
        "SELECT one.relname, quote_ident(other.relname) FROM pg_catalog.pg_inherits i "
        "JOIN pg_catalog.pg_class one ON one.oid IN (i.inhrelid, i.inhparent) "
        "JOIN pg_catalog.pg_class other ON other.oid IN (i.inhrelid, i.inhparent) AND other.oid <> one.oid",
        "ansi",
    ),
    "sqlite": ("SELECT name, sql FROM sqlite_master WHERE type = 'view'", "sqlite"),
    "mysql": ("SELECT table_name, view_definition FROM information_schema.views", "mysql"),
    "mariadb": ("SELECT table_name, view_definition FROM information_schema.views", "mysql"),
}


class Views:
    """The views and partitions of each database that has been asked about."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Pool, _Known] = weakref.WeakKeyDictionary()

    def resolved(self, connection: Connection, writes: Writes, tables: Collection[str]) -> Writes:
        """Return what a statement writes with the tables under views, and beside partitions, added.

        The database is asked once for each relation that is none of these tables.

        Args:
            tables: names that are tables' for sure, in lower case.
        """
        others = {each for each in writes.names if each.name not in tables}
        if not others or connection.dialect.name not in _QUERIES:
            return writes
        known = self._known.setdefault(connection.engine.pool, _Known())
        if not {each.name for each in others} <= known.asked:
            known.ask(connection)
            known.asked.update(each.name for each in others)
        if not any(each.name in known.reads for each in others):
            return writes

        def under(names: frozenset[Name]) -> frozenset[Name]:
            found: set[Name] = set()
            for each in names:
                found.add(each)
                found.update(Name(None, table) for table in known.under(each.name))
            return frozenset(found)

        return writes._replace(
            inserted=under(writes.inserted),
            updated=under(writes.updated),
            deleted=under(writes.deleted),
            truncated=under(writes.truncated),
        )


class _Known:
    """What one database has said.

    Attributes:
        asked: relations of which it is known whether they are views or partitions.
        reads: view -> every name in its definition; partition -> its parent, and the other way round.
    """

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.reads: dict[str, frozenset[str]] = {}

    def ask(self, connection: Connection) -> None:
        query, grammar = _QUERIES[connection.dialect.name]
        reads: dict[str, set[str]] = {}
        for name, definition in connection.execute(text(query)):
            words = (token.text for token in tokens_of(definition or "", grammar) if token.kind in ("word", "name"))
            reads.setdefault(str(name).lower(), set()).update(words)
        self.reads = {name: frozenset(words) for name, words in reads.items()}

    def under(self, view: str) -> set[str]:
        """Return every name in a view's definition, and in those of the views in it."""
        found: set[str] = set()
        left = [view]
        while left:
            for name in self.reads.get(left.pop(), frozenset()) - found:
                found.add(name)
                left.append(name)
        return found
