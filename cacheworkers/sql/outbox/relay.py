"""The outbox relay, one pass: claims rows that wait, invalidates their tags, marks them delivered."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import SQLAlchemyError

from cacheworkers.core.driver import Flow, run
from cacheworkers.core.tag_templates import check_tag
from cacheworkers.errors import InvalidationIncomplete, TagError
from cacheworkers.events import OutboxRelayed, Replayed
from cacheworkers.flows.invalidate import Mode, invalidate_tags
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox.connections import on_connection
from cacheworkers.sql.outbox.outbox import GRACE, WATCH, Claimed, Outbox
from cacheworkers.store.commands.replies import ForeignType

log = logging.getLogger("cacheworkers")

#: Seconds after which a transaction that waits for the store is no longer left idle.
_KEEP_ALIVE_EVERY = 0.2


def drain_outbox(ports: Ports, outbox: Outbox, connection: Connection, *, grace: float = GRACE) -> int:
    """Deliver what waits, some rows at a time, and return how many that were.

    Rows stay locked while their tags are invalidated, and are marked after, each step in a transaction of its own: a
    relay that dies keeps what it has done.  Rows of a watched session are left to it for `grace` seconds.

    Raises:
        InvalidationIncomplete, StoreUnavailable: the store failed; the rows of this step stay.
    """
    rows, lag = 0, 0.0
    while (claimed := _deliver(ports, outbox, connection, grace)) is not None:
        rows += len(claimed.ids)
        if WATCH in claimed.sources:
            lag = max(lag, claimed.lag)
        ports.emit(OutboxRelayed(len(claimed.ids), len(claimed.tags), claimed.lag))
    if lag:
        log.info(
            "the outbox's drain has delivered what writers had not, or had not marked: "
            "rows: %d, the oldest after %.0f s",
            rows,
            lag,
        )
    with connection.begin():
        outbox.forget(connection, ports.config.replay_for)
    return rows


def replay_to_a_new_store(
    ports: Ports, outbox: Outbox, engines: Iterable[Engine], replayed: dict[Engine, str]
) -> dict[Engine, Exception]:
    """Have delivered again what a failover or an old snapshot may have undone; which databases did not answer.

    Args:
        engines: of all databases that have such an outbox.
        replayed: the run id that this process has replayed each to, which is added to: while one is away, the others
            must not be replayed again and again.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if ports.store.link.is_cluster:
        return {}
    noted, now, has_loaded = ports.store.run_ids().run()
    if noted == now:
        return {}
    away: dict[Engine, Exception] = {}
    # An empty store has nothing to undo; a snapshot that is older than the first drain has no note either.
    for engine in engines if noted or has_loaded else ():
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


def deliver(ports: Ports, outbox: Outbox, connection: Connection, grace: float) -> Flow[Claimed | None]:
    """Invalidate what some rows say, and mark them, in the connection's transaction; None if none wait."""
    claimed = outbox.claim(connection, grace=grace)
    if claimed is None:
        return None
    legal = legal_tags(claimed.tags, ports.config.max_tag_bytes)
    by_mode: dict[Mode, list[str]] = {"hard": [], "soft": []}
    for tag in legal:
        by_mode["soft" if tag in claimed.soft else "hard"].append(tag)
    for mode, tags in by_mode.items():
        if not tags:
            continue
        try:
            yield from invalidate_tags(ports, tags, mode, _KeepAlive(connection))
        except InvalidationIncomplete as error:
            if not isinstance(error.__cause__, ForeignType):
                raise
            # The other tags are done, and no load can register an entry in that set: there is nothing to delete.
            log.warning("the outbox has a tag that cannot be invalidated: %s", error)
    # Marked only now: after a crash in between, nobody would deliver rows that were marked before.
    outbox.delivered(connection, claimed.ids, claimed.sources)
    return claimed


class _KeepAlive:
    """Asks the database something while a large tag is drained: many end transactions that are idle for seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._at = time.monotonic()

    def __call__(self, members: int) -> None:
        if time.monotonic() - self._at >= _KEEP_ALIVE_EVERY:
            self._connection.execute(select(1))
            self._at = time.monotonic()


def _deliver(ports: Ports, outbox: Outbox, connection: Connection, grace: float) -> Claimed | None:
    with connection.begin():
        return run(deliver(ports, outbox, connection, grace))


def legal_tags(tags: Iterable[str], max_bytes: int) -> list[str]:
    """Return the tags of outbox rows that an entry can have.

    A trigger makes tags of any text in a column.  One that no entry can have must not hold up the others.
    """
    legal = []
    for tag in tags:
        try:
            legal.append(check_tag(tag, max_bytes))
        except TagError as error:
            log.warning("skipped a tag in the outbox: %s", error)
    return legal


def _replay(ports: Ports, outbox: Outbox, connection: Connection) -> int:
    with connection.begin():
        return outbox.replay(connection, ports.config.replay_for)
