"""`cacheworkers stats`: a live table of queues, store, loaders and outbox, like top."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click
import msgspec
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cacheworkers.cache import Cache
from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.stats import LoaderStats, StoreStats
from cacheworkers.ops.output import Obj, as_json
from cacheworkers.workers.broker_queues import QueueState


class Stats(msgspec.Struct, frozen=True):
    """What is known now; what does not answer is in `away`, with why."""

    store: StoreStats | None
    queues: list[QueueState]
    loaders: list[LoaderStats]
    outbox: dict[str, float] | None
    away: dict[str, str]


def collect(cache: Cache) -> Stats:
    """Ask store, broker and database; none of them is needed by the others."""
    away: dict[str, str] = {}

    def ask(name: str, question: Any, otherwise: Any) -> Any:
        try:
            return question()
        except CacheworkersError as error:
            away[name] = str(error)
            return otherwise

    store = ask("store", cache.store_stats, None)
    return Stats(
        store,
        ask("broker", cache.queues, []),
        ask("store", cache.loader_stats, []) if store is not None else [],
        ask("outbox", lambda: cache.outbox_backlog()._asdict(), None) if cache.is_watching else None,
        away,
    )


def tables(stats: Stats) -> Group:
    """Return what was collected as tables."""
    parts: list[Any] = []
    if stats.store is not None:
        parts.append(_store(stats.store))
    if stats.queues:
        queues = _table("queue", "messages", "oldest")
        for queue in stats.queues:
            age = "-" if queue.oldest_age is None else f"{queue.oldest_age:,.1f} s"
            queues.add_row(queue.name, f"{queue.length:,}", age)
        parts.append(queues)
    if stats.loaders:
        loaders = _table("loader", "access score", "calls", "hottest", "its score")
        for each in stats.loaders:
            loaders.add_row(
                each.loader,
                f"{each.access_score:,.0f}",
                f"{each.calls:,}",
                Text(each.hottest),
                f"{each.hottest_score:,.0f}",
            )
        parts.append(loaders)
    if stats.outbox is not None:
        outbox = _table("outbox rows", "oldest")
        outbox.add_row(f"{stats.outbox['rows']:,}", f"{stats.outbox['oldest_age']:,.1f} s")
        parts.append(outbox)
    for name, why in stats.away.items():
        parts.append(Text.assemble((f"{name} does not answer", "bold red"), f": {why}"))
    return Group(*parts)


def _store(store: StoreStats) -> Table:
    table = _table("store", "commands/s", "keys", "memory", "evicted", "clients", "up")
    most = f" of {decimal(store.memory_most)}" if store.memory_most else ""
    table.add_row(
        store.version,
        f"{store.commands:,}",
        f"{store.keys:,}",
        decimal(store.memory) + most,
        f"{store.evictions:,}",
        f"{store.clients:,}",
        f"{store.uptime / 3600:,.1f} h",
    )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 or column == "hottest" else "right")
    return table


@click.command()
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between updates."
)
@click.option("--once", is_flag=True, help="Print once; the default where the output is not a terminal.")
@click.pass_obj
def stats(obj: Obj, interval: float, once: bool) -> None:
    """Show queues, the store, access scores and the outbox, live like top.

    Until Ctrl-C, on a terminal; else once.  `oldest` is how long the first message of a queue has waited for a worker:
    what grows there needs more workers.

    \b
    cacheworkers stats
    cacheworkers stats --json | jq '.queues[] | select(.length > 100)'

    Status 1 if one of them did not answer when asked last.
    """
    cache, show = obj
    console = Console()
    if show is as_json:
        found = collect(cache)
        show(found)
    elif once or not console.is_terminal or console.is_dumb_terminal:
        found = collect(cache)
        console.print(tables(found), soft_wrap=True)
    else:
        found = collect(cache)
        # A terminal may go away without a signal: then it is no terminal, or refuses what is drawn.
        with (
            contextlib.suppress(KeyboardInterrupt, OSError),
            Live(tables(found), console=console, screen=True, auto_refresh=False) as live,
        ):
            while console.is_terminal:
                time.sleep(interval)
                found = collect(cache)
                live.update(tables(found), refresh=True)
    if found.away:
        raise click.exceptions.Exit(1)
