"""Write equal values in one form, whatever the process and whatever has made them: they then have equal JSON."""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
from typing import Any

import msgspec

from cacheworkers.core.annotations import classes_in
from cacheworkers.core.comparison import field_names

_encode = msgspec.json.Encoder(order="deterministic").encode


def has_forms(annotation: Any) -> bool:
    """Return whether equal values of a type may have different JSON.

    Sets have no order, and a dataclass that msgspec has decoded leaves its defaults to its class.
    """
    return any(issubclass(each, collections.abc.Set) or _has_defaults(each) for each in classes_in(annotation))


def in_one_form(value: Any) -> Any:
    """Return a value, for encoding only, with all its fields, and with sorted lists in place of its sets."""
    kind = type(value)
    if isinstance(value, set | frozenset):
        return sorted(map(in_one_form, value), key=_json_of)
    if kind is list or kind is tuple:
        return kind(map(in_one_form, value))
    if isinstance(value, tuple) and hasattr(kind, "_make"):
        return kind._make(map(in_one_form, value))
    if isinstance(value, dict):
        return {key: in_one_form(each) for key, each in value.items()}
    names = field_names(kind)
    if names is None:
        return value
    copied = copy.copy(value)
    for name in names:
        if hasattr(copied, name):
            _put(copied, name, in_one_form(getattr(copied, name)))
    return copied


def _has_defaults(kind: type) -> bool:
    """Return whether a dataclass without slots has fields that its instances need not have themselves."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) and kind.__dictoffset__ else ()
    return any(each.default is not dataclasses.MISSING for each in fields)


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
