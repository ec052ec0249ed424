"""Classes and functions as Markdown, from their signatures and docstrings: what docs/reference/api.md shows of each.

A page names one as `<!-- generated: cacheworkers.Cache -->`, the path by which users import it; or, with a colon before
its name, one that they are given and do not import: `<!-- generated: cacheworkers.sql.outbox.outbox:Outbox -->`.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

#: Classes that users make themselves; of all others the constructor is the library's own.
CONSTRUCTED = {"Cache", "FaultProxy", "Metrics", "Postgres", "Responder", "Stepper", "Valkey"}
#: Classes that share a base: what the first has from it is shown with the second, and named with the first.
ALIKE = {"AsyncLoad": "Load", "BatchLoader": "Loader", "Postgres": "Valkey"}
#: Classes of which users call these alone.
ONLY: dict[str, tuple[str, ...]] = {"Entry": (), "Outbox": ("create", "check"), "Read": ()}
#: Fields that have a page of their own.
HAVE_A_TABLE = {"Config", "Policy"}
#: Methods with a name that Python gives, which users call by its syntax.
CALLED = {"__call__", "__await__"}
#: The sections of a docstring, and how the page calls them.
SECTIONS = {"Args": "Parameters", "Attributes": "Attributes", "Raises": "Raises", "Example": "Example"}
WIDTH = 100


def described(path: str) -> str:
    """Return a class with its members, a function or an alias, as Markdown."""
    module, _, name = path.rpartition(":" if ":" in path else ".")
    found = getattr(importlib.import_module(module), name)
    title = name if ":" in path else path.removeprefix("cacheworkers.")
    if inspect.isclass(found):
        return _class(found, title)
    if callable(found) and hasattr(found, "__code__"):
        return "\n\n".join([f"### `{title}`", _code(_definition(found)), *_documented(found)])
    return f"### `{title}`\n\n{_alias(module, name)}"


def members_of(described: type[Any]) -> dict[str, Any]:
    """Return what users may call or read of a class, its own first, in the order of the source."""
    found: dict[str, Any] = {}
    for owner in described.__mro__:
        if owner.__module__.startswith("cacheworkers"):
            for name, value in vars(owner).items():
                is_code = isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value)
                if name not in ONLY.get(described.__name__, (name,)):
                    continue
                if is_code and (not name.startswith("_") or name in CALLED) and _doc(value):
                    found.setdefault(name, value)
    return found


def _class(found: type[Any], title: str) -> str:
    name = found.__name__
    parts = [f"### `{title}`"]
    parts += _documented(found)
    if name in CONSTRUCTED:
        parts += [_code(_definition(found.__init__, name="__init__")), *_documented(found.__init__)]
    if issubclass(found, enum.Enum):
        parts.append("\n".join(f"- `{each.name}` = `{each.value!r}`" for each in found))
    members = members_of(found)
    shared = [member for member in members if name in ALIKE and member not in vars(found)]
    for member, value in members.items():
        if member in shared or (member.startswith("a") and member[1:] in members):
            continue  # shown with its sync twin
        twin = [f"`{name}.a{member}`"] if f"a{member}" in members else []
        parts.append("#### " + ", ".join([f"`{name}.{member}`", *twin]))
        parts.append(_code(*_definitions(found, member, value)))
        parts += _documented(value)
    if shared:
        parts.append(f"As of `{ALIKE[name]}`: " + ", ".join(f"`{member}`" for member in shared) + ".")
    return "\n\n".join(parts)


def _definitions(owner: type[Any], name: str, value: Any) -> Iterator[str]:
    """Yield how a member is declared, for each way to call it."""
    if isinstance(value, property):
        assert value.fget is not None
        yield f"{name}: {_type(inspect.signature(value.fget).return_annotation)}"
    elif isinstance(value, classmethod | staticmethod):
        yield f"@{type(value).__name__}\n" + _definition(value.__func__)
    elif ways := typing.get_overloads(value):
        yield from ("@overload\n" + _definition(way) for way in ways)
    else:
        yield _definition(value)


def _definition(function: Callable[..., Any], name: str = "") -> str:
    """Return a function's head, as a stub has it; a parameter a line where one line is too short."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    signature = signature.replace(parameters=own)
    if getattr(function, "__wrapped__", None) is not None:  # a context manager, say: its body yields
        signature = signature.replace(return_annotation="AbstractContextManager[None]")
    head = f"{'async ' if inspect.iscoroutinefunction(function) else ''}def {name or function.__name__}"
    back = "" if signature.return_annotation is signature.empty else f" -> {_type(signature.return_annotation)}"
    parameters = list(_parameters(signature))
    line = f"{head}({', '.join(parameters)}){back}: ..."
    return line if len(line) <= WIDTH else f"{head}(\n    " + ",\n    ".join(parameters) + f",\n){back}: ..."


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    kinds = [each.kind for each in signature.parameters.values()]
    is_starred = inspect.Parameter.VAR_POSITIONAL in kinds
    for index, each in enumerate(signature.parameters.values()):
        if each.kind is each.KEYWORD_ONLY and not is_starred:
            is_starred = True
            yield "*"
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        text = f"{stars}{each.name}"
        if each.annotation is not each.empty:
            text += f": {_type(each.annotation)}"
        if each.default is not each.empty:
            plain = each.default is None or isinstance(each.default, str | int | float | bytes | tuple)
            default = repr(each.default).replace("'", '"').replace("000000000.0", "e9") if plain else "..."
            text += (" = " if ":" in text else "=") + default
        yield text
        if each.kind is each.POSITIONAL_ONLY and kinds[index + 1 : index + 2] != [each.POSITIONAL_ONLY]:
            yield "/"


