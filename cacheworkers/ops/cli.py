"""`cacheworkers`: look into a cache, and steer it.

    cacheworkers --app shop.cache:cache explain 'product[42]'

The app is a module and the name of its `Cache`; `CACHE_APP` in the environment says the same.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from cacheworkers.cache import Cache
from cacheworkers.errors import CacheworkersError
from cacheworkers.ops.doctor.command import doctor

#: What each command gets: the cache, and how to show a result.
_Obj = tuple[Cache, Callable[[Any], None]]
#: More entries than this are not invalidated without a question.
MANY = 1000


class _Group(click.Group):
    """Errors of the library are messages, not tracebacks; they end with status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except CacheworkersError as error:
            raise click.ClickException(str(error)) from None


def found(app: str) -> Cache:
    """Return the cache that `module:name` names.

    Raises:
        click.ClickException: there is none.
    """
    module, _, name = app.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        cache = getattr(importlib.import_module(module), name or "cache")
    except (ImportError, AttributeError) as error:
        raise click.ClickException(f"--app must be module:name of a Cache, got {app!r}: {error}") from None
    if not isinstance(cache, Cache):
        raise click.ClickException(f"--app must be module:name of a Cache, {app!r} is a {type(cache).__name__}")
    return cache


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--app", "-A", envvar="CACHE_APP", required=True, help="module:name of the Cache; or CACHE_APP is set.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.version_option(package_name="cacheworkers")
@click.pass_context
def main(context: click.Context, app: str, as_json: bool) -> None:
    """Look into a cache, and steer it.

    A CALL is a loader and its arguments as JSON: product[42], search["lamp",2].
    """
    cache = found(app)
    context.obj = (cache, _json if as_json else _text)
    context.call_on_close(cache.close)


@main.command()
@click.argument("call")
@click.pass_obj
def explain(obj: _Obj, call: str) -> None:
    """Say what a read of CALL would get now, and why."""
    cache, show = obj
    show(cache.explain(call))


@main.command()
@click.argument("call")
@click.pass_obj
def get(obj: _Obj, call: str) -> None:
    """Print the stored value of CALL, as JSON; nothing is loaded.  Status 1 if there is none."""
    cache, _ = obj
    payload = cache.stored(call)
    if payload is None:
        raise click.ClickException(f"{call} is not stored")
    click.echo(payload)


@main.command()
@click.argument("loader")
@click.option("--most", default=20, show_default=True, help="How many.")
@click.pass_obj
def hot(obj: _Obj, loader: str, most: int) -> None:
    """List what is read most of LOADER, with its heat."""
    cache, show = obj
    show([{"call": call, "heat": heat} for call, heat in cache.hot(loader, most)])


@main.command()
@click.argument("tag")
@click.option("--most", default=100, show_default=True, help="How many calls to list.")
@click.pass_obj
def tag(obj: _Obj, tag: str, most: int) -> None:
    """List the calls whose entries have TAG."""
    cache, show = obj
    show([{"call": call} for call in cache.calls_of(tag, most)])


@main.command()
@click.argument("tags", nargs=-1, required=True)
@click.option("--mode", type=click.Choice(["hard", "soft", "reload"]), default="hard", show_default=True)
@click.option("--dry-run", is_flag=True, help="Count only.")
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY:,} entries.")
@click.pass_obj
def invalidate(obj: _Obj, tags: tuple[str, ...], mode: Any, dry_run: bool, yes: bool) -> None:
    """Invalidate everything that has any of TAGS."""
    cache, show = obj
    counted = cache.invalidate(*tags, dry_run=True)
    if not dry_run and counted.entries > MANY and not yes:
        click.confirm(f"{', '.join(tags)}: {counted.entries:,} entries; invalidate them?", abort=True)
    show(counted if dry_run else cache.invalidate(*tags, mode=mode))


@main.command()
@click.argument("loader")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
@click.pass_obj
def warm(obj: _Obj, loader: str, file: Path, strict: bool) -> None:
    """Have workers load what FILE names, one JSON argument a line.  Status 1 if a line is bad."""
    cache, show = obj
    keys, bad = [], 0
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            key = msgspec.json.decode(line)
            cache.call(loader, key)
            keys.append(key)
        except (msgspec.DecodeError, CacheworkersError) as error:
            bad += 1
            click.echo(f"{file}:{number}: {error}", err=True)
            if strict:
                raise click.ClickException(f"line {number} of {file} is bad, and --strict is given") from None
    show(cache.warm_many(loader, keys))
    if bad:
        raise click.ClickException(f"{bad} lines were left out")


@main.command()
@click.pass_obj
def sweep(obj: _Obj) -> None:
    """Drop what has expired from tag sets, and finish invalidations whose process died."""
    cache, show = obj
    show(cache.sweep())


@main.command()
@click.pass_obj
def drain(obj: _Obj) -> None:
    """Deliver what the outbox still holds."""
    cache, show = obj
    show({"rows": cache.drain()})


@main.command()
@click.option("--sample", default=1000, show_default=True, help="Most entries to compare.")
@click.option("--grace", default=1.0, show_default=True, help="Seconds until a difference is looked at again.")
@click.option("--rate", default=100.0, show_default=True, help="Most loads a second.")
@click.pass_obj
def inspect(obj: _Obj, sample: int, grace: float, rate: float) -> None:
    """Compare live entries with what their loaders return now.  Status 2 if any differs."""
    cache, show = obj
    result = cache.inspect(sample, grace=grace, rate=rate)
    show(result)
    if result.differences:
        raise click.exceptions.Exit(2)


main.add_command(doctor)


def _json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _text(value: Any) -> None:
    """Print a record as name and value a line, a list of records as columns."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, list):
        rows = [[_shown(cell) for cell in row.values()] for row in plain]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    width = max(map(len, plain), default=0)
    for name, each in plain.items():
        if isinstance(each, list | tuple):
            click.echo(f"{name.ljust(width)}  {len(each)}")
            for one in each:
                click.echo(" " * width + "  " + (", ".join(f"{k}: {_shown(v)}" for k, v in one.items())))
        else:
            click.echo(f"{name.ljust(width)}  {_shown(each)}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(each)}" for name, each in value.items()) or "-"
    return "-" if value is None else str(value)
