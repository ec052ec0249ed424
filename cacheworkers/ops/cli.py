"""`cacheworkers`: the command line: its group, common options, and short commands.

    cacheworkers --app shop.cache:cache explain 'product[42]'

The app is a module and the name of its `Cache`; `CACHE_APP` in the environment says the same.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import Any

import click
import msgspec

from cacheworkers.cache import Cache
from cacheworkers.core.driver import run
from cacheworkers.core.signature import loader_name_of
from cacheworkers.errors import CacheworkersError, UnknownLoader
from cacheworkers.flows.explain import explain as read_explanation
from cacheworkers.flows.load_failure import UNBOUND
from cacheworkers.ops.doctor.command import doctor
from cacheworkers.ops.explanation_text import print_explanation
from cacheworkers.ops.exporter_command import exporter
from cacheworkers.ops.locate_cache import locate_cache
from cacheworkers.ops.output import Obj, as_json, as_text, counted, note
from cacheworkers.ops.stats_command import stats
from cacheworkers.ops.tag_commands import invalidate, tag
from cacheworkers.ops.warm_command import warm, why_no_worker
from cacheworkers.workers.diagnostics import BrokerUnreachable

#: Whether a command is asked what it does.
HELP = "cacheworkers.help"
#: Commands that print no result.
WITHOUT_JSON = {"exporter"}


class _Group(click.Group):
    """Its commands take `--json` too; errors of the library are messages, with status 1; help needs no cache."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[HELP] = not {"-h", "--help"}.isdisjoint(args)
        return super().parse_args(context, args)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if cmd.name not in WITHOUT_JSON:
            says = "Print JSON instead of text."
            cmd.params.append(
                click.Option(["--json"], is_flag=True, expose_value=False, callback=_show_json, help=says)
            )
        super().add_command(cmd, name)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except UnknownLoader as error:
            raise click.ClickException(f"{error}{_declared_elsewhere(context.obj[0], error.loader)}") from None
        except CacheworkersError as error:
            raise click.ClickException(str(error)) from None


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log line says what the command's error does not: that the store is away, it does."""
    return record.module != "health"


def _declared_elsewhere(cache: Cache, loader: str) -> str:
    """Return which module declares a loader in running processes, and how to name it; empty where none is known."""
    try:
        module = cache.internals.runtime.marks.noted_modules().get(loader)
    except CacheworkersError:
        return ""
    return f"; running processes declare it in {module}: give `-A {module}`" if module else ""


