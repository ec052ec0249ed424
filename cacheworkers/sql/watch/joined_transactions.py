"""Transactions that a watched session has joined, and that other code commits: nothing is invalidated before that.

session: writes, `commit()`      reader: loads the old row, stores it      owner: COMMIT, the tags are invalidated
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from cacheworkers.sql.load_sessions import is_held_by_load
from cacheworkers.sql.sqlalchemy_internals import call_at_end, ends_of
from cacheworkers.sql.watch.dirty_transactions import Written

if TYPE_CHECKING:
    from cacheworkers.sql.watch.session_hooks import SessionHooks

log = logging.getLogger("cacheworkers")


class JoinedTransaction:
    """What one session has written in a transaction that outlives the session's own `commit()`."""

    def __init__(
        self, hooks: SessionHooks, writes: list[Written], *, has_unknown: bool, is_seen_by_loaders: bool
    ) -> None:
        """
        Args:
            has_unknown: whether triggers may have written more.
            is_seen_by_loaders: whether loaders read on this very connection, as in tests that roll everything back:
                they see what is not committed, and so a rollback changes what they see.
        """
        self._hooks = hooks
        self._writes = writes
        self._has_unknown = has_unknown
        self._is_seen_by_loaders = is_seen_by_loaders

    def committing(self, connection: Connection) -> None:
        """Keep what no rollback to a savepoint has taken away, and add what triggers have written."""
        table = self._hooks.outbox.table
        there = select(table.c.id).where(table.c.id.in_([each.row for each in self._writes]))
        try:
            kept = set(connection.execute(there, execution_options={"schema_translate_map": None}).scalars())
            self._writes = [each for each in self._writes if each.row in kept]
            if self._has_unknown:
                self._writes += self._hooks.written_by_triggers(connection)
        except Exception as error:  # the transaction has failed, or is about to
            log.debug("what a joined transaction has written is left to the drain: %s", error)
            self._writes = []

    def ended(self, is_committed: bool) -> None:
        """Invalidate what is committed now."""
        if is_committed:
            self._hooks.deliver(self._writes)
        else:
            self.rolled_back()

    def rolled_back(self) -> None:
        """Have loaders that may have seen what is gone load again."""
        if self._is_seen_by_loaders:
            self._hooks.deliver(self._writes, is_committed=False)


def outlives(hooks: SessionHooks, writes: list[Written], connection: Connection, has_unknown: bool) -> None:
    """Invalidate what a session has written on a connection when the transaction there is committed."""
    is_seen = hooks.is_seen_by_loaders(connection)
    if is_seen:
        hooks.deliver(writes, is_committed=False)
    call_at_end(connection, JoinedTransaction(hooks, writes, has_unknown=has_unknown, is_seen_by_loaders=is_seen))


def rolling_back_to_savepoint(connection: Connection) -> None:
    """Have loaders of this connection load again: what they have seen may be gone.

    Each load ends with a rollback to its own savepoint, which takes nothing away.
    """
    if is_held_by_load(connection):
        return
    for end in ends_of(connection):
        if isinstance(end, JoinedTransaction):
            end.rolled_back()
