"""value <-> JSON, by a loader's return annotation.  Never pickle."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.core.calls import hints_of
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
_encode = msgspec.json.Encoder().encode


def annotation_of(function: Callable[..., Any], is_batch: bool = False) -> Any:
    """Return the annotation of the value that a loader gives: for a batch loader, V of `dict[K, V]`.

    Raises:
        DeclarationError: a batch loader is annotated with something other than a dict.
    """
    annotation = hints_of(function).get("return", Any)
    if not is_batch or annotation is Any:
        return annotation
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is not dict or len(args) != 2:
        name = getattr(function, "__name__", repr(function))
        raise DeclarationError(f"batch loader {name} must return dict[K, V], got {annotation!r}")
    return args[1]


class Codec:
    """Encodes and decodes the values of one annotation.

    Attributes:
        admits_none: None is a value.
        is_shareable: values are immutable all the way down, so that callers may share one.
        decode: payload -> value; raises CodecError.
    """

    decode: Callable[[bytes], Any]

    def __init__(self, annotation: Any) -> None:
        """
        Raises:
            DeclarationError: JSON cannot carry the type, or cannot tell the members of a union apart.
        """
        self.annotation = annotation
        self.admits_none = annotation is Any or annotation is None or type(None) in typing.get_args(annotation)
        self.is_shareable = _is_shareable(annotation, frozenset())
        if _holds_pydantic(annotation):
            self._encode, self._decode = _pydantic(annotation)
        else:
            try:
                decoder = msgspec.json.Decoder(type(None) if annotation is None else annotation)
                _refuse_custom(msgspec.inspect.type_info(annotation))
            except (TypeError, ValueError) as error:
                raise DeclarationError(
                    f"a loader cannot return {_shown(annotation)}: {error}; return builtins, a msgspec Struct, "
                    "dataclass, TypedDict or pydantic model, not an ORM row"
                ) from None
            self._encode, self._decode = _encode, decoder.decode
        decode = self._decode

        def checked(payload: bytes) -> Any:
            try:
                return decode(payload)
            except ValueError as error:  # msgspec's and pydantic's errors are ValueErrors
                raise CodecError(f"the payload is no {_shown(annotation)}: {error}") from None

        self.decode = checked

    def encode(self, value: Any) -> bytes:
        """Return a value's JSON, proven to decode again.

        Raises:
            CodecError: the value does not fit the annotation, or JSON cannot carry it.
        """
        _refuse_nonfinite(value)
        try:
            payload = self._encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CodecError(f"{type(value).__name__} cannot be stored as JSON: {error}") from None
        self.decode(payload)
        return payload


def _pydantic(annotation: Any) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    import pydantic

    try:
        adapter: Any = pydantic.TypeAdapter(annotation)
    except pydantic.errors.PydanticUserError as error:
        raise DeclarationError(f"a loader cannot return {_shown(annotation)}: {error}") from None

    def encode(value: Any) -> bytes:
        dumped: bytes = adapter.dump_json(value, by_alias=True)
        return dumped

    return encode, adapter.validate_json


def _holds_pydantic(annotation: Any) -> bool:
    if isinstance(annotation, type) and any(base.__module__.startswith("pydantic.") for base in annotation.__mro__[1:]):
        return True
    return any(_holds_pydantic(arg) for arg in typing.get_args(annotation))


def _refuse_custom(info: Any, seen: frozenset[int] = frozenset()) -> None:
    """Raise TypeError where a type hides that JSON cannot carry: msgspec would find out at the first value."""
    if isinstance(info, msgspec.inspect.CustomType):
        raise TypeError(f"JSON cannot carry {_shown(info.cls)}")
    if id(info) in seen:
        return
    seen |= {id(info)}
    for name in ("item_type", "key_type", "value_type"):
        inner = getattr(info, name, None)
        if inner is not None:
            _refuse_custom(inner, seen)
    for inner in getattr(info, "types", None) or getattr(info, "item_types", None) or ():
        _refuse_custom(inner, seen)
    for field in getattr(info, "fields", None) or ():
        inner = getattr(field, "type", None)
        if inner is not None:
            _refuse_custom(inner, seen)


def _refuse_nonfinite(value: Any) -> None:
    """Raise CodecError on NaN and infinity: JSON has neither, and would silently carry null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CodecError(f"a float must be finite to be stored as JSON, got {value}")
    elif isinstance(value, dict):
        for each in value.values():
            _refuse_nonfinite(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            _refuse_nonfinite(each)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _refuse_nonfinite(getattr(value, name))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _refuse_nonfinite(getattr(value, field.name, None))


def _is_shareable(annotation: Any, seen: frozenset[Any]) -> bool:
    """Return whether values of this type are immutable all the way down."""
    if annotation is None or annotation in _ATOMS or annotation in seen:
        return True
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _is_shareable(args[0], seen)
    if origin in (tuple, frozenset, typing.Union, types.UnionType):
        return all(_is_shareable(arg, seen) for arg in args if arg is not Ellipsis)
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, enum.Enum):
        return True
    is_frozen_struct = issubclass(annotation, msgspec.Struct) and annotation.__struct_config__.frozen
    parameters = getattr(annotation, "__dataclass_params__", None)
    config = getattr(annotation, "model_config", None)
    is_frozen_model = isinstance(config, dict) and config.get("frozen") is True
    if is_frozen_struct or (parameters is not None and parameters.frozen) or is_frozen_model:
        fields = typing.get_type_hints(annotation)
        own = {name: each for name, each in fields.items() if typing.get_origin(each) is not typing.ClassVar}
        names = set(getattr(annotation, "model_fields", own)) if is_frozen_model else set(own)
        return all(_is_shareable(own[name], seen | {annotation}) for name in names if name in own)
    return False


def _shown(annotation: Any) -> str:
    return (
        annotation.__qualname__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    )
