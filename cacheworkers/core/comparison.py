"""Compare a value with what its JSON decodes to: type and value, hidden parts too.

`is_same` is quick and may say no where it does not know; `difference` is slow and names the place.  Many elements are
compared by columns, so that the loops run in C.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import itertools
import operator
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

_PLAIN = frozenset(
    (str, int, float, bool, bytes, type(None), decimal.Decimal, uuid.UUID, datetime.date, datetime.timedelta)
)
#: What a pydantic model holds besides its fields.
_HIDDEN = ("__pydantic_extra__", "__pydantic_private__")
_CONTAINERS = (collections.deque, collections.defaultdict)
#: What these hold besides their elements.
_BESIDE_ELEMENTS = ("maxlen", "default_factory")
_SHOWN = 60
_EXACT_IN_FLOATS = 2**53
_ZONE, _FOLD, _FIELDS_SET = map(operator.attrgetter, ("tzinfo", "fold", "__pydantic_fields_set__"))


def is_same(value: Any, decoded: Any) -> bool:
    """Return whether two values are certainly the same, types included."""
    return _are_same([value], [decoded])


def difference(value: Any, decoded: Any, path: str = "") -> str | None:
    """Return where and how a decoded value differs from the one that was encoded; None if it does not.

    An int under `float` and a subclass of UUID are equal to what they come back as, and are let pass.
    """
    kind = type(value)
    if kind is not type(decoded):
        is_number = kind is int and type(decoded) is float and abs(value) <= _EXACT_IN_FLOATS
        is_uuid = isinstance(value, uuid.UUID) and type(decoded) is uuid.UUID
        return None if (is_number or is_uuid) and value == decoded else _changed(path, value, decoded)
    if issubclass(kind, _CONTAINERS):
        for name in _BESIDE_ELEMENTS:
            mine, theirs = getattr(value, name, None), getattr(decoded, name, None)
            if mine != theirs:
                return _changed(f"{path}.{name}", mine, theirs)
    if kind in (datetime.datetime, datetime.time):
        return None if _is_same_instant(value, decoded) else _changed(path, value, decoded)
    if issubclass(kind, dict):
        return _difference_of_dicts(value, decoded, path)
    if issubclass(kind, list | tuple):
        if len(value) != len(decoded):
            return _changed(path, value, decoded)
        return _first(
            difference(each, other, f"{path}[{at}]")
            for at, (each, other) in enumerate(zip(value, decoded, strict=True))
        )
    if issubclass(kind, set | frozenset):
        is_equal = value == decoded and sorted(map(_name, value)) == sorted(map(_name, decoded))
        return None if is_equal else _changed(path, value, decoded)
    names = field_names(kind)
    if names is None:
        return None if value == decoded else _changed(path, value, decoded)
    return _difference_of_fields(value, decoded, path, names)


def field_names(kind: type) -> tuple[str, ...] | None:
    """Return the fields of a Struct, dataclass or pydantic model; None for any other class."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(each.name for each in dataclasses.fields(kind))
    if hasattr(kind, "__pydantic_fields__"):
        return tuple(kind.__pydantic_fields__)
    return None


def _are_same(values: list[Any], others: list[Any]) -> bool:
    kinds = list(map(type, values))
    if kinds != list(map(type, others)):
        return False
    distinct = set(kinds)
    if distinct <= _PLAIN:
        return values == others
    if len(distinct) > 1:
        parts = [[each is kind for each in kinds] for kind in distinct - _PLAIN]
        parts.append([each in _PLAIN for each in kinds])
        return all(
            _are_same(list(itertools.compress(values, part)), list(itertools.compress(others, part))) for part in parts
        )
    [kind] = distinct
    if kind is list or kind is tuple or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return list(map(len, values)) == list(map(len, others)) and _are_same(_flat(values), _flat(others))
    if kind is dict:
        return (
            list(map(list, values)) == list(map(list, others))
            and _are_same(_flat(values), _flat(others))
            and _are_same(_flat(map(dict.values, values)), _flat(map(dict.values, others)))
        )
    if kind is datetime.datetime:
        zones = list(map(_ZONE, itertools.chain(values, others)))
        if len(zones) in (zones.count(datetime.UTC), zones.count(None)):
            return values == others and list(map(_FOLD, values)) == list(map(_FOLD, others))
        return all(map(_is_same_instant, values, others))
    if issubclass(kind, enum.Enum):
        return all(map(operator.is_, values, others))
    return _have_same_fields(kind, values, others)


