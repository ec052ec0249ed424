"""Delivery: invalidates what a watched transaction has written, right after its commit, and retries.

What fails is tried again for as long as the drain leaves the rows to their writer; then the drain has them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Engine

from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.events import InvalidationUndelivered
from cacheworkers.flows.invalidate import Mode, invalidate_tags, named
from cacheworkers.flows.ports import Ports
from cacheworkers.sql.outbox.outbox import GRACE
from cacheworkers.sql.sqlalchemy_internals import await_, base_engine, in_greenlet
from cacheworkers.sql.watch.dirty_transactions import LateInvalidation, Written

T = TypeVar("T")
log = logging.getLogger("cacheworkers")

#: How often an invalidation that has failed is tried again, seconds.
_RETRY_EVERY = 0.1
#: Tags for which a commit waits.  More of them are invalidated after it returns: by then its own process reads past
#: the cache what they concern, others do when their turn comes, within some seconds for a hundred thousand.
MAX_TAGS_AT_COMMIT = 1000


class _Failed(NamedTuple):
    """What is to be tried again."""

    writes: tuple[Written, ...]
    late: LateInvalidation
    until: float


class Delivery:
    """The way of committed tags into the store."""

    def __init__(self, ports: Ports, acknowledge: Callable[[Engine, tuple[int, ...]], None]) -> None:
        """
        Args:
            acknowledge: called with the outbox rows of a database whose tags are invalidated.
        """
        self._ports = ports
        self._acknowledge = acknowledge
        self._tasks: set[asyncio.Task[Any]] = set()
        self.reset()

    def reset(self) -> None:
        """Forget what is to be tried again, as a child does after a fork: the parent does it."""
        self._lock = threading.Lock()
        self._failed: list[_Failed] = []
        self._retrying: threading.Thread | None = None
        #: Whether it is logged that something is not delivered, and how many rows have been left to the drain since.
        self._is_logged = False
        self._left = 0

    def deliver(self, writes: Sequence[Written], *, is_committed: bool = True) -> None:
        """Invalidate tags; an error is reported as an event, and raised by nobody: the commit has succeeded.

        Within an AsyncSession the invalidation goes on when the caller is cancelled.

        Args:
            is_committed: whether the rows are to be acknowledged.
        """
        if not writes:
            return
        rows = tuple(writes) if is_committed else ()
        if rows and sum(len(each.tags) for each in writes) > MAX_TAGS_AT_COMMIT:
            with self._lock:
                self._postpone(writes)
            return
        if not in_greenlet():
            run(self._invalidate(writes, rows))
            return
        task = self._keep(arun(self._invalidate(writes, rows)))
        try:
            await_(asyncio.shield(task))
        except asyncio.CancelledError:
            if not task.done():
                self._keep(self._finish(task, writes))
            raise

    def _invalidate(self, writes: Sequence[Written], rows: Sequence[Written]) -> Flow[None]:
        """Invalidate, and have the rows marked; what fails is tried again."""
        try:
            yield from self._invalidation(writes)
        except BaseException as error:
            self._try_again(writes, rows, error)
            if not isinstance(error, Exception):  # an interruption goes on its way, or the loop ends
                raise
        else:
            self._succeeded(rows)

    def _invalidation(self, writes: Sequence[Written]) -> Flow[None]:
        hard = dict.fromkeys(tag for each in writes if each.mode == "hard" for tag in each.tags)
        soft = dict.fromkeys(tag for each in writes if each.mode == "soft" for tag in each.tags if tag not in hard)
        named: tuple[tuple[dict[str, None], Mode], ...] = ((hard, "hard"), (soft, "soft"))
        for tags, mode in named:
            if tags:
                yield from invalidate_tags(self._ports, tuple(tags), mode)

    async def _finish(self, begun: asyncio.Task[None], writes: Sequence[Written]) -> None:
        """Read past the cache what an invalidation that goes on has not reached yet."""
        late = self._late(writes)
        try:
            await begun
        finally:
            self._end(late)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a task that is not collected before its end."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _succeeded(self, rows: Sequence[Written]) -> None:
        if self._is_logged:
            self._log_delivered()
        by_engine: dict[Engine, list[int]] = {}
        for each in rows:
            by_engine.setdefault(base_engine(each.connection.engine), []).append(each.row)
        for engine, numbers in by_engine.items():
            self._acknowledge(engine, tuple(numbers))

    # -- trying again

    def _try_again(self, writes: Sequence[Written], rows: Sequence[Written], error: BaseException) -> None:
        """Forget what this process has in memory, and read past the cache what the store may still have."""
        self._ports.l1.clear()
        self._ports.emit(InvalidationUndelivered(len(rows), f"{type(error).__name__}: {error}"))
        if not rows:
            return
        with self._lock:
            self._postpone(writes)
            is_logged, self._is_logged = self._is_logged, True
        if not is_logged:
            log.warning(
                "what has tag %s is committed and its invalidation is not delivered: readers may get what was there "
                "before.  It is tried again for %g s, and then left to the outbox's drain, beat's or `cacheworkers "
                "drain`: %s",
                named([tag for each in writes for tag in each.tags]),
                GRACE,
                error.__cause__ or error,
            )

    def _log_delivered(self) -> None:
        """Log that invalidations are delivered again, once nothing is tried any more."""
        with self._lock:
            if self._failed or not self._is_logged:
                return
            left, self._left, self._is_logged = self._left, 0, False
        rest = f"; rows that were left to the outbox's drain, beat's or `cacheworkers drain`: {left}" if left else ""
        log.warning("what is committed is invalidated again%s", rest)

    def _postpone(self, writes: Sequence[Written]) -> None:
        """Leave an invalidation to a thread; until it is done this process reads past the cache what it concerns."""
        self._failed.append(_Failed(tuple(writes), self._late(writes), time.monotonic() + GRACE))
        if self._retrying is None:
            self._retrying = threading.Thread(target=self._retry, name="cacheworkers-retry", daemon=True)
            self._retrying.start()

    def _retry(self) -> None:
        is_first = True
        while True:
            if not is_first:
                time.sleep(_RETRY_EVERY)
            is_first = False
            with self._lock:
                failed = list(self._failed)
            try:
                writes = [write for each in failed for write in each.writes]
                run(self._invalidation(writes))
                over, left = failed, 0
                self._succeeded(writes)
            except Exception:  # the store is away
                over = [each for each in failed if time.monotonic() > each.until]
                left = sum(len(each.writes) for each in over)
            with self._lock:
                self._left += left
                for each in over:
                    self._failed.remove(each)
                    self._end(each.late)
                if not self._failed:
                    self._retrying = None
                    break
        if not left:
            self._log_delivered()

    def _late(self, writes: Sequence[Written]) -> LateInvalidation:
        self._ports.coherence.bypass()
        return LateInvalidation(self._ports, frozenset(tag for each in writes for tag in each.tags))

    def _end(self, late: LateInvalidation) -> None:
        late.end()
        self._ports.coherence.unbypass()
