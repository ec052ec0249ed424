"""value <-> JSON where a loader's annotation holds a pydantic type.

The JSON is whole, with the fields that were left to their defaults.  Which these were a model knows, and so do its
readers: blanks behind the JSON, which every reader of JSON passes over, say it, a tab for each such field.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any

from cacheworkers.core.annotations import RULE, bare, classes_in, fields_of, members_of, refuse_rows, shown
from cacheworkers.core.comparison import field_names
from cacheworkers.errors import DeclarationError

_SET, _DEFAULTED = b" ", b"\t"
_LEAVES = frozenset((str, int, float, bool, bytes, type(None)))


def pydantic_json(annotation: Any) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return the functions that write and read the JSON of a type.

    Fields go by their aliases where those read back, so that the JSON is what the model shows the world, and else by
    their names: a field may be written under one alias and read under another.  Computed fields are left out.

    Raises:
        DeclarationError: pydantic cannot make JSON of it, leaves a part of it out, or cannot tell the members of a
            union apart.
    """
    import pydantic

    refuse_rows("a loader's value", annotation, RULE)
    _refuse_untagged(annotation, annotation)
    _refuse_hidden(annotation)
    try:
        adapter: Any = pydantic.TypeAdapter(annotation)
        by_alias = _reads_its_aliases(adapter)
    except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise DeclarationError(f"a loader's value cannot be {shown(annotation)}: {reason}") from None

    def encode(value: Any) -> bytes:
        payload: bytes = adapter.dump_json(value, by_alias=by_alias, round_trip=True, warnings="none")
        return payload + _defaulted(value)

    read = {} if by_alias else {"by_alias": False, "by_name": True}

    def decode(payload: bytes) -> Any:
        value = adapter.validate_json(payload, **read)
        if payload[-1:] in (_SET, _DEFAULTED):
            _mark_defaulted(value, payload[len(payload.rstrip(_SET + _DEFAULTED)) :])
        return value

    return encode, decode


def _defaulted(value: Any) -> bytes:
    """Return a blank for each field of each model, a tab for what was left to its default; nothing if none was."""
    marks = [
        _SET if name in model.__pydantic_fields_set__ else _DEFAULTED
        for model in _models(value)
        for name in type(model).__pydantic_fields__
    ]
    return b"".join(marks) if _DEFAULTED in marks else b""


def _mark_defaulted(value: Any, marks: bytes) -> None:
    """Give each model the set of its fields that were given."""
    at = 0
    for model in _models(value):
        names = tuple(type(model).__pydantic_fields__)
        mine = marks[at : at + len(names)]
        at += len(names)
        left = {name for name, mark in zip(names, mine, strict=True) if mark == _DEFAULTED[0]}
        object.__setattr__(model, "__pydantic_fields_set__", model.__pydantic_fields_set__ - left)
    if at != len(marks):
        raise ValueError(f"{len(marks)} marks of fields behind the JSON, and {at} fields in it")


def _models(value: Any) -> Iterator[Any]:
    """Yield the models in a value, in the order of its JSON; not those in sets, which have none."""
    kind = type(value)
    if kind in _LEAVES:
        return
    inner: typing.Iterable[Any] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif hasattr(kind, "model_fields") and hasattr(value, "__pydantic_fields_set__"):
        yield value
        extra = getattr(value, "__pydantic_extra__", None) or {}
        inner = [*(value.__dict__.get(name) for name in kind.__pydantic_fields__), *extra.values()]
    elif (names := field_names(kind)) is not None:
        inner = [getattr(value, name, None) for name in names]
    for each in inner:
        yield from _models(each)


