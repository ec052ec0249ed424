"""Bulkhead: how many loads this process may run itself, on threads and a loop of its own, never on a caller's loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from cacheworkers.errors import BulkheadFull
from cacheworkers.local.flight import finish

T = TypeVar("T")

log = logging.getLogger("cacheworkers")
#: The bulkhead whose work this thread or task is, if any.
_inside: contextvars.ContextVar[object] = contextvars.ContextVar("cacheworkers_bulkhead", default=None)


class Bulkhead:
    """At most `size` pieces of work together; the others wait for room, first come first served.

    A caller stops waiting at its timeout, or when it is cancelled.  Work that has not begun then never will.  Work on a
    thread goes on, unheard, and keeps its room until it ends; a coroutine is cancelled.

    Work begun by work runs in the room of the latter: were it to wait for room of its own, `size` pieces that each
    begin another would wait for one another until they time out.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.reset()

    def reset(self) -> None:
        """Begin again, as a child does after a fork: threads and loop are the parent's."""
        # Re-entrant: a garbage collection within a locked section may close a coroutine that waits in `_outcome`.
        self._lock = threading.RLock()
        self._running = 0
        self._queue: OrderedDict[_Work, None] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self, last: Callable[[], Coroutine[Any, Any, None]], timeout: float) -> None:
        """Run a last coroutine on the library's loop, if there is one, and end the loop unless loads go on there."""
        loop = self._loop
        if loop is None:
            return
        with contextlib.suppress(BulkheadFull):
            self.run_async(last, timeout)
        with self._lock:
            if self._running == 0 and self._loop is loop:
                self._loop = None  # work that comes later has a new one
                loop.call_soon_threadsafe(loop.stop)

    @property
    def running(self) -> int:
        """How many pieces of work hold a room now."""
        return self._running

    def run(self, work: Callable[[], T], timeout: float) -> T:
        """Return what `work` returns, run on a thread of the bulkhead.

        Raises:
            BulkheadFull: no room, or no result, within `timeout` seconds.
        """
        found: T = self._wait(_Work(self, work, is_coroutine=False), timeout)
        return found

    async def arun(self, work: Callable[[], T], timeout: float) -> T:
        """Return what `work` returns, run on a thread of the bulkhead; see `run`."""
        found: T = await self._await(_Work(self, work, is_coroutine=False), timeout)
        return found

    def run_async(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Return what a coroutine returns, run on the library's own loop; see `run`."""
        found: T = self._wait(_Work(self, work, is_coroutine=True), timeout)
        return found

    async def arun_async(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Return what a coroutine returns, run on the library's own loop; see `run`."""
        found: T = await self._await(_Work(self, work, is_coroutine=True), timeout)
        return found

    # -- callers

    def _wait(self, piece: _Work, timeout: float) -> Any:
        self._submit(piece)
        try:
            return piece.future.result(max(0.0, min(timeout, threading.TIMEOUT_MAX)))
        except TimeoutError:
            # The work's own, perhaps; or it has ended between the two.
            return self._outcome(piece, timeout)
        except BaseException:
            self._abandon(piece)
            raise

    async def _await(self, piece: _Work, timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def report(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # that loop is closed, and its tasks with it
                loop.call_soon_threadsafe(finish, ended)

        self._submit(piece)
        piece.future.add_done_callback(report)
        timer = loop.call_later(max(0.0, timeout), finish, ended)
        try:
            await ended
        except BaseException:
            self._abandon(piece)
            raise
        finally:
            timer.cancel()
        return self._outcome(piece, timeout)

    def _outcome(self, piece: _Work, timeout: float) -> Any:
        if piece.future.done():
            return piece.future.result()
        if self._abandon(piece):
            text = f"this process already runs {self._size} loads, and none ended within {timeout:.3g} s"
        else:
            text = f"a load in this process took longer than {timeout:.3g} s"
        raise BulkheadFull(text)

    def _abandon(self, piece: _Work) -> bool:
        """Wait no longer for a piece of work; whether it had not begun, and never will."""
        piece.is_abandoned = True
        if piece.future.cancel():
            with self._lock:
                self._queue.pop(piece, None)
            return True
        if piece.is_coroutine and self._loop is not None and not piece.future.done():
            self._loop.call_soon_threadsafe(piece.stop)
        return False

    # -- room

    def _submit(self, piece: _Work) -> None:
        with self._lock:
            if piece.has_room and self._running >= self._size:
                self._queue[piece] = None
                return
            self._running += piece.has_room
        self._begin(piece)

    def _begin(self, piece: _Work | None) -> None:
        """Start a piece of work that has been given room; or, if that is impossible, the next one."""
        while piece is not None:
            if not piece.future.set_running_or_notify_cancel():
                piece = self._next(piece)
                continue
            try:
                if piece.is_coroutine:
                    self._the_loop().call_soon_threadsafe(self._start_task, piece)
                else:
                    threading.Thread(
                        target=self._run_loads, args=(piece,), name="cacheworkers-load", daemon=True
                    ).start()
                return
            except BaseException as error:  # no thread can be started
                if not piece.is_coroutine and "interpreter shutdown" in str(error):
                    return self._run_loads(piece)  # 3.12 starts none for an atexit callback: the caller's serves
                failed, piece = piece, self._next(piece)
                failed.future.set_exception(error)

    def _next(self, ended: _Work) -> _Work | None:
        """Hand a room on; the piece of work that has it now."""
        if not ended.has_room:
            return None
        with self._lock:
            if self._queue:
                return self._queue.popitem(last=False)[0]
            self._running -= 1
            return None

    def _end(self, piece: _Work, found: Any, error: BaseException | None) -> None:
        # Room first: whoever is notified of the end finds it free.
        self._begin(self._next(piece))
        if error is None:
            piece.future.set_result(found)
            return
        if piece.is_abandoned and not isinstance(error, asyncio.CancelledError):
            log.warning("a load that nobody waits for has failed", exc_info=error)
        if isinstance(error, asyncio.CancelledError):
            # Raised as it is, it would look as if the caller had been cancelled.
            error = BulkheadFull("a load in this process was cancelled")
        piece.future.set_exception(error)

    # -- on a thread of its own

    def _run_loads(self, piece: _Work | None) -> None:
        assert piece is not None
        try:
            found = piece.context.run(piece.work)
        except BaseException as error:
            self._end(piece, None, error)
            piece = None  # the error's traceback holds this frame, and the piece would hold the error
        else:
            self._end(piece, found, None)

    # -- on the library's loop

    def _start_task(self, piece: _Work) -> None:
        try:
            if piece.is_abandoned:
                raise asyncio.CancelledError
            coroutine = piece.context.run(piece.work)
            piece.task = asyncio.get_running_loop().create_task(coroutine, context=piece.context)
        except BaseException as error:
            self._end(piece, None, error)
        else:
            piece.task.add_done_callback(lambda task: self._end_task(piece, task))

    def _end_task(self, piece: _Work, task: asyncio.Task[Any]) -> None:
        piece.task = None
        if task.cancelled():
            self._end(piece, None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._end(piece, None, error)
        else:
            self._end(piece, task.result(), None)

    def _the_loop(self) -> asyncio.AbstractEventLoop:
        """Return the library's loop, started at first use."""
        found = self._loop
        if found is not None:
            return found
        loop = asyncio.new_event_loop()
        # Without the lock: a garbage collection in the thread that begins may close a wait, which needs it, and `start`
        # waits until the thread has begun.
        try:
            threading.Thread(target=_turn, args=(loop,), name="cacheworkers-loop", daemon=True).start()
        except BaseException:
            loop.close()
            raise
        with self._lock:
            found = self._loop = self._loop or loop
        if found is not loop:
            loop.call_soon_threadsafe(loop.stop)  # another thread was first
        return found


class _Work:
    """One piece of work, and the future of its caller."""

    __slots__ = ("context", "future", "has_room", "is_abandoned", "is_coroutine", "task", "work")

    def __init__(self, bulkhead: Bulkhead, work: Callable[[], Any], *, is_coroutine: bool) -> None:
        self.work: Final = work
        self.is_coroutine = is_coroutine
        self.has_room = _inside.get() is not bulkhead
        self.context = contextvars.copy_context()
        self.context.run(_inside.set, bulkhead)
        self.future: Future[Any] = Future()
        self.is_abandoned = False
        self.task: asyncio.Task[Any] | None = None  # also what keeps it alive: loops hold their tasks weakly

    def stop(self) -> None:
        """Cancel the coroutine; on its loop."""
        if self.task is not None:
            self.task.cancel()


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # A loader's SystemExit ends its task and leaves the loop; the other tasks must go on.
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
            loop.close()
            return
