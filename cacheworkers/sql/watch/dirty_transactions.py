"""Units: open transactions that have changed what is watched, and whose context reads past the cache."""

from __future__ import annotations

import contextvars
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every read asks this module, in processes without SQLAlchemy too
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

_units: contextvars.ContextVar[tuple[weakref.ref[DirtyTransaction], ...]] = contextvars.ContextVar(
    "cacheworkers_units", default=()
)


class DirtyTransaction:
    """One session's open transaction, once it has changed something that is watched.

    Attributes:
        session: whose it is.
    """

    def __init__(self, session: Session, clean: Callable[[], None]) -> None:
        """
        Args:
            clean: called once, when it has ended or its session was dropped without being closed; not in a child that
                was forked meanwhile.
        """
        self.session = session
        self._written: list[tuple[SessionTransaction, tuple[str, ...], tuple[Engine, int]]] = []
        self._untold: list[tuple[SessionTransaction, Connection]] = []
        self.is_open = True
        self._end = weakref.finalize(session, _clean_in, os.getpid(), clean)
        self._end.atexit = False

    @property
    def async_session(self) -> AsyncSession | None:
        """The AsyncSession around it, if there is one."""
        from sqlalchemy.ext.asyncio import async_session

        return async_session(self.session)

    @property
    def tags(self) -> frozenset[str]:
        """What it has written so far and not committed."""
        return frozenset(tag for _, tags, _ in self._written for tag in tags)

    @property
    def has_pending(self) -> bool:
        """Whether it has changes that no flush has written yet."""
        # Of any class: a flush may work out a watched row's keys from them.
        session = self.session
        return bool(session.new or session.deleted or session.dirty)

    @property
    def has_untold(self) -> bool:
        """Whether it has changed rows whose tags are not known here: triggers write them, or the user does."""
        return bool(self._untold)

    def flushed(self, tags: Sequence[str], row: int, engine: Engine) -> None:
        """Note what a flush wrote, and the outbox row that says so."""
        self._written.append((self._transaction(), tuple(tags), (engine, row)))

    def leaves_untold(self, connection: Connection) -> None:
        """Note that something was changed whose tags are not known."""
        change = (self._transaction(), connection)
        if change not in self._untold:
            self._untold.append(change)

    def has_untold_on(self, connection: Connection) -> bool:
        """Return whether such a change was made on a connection."""
        return any(where is connection for _, where in self._untold)

    def rolled_back(self, transaction: SessionTransaction) -> None:
        """Forget what was written within a transaction or savepoint."""
        self._written = [each for each in self._written if transaction not in _chain(each[0])]
        self._untold = [each for each in self._untold if transaction not in _chain(each[0])]

    def taken(self) -> tuple[tuple[str, ...], tuple[tuple[Engine, int], ...]]:
        """Return tags and rows that are committed now, and forget them."""
        written, self._written, self._untold = self._written, [], []
        return tuple(dict.fromkeys(tag for _, tags, _ in written for tag in tags)), tuple(row for _, _, row in written)

    def close(self) -> None:
        """End it: the transaction is over."""
        self.is_open = False
        self._end()

    def _transaction(self) -> SessionTransaction:
        session = self.session
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        return transaction


def enter(unit: DirtyTransaction) -> None:
    """Send the reads of this context past the cache, from now on until the unit is closed."""
    others = tuple(each for each in _units.get() if (found := each()) is not None and found.is_open)
    _units.set((*others, weakref.ref(unit)))


def open_dirty_transactions() -> tuple[DirtyTransaction, ...]:
    """Return the units of this context's open transactions that have changed what is watched, newest first."""
    units = (reference() for reference in reversed(_units.get()))
    return tuple(unit for unit in units if unit is not None and unit.is_open)


def dirty_here() -> DirtyTransaction | None:
    """Return the newest of `open_dirty_transactions`; None in most contexts."""
    for reference in reversed(_units.get()):
        unit = reference()
        if unit is not None and unit.is_open:
            return unit
    return None


def _chain(transaction: SessionTransaction | None) -> Iterator[SessionTransaction]:
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


def _clean_in(process: int, clean: Callable[[], None]) -> None:
    if os.getpid() == process:
        clean()
