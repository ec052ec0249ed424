"""Delivery acknowledger: marks outbox rows whose tags this process has invalidated, in batches, on a thread or task.

A loop that ends leaves its rows to the thread.  Those that stay unmarked, because the process died or the database was
away, are delivered once more by the relay.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.sql.outbox.connections import on_connection
from cacheworkers.sql.outbox.outbox import GRACE, Outbox
from cacheworkers.sql.sqlalchemy_internals import SHARED_POOLS, transaction_on_shared

log = logging.getLogger("cacheworkers")

#: How long rows are gathered before one statement marks them, seconds: well within the relay's grace.
GATHER_FOR = GRACE / 10


class DeliveryAcknowledger:
    """Marks rows delivered, by engine."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reset()
        _alive.add(self)

    def reset(self) -> None:
        """Forget rows and threads, as a child does after a fork: the parent marks its own rows."""
        self._lock = threading.RLock()  # entered by itself, as that of `PublishQueue`
        self._changed = threading.Condition(self._lock)
        #: Those that the thread marks, and those that a task of a loop marks.
        self._rows: dict[Engine, list[int]] = {}
        self._of_loops: dict[tuple[Engine, asyncio.AbstractEventLoop], list[int]] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def acknowledge(self, engine: Engine, rows: tuple[int, ...]) -> None:
        """Have rows of a database marked whose tags are invalidated.

        On a connection that is shared by all (SQLite in memory) they are marked here, or not at all: later, or while a
        task of the loop waits, somebody's transaction may be open on it, and would be committed with them.
        """
        if isinstance(engine.pool, SHARED_POOLS):
            if not engine.dialect.is_async and transaction_on_shared(engine) is None:
                self._mark_on(engine, rows)
            return
        with self._lock:
            loop = _running_loop() if engine.dialect.is_async else None
            if loop is None:
                self._leave_to_thread(engine, rows)
                return
            for other, ended in [each for each in self._of_loops if each[1].is_closed()]:
                self._leave_to_thread(other, self._of_loops.pop((other, ended)))
            is_first = (engine, loop) not in self._of_loops
            self._of_loops.setdefault((engine, loop), []).extend(rows)
            if is_first:  # the task that it begins marks the next ones too
                task = loop.create_task(self._mark_soon(engine, loop))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Mark the rows that are left; waits for at most a second."""
        with self._lock:
            # Those of a loop that runs, too: this may be its own last step, as in a coroutine that ends a script.
            for engine, loop in list(self._of_loops):
                self._leave_to_thread(engine, self._of_loops.pop((engine, loop)))
        self._end_thread()

    def finish(self) -> None:
        """Mark what the thread has, as the process ends; async drivers would need threads that no longer start."""
        with self._lock:
            self._rows = {engine: rows for engine, rows in self._rows.items() if not engine.dialect.is_async}
        self._end_thread()

    def _end_thread(self) -> None:
        with self._lock:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def _leave_to_thread(self, engine: Engine, rows: Iterable[int]) -> None:
        """Have the thread mark rows; called with the lock."""
        if not self._rows:  # while it gathers, a thread that is woken takes the interpreter from who commits
            self._changed.notify()
        self._rows.setdefault(engine, []).extend(rows)
        if self._thread is None and not self._is_closed:
            self._thread = ProcessThread(self._mark_all, "cacheworkers-outbox")
            self._thread.start()

    def _mark_all(self) -> None:
        while self._mark_gathered():
            pass

    def _mark_gathered(self) -> bool:
        """Wait for rows, and mark them; False when there are none to come.

        A step of its own: the thread must keep no engine alive while it waits for the next one.
        """
        with self._lock:
            self._changed.wait_for(lambda: self._is_closed or bool(self._rows))
            self._changed.wait_for(lambda: self._is_closed, GATHER_FOR)
            due, self._rows = self._rows, {}
        for engine, rows in due.items():
            if not self._mark_on(engine, rows):
                time.sleep(GATHER_FOR)
        return bool(due)

    def _mark_on(self, engine: Engine, rows: Sequence[int]) -> bool:
        """Mark rows; return whether that has succeeded."""
        try:
            on_connection(engine, functools.partial(self._mark, rows))
        except Exception as error:  # whatever a driver raises: the relay delivers them again
            _log_unmarked(rows, error)
            return False
        return True

    def _mark(self, rows: Sequence[int], connection: Connection) -> None:
        self._outbox.delivered(connection, rows)
        connection.commit()

    async def _mark_soon(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await asyncio.sleep(GATHER_FOR)
        except BaseException:  # the loop ends
            with self._lock:
                if rows := self._of_loops.pop((engine, loop), []):
                    self._leave_to_thread(engine, rows)
            raise
        with self._lock:
            rows = self._of_loops.pop((engine, loop), [])
        if not rows:  # `close` has left them to the thread
            return
        try:
            async with AsyncEngine(engine).connect() as connection:
                await connection.run_sync(functools.partial(self._mark, rows))
        except asyncio.CancelledError:
            with self._lock:
                self._leave_to_thread(engine, rows)
            raise
        except Exception as error:
            _log_unmarked(rows, error)


def _log_unmarked(rows: Sequence[int], error: Exception) -> None:
    why = str(getattr(error, "orig", None) or error).partition("\n")[0]  # without the statement
    log.warning("%d outbox rows are not marked delivered, which is harmless: a drain repeats them: %s", len(rows), why)


_alive: weakref.WeakSet[DeliveryAcknowledger] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    """A script that commits and ends leaves nothing that the relay would deliver once more."""
    for each in list(_alive):
        each.finish()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