def _have_same_fields(kind: type, values: list[Any], others: list[Any]) -> bool:
    layout = _layout(kind)
    if layout is None:
        return False
    if layout.is_pydantic:
        if list(map(_FIELDS_SET, values)) != list(map(_FIELDS_SET, others)):
            return False
    elif any(len(getattr(each, "__dict__", ())) > layout.in_dict for each in values):
        return False  # it holds more than its fields
    try:
        parts, theirs = (_flat(map(layout.fields, each)) for each in (values, others))
    except AttributeError:
        return False
    return _are_same(parts, theirs)


class _Layout(NamedTuple):
    """Where a class keeps its fields: a function that returns all of an instance, and how many are in `__dict__`."""

    fields: Callable[[Any], tuple[Any, ...]]
    in_dict: int
    is_pydantic: bool


@functools.lru_cache(maxsize=1000)
def _layout(kind: type) -> _Layout | None:
    names = field_names(kind)
    if names is None:
        return None
    is_pydantic = hasattr(kind, "__pydantic_fields__") and hasattr(kind, "model_fields")
    names = (*names, *_HIDDEN) if is_pydantic else names
    slots = types.MemberDescriptorType
    in_dict = sum(not isinstance(inspect.getattr_static(kind, name, None), slots) for name in names)
    # Of one name alone `attrgetter` returns no tuple.
    fields = operator.attrgetter(*names, *names[:1]) if names else lambda _: ()
    return _Layout(fields, in_dict, is_pydantic)


def _difference_of_dicts(value: dict[Any, Any], decoded: dict[Any, Any], path: str) -> str | None:
    for key, other in itertools.zip_longest(value, decoded, fillvalue=_ABSENT):
        if key is _ABSENT or other is _ABSENT or type(key) is not type(other) or key != other:
            missing = "it has no such key" if key is _ABSENT else f"the key {_shown(key)}"
            found = "nothing" if other is _ABSENT else f"the key {_shown(other)}"
            return f"{path or 'the value'} has {missing} and comes back with {found}"
    return _first(
        difference(each, other, f"{path}[{_shown(key)}]")
        for (key, each), other in zip(value.items(), decoded.values(), strict=True)
    )


def _difference_of_fields(value: Any, decoded: Any, path: str, names: tuple[str, ...]) -> str | None:
    kind = type(value)
    pairs = [(name, getattr(value, name, _ABSENT), getattr(decoded, name, _ABSENT)) for name in names]
    if hasattr(kind, "__pydantic_fields__") and hasattr(kind, "model_fields"):
        hidden = ("__pydantic_fields_set__", *_HIDDEN)
        pairs += [(name, getattr(value, name, None), getattr(decoded, name, None)) for name in hidden]
    else:
        beside = getattr(value, "__dict__", {}).keys() - set(names)
        for name in sorted(beside):
            if not isinstance(getattr(kind, name, None), functools.cached_property) and not name.startswith("__"):
                return f"{path}.{name} is not a field of {kind.__qualname__} and does not come back"
    return _first(difference(each, other, f"{path}.{name}") for name, each, other in pairs)


def _is_same_instant(value: Any, decoded: Any) -> bool:
    """Return whether a datetime or time is the same, also after arithmetic: JSON has offsets, and no zones."""
    if value.fold != decoded.fold or (value.tzinfo is None) != (decoded.tzinfo is None):
        return False
    if value.tzinfo is not None and value.tzinfo.utcoffset(None) != decoded.tzinfo.utcoffset(None):
        return False  # a zone with summer time has no offset of its own
    return bool(value == decoded and value.replace(tzinfo=None) == decoded.replace(tzinfo=None))


def _changed(path: str, value: Any, decoded: Any) -> str:
    of = "" if type(value) is type(decoded) else f" ({type(value).__qualname__})"
    back = "" if type(value) is type(decoded) else f" ({type(decoded).__qualname__})"
    return f"{path or 'the value'} is {_shown(value)}{of} and comes back as {_shown(decoded)}{back}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _name(value: Any) -> str:
    return type(value).__qualname__


def _flat(values: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(values))


def _first(found: Iterator[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()
