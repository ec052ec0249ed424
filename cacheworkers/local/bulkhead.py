"""Bulkhead: how many loads this process may run itself, on threads of its own, never on a caller's loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from cacheworkers.errors import BulkheadFull

T = TypeVar("T")


class Bulkhead:
    """At most `size` pieces of work at once; the others wait for room, and give up at their deadline."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork."""
        self._room = threading.Condition(threading.Lock())
        self._running = 0
        self._queue: list[_Work] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def running(self) -> int:
        """How many pieces of work run now."""
        return self._running

    def run(self, work: Callable[[], T], timeout: float) -> T:
        """Return what `work` returns, run on a thread of the bulkhead.

        Raises:
            BulkheadFull: no room, or no result, within `timeout` seconds; work that has begun goes on, unheard.
        """
        piece = self._submit(work, timeout)
        try:
            found: T = piece.future.result(max(0.0, timeout))
        except TimeoutError:
            if piece.future.done():
                raise
            raise self._late(piece, timeout) from None
        return found

    async def arun(self, work: Callable[[], T], timeout: float) -> T:
        """Return what `work` returns; see `run`."""
        piece = self._submit(work, timeout)
        waiting = asyncio.wrap_future(piece.future)
        try:
            done, _ = await asyncio.wait({waiting}, timeout=max(0.0, timeout))
        except asyncio.CancelledError:
            self._abandon(piece)
            raise
        if not done:
            raise self._late(piece, timeout)
        found: T = waiting.result()
        return found

    def run_async(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Return what a coroutine returns, run on the library's own loop; see `run`."""
        return self.run(lambda: self._on_loop(work, timeout), timeout)

    async def arun_async(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Return what a coroutine returns, run on the library's own loop; see `run`."""
        return await self.arun(lambda: self._on_loop(work, timeout), timeout)

    # -- threads

    def _submit(self, work: Callable[[], Any], timeout: float) -> _Work:
        piece = _Work(work, contextvars.copy_context(), time.monotonic() + timeout)
        with self._room:
            if self._running < self._size:
                self._running += 1
                threading.Thread(target=self._serve, args=(piece,), name="cacheworkers-load", daemon=True).start()
            else:
                self._queue.append(piece)
        return piece

    def _serve(self, piece: _Work | None) -> None:
        while piece is not None:
            piece.perform()
            with self._room:
                piece = None
                while self._queue and piece is None:
                    piece = self._queue.pop(0)
                    if not piece.future.set_running_or_notify_cancel():
                        piece = None
                if piece is None:
                    self._running -= 1

    def _late(self, piece: _Work, timeout: float) -> BulkheadFull:
        self._abandon(piece)
        if piece.has_begun:
            return BulkheadFull(f"a load in this process took longer than its {timeout:.3g} s")
        return BulkheadFull(f"this process already runs {self._size} loads; none ended within {timeout:.3g} s")

    def _abandon(self, piece: _Work) -> None:
        with self._room:
            if piece in self._queue:
                self._queue.remove(piece)
                piece.future.cancel()

    # -- the loop thread

    def _on_loop(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        context = contextvars.copy_context()

        async def inside() -> T:
            task: asyncio.Task[T] = asyncio.get_running_loop().create_task(work(), context=context)
            return await asyncio.wait_for(task, timeout)

        return asyncio.run_coroutine_threadsafe(inside(), self._the_loop()).result()

    def _the_loop(self) -> asyncio.AbstractEventLoop:
        """Return the library's loop, started at first use; one for the life of the process."""
        with self._room:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="cacheworkers-loop", daemon=True).start()
            return self._loop


class _Work:
    """One piece of work and its future."""

    __slots__ = ("_context", "_work", "deadline", "future", "has_begun")

    def __init__(self, work: Callable[[], Any], context: contextvars.Context, deadline: float) -> None:
        self._work = work
        self._context = context
        self.deadline = deadline
        self.future: Future[Any] = Future()
        self.has_begun = False

    def perform(self) -> None:
        self.has_begun = True
        try:
            found = self._context.run(self._work)
        except BaseException as error:
            if not self.future.cancelled():
                self.future.set_exception(error)
        else:
            if not self.future.cancelled():
                self.future.set_result(found)
