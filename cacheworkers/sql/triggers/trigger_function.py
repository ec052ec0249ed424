"""Trigger functions: the SQL of the function that writes the tags of one table's changed rows to the outbox."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cacheworkers.sql.outbox.outbox import ROW_TAGS, SOFT_TRIGGER, TRIGGER
from cacheworkers.sql.tag_options import Mode
from cacheworkers.sql.triggers.column_catalog import in_full, key_of
from cacheworkers.sql.triggers.tag_sql import Name, Part, expression, identifier, literal

#: The kinds of statement, each with the transition tables that its trigger sees.
EVENTS = {"INSERT": ("new",), "UPDATE": ("old", "new"), "DELETE": ("old",)}
_SOURCES: Mapping[Mode, str] = {"hard": TRIGGER, "soft": SOFT_TRIGGER}
DIGEST = 12
#: What stands in a function's body for the full names of outbox and table, and for the primary key, until it is
#: installed.
_OUTBOX, _CHANGED, _KEY = "\x00outbox\x00", "\x00changed\x00", "\x00key\x00"


class Tag(NamedTuple):
    """One tag of a table's rows.

    Attributes:
        parts: of its template.
        columns: an UPDATE that changes none of these does not concern it; None if every one does.
        ignored: columns whose changes do not concern it.
        mode: how it is invalidated.
    """

    parts: list[Part]
    columns: frozenset[str] | None
    ignored: frozenset[str]
    mode: Mode

    @property
    def is_chosen(self) -> bool:
        """Whether some UPDATEs do not concern it."""
        return self.columns is not None or bool(self.ignored)

    @property
    def own(self) -> list[str]:
        """The columns that it is made of."""
        return [part.column for part in self.parts if part.column is not None]

    @property
    def names(self) -> list[str]:
        """All columns that it depends on."""
        return [*self.own, *sorted((self.columns or frozenset()) | self.ignored)]

    def chosen(self, side: str, other: str) -> str:
        """Return the SQL of the tags of rows on one side of an UPDATE that are not the same on the other."""
        if self.columns is not None:
            counted = sorted(self.columns - self.ignored)
            # With the key: two rows may have exchanged their values.
            compared = ", ".join([_KEY, *(f"{identifier(column)}::text" for column in counted)])
        else:  # as JSON: columns that are added later count too
            compared = f"to_jsonb(this.*) - ARRAY[{', '.join(map(literal, sorted(self.ignored)))}]"
        one, two = (
            f"SELECT {expression(self.parts)} AS tag, {compared} FROM {each}_rows AS this" for each in (side, other)
        )
        return f"SELECT tag FROM ({one} EXCEPT ALL {two}) AS {side}_only"


class TriggerFunction(NamedTuple):
    """A table, the function's name, with which its triggers' begin, the tags, and the channel to notify, if any."""

    namespace: str
    table: Name
    name: str
    tags: list[Tag]
    channel: str | None

    @property
    def digest(self) -> str:
        """What differs between functions that do different things."""
        return hashlib.sha256(self._body().encode()).hexdigest()[:DIGEST]

    def drops(self) -> list[str]:
        """Return the statements that remove the triggers."""
        kinds = (*EVENTS, "TRUNCATE")
        return [f"DROP TRIGGER IF EXISTS {self.name}_{kind.lower()} ON {self.table.sql}" for kind in kinds]

    @property
    def removal(self) -> str:
        """What removes function and triggers, also those of a table that was renamed; nothing where there are none."""
        return f"DROP FUNCTION IF EXISTS {self.name}() CASCADE"

    def creation(self, outbox: Name, mark: str) -> str:
        """Return what creates the function, once it has found the full names of outbox and table.

        Args:
            mark: its comment, which the outbox's full name follows.
        """
        outbox_oid, changed_oid = (literal(name.quoted) + "::regclass" for name in (outbox, self.table))
        body = self._body()
        for placeholder, variable in ((_OUTBOX, "outbox"), (_CHANGED, "changed"), (_KEY, "key")):
            body = body.replace(placeholder, f"$create$ || {variable} || $create$")
        key = (
            ""
            if all(tag.columns is None for tag in self.tags)
            else f"  key CONSTANT text DEFAULT {key_of(changed_oid)};\n"
        )
        return (
            "DO $install$\nDECLARE\n"
            "  -- In full: whoever changes the table may have another search_path, and another outbox on it.\n"
            f"  outbox CONSTANT text DEFAULT {in_full(outbox_oid)};\n"
            f"  changed CONSTANT text DEFAULT {in_full(changed_oid)};\n"
            f"{key}"
            f"BEGIN\nEXECUTE $create$\n{body}\n$create$;\n"
            f"EXECUTE 'COMMENT ON FUNCTION {self.name}() IS '\n"
            f"  || quote_literal('{mark}' || outbox);\n"
            "END\n$install$"
        )

    def _body(self) -> str:
        """Return what creates the function, with placeholders."""
        branches = "\n".join(
            f"  {'IF' if at == 0 else 'ELSIF'} TG_OP = '{kind}' THEN\n{self._inserts(sides)}"
            for at, (kind, sides) in enumerate({**EVENTS, "TRUNCATE": ("all",)}.items())
        )
        return (
            f"CREATE OR REPLACE FUNCTION {self.name}() RETURNS trigger LANGUAGE plpgsql\n"
            f"SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' AS $cacheworkers$\n"
            f"BEGIN\n{branches}\n  END IF;\n{self._notification()}  RETURN NULL;\nEND\n$cacheworkers$"
        )

    def _inserts(self, sides: Sequence[str]) -> str:
        return "\n".join(
            f"    INSERT INTO {_OUTBOX} (namespace, source, tags)\n"
            f"    SELECT '{self.namespace}', '{source}', "
            # Line feeds separate tags: a value that holds one makes one illegal tag, not several.
            f"string_agg(replace(tag, chr(10), chr(13)), chr(10)) FROM (\n"
            f"      SELECT tag, row_number() OVER () / {ROW_TAGS} AS chunk FROM (\n"
            f"        {_union(sides, [tag for tag in self.tags if tag.mode == mode])}\n"
            f"      ) AS found\n"
            f"    ) AS numbered GROUP BY chunk;"
            for mode, source in _SOURCES.items()
            if any(tag.mode == mode for tag in self.tags)
        )

    def _notification(self) -> str:
        if self.channel is None:
            return ""
        # What concerns no tag needs nobody's attention.
        is_quiet = all(tag.is_chosen for tag in self.tags) and len({tag.mode for tag in self.tags}) == 1
        return (
            # Transactions that notify are committed one after the other, each waiting for the disk: NOTIFY takes a lock
            # of the whole server.  One of those that are open is enough to wake the relay.
            f"  IF {'FOUND AND ' if is_quiet else ''}pg_try_advisory_xact_lock({_lock_number(self.channel)}) THEN\n"
            f"    PERFORM pg_notify('{self.channel}', '');\n  END IF;\n"
        )


def _union(sides: Sequence[str], tags: Sequence[Tag]) -> str:
    """Return the SQL of the tags of a statement's rows, each once."""
    is_update = len(sides) == 2
    found = [
        f"SELECT {expression(tag.parts)} AS tag FROM {_CHANGED if side == 'all' else f'{side}_rows'}"
        for side in sides
        for tag in tags
        if not (is_update and tag.is_chosen)
    ]
    if is_update:
        pairs = (("old", "new"), ("new", "old"))
        found += [tag.chosen(*pair) for tag in tags if tag.is_chosen for pair in pairs]
    return " UNION ".join(found)


def _lock_number(channel_name: str) -> int:
    """Return the number of the advisory lock that whoever notifies a channel holds."""
    return int.from_bytes(hashlib.sha256(channel_name.encode()).digest()[:8], signed=True)
