"""Which watched tables have triggers that write the outbox themselves, by database and schema."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Pool, Table

from cacheworkers.errors import UnwatchedWrite
from cacheworkers.sql.outbox.outbox import Outbox
from cacheworkers.sql.watch.mapping import WatchMapping

#: How often it is asked again where triggers are not there, seconds: they may be installed while this process runs, and
#: each write would be invalidated twice.
ASKED_EVERY = 60.0


class InstalledTriggers:
    """What the databases say of the triggers of one mapping's tables."""

    def __init__(self, outbox: Outbox, mapping: WatchMapping) -> None:
        self._outbox = outbox
        self._mapping = mapping
        #: By pool, which an engine shares with those that differ only in their options, one a request perhaps.
        self._known: weakref.WeakKeyDictionary[Pool, dict[frozenset[Any], tuple[frozenset[Table], float]]] = (
            weakref.WeakKeyDictionary()
        )

    def cover(self, connection: Connection, tables: frozenset[Table]) -> bool:
        """Return whether triggers of all these tables write the outbox.

        Asked once for each database and schema, and again now and then where they do not.
        """
        if connection.dialect.name != "postgresql":
            return False
        schemas = frozenset((connection.get_execution_options().get("schema_translate_map") or {}).items())
        known = self._known.setdefault(connection.engine.pool, {})
        found, asked_at = known.get(schemas, (None, 0.0))
        if found is None or (not tables <= found and monotonic() - asked_at > ASKED_EVERY):
            watched = self._mapping.tables()
            found = frozenset(watched) - frozenset(self.missing(connection, watched))
            known[schemas] = found, monotonic()
        return tables <= found

    def check_still_there(self, connection: Connection, tables: Iterable[Table]) -> None:
        """Make sure that triggers have written what was left to them.

        Called when the rows are written: nobody can drop the triggers before this transaction ends.

        Raises:
            UnwatchedWrite: some are gone.
        """
        if gone := self.missing(connection, tables):
            self._known.pop(connection.engine.pool, None)
            names = ", ".join(table.name for table in gone)
            raise UnwatchedWrite(
                f"the triggers of {names} have gone, and what they would have written to the outbox is "
                f"unknown; roll back and try again"
            )

    def missing(
        self, connection: Connection, tables: Iterable[Table], options: Mapping[str, Any] | None = None
    ) -> list[Table]:
        """Return the tables whose triggers are not there now.

        Args:
            options: the statement's, instead of the connection's: they may put tables into other schemas.
        """
        if connection.dialect.name != "postgresql":
            return list(tables)
        from cacheworkers.sql.triggers.postgres_triggers import have_triggers

        schemas = (connection.get_execution_options() if options is None else options).get("schema_translate_map") or {}
        quote = connection.dialect.identifier_preparer.quote
        named: dict[str, list[Table]] = {}  # several of one name, too: those of other databases
        for table in tables:
            parts = (schemas.get(table.schema, table.schema), table.name)
            named.setdefault(".".join(quote(part) for part in parts if part), []).append(table)
        found = have_triggers(connection, self._outbox, list(named))
        return [table for name, there in named.items() if name not in found for table in there]
