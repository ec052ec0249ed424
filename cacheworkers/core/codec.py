"""value <-> JSON, by a loader's return annotation.  Never pickle."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import typing
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cacheworkers.core.annotations import (
    RULE,
    bare,
    classes_in,
    fields_of,
    hints_of,
    is_pydantic,
    members_of,
    refuse_what_json_lacks,
    shown,
)
from cacheworkers.core.comparison import difference, field_names, is_same
from cacheworkers.core.one_form import has_forms, in_one_form
from cacheworkers.errors import CodecError, DeclarationError

_ATOMS = (
    str,
    int,
    float,
    bool,
    bytes,
    type(None),
    decimal.Decimal,
    uuid.UUID,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
)
#: A value of more bytes of JSON than this is compared with what it decodes to on the first loads of its shape (its type
#: and the magnitude of its size), then on some; a smaller one, or one of `Any`, on every load.
COMPARED_UP_TO = 4096
COMPARED_FIRST = 8
COMPARED_EVERY = 8
_encode = msgspec.json.Encoder().encode
_WRONG = (msgspec.MsgspecError, TypeError, ValueError, ArithmeticError, RecursionError)


def annotation_of(function: Callable[..., Any], is_batch: bool = False) -> Any:
    """Return the annotation of the value that a loader gives: for a batch loader, V of `dict[K, V]`.

    Raises:
        DeclarationError: a batch loader is annotated with something other than a dict.
    """
    annotation = hints_of(function).get("return", Any)
    if not is_batch or annotation is Any:
        return annotation
    args = typing.get_args(bare(annotation))
    if typing.get_origin(bare(annotation)) is not dict or len(args) != 2:
        name = getattr(function, "__name__", repr(function))
        raise DeclarationError(f"batch loader {name} must return dict[K, V], got {shown(annotation)}")
    return args[1]


class Codec:
    """Encodes and decodes the values of one annotation.

    Attributes:
        annotation: the type of the values.
        admits_none: None is a value.
        plain_decode: decodes, and raises whatever comes of it.
        is_shareable: values are immutable all the way down, so that callers may share one.
    """

    def __init__(self, annotation: Any) -> None:
        """
        Raises:
            DeclarationError: JSON cannot carry the type, or cannot tell the members of a union apart.
        """
        self.annotation = annotation = type(None) if annotation is None else annotation
        self.admits_none = any(_is_none(member) for member in members_of(annotation))
        self.is_shareable = _is_shareable(annotation, frozenset())
        encode: Callable[[Any], bytes]
        self.plain_decode: Callable[[bytes], Any]
        if any(is_pydantic(each) for each in classes_in(annotation)):
            from cacheworkers.core.pydantic_codec import pydantic_json

            encode, self.plain_decode = pydantic_json(annotation)
        else:
            refuse_what_json_lacks("a loader's value", annotation, RULE)
            encode, self.plain_decode = _encode, msgspec.json.Decoder(annotation).decode
        self._encode: Callable[[Any], bytes] = encode
        self._is_sampled = {Any, object}.isdisjoint(classes_in(annotation))
        self._loads_of_shape: dict[tuple[type, int], int] = {}
        if has_forms(annotation):
            self._encode = lambda value: encode(in_one_form(value))

    def decode(self, payload: bytes) -> Any:
        """Return the value of a payload.

        Raises:
            CodecError: the payload is no JSON of this type.
        """
        try:
            return self.plain_decode(payload)
        except _WRONG as error:
            raise CodecError(f"the payload is not a {shown(self.annotation)}: {error}") from None

    def decode_each(self, payloads: Iterable[bytes]) -> list[Any]:
        """Return the values of many payloads; raises as `decode` does, without naming the one that fails."""
        try:
            return list(map(self.plain_decode, payloads))
        except _WRONG as error:
            raise CodecError(f"a payload is not a {shown(self.annotation)}: {error}") from None

    def encode(self, value: Any) -> bytes:
        """Return a value's JSON, compared with what it decodes to: an equal value of one type, hidden parts included.

        A large value is compared on some loads only, and always decoded; of `Any`, it is always compared.

        Raises:
            CodecError: the value does not fit the annotation, or comes back changed; the message names the place.
        """
        try:
            payload = self._encode(value)
            # NaN and infinity become null, or words that are no JSON: only then is it worth looking for them.
            if b"null" in payload or b"NaN" in payload or b"Infinity" in payload:
                _refuse_nonfinite(value)
        except _WRONG as error:
            raise CodecError(f"a {type(value).__name__} cannot be stored as JSON: {error}; {RULE}") from None
        try:
            decoded = self.plain_decode(payload)
            if len(payload) > COMPARED_UP_TO and self._is_sampled and not self._is_sample(type(value), payload):
                return self._encode(decoded)  # equal values have equal bytes, compared or not
            if is_same(value, decoded):
                return payload
            changed = difference(value, decoded)
            if changed is None:  # an int where a float is declared: equal, and of one JSON
                return self._encode(decoded)
        except _WRONG as error:
            raise CodecError(
                f"a loader must return {shown(self.annotation)}, got a {type(value).__name__} that is not one: {error}"
            ) from None
        raise CodecError(
            f"a loader's value must come back as it was returned: {changed}; under {shown(self.annotation)} JSON "
            "cannot tell, so annotate the exact type, or return what the annotation says"
        )

    def _is_sample(self, kind: type, payload: bytes) -> bool:
        """Count a load of a large value; return whether it is one that is compared."""
        shape = kind, len(payload).bit_length()
        loads = self._loads_of_shape[shape] = self._loads_of_shape.get(shape, 0) + 1
        return loads <= COMPARED_FIRST or loads % COMPARED_EVERY == 0


def _is_none(annotation: Any) -> bool:
    is_literal = typing.get_origin(annotation) is typing.Literal and None in typing.get_args(annotation)
    return annotation is Any or annotation is type(None) or is_literal


def _refuse_nonfinite(value: Any) -> None:
    """Raise ValueError on NaN and infinity anywhere in a value: they would come back as None."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a float must be finite, got {value}")
        return
    inner: typing.Iterable[Any] = ()
    if isinstance(value, dict):
        inner = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif (names := field_names(type(value))) is not None:
        inner = (getattr(value, name, None) for name in names)
    for each in inner:
        _refuse_nonfinite(each)