def _show_json(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked and context.obj is not None:  # None while a shell completes
        context.obj = (context.obj[0], as_json)


@click.group("cacheworkers", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--app",
    "-A",
    envvar="CACHE_APP",
    help="module:name of the Cache, or of an application or factory with one; or CACHE_APP is set.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print JSON instead of text.")
@click.version_option(package_name="cacheworkers")
@click.pass_context
def main(context: click.Context, app: str | None, as_json_: bool) -> None:
    """Inspect and control a cache.

    A CALL is a loader and its arguments as JSON: product[42], search["lamp",2]; quote it for the shell.  Arguments that
    have defaults may be left out: search["lamp"], front_page.  Within `celery -A shop cacheworkers` the cache is the
    one that is bound to the Celery app.

    \b
    Why is this price old?      cacheworkers -A shop.cache:cache explain 'product[42]'
    Is it set up right?         cacheworkers -A shop.cache:cache doctor
    What is going on?           cacheworkers -A shop.cache:cache stats
    Drop what has a tag         cacheworkers -A shop.cache:cache invalidate category:7

    Status 0 if it was done; 1 if it was not, and the last line says why; 2 if the command line is wrong, or if doctor
    or inspect has found that something is.
    """
    show = as_json if as_json_ else as_text
    if logging.lastResort is not None:  # where nobody has configured logging
        logging.lastResort.addFilter(_is_news)
    if context.meta[HELP]:
        context.obj = (None, show)
        return
    cache = locate_cache(context)
    context.obj = (cache, show)
    context.call_on_close(cache.close)


@main.command()
@click.argument("call")
@click.pass_obj
def explain(obj: Obj, call: str) -> None:
    """Say what a read of CALL would get now, and why.

    Nothing is loaded, claimed or counted.  `fresh` ends by up to a `jitter` of `fresh_for` earlier than that after the
    load, so that entries of one moment do not end in one.

    \b
    cacheworkers explain 'product[42]'
    """
    cache, show = obj
    found, why = cache.explain(call), ""
    if found.has_workers and found.age is None:
        spec = cache.loaders[loader_name_of(found.call)]
        with contextlib.suppress(BrokerUnreachable):
            why = why_no_worker(cache, spec.name, found.miss_queue)
        if why:
            found = run(read_explanation(cache.internals.ports, spec, found.call, False))
    if show is as_json:
        show(found)
    else:
        print_explanation(found)
    if why:
        note(f"no worker loads it: {why}")


@main.command()
@click.argument("call")
@click.pass_obj
def get(obj: Obj, call: str) -> None:
    """Print the stored value of CALL, as JSON.

    Nothing is loaded, and what is stale or lapsed is printed too.

    \b
    cacheworkers get 'product[42]' | jq .price

    Status 1 if nothing is stored.
    """
    cache, _ = obj
    payload = cache.stored(call)
    if payload is None:
        why = cache.explain(call).problem or f"{call} is not stored"
        raise click.ClickException(f"{why}; `cacheworkers explain '{call}'` says what a read would get")
    click.echo(payload)


@main.command()
@click.argument("loader")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.pass_obj
def hot(obj: Obj, loader: str, limit: int) -> None:
    """List what is read most of LOADER, with its access score.

    The score counts recent reads by all processes; it halves with every half-life.

    \b
    cacheworkers hot product --limit 5
    """
    cache, show = obj
    found = cache.hot(loader, limit)
    if not found:
        note(f"no call of {loader} has been read recently")
    show([{"call": call, "access_score": score} for call, score in found])


@main.command()
@click.pass_obj
def gc(obj: Obj) -> None:
    """Drop expired leftovers; finish broken-off invalidations.

    Beat does it by itself, every minute by default: this is for a store that has no beat.  `tag_sets` counts those it
    has looked at, `members` and `entries` what it has dropped; `foreign` counts keys that something else has written,
    which it leaves alone; `is_whole` is false where it ran out of time.
    """
    cache, show = obj
    show(cache.collect_garbage())
    cache.internals.ports.store.note_beat("collect_garbage").run()  # so that doctor knows that somebody does it


@main.command()
@click.option("--follow", is_flag=True, help="Keep running and deliver within milliseconds, until SIGTERM or Ctrl-C.")
@click.pass_obj
def drain(obj: Obj, follow: bool) -> None:
    """Deliver what the outbox still holds.

    Beat does it by itself, every `drain_interval`: this is for after an outage, when nobody wants to wait, and with
    --follow for writes past the sessions, which show within milliseconds then.
    """
    cache, show = obj
    if not (cache.is_watching or cache.internals.triggers):
        raise click.ClickException(
            "this cache watches no sessions, so it has no outbox to drain; `cache.watch(Session, ...)` makes it use one"
        )
    if not follow:
        rows = cache.drain()
        if show is as_json:
            show({"rows": rows})
        else:
            click.echo(f"{counted(rows, 'row', 'rows')} of the outbox delivered")
        return
    where = ", ".join(str(engine.url) for engine in cache.internals.watching.engines)
    click.echo(f"delivers what {cache.outbox.table.fullname} gets at {where}, until Ctrl-C or SIGTERM", err=True)
    stop = threading.Event()
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        cache.drain_until(stop)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@main.command()
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Maximum number of entries to compare.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Seconds to wait before a difference is checked again.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Maximum loads per second.",
)
@click.pass_obj
def inspect(obj: Obj, sample: int, grace: float, rate: float) -> None:
    """Compare live entries with what their loaders return now.

    Only reads, so that it can run on production.  An entry counts as wrong if it still differs after the grace.
    `skipped` are those that are not fresh now, are unreadable, or whose loader this process does not declare.

    \b
    cacheworkers inspect --sample 10000 --rate 500

    Status 2 if any differs, 1 if loads failed and nothing that could be compared differs.
    """
    cache, show = obj
    result = cache.inspect(sample, grace=grace, rate=rate)
    show({**msgspec.to_builtins(result), "per_million": result.per_million})
    if result.differences:
        raise click.exceptions.Exit(2)
    if result.failed:
        raise click.ClickException(
            f"not compared because their loads failed: {counted(result.failed, 'entry', 'entries')}"
            + (f"; {UNBOUND}" if "UnboundExecutionError" in result.failure else "")
        )


for command in (stats, tag, invalidate, exporter, warm, doctor):
    main.add_command(command)
