"""SessionState, what hooks know of a session, by session or connection; and the listeners that all engines share.

They are added once in a process, when the first cache watches something, and then ask this register: listeners that
come and go with engines, sessions and caches would break the flushes of other threads, which walk through them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, event, inspect
from sqlalchemy.orm import Mapper, Session, object_session

from cacheworkers.sql.sqlalchemy_internals import call_at_end, ends_of
from cacheworkers.sql.watch.flush_changes import Flush
from cacheworkers.sql.watch.joined_transactions import rolling_back_to_savepoint
from cacheworkers.sql.watch.single_rows import SingleRow

if TYPE_CHECKING:
    from cacheworkers.sql.watch.dirty_transactions import DirtyTransaction
    from cacheworkers.sql.watch.session_hooks import SessionHooks

_STATES = "cacheworkers.watch"
#: Connection -> the sessions with a transaction on it, the newest last.  Never walked through: threads change it.
_on_connections: weakref.WeakKeyDictionary[Connection, tuple[weakref.ref[SessionState], ...]]
_on_connections = weakref.WeakKeyDictionary()
#: Of all caches.  Replaced by another tuple, not changed: threads walk through it.
_all_hooks: tuple[weakref.ref[SessionHooks], ...] = ()
#: Mapped class as it is mapped now -> its attributes with a listener.
_assignments: weakref.WeakKeyDictionary[Mapper[Any], set[str]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class SessionState:
    """What the hooks of one cache know of a session.

    Attributes:
        hooks: whose.
        dirty: its transaction, once it has changed what is watched.
        flush: the flush that has begun last and has not ended.
        single: the row that a statement of the user's is about to change.
    """

    def __init__(self, hooks: SessionHooks, session: Session) -> None:
        self.hooks = hooks
        self.dirty: DirtyTransaction | None = None
        self.flush: Flush | None = None
        self.single: SingleRow | None = None
        self._session = weakref.ref(session)
        self._connections: list[Connection] = []

    @property
    def session(self) -> Session | None:
        """The session; None once it is gone."""
        return self._session()

    def begin_on(self, connection: Connection) -> None:
        """Note that the session's transaction is on a connection."""
        if all(each is not connection for each in self._connections):
            self._connections.append(connection)
            _on_connections[connection] = (*map(weakref.ref, states_on(connection)), weakref.ref(self))
        session = self.session
        is_joined = session is not None and session.bind is connection and connection.in_transaction()
        if is_joined and self not in ends_of(connection):  # who owns that ends it for both
            call_at_end(connection, self)

    def committing(self, connection: Connection) -> None:
        """Have what the session has flushed and not committed invalidated when the owner has committed it."""
        self.hooks.committed(self)

    def ended(self, is_committed: bool) -> None:
        """The owner has ended the transaction that the session has joined."""
        self.end()

    def end(self) -> None:
        """Note that the session's transaction is over."""
        for connection in self._connections:
            others = [weakref.ref(each) for each in states_on(connection) if each is not self]
            if others:
                _on_connections[connection] = tuple(others)
            else:
                _on_connections.pop(connection, None)
        self._connections.clear()
        self.flush = self.single = None
        dirty, self.dirty = self.dirty, None
        if dirty is not None:
            dirty.close()


def states_on(connection: Connection) -> tuple[SessionState, ...]:
    """Return the watched sessions with a transaction on a connection, the newest last."""
    references = _on_connections.get(connection)
    if references is None:  # with most statements of a process
        return ()
    found = [reference() for reference in references]
    return tuple([each for each in found if each is not None and each.session is not None])


def state_of(hooks: SessionHooks, session: Session) -> SessionState | None:
    """Return what some hooks know of a session, if they watch it and it has begun something."""
    found: dict[SessionHooks, SessionState] | None = session.info.get(_STATES)
    return None if found is None else found.get(hooks)


def state_for(hooks: SessionHooks, session: Session) -> SessionState:
    """Return what some hooks know of a session; made if there is nothing yet."""
    states = session.info.setdefault(_STATES, {})
    if hooks not in states:
        states[hooks] = SessionState(hooks, session)
    found: SessionState = states[hooks]
    return found


def states_of(session: Session) -> Iterator[SessionState]:
    """Yield what all hooks know of a session."""
    yield from session.info.get(_STATES, {}).values()


def listen(hooks: SessionHooks) -> None:
    """Have some hooks called; the listeners that are the same for all are added unless they are there."""
    global _all_hooks
    with _lock:
        _all_hooks = (*(each for each in _all_hooks if each() is not None), weakref.ref(hooks))
        for target, name, listener in OF_ALL:
            if not event.contains(target, name, listener):  # a test may have taken away those of all sessions
                event.listen(target, name, listener)
    _listen_to_assignments(hooks)


