"""Names of tables and templates of tags as the SQL of triggers.

The SQL holds no percent sign and no colon before a word: it is one text for psycopg, asyncpg, Alembic and `text()`,
which takes `:word` for a parameter.
"""

from __future__ import annotations

import re
import string
from typing import NamedTuple

from cacheworkers.core.tag_templates import check_tag
from cacheworkers.core.tag_text import TextKind
from cacheworkers.errors import ConfigError, TagError

#: Types whose text is the same in Postgres and in Python, where a watched session makes the same tag of the same row.
ALIKE = {
    "smallint": TextKind.INT,
    "integer": TextKind.INT,
    "bigint": TextKind.INT,
    "text": TextKind.STR,
    "character varying": TextKind.STR,
    "uuid": TextKind.UUID,
    "boolean": TextKind.BOOL,
    "date": TextKind.DATE,
}
_PART = r'"(?:[^"\x00]|"")+"|[^\s".\x00]+'
_TABLE = re.compile(rf"(?:({_PART})\.)?({_PART})")
_COLUMN = re.compile(r"[^\W\d][\w-]*")
#: What drivers, `text()` or dollar quotes would take for something else.
_SPECIAL = re.compile(r"[%$\\]|:\w")


class Part(NamedTuple):
    """A piece of a template: text, and the column that follows it."""

    text: str
    column: str | None


class Name(NamedTuple):
    """A table's name as the database has it, and the schema it was given with."""

    schema: str | None
    table: str

    @property
    def quoted(self) -> str:
        """The name as `to_regclass` takes it, in quotes: reserved words, capitals and dashes stay the same."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in self if part is not None)

    @property
    def sql(self) -> str:
        """The name in the text of a statement."""
        return ".".join(identifier(part) for part in self if part is not None)


def name_of(table: str) -> Name:
    """Return the name that a text spells: `item`, `shop.item`, `"a b".item`; a part without quotes is exact, too.

    Raises:
        ConfigError: it spells none.
    """
    found = _TABLE.fullmatch(table)
    if found is None:
        raise ConfigError(
            f"a table must be a name, perhaps with its schema, quoted where it has dots or spaces, got {table!r}"
        )
    schema, name = (None if part is None else _unquoted(part) for part in found.groups())
    assert name is not None
    return Name(schema, name)


def identifier(name: str) -> str:
    """Return a name as the text of a statement has it, inside any dollar quotes."""
    plain = name.replace('"', '""')
    if _SPECIAL.search(plain) is None:
        return f'"{plain}"'
    return 'U&"' + re.sub(r"[%:$\\]", lambda found: f"\\{ord(found[0]):04X}", plain) + '"'


def literal(value: str) -> str:
    """Return a text as a literal, inside any dollar quotes."""
    plain = value.replace("'", "''")
    if _SPECIAL.search(plain) is None:
        return f"'{plain}'"
    return "E'" + re.sub(r"[%:$\\]", lambda found: f"\\{ord(found[0]):03o}", plain) + "'"


def parsed(table: str, template: str, max_tag_bytes: int) -> list[Part]:
    """Return a template's parts.

    Raises:
        ConfigError: it is malformed, makes no legal tag, or holds more than plain columns.
    """
    try:
        found = list(string.Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"tag template {template!r} of {table} is malformed: {error}") from None
    parts = []
    for before, column, spec, conversion in found:
        if column is not None and (spec or conversion or not _COLUMN.fullmatch(column)):
            raise ConfigError(f"tag template {template!r} of {table} may hold plain columns only, as {{id}}")
        parts.append(Part(before, column))
    try:  # a column adds text or nothing: what is illegal without it is illegal with it
        check_tag("".join(part.text for part in parts) or ("?" if parts else ""), max_tag_bytes)
    except TagError as error:
        raise ConfigError(f"tag template {template!r} of {table} makes no legal tag: {error}") from None
    return parts


def expression(parts: list[Part]) -> str:
    """Return the SQL of one tag, the same text that a watched session makes of the row."""
    words = []
    for before, column in parts:
        if before:
            words.append(literal(before))
        if column is not None:
            name = identifier(column)
            # Only the database knows a column's type.
            words.append(
                f"coalesce(CASE WHEN pg_typeof({name}) = 'boolean'::regtype THEN initcap({name}::text) "
                f"ELSE {name}::text END, 'None')"
            )
    return " || ".join(words)


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
