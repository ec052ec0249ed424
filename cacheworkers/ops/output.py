"""Prints results: as JSON, or as columns of text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from cacheworkers.cache import Cache

Show = Callable[[Any], None]
#: What each command gets: the cache, and how to show a result.
Obj = tuple[Cache, Show]


def note(text: str) -> None:
    """Print a remark on the error output, beside the result."""
    click.echo(text, err=True)


def counted(number: int, one: str, many: str) -> str:
    """Return how many there are, and of what: `1 call`, `2,000 calls`."""
    return f"{number:,} {one if number == 1 else many}"


def as_json(value: Any) -> None:
    """Print a result as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def as_text(value: Any) -> None:
    """Print a record as name and value a line, a list of records as columns; with their names on a terminal."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, list):
        columns(plain, has_names=sys.stdout.isatty())
    else:
        _record(plain)


def columns(plain: list[dict[str, Any]], *, has_names: bool) -> None:
    """Print a list of records as columns; nothing of none."""
    rows = [[_cell(cell) for cell in row.values()] for row in plain]
    if rows and has_names:
        rows.insert(0, list(plain[0]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _record(plain: dict[str, Any]) -> None:
    width = max(map(len, plain), default=0)
    for name, each in plain.items():
        if isinstance(each, list | tuple):
            for first, one in enumerate(each or ["-"]):
                click.echo(f"{'' if first else name:{width}}  {_cell(one)}")
        else:
            click.echo(f"{name.ljust(width)}  {_cell(each)}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_cell(each)}" for name, each in value.items()) or "-"
    return "-" if value is None or value == "" else str(value).partition("\n")[0]  # an error of SQLAlchemy has five
