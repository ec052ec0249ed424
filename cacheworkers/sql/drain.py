"""Drain: delivers what the outbox still holds, by however many processes; the safety net under every invalidation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from cacheworkers.core.driver import Flow, run
from cacheworkers.core.tags import check_tag
from cacheworkers.errors import TagError
from cacheworkers.events import Drained, Replayed
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox import GRACE, Delivery, Outbox

log = logging.getLogger("cacheworkers")


def drain_outbox(ports: Ports, outbox: Outbox, engine: Engine, *, grace: float = GRACE) -> int:
    """Deliver what waits, batch by batch, and return how many rows that were.

    The rows stay locked while their tags are invalidated, and are marked after: a drain that dies has delivered
    nothing, or it is done again.  Rows of a watched session are left to it for `grace` seconds.

    Raises:
        InvalidationIncomplete, StoreUnavailable: the store failed; the batch stays.
    """
    _replay_to_a_new_store(ports, outbox, engine)
    rows = 0
    while (delivery := _deliver(ports, outbox, engine, grace)) is not None:
        rows += len(delivery.ids)
        ports.emit(Drained(len(delivery.ids), len(delivery.tags), delivery.lag))
    with engine.begin() as connection:
        outbox.forget(connection, ports.config.replay_for)
    return rows


def sync_engine_of(bind: Any) -> Engine | None:
    """Return an engine for threads: the one given, or one to the same database as an async one of a driver of both."""
    if isinstance(bind, Engine) and not bind.dialect.is_async:
        return bind
    if isinstance(bind, AsyncEngine) and bind.dialect.driver in ("psycopg_async", "psycopg"):
        return create_engine(bind.url, pool_size=1, pool_pre_ping=True)
    return None


def deliver(ports: Ports, outbox: Outbox, connection: Connection, grace: float) -> Flow[Delivery | None]:
    """Invalidate what the oldest rows say, and mark them, in the connection's transaction; None if none wait."""
    delivery = outbox.claim(connection, grace=grace)
    if delivery is None:
        return None
    tags = list(_legal(delivery.tags, ports.config.max_tag_bytes))
    if tags:
        yield from invalidate_tags(ports, tags, "hard")
    # Only now.  Marked before, what a crash in between leaves would be delivered by nobody.
    outbox.delivered(connection, delivery.ids, delivery.sources)
    return delivery


def _deliver(ports: Ports, outbox: Outbox, engine: Engine, grace: float) -> Delivery | None:
    with engine.begin() as connection:
        return run(deliver(ports, outbox, connection, grace))


def _legal(tags: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield what an entry can have as a tag.

    A trigger makes tags of whatever a column holds.  One that no entry can have must not keep the others waiting.
    """
    for tag in tags:
        try:
            yield check_tag(tag, max_bytes)
        except TagError as error:
            log.warning("a tag in the outbox is left out: %s", error)


def _replay_to_a_new_store(ports: Ports, outbox: Outbox, engine: Engine) -> None:
    """Deliver anew what a failover or an old snapshot may have undone."""
    if ports.store.link.is_cluster:
        return
    noted, now = ports.store.run_ids().run()
    if noted == now:
        return
    if noted:
        with engine.begin() as connection:
            rows = outbox.replay(connection, ports.config.replay_for)
        ports.emit(Replayed(rows))
    ports.store.note_run_id(now).run()
