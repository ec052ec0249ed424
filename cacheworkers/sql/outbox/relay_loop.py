"""RelayLoop: the outbox relay again and again, woken by notifications; what `cacheworkers drain` runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from cacheworkers.sql.outbox.connections import without_pool
from cacheworkers.sql.outbox.notifications import AsyncNotifications, Notifications
from cacheworkers.sql.triggers.postgres_triggers import channel

log = logging.getLogger("cacheworkers")
#: How long a draining process waits for a notification at most before it looks again, seconds; and at least, after it
#: found rows: only one of the transactions that are open at a time notifies.
DRAIN_WITHIN, DRAIN_AGAIN = 0.5, 0.02
#: How long after a failure it tries again, seconds.
RETRY_AFTER = 0.5


class RelayLoop:
    """Delivers what outboxes get, until it is stopped; what fails is tried again."""

    def __init__(self, drain: Callable[[Engine], int], namespace: str) -> None:
        """
        Args:
            drain: delivers what waits in one database, and returns the number of rows.
        """
        self._drain = drain
        self._namespace = namespace

    def run(self, engines: Sequence[Engine], stop: threading.Event) -> None:
        """Drain databases until asked to stop, each on a thread of its own but the first."""
        first, *others = engines
        threads = [
            threading.Thread(target=self._drain_until, args=(stop, each), name="cacheworkers-drain", daemon=True)
            for each in others
        ]
        for thread in threads:
            thread.start()
        self._drain_until(stop, first)
        for thread in threads:
            thread.join()

    def _drain_until(self, stop: threading.Event, engine: Engine) -> None:
        is_failing = False
        while not stop.is_set():
            try:
                self._drain(engine)  # whether or not anybody can listen
                if is_failing:
                    is_failing = False
                    log.warning("the drain of %r goes on", engine.url)
                if engine.dialect.is_async:
                    asyncio.run(self._adrain_and_wait(stop, engine))
                else:
                    self._drain_and_wait(stop, engine)
            except Exception as error:  # the database or the store is away; the rows stay
                if not is_failing:
                    log.warning("the drain of %r tries again every %g s: %s", engine.url, RETRY_AFTER, error)
                is_failing = True
                stop.wait(RETRY_AFTER)

    def _drain_and_wait(self, stop: threading.Event, engine: Engine) -> None:
        notifications, pause = Notifications(stop), DRAIN_WITHIN
        with contextlib.nullcontext() if engine.dialect.driver != "psycopg" else engine.connect() as connection:
            if connection is not None:
                notifications.listen(connection, channel(self._namespace))
            while not stop.is_set():
                pause = _next_pause(pause, self._drain(engine))
                notifications.wait(pause)

    async def _adrain_and_wait(self, stop: threading.Event, engine: Engine) -> None:
        notifications, pause = AsyncNotifications(), DRAIN_WITHIN
        async with AsyncEngine(without_pool(engine)).connect() as connection:
            await notifications.listen(connection, channel(self._namespace))
            while not stop.is_set():
                pause = _next_pause(pause, self._drain(engine))
                await notifications.wait(pause)


def _next_pause(pause: float, rows: int) -> float:
    """Return how long to wait for a notification: short after rows were found, then longer."""
    return DRAIN_AGAIN if rows else min(2 * pause, DRAIN_WITHIN)
