"""What one flush of a watched session changes, gathered while it runs, as tags of old and new rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Connection, Table, inspect, select
from sqlalchemy.orm import InstanceState, Session

from cacheworkers.errors import UnwatchedWrite
from cacheworkers.sql.sqlalchemy_internals import is_by_unit_of_work, is_flushing, second_updates
from cacheworkers.sql.watch.cascades import Cascades, Values, lock
from cacheworkers.sql.watch.mapped_columns import changed_names, name_of, set_names, tables_of
from cacheworkers.sql.watch.row_changes import RowChanges
from cacheworkers.sql.watch.row_values import After, Before, Row, among, is_by_key
from cacheworkers.sql.watch.tag_rules import TagRule, TagRules, TagsByMode, add, merged

#: Column values of one row -> its tags.
TagsOf = Callable[[Any], Iterable[str]]
#: What `cache.watch` takes: mapped class, or association `Table`, -> function of a row to its tags, or templates.
TagMapping = Mapping[Any, TagsOf | Sequence[str]]


class _Captured:
    """An instance that the flush writes: its tags before, and the rules that make those after."""

    __slots__ = ("connection", "is_by_key", "is_new", "old", "rules", "seen")

    def __init__(self, connection: Connection, rules: TagRules, *, is_new: bool) -> None:
        self.connection = connection
        self.rules = rules
        self.old: TagsByMode = {}
        #: Rules whose old tags are known.
        self.seen: tuple[TagRule, ...] = ()
        self.is_new = is_new
        #: Whether the old tags of all seen rules were made of the primary key alone.
        self.is_by_key: bool | None = None


class Flush:
    """One flush, from its beginning to its last statement."""

    def __init__(
        self,
        session: Session,
        context: Any,
        find: Callable[[type], TagRules | None],
        cascades: Cascades,
        changes: RowChanges,
        has_triggers: Callable[[Connection, frozenset[Table]], bool],
    ) -> None:
        """
        Args:
            context: SQLAlchemy's own of this flush.
            find: returns what makes the tags of a class's rows; None if it is not watched.
            changes: takes what the flush changes besides its instances.
            has_triggers: whether triggers write the tags of all of some tables, as far as that is known.
        """
        self._session = session
        self._has_triggers = has_triggers
        # Weakly: SQLAlchemy drops it when the flush has ended, also if it had nothing to do.
        self._context = weakref.ref(context)
        self._find = find
        self._cascades = cascades
        self._changes = changes
        changes.leaves = lambda connection, table: self._leave(connection, {table})
        self._before = Before(session)
        self._captured: dict[InstanceState[Any], _Captured] = {}
        #: Instances that the user's own hooks may still change before their statement.
        self._unsettled: list[InstanceState[Any]] = []
        #: What was left to triggers.
        self.left: dict[Connection, set[Table]] = {}

    @property
    def is_running(self) -> bool:
        """Whether it is writing now."""
        return is_flushing(self._context())

    def has_made(self, context: Any) -> bool:
        """Return whether it executes a statement for its instances, by the statement's execution context."""
        return is_by_unit_of_work(context, self._context())

    def deletes(self, connection: Connection, instance: Any) -> None:
        """Note an instance that is going to be deleted, or replaced by another of the same key."""
        rules, state = self._find(type(instance)), inspect(instance)
        captured = self._capture(connection, state, rules)
        if captured is not None:
            add(captured.old, captured.rules.concerning(None), self._before.row(connection, state))

    def updates(self, connection: Connection, instance: Any) -> None:
        """Note an instance that is going to be updated, perhaps."""
        rules, state = self._find(type(instance)), inspect(instance)
        if self._capture(connection, state, rules) is not None:
            self._settle(state)
            self._unsettled.append(state)
        elif state in self._captured and not self._captured[state].is_new:
            # A deletion that has become none: a child of what is deleted that has found another parent.
            self._captured[state].seen = self._captured[state].rules.concerning(None)
            self._captured[state].is_by_key = False

    def inserts(self, connection: Connection, instance: Any) -> None:
        """Note an instance that is going to be inserted, or takes the row of one that the flush deletes."""
        rules, state = self._find(type(instance)), inspect(instance)
        if rules is None:
            return
        replaced = self._session.identity_map.get(state.mapper.identity_key_from_instance(instance))
        if replaced is not None and replaced is not instance:
            self.deletes(connection, replaced)
        captured = self._capture(connection, state, rules)
        if captured is not None:
            captured.is_new = True
            self._unsettled.append(state)

    def before_statement(self, connection: Connection) -> None:
        """Note what the instances' own events do not show, before one of the flush's statements."""
        unsettled, self._unsettled = self._unsettled, []
        for state in unsettled:
            names = set_names(state)
            if not self._captured[state].is_new:
                self._settle(state, names)
            self._before.note_written(state, names)
        for state in second_updates(self._context()):
            rules = self._find(state.mapper.class_)
            if rules is None or state.key is None:
                continue
            captured = self._capture(connection, state, rules)
            if captured is not None:
                captured.seen = rules.concerning(None)
                captured.is_by_key = False
                add(captured.old, captured.seen, self._before.row(connection, state))
            elif state in self._captured and not self._captured[state].is_new:
                self._settle(state)
            self._before.note_written(state, set_names(state))

    def links(
        self, connection: Connection, table: Table, statement: Any, parameters: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Note rows of an association table that a statement writes; False if it does not say which."""
        keys = {column.key: column for column in table.columns}
        if self._leave(connection, {table}):
            return True
        for each in parameters:
            new = {keys[key]: value for key, value in each.items() if key in keys}
            old = {
                keys[key[4:]]: value
                for key, value in each.items()
                if statement.is_update and key[:4] == "old_" and key[4:] in keys
            }
            if len(new) + len(old) != len(each) or not each:
                return False
            if statement.is_insert:
                self._changes.inserted(connection, table, new)
                continue
            # An UPDATE names the row by its old values, those that change and those that do not.
            row = {**new, **old}
            self._changes.all_deleted(connection, table, row)
            self._follow_link(connection, table, row, new if old else None)
            if statement.is_update:
                self._changes.inserted(connection, table, {**old, **new})
        return True

    def _follow_link(self, connection: Connection, table: Table, row: Values, changes: Values | None) -> None:
        """Note what the database changes together with a row of an association table; `changes` of one that stays."""
        if table not in self._cascades:
            return
        there = connection.execute(select(table).where(among(list(row), [list(row.values())])).with_for_update())
        rows = [dict(zip(table.columns, each, strict=True)) for each in there]
        if changes is None:
            self._changes.follow(connection, self._cascades.of_delete(connection, table, rows))
            return
        for each in rows:
            self._changes.follow(connection, self._cascades.of_update(connection, table, each, changes))

    def deletes_parent(self, connection: Connection, instance: Any) -> None:
        """Note what the database deletes together with an instance."""
        state: InstanceState[Any] = inspect(instance)
        for table in tables_of(state.mapper) if self._cascades else ():
            if table in self._cascades:
                values = self._referred(table, state, self._before.row(connection, state))
                lock(connection, table, list(values), list(values.values()))
                self._changes.follow(connection, self._cascades.of_delete(connection, table, [values]))

    def updates_parent(self, connection: Connection, instance: Any) -> None:
        """Note what the database changes together with an instance."""
        state: InstanceState[Any] = inspect(instance)
        for table in tables_of(state.mapper) if self._cascades else ():
            if table not in self._cascades:
                continue
            changes = {}
            for column in self._cascades.columns(table):
                name = name_of(state.mapper, column)
                history = state.attrs[name].history if name is not None else None
                if history is None or not history.added or history.deleted == history.added:
                    continue
                [changes[column]] = history.added
                if isinstance(changes[column], ClauseElement):
                    raise UnwatchedWrite(
                        f"{state.mapper.class_.__name__}.{name} is set to an SQL expression, and the database changes "
                        f"other rows with it, whose tags are unknown; set it to a value"
                    )
            if changes:
                values = self._referred(table, state, self._before.row(connection, state))
                self._changes.follow(connection, self._cascades.of_update(connection, table, values, changes))

    def tags(self) -> dict[Connection, TagsByMode]:
        """Return the tags of all that was written, by connection; each once."""
        found = self._changes.tags()
        written = [(each.connection, state) for state, each in self._captured.items() if each.seen or each.is_new]
        after = After(self._before, written)
        for state, captured in self._captured.items():
            tags = captured.old
            rules = captured.rules.concerning(None) if captured.is_new else captured.seen
            # What is made of a key that stays is the same before and after.
            if rules and (captured.is_new or not captured.is_by_key or not self._before.keeps_key(state)):
                add(tags, rules, after.row(captured.connection, state))
            found.append((captured.connection, tags))
        by_connection: dict[Connection, list[TagsByMode]] = {}
        for connection, tags in found:
            if tags:
                by_connection.setdefault(connection, []).append(tags)
        return {connection: merged(tags) for connection, tags in by_connection.items()}

    def _capture(self, connection: Connection, state: InstanceState[Any], rules: TagRules | None) -> _Captured | None:
        """Return a record for an instance that is met for the first time, if it has tags that no trigger writes."""
        if rules is None or state in self._captured or self._leave(connection, tables_of(state.mapper)):
            return None
        captured = self._captured[state] = _Captured(connection, rules, is_new=False)
        return captured

    def _settle(self, state: InstanceState[Any], names: set[str] | None = None) -> None:
        """Note the old tags that an instance's changes concern, as far as they are not noted."""
        captured = self._captured[state]
        rules = [each for each in captured.rules.concerning(changed_names(state, names)) if each not in captured.seen]
        if rules:
            row = self._before.row(captured.connection, state)
            add(captured.old, rules, row)
            captured.is_by_key = captured.is_by_key is not False and is_by_key(row)
            captured.seen = (*captured.seen, *rules)

    def _leave(self, connection: Connection, tables: Iterable[Any]) -> bool:
        """Return whether the tags of all these tables are left to triggers."""
        affected = frozenset(tables)
        if not self._has_triggers(connection, affected):
            return False
        self.left.setdefault(connection, set()).update(affected)
        return True

    def _referred(self, table: Table, state: InstanceState[Any], row: Row) -> Values:
        columns = self._cascades.columns(table)
        return {column: getattr(row, name) for column in columns if (name := name_of(state.mapper, column)) is not None}
