"""What the annotations of a loader mean: resolved, taken apart, and refused where JSON cannot carry them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from cacheworkers.errors import DeclarationError

#: What a loader may return.
RULE = "return builtins, a Struct, dataclass, TypedDict or pydantic model, not an ORM row"
_OBJECTS = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)
#: What cannot be the key of a JSON object.
_NO_KEYS = (*_OBJECTS, msgspec.inspect.CollectionType, msgspec.inspect.TupleType, msgspec.inspect.DictType)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a loader's annotations by name, resolved; not that of its first parameter, which may be unknown here.

    Raises:
        DeclarationError: an annotation names something that cannot be found.
    """
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        function = function.func
    first = next(iter(inspect.signature(function).parameters), None)
    if not inspect.isroutine(function):
        function = type(function).__call__
    names = _names_around(function)
    hints: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        if name == first:
            continue
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints[name] = typing.get_type_hints(alone, function.__globals__, names, include_extras=True)[name]
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            raise DeclarationError(
                f"the annotation of {name!r} in {function.__qualname__}, {annotation!r}, cannot be resolved: {error}; "
                "its names must be known where the loader is declared"
            ) from None
    return hints


def refuse_what_json_lacks(thing: str, annotation: Any, rule: str) -> None:
    """Check that a type survives JSON as msgspec reads it.

    Args:
        rule: what to use instead; ends the message.

    Raises:
        DeclarationError: a class that JSON cannot carry, or members of a union that it cannot tell apart.
    """
    refuse_rows(thing, annotation, rule)
    try:
        msgspec.json.Decoder(annotation)
        _refuse_custom(msgspec.inspect.type_info(annotation), set())
    except (TypeError, ValueError, NameError) as error:
        raise DeclarationError(f"{thing} cannot be {shown(annotation)}: {error}; {rule}") from None


def refuse_rows(thing: str, annotation: Any, rule: str) -> None:
    """Check that a type holds no SQLAlchemy model.

    Raises:
        DeclarationError: it does; even a mapped dataclass is a row, bound to a session that will have ended.
    """
    for each in classes_in(annotation):
        if hasattr(each, "__mapper__") or hasattr(each, "_sa_class_manager"):
            raise DeclarationError(f"{thing} cannot be {shown(annotation)}: {shown(each)} is an ORM row; {rule}")


def classes_in(annotation: Any) -> Iterator[type]:
    """Return every class that a type is made of, the types of fields too."""
    seen: set[Any] = set()
    left = [annotation]
    while left:
        each = bare(left.pop())
        origin = typing.get_origin(each)
        if origin is typing.Literal:
            continue
        left.extend(typing.get_args(each))
        of = each if origin is None else origin
        if isinstance(of, type) and of not in seen:
            seen.add(of)
            yield of
            left.extend(fields_of(of).values())
        if each in (list, dict, tuple, set, frozenset):
            left.append(Any)  # elements of any type


def is_pydantic(of: type) -> bool:
    """Return whether pydantic is to read and write a class."""
    return hasattr(of, "__get_pydantic_core_schema__") or hasattr(of, "__pydantic_validator__")


def fields_of(of: type) -> dict[str, Any]:
    """Return the types of the fields of a Struct, dataclass, TypedDict, NamedTuple or pydantic model, or none."""
    if hasattr(of, "model_fields") and hasattr(of, "__pydantic_fields__"):
        return {name: field.annotation for name, field in of.__pydantic_fields__.items()}
    has_fields = issubclass(of, msgspec.Struct) or dataclasses.is_dataclass(of)
    if not (has_fields or typing.is_typeddict(of) or (issubclass(of, tuple) and hasattr(of, "_fields"))):
        return {}
    try:
        hints = typing.get_type_hints(of, include_extras=True)
    except (NameError, TypeError):  # decoding it will raise the error
        return {}
    return {name: each for name, each in hints.items() if typing.get_origin(each) is not typing.ClassVar}


def bare(annotation: Any) -> Any:
    """Return a type without what only decorates it: `Annotated`, `NewType`, a `type` alias."""
    seen = 0
    while seen < 100:  # an alias may name itself
        seen += 1
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            break
    return annotation


def members_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone."""
    annotation = bare(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for arg in typing.get_args(annotation) for member in members_of(arg))
    return (annotation,)


def shown(annotation: Any) -> str:
    """Return a type as its author wrote it, or nearly."""
    is_plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__qualname__ if is_plain else str(annotation).replace("typing.", "")


def _names_around(function: Any) -> dict[str, Any]:
    """Return what a function sees besides its module: locals of the functions it is declared in, and its closure."""
    names: dict[str, Any] = {}
    frame = inspect.currentframe()
    enclosing, is_local, _ = function.__qualname__.rpartition(".<locals>.")
    found: list[dict[str, Any]] = []
    while frame is not None and is_local:
        if frame.f_code.co_qualname == enclosing and frame.f_globals is function.__globals__:
            found.append(dict(frame.f_locals))
            enclosing, is_local, _ = enclosing.rpartition(".<locals>.")
        frame = frame.f_back
    for each in reversed(found):
        names.update(each)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # assigned later in the enclosing function
            continue
    return names


def _refuse_custom(info: Any, seen: set[int]) -> None:
    """Raise TypeError where a type hides what JSON cannot carry: msgspec would find out at the first value."""
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        raise TypeError(f"JSON cannot carry {shown(info.cls)}")
    if isinstance(info, msgspec.inspect.DictType) and isinstance(info.key_type, _NO_KEYS):
        raise TypeError("the keys of a JSON object must be strings, numbers, dates, UUIDs or Enums")
    inner = [getattr(info, name, None) for name in ("item_type", "key_type", "value_type", "type")]
    for several in ("types", "item_types", "fields"):
        inner.extend(getattr(info, several, ()))
    for each in inner:
        if isinstance(each, msgspec.inspect.Type | msgspec.inspect.Field):
            _refuse_custom(each, seen)
