"""What a session has changed and not flushed yet: its tags, from what is in memory alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Column, inspect
from sqlalchemy.orm import InstanceState, RelationshipDirection, Session

from cacheworkers.flows.transaction_read import Unflushed
from cacheworkers.sql.watch.mapped_columns import changed_names, row_columns
from cacheworkers.sql.watch.row_values import Row


class _NotInMemory(Exception):
    """A tag is made of a value that only the database knows."""


def unflushed_of(session: Session, tags_of: Callable[[type], Callable[[Row], list[str]] | None]) -> Unflushed:
    """Return what a session's next flush is going to touch, as far as its memory says; nothing is loaded or flushed.

    Keys that the flush itself works out, from relationships, are not known before.
    """
    tags: set[str] = set()
    is_complete = True
    # By their states: instances may not be hashable.
    deleted: list[InstanceState[Any]] = [inspect(each) for each in session.deleted]
    written: list[InstanceState[Any]] = [inspect(each) for each in (*session.new, *session.dirty)]
    changed = [state for state in written if not state.persistent or changed_names(state)]
    can_flush = not any(_is_half_built(state) for state in changed)
    for state in (*changed, *deleted):
        kind = state.mapper.class_
        make = tags_of(kind)
        for values in _rows(state) if make is not None else ():
            assert make is not None
            try:
                tags.update(make(Row(kind.__name__, row_columns(state.mapper), values, _missing)))
            except _NotInMemory:
                is_complete = False
    return Unflushed(frozenset(tags), is_complete, can_flush)


def _missing() -> Mapping[str, Any]:
    raise _NotInMemory


def _rows(state: InstanceState[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the values of a row as it is, and as it will be; those that memory does not have are left out."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name, column in row_columns(state.mapper).items():
        history = state.attrs[name].history
        if history.deleted or history.unchanged:
            old[name] = (*history.deleted, *history.unchanged)[0]
        if history.added or history.unchanged:
            new[name] = (*history.added, *history.unchanged)[0]
        elif not state.persistent and not _has_default(column):
            new[name] = None
    if state.persistent:
        yield old
    yield new


def _has_default(column: Any) -> bool:
    """Return whether a column that is not set gets a value, other than a key that nobody can know yet."""
    if not isinstance(column, Column):
        return True
    return not column.primary_key and (column.default is not None or column.server_default is not None)


def _is_half_built(state: InstanceState[Any]) -> bool:
    """Return whether a required column of an instance is still empty, so that a flush of it would fail."""
    for name, column in row_columns(state.mapper).items():
        if not isinstance(column, Column) or column.nullable or column.primary_key:
            continue
        history = state.attrs[name].history
        is_empty = not history.added if not state.persistent else bool(history.deleted) and not history.added
        if history.added and history.added[0] is None:
            is_empty = True
        if is_empty and (state.persistent or (column.default is None and column.server_default is None)):
            if not (column.foreign_keys and _is_related(state, column)):
                return True
    return False


def _is_related(state: InstanceState[Any], column: Any) -> bool:
    """Return whether a relationship is set from which a flush takes a foreign key."""
    return any(
        column in each.local_columns and state.dict.get(each.key) is not None
        for each in state.mapper.relationships
        if each.direction is RelationshipDirection.MANYTOONE
    )