def _is_shareable(annotation: Any, seen: frozenset[Any]) -> bool:
    """Return whether values of this type are immutable all the way down."""
    members = members_of(annotation)
    if len(members) > 1:
        return all(_is_shareable(member, seen) for member in members)
    [kind] = members
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return True
    if origin in (tuple, frozenset):
        return all(_is_shareable(arg, seen) for arg in args if arg is not Ellipsis)
    if not isinstance(kind, type) or origin is not None:
        return False
    if kind in _ATOMS or kind in seen or issubclass(kind, enum.Enum):
        return True
    fields = _frozen_fields(kind)
    return fields is not None and all(_is_shareable(each, seen | {kind}) for each in fields)


def _frozen_fields(kind: type) -> list[Any] | None:
    """Return the types of the fields of a class whose instances cannot change; None for other classes."""
    if issubclass(kind, msgspec.Struct):
        names, is_frozen = kind.__struct_fields__, kind.__struct_config__.frozen
    elif dataclasses.is_dataclass(kind):
        names = tuple(field.name for field in dataclasses.fields(kind))
        is_frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]  # typeshed does not know it
    elif issubclass(kind, tuple):
        names, is_frozen = getattr(kind, "_fields", ()), hasattr(kind, "_fields")
    elif hasattr(kind, "model_fields") and hasattr(kind, "model_config"):
        config = kind.model_config
        is_frozen = config.get("frozen") is True and config.get("extra") != "allow"
        return [field.annotation for field in kind.model_fields.values()] if is_frozen else None
    else:
        return None
    fields = fields_of(kind)
    return [fields[name] for name in names] if is_frozen and all(name in fields for name in names) else None
