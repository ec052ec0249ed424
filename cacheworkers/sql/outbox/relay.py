"""Drain: delivers what the outbox still holds, by however many processes; the safety net under every invalidation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from cacheworkers.core.driver import Flow, run
from cacheworkers.core.tags import check_tag
from cacheworkers.errors import TagError
from cacheworkers.events import OutboxRelayed, Replayed
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox.diagnostics import on_connection
from cacheworkers.sql.outbox.outbox import GRACE, Delivery, Outbox

log = logging.getLogger("cacheworkers")


def drain_outbox(ports: Ports, outbox: Outbox, connection: Connection, *, grace: float = GRACE) -> int:
    """Deliver what waits, batch by batch, and return how many rows that were.

    The rows stay locked while their tags are invalidated, and are marked after: a drain that dies has delivered
    nothing, or it is done again.  Rows of a watched session are left to it for `grace` seconds.

    Raises:
        InvalidationIncomplete, StoreUnavailable: the store failed; the batch stays.
    """
    rows = 0
    while (delivery := _deliver(ports, outbox, connection, grace)) is not None:
        rows += len(delivery.ids)
        ports.emit(OutboxRelayed(len(delivery.ids), len(delivery.tags), delivery.lag))
    with connection.begin():
        outbox.forget(connection, ports.config.replay_for)
    return rows


def replay_to_a_new_store(
    ports: Ports, outbox: Outbox, engines: Iterable[Engine], replayed: dict[Engine, str]
) -> dict[Engine, Exception]:
    """Let the drain deliver anew what a failover or an old snapshot may have undone; which databases did not answer.

    Args:
        engines: of all databases that have such an outbox.
        replayed: the run id that this process has replayed each to, which is added to: one that is away for long must
            not have the others replayed again and again.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if ports.store.link.is_cluster:
        return {}
    noted, now = ports.store.run_ids().run()
    if noted == now:
        return {}
    away: dict[Engine, Exception] = {}
    for engine in engines if noted else ():
        if replayed.get(engine) == now:
            continue
        try:
            rows = on_connection(engine, lambda connection: _replay(ports, outbox, connection))
        except (SQLAlchemyError, OSError) as error:
            away[engine] = error
            continue
        replayed[engine] = now
        ports.emit(Replayed(rows))
    if not away:  # it says of all databases that they are replayed
        ports.store.note_run_id(now).run()
    return away


def listening_engine_of(engine: Engine) -> Engine | None:
    """Return an engine for threads that can listen to the same database; None without psycopg."""
    if engine.dialect.driver not in ("psycopg_async", "psycopg"):
        return None
    return create_engine(engine.url, pool_size=1, pool_pre_ping=True) if engine.dialect.is_async else engine


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


def _deliver(ports: Ports, outbox: Outbox, connection: Connection, grace: float) -> Delivery | None:
    with connection.begin():
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


def _replay(ports: Ports, outbox: Outbox, connection: Connection) -> int:
    with connection.begin():
        return outbox.replay(connection, ports.config.replay_for)