def forget(hooks: SessionHooks) -> None:
    """Have some hooks no longer called."""
    global _all_hooks
    with _lock:
        _all_hooks = tuple(each for each in _all_hooks if each() not in (None, hooks))


def _listen_to_assignments(hooks: SessionHooks) -> None:
    """Listen to attributes that no other hooks have listened to; mapped again, a class has lost all listeners."""
    # Before the lock is taken: this may configure mappers, for which SQLAlchemy has a lock of its own.
    found: list[tuple[type, Mapper[Any], list[str]]]
    found = [(key, inspect(key), names) for key, names in hooks.mapping.attributes()]
    with _lock:
        for key, mapper, names in found:
            known = _assignments.setdefault(mapper, set())
            for name in names:
                if name not in known:
                    known.add(name)
                    event.listen(getattr(key, name), "set", _after_assignment, propagate=True)


def _hooks() -> Iterator[SessionHooks]:
    for reference in _all_hooks:
        found = reference()
        if found is not None:
            yield found


def _newest(connection: Connection) -> Sequence[SessionState]:
    """Return one state for each cache that watches a connection: of the innermost flush, or of the newest session."""
    states = states_on(connection)
    if len(states) < 2:
        return states
    found: dict[SessionHooks, SessionState] = {}
    for state in states:
        other = found.get(state.hooks)
        is_inner = other is None or not _is_running(other) or _is_running(state)
        if is_inner:
            found[state.hooks] = state
    return tuple(found.values())


def _is_running(state: SessionState) -> bool:
    return state.flush is not None and state.flush.is_running


def _before_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    for state in _newest(connection):
        state.hooks.before_statement(state, connection, statement, context)


def _after_statement(
    connection: Connection, statement: Any, many: Any, parameters: Any, options: Any, result: Any
) -> None:
    for state in _newest(connection):
        if state.single is not None:
            state.hooks.after_statement(state, connection, result)


def _before_commit(connection: Connection) -> None:
    for state in states_on(connection):
        state.hooks.before_commit(state, connection)


def _before_rollback_to_savepoint(connection: Connection, name: str, context: Any) -> None:
    rolling_back_to_savepoint(connection)


def _before_any_flush(session: Session | None = None, flush_context: Any = None, instances: Any = None) -> None:
    """Watch a session, too, that writes on a connection with a watched transaction: one opened in a mapper event.

    It is there for all sessions of the process: who calls their listeners by hand, as tests do, may give nothing.
    """
    if session is not None and isinstance(session.bind, Connection):
        for state in _newest(session.bind):
            state.hooks.adopt(session, session.bind, flush_context)


def _before_any_insert(mapper: Any, connection: Connection, instance: Any) -> None:
    for flush in _flushes_of(instance):
        flush.inserts(connection, instance)


def _before_any_update(mapper: Any, connection: Connection, instance: Any) -> None:
    for flush in _flushes_of(instance):
        flush.updates_parent(connection, instance)
        flush.updates(connection, instance)


def _before_any_delete(mapper: Any, connection: Connection, instance: Any) -> None:
    for flush in _flushes_of(instance):
        flush.deletes_parent(connection, instance)
        flush.deletes(connection, instance)


def _flushes_of(instance: Any) -> Iterator[Flush]:
    session = object_session(instance)
    if session is not None:
        for state in states_of(session):
            if state.flush is not None:
                yield state.flush


def _after_assignment(target: Any, value: Any, old: Any, initiator: Any) -> None:
    session = object_session(target)
    if session is not None:
        for hooks in _hooks():
            hooks.assigned(session, type(target), initiator.key)


def _after_configured() -> None:
    """Have all hooks learn of classes that are mapped later."""
    for hooks in _hooks():
        hooks.mapping.forget()
        _listen_to_assignments(hooks)
    for hooks in _hooks():
        hooks.mapping.complain()


#: The listeners of all engines, sessions and mapped classes.
OF_ALL: tuple[tuple[Any, str, Any], ...] = (
    (Engine, "before_cursor_execute", _before_statement),
    (Engine, "after_execute", _after_statement),
    (Engine, "commit", _before_commit),
    (Engine, "rollback_savepoint", _before_rollback_to_savepoint),
    (Session, "before_flush", _before_any_flush),
    (Mapper, "before_insert", _before_any_insert),
    (Mapper, "before_update", _before_any_update),
    (Mapper, "before_delete", _before_any_delete),
    (Mapper, "after_configured", _after_configured),
)