def _refuse_untagged(annotation: Any, whole: Any) -> None:
    """Raise DeclarationError on a union of two models without a discriminator: one may read as the other."""
    if typing.get_origin(annotation) is typing.Annotated:
        first, *marks = typing.get_args(annotation)
        if any(getattr(mark, "discriminator", None) is not None for mark in marks):
            return
        annotation = first
    members = members_of(annotation)
    objects = [each for each in members if _is_object(each)]
    if len(objects) > 1:
        raise DeclarationError(
            f"a loader's value cannot be {shown(whole)}: JSON cannot tell {' and '.join(map(shown, objects))} apart; "
            "give the union a discriminator"
        )
    for member in members:
        for arg in typing.get_args(member):
            _refuse_untagged(arg, whole)


def _refuse_hidden(annotation: Any) -> None:
    """Raise DeclarationError on what pydantic leaves out of its JSON: no value with it could be read back."""
    secret = _secret_in(annotation)
    if secret is not None:
        raise DeclarationError(f"a loader's value cannot be {shown(annotation)}: {_masked(secret)}")
    for of in classes_in(annotation):
        fields = getattr(of, "__pydantic_fields__", {})
        decorators = getattr(of, "__pydantic_decorators__", None)
        for name, each in fields_of(of).items():
            field, place = fields.get(name), f"a loader's value cannot be {shown(annotation)}: {shown(of)}.{name}"
            if field is not None and field.exclude and (lack := _lacks_default(field)):
                raise DeclarationError(
                    f"{place} has `exclude=True` and {lack}, so that JSON lacks it; give it a default, or return a "
                    "model without it"
                )
            secret = _secret_in(each)
            if secret is not None and not _is_serialized(name, field, decorators):
                raise DeclarationError(f"{place}: {_masked(secret)}")


def _lacks_default(field: Any) -> str:
    """Return why a field that JSON lacks could never be read back as it was; empty if it could."""
    if field.is_required():
        return "no default"
    if field.default_factory is None or field.default_factory_takes_validated_data:
        return ""
    try:
        is_constant = field.default_factory() == field.default_factory()
    except Exception:  # it needs what is not there yet; values will show
        return ""
    return "" if is_constant else "a default that is another each time"


def _masked(secret: type) -> str:
    return f"JSON of {shown(secret)} is asterisks; keep secrets out of the cache, or give the field a serializer"


def _secret_in(annotation: Any) -> type | None:
    """Return the type of secret that a type without fields holds, if any."""
    annotation = bare(annotation)
    of = typing.get_origin(annotation) or annotation
    if isinstance(of, type) and of.__module__ == "pydantic.types" and of.__name__.startswith("Secret"):
        return of
    return next(filter(None, map(_secret_in, typing.get_args(annotation))), None)


def _is_serialized(name: str, field: Any, decorators: Any) -> bool:
    """Return whether a model writes a field in its own way."""
    if decorators is not None:
        if decorators.model_serializers:
            return True
        if any({name, "*"} & set(each.info.fields) for each in decorators.field_serializers.values()):
            return True
    return any(type(mark).__name__.endswith("Serializer") for mark in getattr(field, "metadata", ()))


def _is_object(annotation: Any) -> bool:
    if not isinstance(annotation, type):
        return False
    return hasattr(annotation, "__pydantic_fields__") or dataclasses.is_dataclass(annotation)


def _reads_its_aliases(adapter: Any) -> bool:
    """Return whether JSON written by alias has the names that are read by alias, in every model of the type."""
    import pydantic

    try:
        written, read = (adapter.json_schema(mode=mode, by_alias=True) for mode in ("serialization", "validation"))
    except pydantic.errors.PydanticInvalidForJsonSchema:  # a type of the user's own, without a schema
        return False
    return list(_names(written)) == list(_names(read))


def _names(schema: Any) -> typing.Iterator[tuple[str, ...]]:
    """Yield the names of the fields of each object in a schema, in a fixed order, without computed ones."""
    if isinstance(schema, dict):
        fields = schema.get("properties")
        if isinstance(fields, dict):
            yield tuple(sorted(name for name, each in fields.items() if not (each is True or each.get("readOnly"))))
        for _, each in sorted(schema.items()):
            yield from _names(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _names(each)
