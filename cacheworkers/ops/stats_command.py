"""`cacheworkers stats`: queues, store, loaders and outbox as they are now."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from cacheworkers.cache import Cache
from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.stats import LoaderStats, StoreStats
from cacheworkers.ops.output import Obj, as_json, columns
from cacheworkers.workers.broker_queues import QueueState

#: Column -> the same with its unit.
_IN = {"uptime": "uptime s", "memory": "memory bytes", "memory_most": "memory_most bytes", "oldest_age": "oldest_age s"}


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


@click.command()
@click.pass_obj
def stats(obj: Obj) -> None:
    """Show queues, the store, access scores and the outbox as they are now.

    `oldest_age` is for how many seconds the first message of a queue has waited for a worker: what grows there needs
    more workers.

    \b
    watch cacheworkers stats
    cacheworkers stats --json | jq '.queues[] | select(.length > 100)'

    Status 1 if one of them did not answer.
    """
    cache, show = obj
    found = collect(cache)
    if show is as_json:
        show(found)
    else:
        _print(found)
    if found.away:
        raise click.exceptions.Exit(1)


def _print(found: Stats) -> None:
    plain = msgspec.to_builtins(found)
    for name in ("store", "queues", "loaders", "outbox"):
        rows = plain[name] if isinstance(plain[name], list) else [plain[name]] if plain[name] else []
        if rows:
            click.secho(name, bold=True)
            columns([{_IN.get(key, key): cell for key, cell in row.items()} for row in rows], has_names=True)
            click.echo()
    for name, why in found.away.items():
        click.echo(f"{click.style(f'{name} does not answer', fg='red', bold=True)}: {why}")
