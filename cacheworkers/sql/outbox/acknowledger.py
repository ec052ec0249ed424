"""Delivery acknowledger: marks outbox rows whose tags this process has invalidated, in batches, on a thread or task.

Rows that stay unmarked, because the process died or the database was away, are delivered once more by the relay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from cacheworkers.sql.outbox.outbox import GRACE, Outbox

log = logging.getLogger("cacheworkers")

#: How long rows are gathered before one statement marks them, seconds: well within the relay's grace.
GATHER_FOR = GRACE / 10


class DeliveryAcknowledger:
    """Marks rows delivered, by engine."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reset()

    def reset(self) -> None:
        """Forget rows and threads, as a child does after a fork: the parent marks its own rows."""
        self._changed = threading.Condition()
        self._rows: dict[Engine, list[int]] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def acknowledge(self, engine: Engine, rows: tuple[int, ...]) -> None:
        """Have rows of a database marked whose tags are invalidated."""
        with self._changed:
            is_first = engine not in self._rows
            self._rows.setdefault(engine, []).extend(rows)
            if not is_first:
                return  # the thread or task that the first row has begun marks this one too
            if engine.dialect.is_async:
                task = asyncio.get_running_loop().create_task(self._mark_soon(engine))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._mark_all, name="cacheworkers-outbox", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Mark the rows that are left; waits for at most a second."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def _mark_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._has_sync_rows())
                self._changed.wait_for(lambda: self._is_closed, GATHER_FOR)
                due = {engine: self._rows.pop(engine) for engine in list(self._rows) if not engine.dialect.is_async}
                if not due:
                    return
            for engine, rows in due.items():
                try:
                    with engine.begin() as connection:
                        self._outbox.delivered(connection, rows)
                except Exception as error:  # whatever a driver raises: the relay delivers them again
                    log.warning("%d outbox rows were not marked delivered: %s", len(rows), error)
                    time.sleep(GATHER_FOR)

    async def _mark_soon(self, engine: Engine) -> None:
        try:
            await asyncio.sleep(GATHER_FOR)
        finally:  # a loop that ends leaves its rows to the relay, and later ones to another loop
            with self._changed:
                rows = self._rows.pop(engine, [])
        try:
            async with AsyncEngine(engine).begin() as connection:
                await connection.run_sync(self._outbox.delivered, rows)
        except Exception as error:
            log.warning("%d outbox rows were not marked delivered: %s", len(rows), error)

    def _has_sync_rows(self) -> bool:
        return any(not engine.dialect.is_async for engine in self._rows)
