"""Statements: which of them change some tables, told from their text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Statements whose tables are remembered; a program has so many that are used again.
_MOST = 2000
_GAP = r"(?:\s|/\*.*?\*/|--[^\n]*\n)+"
#: In quotes a name may hold anything; the quote itself is doubled.  SQLite takes single quotes, too.
_NAME = r"""(?:"(?:[^"]|"")+"|`(?:[^`]|``)+`|'(?:[^']|'')+'|\[(?:[^\]]|\]\])+\]|[\w$]+)"""
#: A gap, which a name in quotes does not need.
_BEFORE_NAME = rf"""(?:{_GAP}|(?=["`'\[(]))"""
_TABLE = rf"(?:(only){_BEFORE_NAME}\(?(?:{_GAP})?)?(?:{_NAME}(?:{_GAP})?\.(?:{_GAP})?)*({_NAME})"


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
        changed = set(changed)
        self._known: dict[str, frozenset[str]] = {}
        self._patterns = [
            # What follows the words is looked at and not taken: after a column "copy" its second quote begins no name.
            (re.compile(rf"\b(?:{words})(?={_BEFORE_NAME}{_TABLE})", re.IGNORECASE | re.DOTALL), _by_lower(names))
            for words, names in (
                (
                    rf"insert{_GAP}(?:or{_GAP}\w+{_GAP}|ignore{_GAP})?into|replace{_GAP}into|merge{_GAP}into|copy",
                    changed,
                ),
                (rf"update(?:{_GAP}or{_GAP}\w+)?", changed.union(updated)),
                (rf"delete{_GAP}from", changed.union(deleted)),
            )
        ]
        self._truncated = {
            text.lower(): name for name in changed.union(truncated) for text in (name, *_as_written(name))
        }
        alternatives = "|".join(re.escape(text) for text in sorted(self._truncated, key=len, reverse=True))
        self._named = re.compile(rf"(?<![\w$])(?:{alternatives or '(?!)'})(?![\w$])")

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
        found: set[str] = set()
        for pattern, names in self._patterns:
            for match in pattern.finditer(statement):
                for name in filter(None, match.groups()):
                    found |= names.get(_plain(name), set())
        for several in re.finditer(r"\btruncate\b([^;]*)", statement, re.IGNORECASE):
            found |= {self._truncated[match[0]] for match in self._named.finditer(several[1].lower())}
        return frozenset(found)


def _plain(name: str) -> str:
    """Return a name without its quotes, in lower case: whether a database tells the two apart is its own affair."""
    if name[0] in "\"`'[":
        last = name[-1]
        name = name[1:-1].replace(last * 2, last)
    return _key(name)


def _key(name: str) -> str:
    return name.lower().replace("%%", "%")  # drivers that take %s want it doubled


def _as_written(name: str) -> Iterator[str]:
    """Yield how a name may stand between quotes, and before a driver."""
    for quote in "\"`']%":
        yield name.replace(quote, quote * 2)


def _by_lower(names: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(_key(name), set()).add(name)
    return found
