"""Statements: which of them change some tables, told from their text."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Statements whose tables are remembered; a program has so many that are used again.
_MOST = 2000
_GAP = r"(?:\s|/\*.*?\*/|--[^\n]*\n)+"
_NAME = r'[\w$"`\[\].]*?\b'


class Statements:
    """Tells what a statement changes: by SQLAlchemy or by hand, in a CTE or alone."""

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
        changed, deleted, updated, truncated = set(changed), set(deleted), set(updated), set(truncated)
        self._names = {name.lower(): name for name in changed | deleted | updated | truncated}
        self._known: dict[str, frozenset[str]] = {}
        self._patterns = [
            pattern
            for words, names in (
                (
                    rf"insert{_GAP}(?:or{_GAP}\w+{_GAP}|ignore{_GAP})?into|replace{_GAP}into|merge{_GAP}into|copy",
                    changed,
                ),
                (rf"update(?:{_GAP}or{_GAP}\w+)?", changed | updated),
                (rf"delete{_GAP}from", changed | deleted),
            )
            if (pattern := _pattern(rf"\b(?:{words}){_GAP}(?:only{_GAP})?{_NAME}", names)) is not None
        ]
        self._truncate = _pattern(r"", changed | truncated)

    def changes(self, statement: str) -> frozenset[str]:
        """Return the names of the tables that a statement changes, as far as they are looked for."""
        found = self._known.get(statement)
        if found is None:
            found = self._found(statement)
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[statement] = found
        return found

    def _found(self, statement: str) -> frozenset[str]:
        names = {self._names[match[1].lower()] for pattern in self._patterns for match in pattern.finditer(statement)}
        if self._truncate is not None:
            for several in re.finditer(r"\btruncate\b([^;]*)", statement, re.IGNORECASE):
                names.update(self._names[match[1].lower()] for match in self._truncate.finditer(several[1]))
        return frozenset(names)


def _pattern(before: str, names: Iterable[str]) -> re.Pattern[str] | None:
    """Return what finds one of some tables' names after some words."""
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    if not alternatives:
        return None
    return re.compile(rf"{before}(?<![\w$])({alternatives})(?![\w$])", re.IGNORECASE | re.DOTALL)
