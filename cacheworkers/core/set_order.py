"""Write sets in one order, whatever the process: equal values then have equal JSON."""

from __future__ import annotations

import collections.abc
import copy
from typing import Any

import msgspec

from cacheworkers.core.annotations import classes_in
from cacheworkers.core.comparison import field_names

_encode = msgspec.json.Encoder(order="deterministic").encode


def has_sets(annotation: Any) -> bool:
    """Return whether values of a type may hold sets."""
    return any(issubclass(each, collections.abc.Set) for each in classes_in(annotation))


def with_sets_in_order(value: Any) -> Any:
    """Return a value, for encoding only, with sorted lists in place of its sets; everything else keeps its order."""
    kind = type(value)
    if isinstance(value, set | frozenset):
        return sorted(map(with_sets_in_order, value), key=_json_of)
    if kind is list or kind is tuple:
        return kind(map(with_sets_in_order, value))
    if isinstance(value, tuple) and hasattr(kind, "_make"):
        return kind._make(map(with_sets_in_order, value))
    if isinstance(value, dict):
        return {key: with_sets_in_order(each) for key, each in value.items()}
    names = field_names(kind)
    if names is None:
        return value
    copied = copy.copy(value)
    for name in names:
        if hasattr(copied, name):
            _put(copied, name, with_sets_in_order(getattr(copied, name)))
    return copied


def _put(copied: Any, name: str, value: Any) -> None:
    """Set a field, frozen or not, without the class's own checks."""
    if isinstance(copied, msgspec.Struct):
        msgspec.structs.force_setattr(copied, name, value)
    elif hasattr(copied, "__pydantic_fields_set__"):
        copied.__dict__[name] = value
    else:
        object.__setattr__(copied, name, value)


def _json_of(value: Any) -> tuple[bytes, str]:
    try:
        return _encode(value), ""
    except TypeError:
        return b"", repr(value)
