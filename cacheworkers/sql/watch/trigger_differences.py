"""Tags that a watch has and the triggers of its tables have not: sessions leave these tables to their triggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cacheworkers.sql.watch.mapped_columns import row_columns, tables_of
from cacheworkers.sql.watch.mapping import WatchMapping
from cacheworkers.sql.watch.row_values import Row
from cacheworkers.sql.watch.tag_rules import TagRules

if TYPE_CHECKING:
    from cacheworkers.sql.triggers.postgres_triggers import Triggers


def tags_without_trigger(mapping: WatchMapping, triggers: Sequence[Triggers]) -> Iterator[tuple[str, list[str]]]:
    """Yield the tables with triggers, each with the tags of the watch that these do not write, as templates.

    Left out is what cannot be compared: classes of several tables, and functions that compute with their values.
    """
    written: dict[str, set[str]] = {}
    for each in triggers:
        for name, tags in each.templates().items():
            written.setdefault(name, set()).update(tags)
    for table, described in mapping.described.items():
        wanted: dict[str, None] = {}
        for mapper, rules in described:
            if mapper is None:
                wanted |= dict.fromkeys(_templates(table.name, dict(table.columns.items()), rules))
            elif len(tables_of(mapper)) == 1:
                wanted |= dict.fromkeys(_templates(table.name, row_columns(mapper), rules))
        dropped = [tag for tag in wanted if tag not in written.get(table.name, wanted)]
        if dropped:
            yield table.name, dropped


def _templates(table: str, columns: Mapping[str, Any], rules: TagRules) -> list[str]:
    """Return the tags of a row that has each column's name as its value."""
    try:
        # The tag of a truth is another word, whatever its value.
        names = {key: f"{{{each.name}}}" for key, each in columns.items() if each.type.python_type is not bool}
        return rules(Row(table, columns, names))
    except Exception:  # they make more of values than text
        return []
