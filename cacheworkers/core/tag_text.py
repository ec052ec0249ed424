"""The text of a value in a tag, `tag()`, and TagKinds, which checks that loaders, rows and triggers agree on it.

Templates are filled as an f-string fills them, and a trigger writes what Postgres has as text.  Only some types have
one text in all of these; what has several is refused where templates are declared, and `tag()` makes one text of it.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import math
import re
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cacheworkers.core.annotations import members_of, shown
from cacheworkers.errors import TagError


class TextKind(enum.Enum):
    """Types of which a value has the same text everywhere."""

    INT = "int"
    STR = "str"
    BOOL = "bool"
    UUID = "UUID"
    DATE = "date"


_KINDS = {
    int: TextKind.INT,
    str: TextKind.STR,
    bool: TextKind.BOOL,
    uuid.UUID: TextKind.UUID,
    datetime.date: TextKind.DATE,
}
#: What to do about a value whose text in a template would not be the same everywhere.
REMEDY = 'tag by a column or argument that has one text, or write tag("price", value) on both sides'


def tag(name: str, *values: object) -> str:
    """Return a tag of a name and values: `tag("product", 42)` is `product:42`.

    Equal values make one text: numbers are written without trailing zeros, datetimes with an offset in UTC, Enums by
    their values.  Give it to `load.tag`, `cache.invalidate`, and the functions of `cache.watch`.

    Raises:
        TagError: a value is of a type that has no such text.
    """
    return ":".join((name, *map(text_of, values)))


def text_of(value: object) -> str:
    """Return the text of a value in a tag; equal values have equal texts.

    Raises:
        TagError: it is of a type that has no such text.
    """
    match value:
        case None | bool():
            return str(value)
        case enum.Enum():
            return text_of(value.value)
        case str():
            return str.__str__(value)
        case int():
            return int.__repr__(value)
        case float() | decimal.Decimal():
            return _text_of_number(value)
        case uuid.UUID() | datetime.timedelta():
            return str(value)
        case datetime.datetime():
            return (value if value.tzinfo is None else value.astimezone(datetime.UTC)).isoformat()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case _:
            raise TagError(f"a {type(value).__name__} has no text in a tag, got {value!r}; give what identifies it")


def plain_text_of(value: object) -> str:
    """Return the text of a template's field, for a value whose type nobody has declared.

    Raises:
        TagError: its type has several texts.
    """
    is_plain = value is None or isinstance(value, int | str | uuid.UUID)
    is_date = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    is_odd_enum = isinstance(value, enum.Enum) and not isinstance(value, enum.StrEnum | enum.IntEnum)
    if not (is_plain or is_date) or is_odd_enum:
        raise TagError(f"a {type(value).__name__} has several texts in tags, got {value!r}; {REMEDY}")
    return text_of(value)


def kind_of(annotation: Any) -> TextKind | None:
    """Return the kind of an annotation's values; None where it does not say.

    Raises:
        TagError: a value may have several texts.
    """
    kinds = {_kind_of_member(each, annotation) for each in members_of(annotation) if each is not type(None)}
    if len(kinds) > 1:
        raise TagError(f"{shown(annotation)} has several types, and their texts may be equal; {REMEDY}")
    return kinds.pop() if kinds else None


def _kind_of_member(member: Any, annotation: Any) -> TextKind | None:
    if member is Any:
        return None
    if typing.get_origin(member) is typing.Literal:
        found = {_KINDS.get(type(each)) for each in typing.get_args(member) if each is not None}
        if len(found) == 1:
            return found.pop()
    if isinstance(member, type):
        if issubclass(member, enum.StrEnum):
            return TextKind.STR
        if issubclass(member, enum.IntEnum):
            return TextKind.INT
        if member in _KINDS:
            return _KINDS[member]
    raise TagError(f"{shown(annotation)} has several texts in tags; {REMEDY}")


def _text_of_number(value: float | decimal.Decimal) -> str:
    if not math.isfinite(value):
        raise TagError(f"a number in a tag must be finite, got {value}")
    whole = int(value)
    if value == whole and abs(whole) < 2**63:
        return str(whole)
    if isinstance(value, float):
        return repr(value)
    text = format(value, "f")
    return text.rstrip("0") if "." in text else text


class TagKinds:
    """The kinds of the fields of all templates of a cache, so that a loader's and a row's tags are of the same.

    `product:{product_id}` of a loader that takes an int, and of a column of texts: 7 and "007" are one row to the
    database, and two tags.
    """

    def __init__(self) -> None:
        self._loaders: dict[tuple[str | None, ...], dict[str, tuple[TextKind | None, ...]]] = {}
        self._rows: dict[tuple[str | None, ...], dict[str, tuple[TextKind | None, ...]]] = {}
        self._typed: list[_Typed] | None = None

    def add_loader(self, who: str, texts: tuple[str | None, ...], kinds: Sequence[TextKind | None]) -> None:
        """Note a loader's template.

        Raises:
            TagError: only rows whose fields are of other kinds have such tags.
        """
        self._add(self._loaders, self._rows, who, texts, tuple(kinds))
        self._typed = None

    def with_loaders_texts(self, tags: Iterable[str]) -> list[str]:
        """Return tags, and what loaders write for those whose fields are other texts of the same values.

        `page:7.00`, formatted by hand from a Decimal, is `page:7` to a loader that takes an int.
        """
        if self._typed is None:
            self._typed = _typed(self._loaders)
        given = list(tags)
        varied = [tag for tag in given if isinstance(tag, str) and _VARIED.search(tag)]
        found: dict[str, None] = {}
        known = {tag for tag in given if isinstance(tag, str)}
        for template in self._typed:
            for tag in given if template.is_read else varied:
                if isinstance(tag, str) and tag.startswith(template.head):
                    found.update(dict.fromkeys(template.texts_of(tag)))
        return [*given, *(tag for tag in found if tag not in known)]

    def add_rows(self, who: str, texts: tuple[str | None, ...], kinds: Sequence[TextKind | None]) -> None:
        """Note a template of a watched class or of triggers; raises as `add_loader` does, with the sides changed."""
        self._add(self._rows, self._loaders, who, texts, tuple(kinds))

    def _add(
        self, mine: Any, theirs: Any, who: str, texts: tuple[str | None, ...], kinds: tuple[TextKind | None, ...]
    ) -> None:
        others: dict[str, tuple[TextKind | None, ...]] = theirs.get(texts, {})
        if others and not any(_agree(kinds, each) for each in others.values()):
            other, there = next(iter(others.items()))
            raise TagError(
                f"the tags {''.join('{}' if text is None else text for text in texts)!r} of {who} are made of "
                f"{_named(kinds)}, those of {other} of {_named(there)}: the texts of one row would differ; give both "
                f"the same type, or other tags"
            )
        mine.setdefault(texts, {})[who] = kinds


class _Typed(NamedTuple):
    """A loader's template with fields whose values have other texts elsewhere.

    Attributes:
        is_read: whether a field is of a type whose values every text may be of; texts have other texts only if they
            look like it.
    """

    head: str
    pattern: re.Pattern[str]
    texts: tuple[str | None, ...]
    kinds: tuple[TextKind | None, ...]
    is_read: bool

    def texts_of(self, tag: str) -> list[str]:
        """Return the tag as the loader may write it; nothing if the template makes no such tag."""
        match = self.pattern.fullmatch(tag)
        if match is None:
            return []
        try:
            fields = [_READ[kind](text) for kind, text in zip(self.kinds, match.groups(), strict=True)]
        except (ValueError, ArithmeticError):
            return []
        found = []
        for chosen in itertools.islice(itertools.product(*fields), _MAX_TEXTS):
            each = iter(chosen)
            found.append("".join(next(each) if text is None else text for text in self.texts))
        return [text for text in found if text]


def _typed(loaders: Mapping[tuple[str | None, ...], Mapping[str, tuple[TextKind | None, ...]]]) -> list[_Typed]:
    found = []
    for texts, by_loader in loaders.items():
        # The shortest first: a number holds none of the text that follows it, while a text may.
        pattern = re.compile("".join("(.*?)" if text is None else re.escape(text) for text in texts), re.DOTALL)
        for kinds in dict.fromkeys(by_loader.values()):
            if kinds:
                found.append(_Typed(texts[0] or "", pattern, texts, kinds, bool(set(kinds) - {None, TextKind.STR})))
    return found


#: Tags of texts that a database may hold equal to others: padded, a UUID or an address, an Enum's member.
_VARIED = re.compile(r" |\b[A-Z]\w*\.[A-Za-z_]|[0-9A-Fa-f]{2}[-:][0-9A-Fa-f]{2}")
_MEMBER = re.compile(r"[A-Z]\w*\.([A-Za-z_]\w*)")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{2,}([-:][0-9A-Fa-f]{2,})+")
#: Tags that one tag becomes, at most: each costs a look-up.
_MAX_TEXTS = 16


def _text(text: str) -> list[str]:
    """Return a text and those that are likely to name the same row: one tag too many costs a load."""
    found = [text, text.rstrip(" ")]
    if _HEXADECIMAL.fullmatch(text):
        found += [text.lower(), text.upper()]
    if member := _MEMBER.fullmatch(text):
        found += [member[1], member[1].lower()]
    return list(dict.fromkeys(found))


def _int(text: str) -> str:
    number = decimal.Decimal({"True": "1", "False": "0"}.get(text, text))
    if not number.is_finite() or number.adjusted() > 40 or number != int(number):
        raise ValueError(text)
    return str(int(number))


def _bool(text: str) -> str:
    return {"1": "True", "0": "False", "true": "True", "false": "False"}.get(text, text)


def _date(text: str) -> str:
    return datetime.date.fromisoformat(text[:10] if text[10:11] in (" ", "T") else text).isoformat()


def _one(read: Callable[[str], str]) -> Callable[[str], list[str]]:
    return lambda text: [text if text == "None" else read(text)]


#: Kind -> what makes the texts that loaders write of another text of a value; raises ValueError where it is none.
_READ: dict[TextKind | None, Callable[[str], list[str]]] = {
    None: _text,
    TextKind.STR: _text,
    TextKind.INT: _one(_int),
    TextKind.BOOL: _one(_bool),
    TextKind.UUID: _one(lambda text: str(uuid.UUID(text))),
    TextKind.DATE: _one(_date),
}


def _agree(kinds: tuple[TextKind | None, ...], others: tuple[TextKind | None, ...]) -> bool:
    return all(one is None or other is None or one is other for one, other in zip(kinds, others, strict=True))


def _named(kinds: tuple[TextKind | None, ...]) -> str:
    return ", ".join("an unknown type" if kind is None else kind.value for kind in kinds) or "nothing"
