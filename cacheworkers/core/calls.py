"""(loader, arguments) <-> call text: `product[42]`, `product@2[42]`, `search["chair",1]`.

A call's text is the loader's name, its version if that is not 1, and the canonical arguments as a JSON array in the
order of the signature.  It names the entry everywhere: in Redis, L1, task messages, Flower and logs.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import inspect
import math
import re
import typing
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.errors import CallError, DeclarationError

_NAME = re.compile(r"[a-z_][a-z0-9_.]{0,99}")
_encode = msgspec.json.Encoder(order="deterministic").encode

#: Types whose equal values have equal texts, so that raw positional arguments may serve as a dictionary key.
_KEYABLE = (int, str, bool, uuid.UUID, datetime.date)


class Call(msgspec.Struct, frozen=True):
    """One call of a loader: its text, and the canonical arguments."""

    text: str
    arguments: tuple[Any, ...]


class Signature:
    """Turns arguments into calls, and call texts back into arguments.

    Attributes:
        parameters: the names of the parameters, without `load`.
        positional_keys: raw positional arguments that are equal always mean the same call.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], *, version: int = 1, max_bytes: int = 512, is_batch: bool = False
    ) -> None:
        """
        Raises:
            DeclarationError: the name is not `[a-z_][a-z0-9_.]*`, or the function's parameters cannot make a call.
        """
        if not _NAME.fullmatch(name):
            raise DeclarationError(f"a loader's name must match [a-z_][a-z0-9_.]*, got {name!r}")
        self.name = name
        self._max_bytes = max_bytes
        self._prefix = name if version == 1 else f"{name}@{version}"
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise DeclarationError(f"{name} must take `load` as its first parameter")
        parameters = parameters[1:]
        for parameter in parameters:
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise DeclarationError(
                    f"{name} may not have the parameter {parameter}: every argument must be one plain, named parameter"
                )
        hints = hints_of(function)
        if is_batch:
            if len(parameters) != 1:
                raise DeclarationError(
                    f"batch loader {name} must take exactly (load, keys), got {len(parameters)} keys"
                )
            element = typing.get_args(hints.get(parameters[0].name, list[Any])) or (Any,)
            types = [element[0]]
            self.parameters: tuple[str, ...] = ("key",)
            parameters = [inspect.Parameter("key", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        else:
            types = [hints.get(p.name, Any) for p in parameters]
            self.parameters = tuple(p.name for p in parameters)
        self._signature = inspect.Signature(parameters)
        self._types = types
        self._types_tuple: Any = tuple[tuple(types)] if types else tuple[()]  # type: ignore[misc]  # made at run time
        self._only_int = len(types) == 1 and types[0] is int
        self._only_str = len(types) == 1 and types[0] is str
        self.positional_keys = all(_is_keyable(each) for each in types)
        self._decoder = msgspec.json.Decoder(self._types_tuple, strict=False)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call of these arguments, defaults filled and canonicalised by annotation.

        Raises:
            CallError: they do not fit the signature, are not JSON, or make too long a text.
        """
        if self._only_int and len(args) == 1 and not kwargs and type(args[0]) is int:
            return Call(f"{self._prefix}[{args[0]}]", args)
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise CallError(f"{self.name}{self._signature}: {error}") from None
        bound.apply_defaults()
        try:
            canonical = tuple(
                _canonical(value, each) for value, each in zip(bound.arguments.values(), self._types, strict=True)
            )
            text = self._prefix + _encode(canonical).decode()
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
            shown = ", ".join(f"{k}={v!r}"[:80] for k, v in bound.arguments.items())
            raise CallError(f"{self.name}({shown}): {error}") from None
        if len(text.encode()) > self._max_bytes:
            raise CallError(
                f"a call's text has at most {self._max_bytes} bytes, {text[:60]}... has {len(text.encode())}"
            )
        return Call(text, canonical)

    def parse(self, text: str) -> Call:
        """Return the call that a text names; the reverse of `bind`.

        Raises:
            CallError: the text is another loader's, another version's, or no call of this signature.
        """
        if not text.startswith(self._prefix + "["):
            raise CallError(f"a call of {self.name} starts with {self._prefix}[, got {text[:80]!r}")
        try:
            arguments = self._decoder.decode(text[len(self._prefix) :])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CallError(f"{text[:80]!r} is no call of {self.name}{self._signature}: {error}") from None
        return self.bind(arguments, {})


def loader_name_of(text: str) -> str:
    """Return the loader's name of a call's text."""
    return text.partition("[")[0].partition("@")[0]


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's annotations, resolved.

    Raises:
        DeclarationError: an annotation names something that cannot be found.
    """
    names: dict[str, Any] = {}
    closure = inspect.getclosurevars(function) if inspect.isfunction(function) else None
    if closure is not None:
        names.update(closure.nonlocals)
    frame = inspect.currentframe()
    while frame is not None:  # types declared in the function that declares the loader
        for key, value in frame.f_locals.items():
            names.setdefault(key, value)
        frame = frame.f_back
    try:
        return typing.get_type_hints(function, localns=names)
    except NameError as error:
        name = getattr(function, "__name__", repr(function))
        raise DeclarationError(f"an annotation of {name} cannot be resolved: {error}") from None


def _is_keyable(annotation: Any) -> bool:
    return annotation in _KEYABLE or (isinstance(annotation, type) and issubclass(annotation, enum.Enum))


def _canonical(value: Any, annotation: Any) -> Any:
    """Return a value as its annotation means it: "42" under `int` is 42."""
    if type(value) is annotation and annotation in _KEYABLE:
        return value
    found = value if annotation is Any else msgspec.convert(value, annotation, strict=False)
    if isinstance(found, float):
        if not math.isfinite(found):
            raise ValueError(f"a float argument must be finite, got {found}")
        return found + 0.0  # -0.0 and 0.0 are one
    if isinstance(found, decimal.Decimal):
        return found.normalize()
    return found
