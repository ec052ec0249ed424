"""Statements: which watched tables a SQL text changes, remembered by the text, and the message of its refusal."""

from __future__ import annotations

from collections.abc import Iterable

from cacheworkers.sql.watch.sql_tokens import plain_name
from cacheworkers.sql.watch.sql_writes import Writes, writes_of

#: Statements whose tables are remembered, and the longest text of one: programs use the same ones again and again.
_MAX_REMEMBERED = 2000
_MAX_REMEMBERED_TEXT = 10_000


class Statements:
    """Finds the tables that statements change: by SQLAlchemy or by hand, in a CTE or alone."""

    def __init__(
        self,
        *,
        changed: Iterable[str],
        deleted: Iterable[str] = (),
        updated: Iterable[str] = (),
        truncated: Iterable[str] = (),
    ) -> None:
        """
        Args:
            changed: names of tables of which every change is found; `deleted` and `updated`: of which only this.
            truncated: tables whose truncation may empty others.
        """
        changed = set(changed)
        self._changed = _by_plain(changed)
        self._deleted = _by_plain(changed.union(deleted))
        self._updated = _by_plain(changed.union(updated))
        self._truncated = _by_plain(changed.union(truncated))
        self._all = frozenset(changed)
        #: Names of tables, in lower case: what is written to another may be written to a view of them.
        self.tables = frozenset((*self._deleted, *self._updated, *self._truncated))
        self._known: dict[tuple[str, str], Writes] = {}

    def changed_by(self, writes: Writes) -> frozenset[str]:
        """Return the names of the tables that are changed by what a statement writes, as far as they are looked for.

        All of them if it holds something that cannot be judged; see `Writes.opaque`.
        """
        if writes.opaque:
            return self._all
        found: set[str] = set()
        for names, known in (
            (writes.inserted, self._changed),
            (writes.updated, self._updated),
            (writes.deleted, self._deleted),
            (writes.truncated, self._truncated),
        ):
            for each in names:
                found |= known.get(each.name, set())
        return frozenset(found)

    def writes(self, statement: str, dialect: str) -> Writes:
        """Return what a statement writes, in SQLAlchemy's name of a dialect."""
        key = (dialect, statement)
        found = self._known.get(key)
        if found is None:
            found = writes_of(statement, dialect)
            if len(statement) <= _MAX_REMEMBERED_TEXT:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[key] = found
        return found


def refusal(opaque: str, names: Iterable[str], without_triggers: Iterable[str]) -> str:
    """Return why a statement is refused, and what to do about it."""
    changed, wanted = ", ".join(sorted(names)), ", ".join(sorted(without_triggers))
    reason = (
        f"{opaque} may change {changed}, and the statement's text does not say which"
        if opaque
        else f"a statement that changes {changed} bypasses the unit of work, and its tags are unknown"
    )
    return (
        f"{reason}; install triggers (cache.triggers) on {wanted}, or give "
        f"execution_options(cacheworkers_unwatched=True) and invalidate yourself"
    )


def _by_plain(names: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(plain_name(name), set()).add(name)
    return found