def _type(annotation: Any) -> str:
    annotation = getattr(annotation, "__forward_arg__", annotation)
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _documented(found: Any) -> Iterator[str]:
    """Yield the paragraphs of a docstring, its sections as lists."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", _doc(found), flags=re.MULTILINE)
    if parts[0].strip():
        yield parts[0].strip()
    fields = getattr(found, "__struct_fields__", getattr(found, "_fields", ()))
    if fields and "Attributes" not in parts:
        parts += ["Attributes", ""]
    for section, text in zip(parts[1::2], parts[2::2], strict=True):
        if section == "Attributes" and getattr(found, "__name__", "") in HAVE_A_TABLE:
            continue
        if section == "Example":
            yield _code(inspect.cleandoc(text))
            continue
        types = getattr(found, "__annotations__", {}) if section == "Attributes" else {}
        items = [f"- {_names(names, types)}: {says}" for names, says in _items(text)]
        known = ", ".join(names for names, _ in _items(text)).split(", ")
        if section == "Attributes":
            items = [f"- `{name}: {_type(types[name])}`" for name in fields if name not in known] + items
        yield f"{SECTIONS[section]}:\n\n" + "\n".join(items)


def _names(names: str, types: dict[str, Any]) -> str:
    """Return names in code, each with its type if that is known."""
    each = [name.strip() for name in names.split(",")]
    return ", ".join(f"`{name}: {_type(types[name])}`" if name in types else f"`{name}`" for name in each)


def _items(text: str) -> Iterator[tuple[str, str]]:
    for names, says in re.findall(r"^ {4}([\w, ]+): (.*(?:\n(?: {8}.*)?)*)", text, re.MULTILINE):
        yield names, " ".join(says.split())


def _alias(module: str, name: str) -> str:
    """Return an alias's comment, and what it stands for."""
    found = getattr(importlib.import_module(module), name)
    for candidate in _defining(module):
        source = inspect.getsource(candidate)
        if match := re.search(rf"((?:^#: .*\n)+)^{name}(?:: \w+)? = (.+)$", source, re.MULTILINE):
            says = re.sub(r"^#: ", "", match[1], flags=re.MULTILINE).strip()
            return f"{_code(f'{name} = {match[2]}')}\n\n{says}"
    raise AssertionError(f"{name} = {found} has no comment that begins with #:")


def _defining(module: str) -> Iterator[Any]:
    """Yield the module, and those of the library that it takes names from."""
    start = importlib.import_module(module)
    yield start
    for path in getattr(start, "_DEFINED_IN", {}).values():
        yield importlib.import_module(f"{module}.{path}")


def _doc(found: Any) -> str:
    return inspect.cleandoc(found.__doc__ or "")


def _code(*texts: str) -> str:
    # A stub: what a forge and the site colour as Python, and what is not to be run.
    return "```pyi\n" + "\n".join(texts) + "\n```"
