"""Schema fingerprint: a digest of a loader's types, stored with each entry; a process reads only entries that match.

Two releases of a loader that read the same JSON as different values, or the same call as other arguments, have
different fingerprints, and never serve each other's entries.
"""

from __future__ import annotations

import hashlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cacheworkers.core.annotations import bare, classes_in, fields_of, is_pydantic, shown
from cacheworkers.errors import DeclarationError

FINGERPRINT_BYTES = 8
#: Of an entry that says none: it fits every reader.
NO_FINGERPRINT = bytes(FINGERPRINT_BYTES)
#: What a schema says for people.
_PROSE = frozenset(("title", "description", "examples"))
#: Modules whose types have one meaning wherever they are named.
_LIBRARIES = frozenset(("builtins", "datetime", "decimal", "uuid", "collections", "collections.abc", "msgspec"))


def fingerprint_of(annotation: Any, parameters: Mapping[str, Any], tags: Sequence[str] = ()) -> bytes:
    """Return the digest of a loader's return annotation, its parameters and their types, and its tags' templates.

    A default counts, since a field that is left out of the JSON takes it; names of classes and docstrings do not.
    """
    arguments = [[name, *_described(each)] for name, each in parameters.items()]
    described = {"value": _described(annotation), "parameters": arguments, "tags": sorted(tags)}
    text = msgspec.json.encode(described, enc_hook=repr, order="deterministic")
    return hashlib.blake2b(text, digest_size=FINGERPRINT_BYTES).digest()


def fits(entry_fingerprint: bytes, fingerprint: bytes) -> bool:
    """Return whether an entry of one fingerprint is what a loader of another reads."""
    return entry_fingerprint == fingerprint or entry_fingerprint == NO_FINGERPRINT or fingerprint == NO_FINGERPRINT


def _described(annotation: Any) -> tuple[Any, Any]:
    return _schema_of(annotation), _types_in(annotation, ())


def _types_in(annotation: Any, within: tuple[Any, ...]) -> Any:
    """Return the builtin and library types that a type is made of, each in its place.

    To a schema a text and a datetime without a zone are one, and so are a list and a tuple.
    """
    if annotation in within:  # a type within itself
        return None
    within = (*within, annotation)
    annotation = bare(annotation)
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        return None
    parts: list[Any] = [_types_in(each, within) for each in typing.get_args(annotation)]
    if not isinstance(origin, type) or origin is types.UnionType:
        return sorted(parts, key=repr)
    fields = fields_of(origin)
    if fields:
        return {name: _types_in(each, within) for name, each in fields.items()}, parts
    return [origin.__name__ if origin.__module__ in _LIBRARIES else "", *parts]


def _schema_of(annotation: Any) -> Any:
    if annotation is Any:
        return {}
    kinds = list(classes_in(annotation))
    try:
        if any(map(is_pydantic, kinds)):
            import pydantic

            adapter: Any = pydantic.TypeAdapter(annotation)
            return [_without_prose(adapter.json_schema(mode=mode)) for mode in ("validation", "serialization")]
        return _without_prose(msgspec.json.schema(annotation))
    except (TypeError, ValueError, DeclarationError):  # a type of the user's own that has no schema
        return shown(annotation)


def _without_prose(schema: Any, is_named: bool = False) -> Any:
    """Return a schema without what is said for people; a field may well be called `title`.

    Args:
        is_named: the keys are names of fields or definitions.
    """
    if isinstance(schema, dict):
        return {
            key: _without_prose(each, not is_named and key in ("properties", "$defs", "patternProperties"))
            for key, each in schema.items()
            if is_named or key not in _PROSE
        }
    return [_without_prose(each) for each in schema] if isinstance(schema, list) else schema
