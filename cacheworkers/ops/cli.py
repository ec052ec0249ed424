"""`cacheworkers`: look into a cache, and steer it.

    cacheworkers --app shop.cache:cache explain 'product[42]'

The app is a module and the name of its `Cache`; `CACHE_APP` in the environment says the same.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click
import msgspec
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.progress import Progress

from cacheworkers.cache import Cache
from cacheworkers.errors import CacheworkersError
from cacheworkers.ops.doctor.command import doctor
from cacheworkers.ops.exporter_command import exporter
from cacheworkers.ops.history_command import check_history
from cacheworkers.ops.show import Obj, as_json, as_text
from cacheworkers.ops.stats import stats
from cacheworkers.ops.warm import warm
from cacheworkers.process import cache_of

#: More entries than this are not invalidated without a question.
MANY = 1000
#: Commands that need no cache.
WITHOUT_CACHE = {"check-history", "completion"}
#: Whether a command is asked what it does.
HELP = "cacheworkers.help"


class _Group(click.Group):
    """Errors of the library are messages, not tracebacks; they end with status 1.  Help needs no cache."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[HELP] = not {"-h", "--help"}.isdisjoint(args)
        return super().parse_args(context, args)

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


def bound(celery: Any) -> Cache:
    """Return the cache that is bound to a Celery app.

    Raises:
        click.ClickException: none is.
    """
    celery.loader.import_default_modules()  # the cache may be declared in a module of tasks
    cache = cache_of(celery)
    if not isinstance(cache, Cache):
        raise click.ClickException(f"no Cache is bound to {celery!r}: import the module that makes it in the app's own")
    return cache


@click.group("cacheworkers", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--app", "-A", envvar="CACHE_APP", help="module:name of the Cache; or CACHE_APP is set.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON instead of text.")
@click.version_option(package_name="cacheworkers")
@click.pass_context
def main(context: click.Context, app: str | None, as_json_: bool) -> None:
    """Look into a cache, and steer it.

    A CALL is a loader and its arguments as JSON: product[42], search["lamp",2].  Within `celery -A shop cacheworkers`
    the cache is the one that is bound to the Celery app.
    """
    if context.invoked_subcommand in WITHOUT_CACHE or context.meta[HELP]:
        return
    if app is not None:
        cache = found(app)
    elif (celery := getattr(context.obj, "app", None)) is not None:
        cache = bound(celery)
    else:
        raise click.UsageError("--app (-A) must be module:name of a Cache, or CACHE_APP be set")
    context.obj = (cache, as_json if as_json_ else as_text)
    context.call_on_close(cache.close)


@main.command()
@click.argument("call")
@click.pass_obj
def explain(obj: Obj, call: str) -> None:
    """Say what a read of CALL would get now, and why."""
    cache, show = obj
    show(cache.explain(call))


@main.command()
@click.argument("call")
@click.pass_obj
def get(obj: Obj, call: str) -> None:
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
def hot(obj: Obj, loader: str, most: int) -> None:
    """List what is read most of LOADER, with its heat."""
    cache, show = obj
    show([{"call": call, "heat": heat} for call, heat in cache.hot(loader, most)])


@main.command()
@click.argument("tag")
@click.option("--most", default=100, show_default=True, help="How many calls to list.")
@click.pass_obj
def tag(obj: Obj, tag: str, most: int) -> None:
    """List the calls whose entries have TAG."""
    cache, show = obj
    show([{"call": call} for call in cache.calls_of(tag, most)])


@main.command()
@click.argument("tags", nargs=-1, required=True)
@click.option("--mode", type=click.Choice(["hard", "soft", "reload"]), default="hard", show_default=True)
@click.option("--dry-run", is_flag=True, help="Count only.")
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY:,} entries.")
@click.pass_obj
def invalidate(obj: Obj, tags: tuple[str, ...], mode: Any, dry_run: bool, yes: bool) -> None:
    """Invalidate everything that has any of TAGS."""
    cache, show = obj
    counted = cache.invalidate(*tags, dry_run=True)
    if not dry_run and counted.entries > MANY and not yes:
        click.confirm(f"{', '.join(tags)}: {counted.entries:,} entries; invalidate them?", abort=True)
    if dry_run:
        show(counted)
        return
    with Progress(console=(console := Console(stderr=True)), disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(mode, total=counted.entries or None)
        done = cache.invalidate(*tags, mode=mode, progress=lambda members: bar.update(task, completed=members))
    show(done)


@main.command()
@click.pass_obj
def sweep(obj: Obj) -> None:
    """Drop what has expired from tag sets, and finish invalidations whose process died."""
    cache, show = obj
    show(cache.sweep())


@main.command()
@click.pass_obj
def drain(obj: Obj) -> None:
    """Deliver what the outbox still holds."""
    cache, show = obj
    show({"rows": cache.drain()})


@main.command()
@click.option("--sample", default=1000, show_default=True, help="Most entries to compare.")
@click.option("--grace", default=1.0, show_default=True, help="Seconds until a difference is looked at again.")
@click.option("--rate", default=100.0, show_default=True, help="Most loads a second.")
@click.pass_obj
def inspect(obj: Obj, sample: int, grace: float, rate: float) -> None:
    """Compare live entries with what their loaders return now.  Status 2 if any differs."""
    cache, show = obj
    result = cache.inspect(sample, grace=grace, rate=rate)
    show({**msgspec.to_builtins(result), "per_million": result.per_million})
    if result.differences:
        raise click.exceptions.Exit(2)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what completes commands and loaders in SHELL.

    \b
    bash:  eval "$(cacheworkers completion bash)"
    fish:  cacheworkers completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "cacheworkers", "_CACHEWORKERS_COMPLETE").source())


for command in (stats, exporter, warm, check_history, doctor):
    main.add_command(command)
