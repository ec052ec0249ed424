"""The reference made from the code, as Markdown in the pages that show it: `make reference` writes it.

A page has each table, and each class or function (`api`), between `<!-- generated: settings -->` and `<!-- end -->`,
so that files can be read, too; a test checks that they are current.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import api  # beside this file
import click

import cacheworkers
from cacheworkers import Config, Policy, errors, events
from cacheworkers.ops import metrics
from cacheworkers.ops.cli import main


def settings() -> str:
    """Return every field of Config: its default and what it says of itself."""
    described = attributes_of(Config)
    rows = [(f"`{field.name}`", _default(field), described[field.name]) for field in dataclasses.fields(Config)]
    return _table(("setting", "default", "meaning"), rows)


def policy() -> str:
    """Return every field of Policy."""
    described = attributes_of(Policy)
    rows = [(f"`{field.name}`", _default(field), described[field.name]) for field in dataclasses.fields(Policy)]
    return _table(("option", "default", "meaning"), rows)


def event_table() -> str:
    """Return every event with its fields."""
    rows = [
        (f"`{each.__name__}`", ", ".join(f"`{name}`" for name in each.__struct_fields__) or "none", _doc(each))
        for each in event_classes()
    ]
    return _table(("event", "fields", "what happened"), rows)


def error_table() -> str:
    """Return every error, and what else it is."""
    rows = [
        (f"`{each.__name__}`", ", ".join(f"`{base.__name__}`" for base in each.__bases__), _doc(each))
        for each in error_classes()
    ]
    return _table(("error", "is a", "when"), rows)


def commands() -> str:
    """Return every command of the command line with its arguments and options."""
    return "\n\n".join(_command(name, command) for name, command in sorted(main.commands.items()))


def metric_table() -> str:
    """Return the metrics that processes show, with their labels."""
    found = [(name, labels, says) for name, (says, labels) in metrics.COUNTERS.items()]
    found += [(name, labels, says) for name, (says, labels, _) in metrics.HISTOGRAMS.items()]
    found += [(name, (), says) for name, says in [*metrics.SUMS.items(), *metrics.LOSSES.items()]]
    rows = [(f"`cacheworkers_{name}`", ", ".join(labels) or "-", says) for name, labels, says in found]
    return _table(("metric", "labels", "what it says"), rows)


def value_kinds() -> str:
    """Return what becomes of each kind of value, from the list that the tests prove."""
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    from tests.property.value_kinds import KINDS

    words = {True: "kept", False: "refused"}
    rows = [(each.name, words[each.is_kept], words[each.is_kept_under_any]) for each in KINDS]
    return _table(("value", "under its own type", "under `Any`, `dict`, or without an annotation"), rows)


#: What a page may ask for by name.
TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "policy": policy,
    "events": event_table,
    "errors": error_table,
    "commands": commands,
    "metrics": metric_table,
    "values": value_kinds,
}


def event_classes() -> list[type[Any]]:
    """Return every kind of event, in the order of the module."""
    return [each for each in _classes(events) if issubclass(each, events.Event) and each is not events.Event]


def error_classes() -> list[type[Any]]:
    """Return every error that users can meet, in the order of the module."""
    return [each for each in _classes(errors) if each.__name__ in cacheworkers.__all__]


def attributes_of(described: type[Any]) -> dict[str, str]:
    """Return what the `Attributes:` of a class's docstring say, by name."""
    _, _, section = inspect.cleandoc(described.__doc__ or "").partition("\nAttributes:\n")
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def _classes(module: Any) -> Iterator[type[Any]]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value


def _command(name: str, command: click.Command) -> str:
    """Return one command as a section."""
    context = click.Context(command, info_name=name, parent=click.Context(main, info_name="cacheworkers"))
    options = [
        (f"`{', '.join(each.opts)}`", _meaning(each)) for each in command.params if isinstance(each, click.Option)
    ]
    usage = " ".join([context.command_path.replace("cacheworkers", "cacheworkers --app APP", 1), *_usage(command)])
    lines = [f"## {name}", f"`{usage}`", *map(_paragraph, paragraphs_of(command))]
    return "\n\n".join([*lines, _table(("option", "meaning"), options)] if options else lines)


def paragraphs_of(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help; one that begins with a backspace is lines, not prose."""
    return inspect.cleandoc(command.help or "").split("\n\n")


def _paragraph(text: str) -> str:
    return f"```text\n{text[2:]}\n```" if text.startswith("\b\n") else text


def _meaning(option: click.Option) -> str:
    """Return what an option is for, what it takes and what it is by default."""
    parts = [option.help or ""]
    if isinstance(option.type, click.Choice):
        parts.append("One of " + ", ".join(f"`{choice}`" for choice in option.type.choices) + ".")
    if not option.is_flag and isinstance(option.default, str | int | float):
        parts.append(f"Default `{option.default}`.")
    return " ".join(filter(None, parts))


def _usage(command: click.Command) -> list[str]:
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    return [f"{each.human_readable_name.upper()}{'...' if each.nargs == -1 else ''}" for each in arguments]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
    return f"`{value!r}`"


def _doc(described: type[Any]) -> str:
    return " ".join(inspect.cleandoc(described.__doc__ or "").partition("\n\n")[0].split())


def _table(head: typing.Sequence[str], rows: Iterable[typing.Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


_PLACE = re.compile(r"(<!-- generated: ([\w.:]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def current(text: str) -> str:
    """Return a page's text with its tables made from the code as it is now."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{_made(found[2])}\n\n{found[3]}", text)


def _made(name: str) -> str:
    return TABLES[name]() if name in TABLES else api.described(name)


def tables_of(text: str) -> list[str]:
    """Return the names of the tables, classes and functions that a page shows."""
    return [name for _, name, _ in _PLACE.findall(text)]


if __name__ == "__main__":
    for page in sorted((Path(__file__).parents[1] / "reference").glob("*.md")):
        page.write_text(current(page.read_text()))
