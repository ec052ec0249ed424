"""Open transactions that have changed what is watched: their context reads past the cache until they end."""

from __future__ import annotations

import contextlib
import contextvars
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cacheworkers.flows.transaction_read import Unflushed

if TYPE_CHECKING:  # every read asks this module, in processes without SQLAlchemy too
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

dirty: contextvars.ContextVar[tuple[weakref.ref[DirtyTransaction], ...]] = contextvars.ContextVar(
    "cacheworkers_dirty_transactions", default=()
)
#: Of all caches of this process.
late: list[LateInvalidation] = []


class Written(NamedTuple):
    """Tags in an outbox row that is not committed yet."""

    transaction: SessionTransaction | None
    connection: Connection
    row: int
    tags: tuple[str, ...]
    mode: Literal["hard", "soft"]


class DirtyTransaction:
    """One session's open transaction, once it has changed something that is watched.

    Attributes:
        owner: the ports of the cache that watches it; to other caches it is nothing.
        session: whose it is.
    """

    def __init__(
        self, owner: object, session: Session, unflushed: Callable[[Session], Unflushed], clean: Callable[[], None]
    ) -> None:
        """
        Args:
            clean: called once, when it has ended or its session was dropped without being closed; not in a child that
                was forked meanwhile.
        """
        self.owner = owner
        self.session = session
        self._find_unflushed = unflushed
        self._written: list[Written] = []
        self._unknown: list[tuple[SessionTransaction, Connection]] = []
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
        return frozenset(tag for each in self._written for tag in each.tags)

    @property
    def unflushed(self) -> Unflushed:
        """What it has changed and not flushed yet."""
        return self._find_unflushed(self.session)

    @property
    def is_usable(self) -> bool:
        """Whether loaders can run on its session; not after a failed flush, until the rollback."""
        return self.session.is_active

    @property
    def has_unknown(self) -> bool:
        """Whether it has changed rows whose tags are not known here: triggers write them, or the user does."""
        return bool(self._unknown)

    def no_autoflush(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context within which queries on its session flush nothing."""
        return self.session.no_autoflush

    def note_written(
        self, tags: Sequence[str], row: int, connection: Connection, mode: Literal["hard", "soft"]
    ) -> None:
        """Note an outbox row that has been written."""
        self._written.append(Written(self._transaction(), connection, row, tuple(tags), mode))

    def note_unknown(self, connection: Connection) -> None:
        """Note that something was changed whose tags are not known."""
        change = (self._transaction(), connection)
        if change not in self._unknown:
            self._unknown.append(change)

    def has_unknown_on(self, connection: Connection) -> bool:
        """Return whether such a change was made on a connection."""
        return any(where is connection for _, where in self._unknown)

    def rolled_back(self, transaction: SessionTransaction) -> None:
        """Forget what was written within a transaction or savepoint."""
        self._written = [each for each in self._written if transaction not in _chain(each.transaction)]
        self._unknown = [each for each in self._unknown if transaction not in _chain(each[0])]

    def take_committed(self) -> tuple[list[Written], list[Connection]]:
        """Return what the session has committed, and the connections with unknown changes; and forget both."""
        written, self._written = self._written, []
        unknown, self._unknown = self._unknown, []
        return written, list(dict.fromkeys(connection for _, connection in unknown))

    def close(self) -> None:
        """End it: the transaction is over."""
        self.is_open = False
        self._end()

    def _transaction(self) -> SessionTransaction:
        session = self.session
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        return transaction


class LateInvalidation:
    """A commit's invalidation that goes on although the commit was cancelled: what it has not reached yet is old.

    Attributes:
        owner: as a dirty transaction's.
    """

    unflushed = Unflushed(frozenset(), True, False)
    has_unknown = False
    is_usable = True
    session = None

    def __init__(self, owner: object, tags: frozenset[str]) -> None:
        self.owner = owner
        self.tags = tags
        late.append(self)

    def end(self) -> None:
        """End it: the invalidation has succeeded or failed."""
        if self in late:
            late.remove(self)


def enter(transaction: DirtyTransaction) -> None:
    """Send the reads of this context past the cache, from now on until the transaction is closed."""
    others = tuple(each for each in dirty.get() if (found := each()) is not None and found.is_open)
    dirty.set((*others, weakref.ref(transaction)))


def dirty_transactions(owner: object) -> tuple[DirtyTransaction | LateInvalidation, ...]:
    """Return what the reads of one cache in this context must see or go past, newest first."""
    return (*_open(owner), *(each for each in tuple(late) if each.owner is owner))


def is_dirty(owner: object) -> bool:
    """Return whether there are any `dirty_transactions`; there are none in most contexts."""
    if not late and not dirty.get():
        return False
    return any(True for _ in _open(owner)) or any(each.owner is owner for each in tuple(late))


def has_dirty_session(owner: object) -> bool:
    """Return whether an open transaction of this context has changed what is watched."""
    return any(True for _ in _open(owner))


def _open(owner: object) -> Iterator[DirtyTransaction]:
    for reference in reversed(dirty.get()):
        found = reference()
        # A flush that has failed leaves nothing in the database: the session only waits for its rollback.
        if found is not None and found.owner is owner and found.is_open and (found.is_usable or found.tags):
            yield found


def _chain(transaction: SessionTransaction | None) -> Iterator[SessionTransaction]:
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


def _clean_in(process: int, clean: Callable[[], None]) -> None:
    if os.getpid() == process:
        clean()
