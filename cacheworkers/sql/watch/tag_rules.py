"""Tag rules: which tags a class's or table's rows have, which changes concern them, and how they are invalidated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from cacheworkers.sql.tag_options import Mode
from cacheworkers.sql.watch.row_values import Row

#: Tags by the way in which they are invalidated.
TagsByMode = dict[Mode, list[str]]


class TagRule(NamedTuple):
    """Some tags of a row.

    Attributes:
        make: returns them.
        columns: an UPDATE that changes none of these does not concern them; None if every one does.
        mode: how they are invalidated.
    """

    make: Callable[[Row], list[str]]
    columns: frozenset[str] | None
    mode: Mode


class TagRules:
    """All tags of the rows of a mapped class or a table."""

    def __init__(self, rules: Iterable[TagRule], ignored: Collection[str] = ()) -> None:
        """
        Args:
            ignored: columns whose changes concern none of the tags.
        """
        self._rules = tuple(rules)
        self._ignored = frozenset(ignored)

    def __call__(self, row: Row) -> list[str]:
        """Return all tags of a row."""
        return [tag for rule in self._rules for tag in rule.make(row)]

    def concerning(self, changed: Collection[str] | None) -> tuple[TagRule, ...]:
        """Return the rules that a change concerns.

        Args:
            changed: the columns that an UPDATE changes; None for a row that comes or goes.
        """
        if changed is None:
            return self._rules
        counted = frozenset(changed) - self._ignored
        if not counted:
            return ()
        return tuple(rule for rule in self._rules if rule.columns is None or not rule.columns.isdisjoint(counted))

    def matters(self, column: str) -> bool:
        """Return whether a change of a column concerns any of the tags."""
        return bool(self.concerning({column}))


def add(tags: TagsByMode, rules: Iterable[TagRule], row: Row) -> None:
    """Add to `tags` those that some rules make of a row."""
    for rule in rules:
        tags.setdefault(rule.mode, []).extend(rule.make(row))


def merged(tags: Iterable[TagsByMode]) -> TagsByMode:
    """Return all tags, each once: one that is invalidated both ways is invalidated hard."""
    found: dict[Mode, dict[str, None]] = {"hard": {}, "soft": {}}
    for each in tags:
        for mode, named in each.items():
            found[mode].update(dict.fromkeys(named))
    soft = [tag for tag in found["soft"] if tag not in found["hard"]]
    both: Mapping[Mode, list[str]] = {"hard": list(found["hard"]), "soft": soft}
    return {mode: named for mode, named in both.items() if named}
