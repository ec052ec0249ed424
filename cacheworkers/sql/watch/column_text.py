"""The text of a column's value in a tag, and which columns have one."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import types
from sqlalchemy.dialects import postgresql

from cacheworkers.core.tag_text import REMEDY, TextKind, plain_text_of, text_of
from cacheworkers.errors import ConfigError
from cacheworkers.sql.sqlalchemy_internals import variants_of

_KINDS: tuple[tuple[type[Any], TextKind], ...] = (
    (types.Boolean, TextKind.BOOL),
    (types.Integer, TextKind.INT),
    (types.Uuid, TextKind.UUID),
    (types.Date, TextKind.DATE),
    (types.String, TextKind.STR),
)
#: Endings and names of collations under which different texts are equal.
_LOOSE = ("_ci", "_ai", "nocase", "rtrim")
#: What to do about texts that the database, or a decorator, holds equal.
ONE_FORM = (
    "tag by a column or argument that has one text, or write one form of all that are equal on both sides, such as "
    'tag("user", name.casefold())'
)


def kind_of_column(name: str, column: Any) -> TextKind | None:
    """Return the kind of a column's values; None where its type is not declared.

    Raises:
        ConfigError: its values may have several texts, or texts that the database holds equal differ.
    """
    own, *others = (_kind_of_type(name, each) for each in (column.type, *variants_of(column.type)))
    if any(each is not own for each in others):
        raise ConfigError(
            f"the column {name} cannot be a field of a tag's template: its variants have other texts on other "
            f"databases; {REMEDY}, in a function of the row"
        )
    return own


def _kind_of_type(name: str, kind: Any) -> TextKind | None:
    if isinstance(kind, types.NullType):
        return None
    reason, remedy = "", REMEDY
    if isinstance(kind, types.TypeDecorator):
        reason = "its text in Python may not be the one in the database"
        remedy = ONE_FORM
    elif isinstance(kind, types.Enum):
        if kind.enum_class is None:
            return TextKind.STR
        reason = "an Enum's name, value and text differ"
    elif isinstance(kind, types.CHAR | types.NCHAR):
        reason = "the database pads it with blanks"
    elif isinstance(kind, postgresql.CITEXT) or _is_loose(getattr(kind, "collation", None)):
        reason = "the database holds texts equal that differ in case or accents"
        remedy = ONE_FORM
    else:
        for each, found in _KINDS:
            if isinstance(kind, each):
                return found
        reason = "its values have several texts"
    raise ConfigError(
        f"the column {name} of type {kind!r} cannot be a field of a tag's template: {reason}; {remedy}, in a "
        f"function of the row"
    )


def text_maker(kind: TextKind | None) -> Callable[[Any], str]:
    """Return what makes the text of a column's value, which may be as it was assigned, and not as it will be read."""
    if kind is None:
        return plain_text_of

    read = _READ[kind]

    def text(value: Any) -> str:
        if value is None:
            return "None"
        if isinstance(value, enum.Enum):
            value = value.value
        try:
            return text_of(read(value))
        except (TypeError, ValueError):  # the database will refuse it
            return str(value)

    return text


def _date(value: Any) -> datetime.date:
    if isinstance(value, datetime.datetime):
        return value.date()
    return value if isinstance(value, datetime.date) else datetime.date.fromisoformat(value)


_READ: dict[TextKind, Callable[[Any], Any]] = {
    TextKind.BOOL: bool,
    TextKind.INT: int,
    TextKind.UUID: lambda value: value if isinstance(value, uuid.UUID) else uuid.UUID(str(value)),
    TextKind.DATE: _date,
    TextKind.STR: str,
}


def _is_loose(collation: str | None) -> bool:
    return collation is not None and collation.lower().endswith(_LOOSE)
