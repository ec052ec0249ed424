"""Canonical arguments: arguments as their annotations mean them, as plain JSON values, equal ones alike.

Of what is equal to Python one text is made: L1 is looked into by raw arguments, where True is 1, and the way through
the store has to find the same entry.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import numbers
import typing
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from cacheworkers.core.annotations import members_of
from cacheworkers.core.one_form import in_one_form

#: What converting an argument may raise.
CONVERSION_ERRORS = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
#: Types whose values are canonical as they are.  Equal values of one of them have equal texts.
EXACT = (int, str, bool, uuid.UUID, datetime.date)


def is_keyable(annotation: Any) -> bool:
    """Return whether raw arguments that are equal mean the same value of this type.

    Not so for Any: `1 == True`, but they are two calls.
    """
    kinds = [each for each in members_of(annotation) if each is not type(None)]
    if len(kinds) != 1:
        return not kinds
    [kind] = kinds
    if typing.get_origin(kind) is typing.Literal:
        return len({type(each) for each in typing.get_args(kind)}) == 1
    return kind in EXACT or (isinstance(kind, type) and issubclass(kind, enum.Enum))


def as_canonical(value: Any, annotation: Any) -> Any:
    """Return an argument as its annotation means it, as plain JSON values: "42" under `int` is 42."""
    if annotation is not Any:
        value = as_exact(value, annotation)
    return plain(value)


def as_exact(value: Any, annotation: Any) -> Any:
    """Return an argument as its annotation means it; what is equal to a value of the type is that value.

    Memory is looked into by raw arguments, where True is 1: the way through the store has to take it as well.
    """
    try:
        found = msgspec.convert(value, annotation, strict=False)
    except CONVERSION_ERRORS:
        equal = _equal_of(value, annotation)
        if equal is None:
            raise
        return equal
    if annotation in EXACT and type(found) is not annotation:  # a subclass
        equal = _equal_of(value, annotation)
        return found if equal is None else equal
    return found


def _equal_of(value: Any, annotation: Any) -> Any:
    """Return the value of a type that serves as a key and equals another; None if there is none."""
    for kind in members_of(annotation):
        if typing.get_origin(kind) is typing.Literal:
            options: Iterable[Any] = typing.get_args(kind)
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            options = (value,) if isinstance(value, kind) else kind  # not each member of a Flag is in its class
        else:
            options = _plain_equals(value, kind)
        for each in options:
            if each is not None and each == value:
                return each
    return None


def _plain_equals(value: Any, kind: Any) -> Iterable[Any]:
    match value:
        case numbers.Number() if kind in (int, bool):
            try:
                return (kind(getattr(value, "real", value)),)
            except (ValueError, OverflowError):  # NaN, infinity
                return ()
        case str() if kind is str:
            return (str.__str__(value),)
        case uuid.UUID() if kind is uuid.UUID:
            return (uuid.UUID(int=value.int),)
        case datetime.date() if kind is datetime.date and not isinstance(value, datetime.datetime):
            return (datetime.date(value.year, value.month, value.day),)
        case _:
            return ()


def plain(value: Any) -> Any:
    """Return a value as plain JSON values, equal values alike."""
    kept = (decimal.Decimal, datetime.datetime)
    return _alike(msgspec.to_builtins(in_one_form(value), builtin_types=kept, str_keys=True, order="deterministic"))


def _alike(value: Any) -> Any:
    match value:
        case float():
            if not math.isfinite(value):
                raise ValueError(f"a float must be finite, got {value}")
            return value + 0.0  # -0.0 and 0.0 are one
        case decimal.Decimal():
            return _shortest(value)
        case datetime.datetime():
            # One instant has one text, in whatever time zone it was given.
            return value if value.tzinfo is None else value.astimezone(datetime.UTC)
        case list() | tuple():
            return [_alike(each) for each in value]
        case dict():
            return {key: _alike(each) for key, each in value.items()}
        case _:
            return value


def _shortest(value: decimal.Decimal) -> decimal.Decimal:
    """Return a Decimal without trailing zeros, never rounded; 100 stays 100, and does not become 1E+2."""
    if not value.is_finite():
        raise ValueError(f"a Decimal must be finite, got {value}")
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # it is finite
    if not any(digits):
        return decimal.Decimal(0)
    while digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    if 0 < exponent <= 30:
        digits, exponent = digits + (0,) * exponent, 0
    return decimal.Decimal((sign, digits, exponent))
