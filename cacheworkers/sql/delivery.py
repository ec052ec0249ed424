"""Delivery: marks the outbox rows whose tags this process has invalidated itself, in batches and off the caller's path.

What is not marked, because the process died or the database was away, the drain delivers once more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from cacheworkers.sql.outbox import GRACE, Outbox

log = logging.getLogger("cacheworkers")

#: How long rows are gathered before one statement marks them, seconds: well within the drain's grace.
GATHER_FOR = GRACE / 10


class Delivered:
    """Rows to be marked, by engine."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reset()

    def reset(self) -> None:
        """Forget rows and threads, as a child does after a fork: the parent marks its own."""
        self._changed = threading.Condition()
        self._rows: dict[Engine, list[int]] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_gathering: set[Engine] = set()

    def note(self, engine: Engine, rows: tuple[int, ...]) -> None:
        """Take rows of a database whose tags are invalidated; called right after the commit that wrote them."""
        with self._changed:
            self._rows.setdefault(engine, []).extend(rows)
            if engine.dialect.is_async:
                if engine not in self._is_gathering:
                    self._is_gathering.add(engine)
                    task = asyncio.get_running_loop().create_task(self._mark_soon(engine))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                return
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._mark_all, name="cacheworkers-outbox", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Mark what is left, for at most a second."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def _mark_all(self) -> None:
        while True:
            with self._changed:
                while not (due := self._take(is_async=False)) and not self._is_closed:
                    self._changed.wait()
                if not due:
                    return
                if not self._is_closed:
                    self._changed.wait_for(lambda: self._is_closed, GATHER_FOR)
                    for engine, rows in self._take(is_async=False).items():
                        due.setdefault(engine, []).extend(rows)
            for engine, rows in due.items():
                try:
                    with engine.begin() as connection:
                        self._outbox.delivered(connection, rows)
                except Exception as error:  # whatever a driver raises: the drain delivers them again
                    log.warning("%d outbox rows were not marked delivered: %s", len(rows), error)
                    time.sleep(GATHER_FOR)

    async def _mark_soon(self, engine: Engine) -> None:
        await asyncio.sleep(GATHER_FOR)
        with self._changed:
            self._is_gathering.discard(engine)
            rows = self._rows.pop(engine, [])
        try:
            async with AsyncEngine(engine).begin() as connection:
                await connection.run_sync(self._outbox.delivered, rows)
        except Exception as error:
            log.warning("%d outbox rows were not marked delivered: %s", len(rows), error)

    def _take(self, *, is_async: bool) -> dict[Engine, list[int]]:
        due = {engine: rows for engine, rows in self._rows.items() if engine.dialect.is_async is is_async}
        for engine in due:
            del self._rows[engine]
        return due
