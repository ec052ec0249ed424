"""AsyncConnection: one connection of one event loop, shared by its tasks, opened by redis-py and read with hiredis."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable
from typing import Any

import hiredis

from cacheworkers.store.connections.connection import (
    BULK,
    PROGRESS_TIMEOUTS,
    ConnectionCut,
    LateReply,
    Outcome,
    keep_alive,
    new_reader,
    unconnected,
    unsent_bytes,
)


class AsyncConnection(asyncio.Protocol):
    """Requests are written as they come, and replies come in their order.

    A task that is cancelled leaves its reply to be read and dropped.

    Attributes:
        generation: the pool's when connecting began.
        is_usable: nothing has failed so far.
        used_at: the loop's instant of the last bytes that arrived.
    """

    def __init__(self, timeout: float, generation: int = 0) -> None:
        """
        Args:
            timeout: seconds without any progress after which a reply is late.
        """
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: collections.deque[_PendingReply] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None
        self._unwritten: list[bytes] = []  # requests of this turn of the loop, which leave in one write
        self._partial = 0  # bytes since the last whole reply
        self._unsent = 0
        self._progress_at = 0.0
        self.used_at = self._loop.time()
        self.generation = generation
        self.is_usable = False

    async def connect(self, redis_pool: Any) -> AsyncConnection:
        """Connect, and return self.

        Raises:
            RedisError, OSError: no connection.
        """
        self._connection = connection = unconnected(redis_pool)
        await connection.connect()
        self._reader = new_reader(connection)
        self._transport: Any = connection._writer.transport
        self._socket = self._transport.get_extra_info("socket")
        keep_alive(self._socket)
        self._transport.set_protocol(self)
        self.is_usable = not self._transport.is_closing()
        return self

    @property
    def has_bulk(self) -> bool:
        """Whether a large reply or request is under way: a small one would wait behind it."""
        return self._partial > BULK or self._transport.get_write_buffer_size() > BULK

    async def exchange(self, packed: bytes, count: int, *, may_repeat: bool = False) -> list[Any]:
        """Send packed commands and return `count` replies; errors that the server answered are among them.

        Args:
            may_repeat: the caller sends them again on `ConnectionCut`.

        Raises:
            ConnectionCut, LateReply: there are no replies.
        """
        if self._transport.is_closing():
            self.is_usable = False
            raise ConnectionCut("the connection was closed")
        future: asyncio.Future[list[Any]] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if future.done():  # its task was cancelled
                return
            if isinstance(outcome, list):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self._add(packed, count, done, may_repeat)
        if len(self._unwritten) == 1:
            self._loop.call_soon(self._write)
        return await future

    def submit(self, packed: bytes, count: int, done: Callable[[Outcome], None], *, may_repeat: bool = False) -> None:
        """Send packed commands now; `done` is called with `count` replies, or with what `exchange` raises."""
        self._add(packed, count, done, may_repeat)
        self._write()

    def retire(self) -> None:
        """Accept no further requests, and close once nobody waits."""
        self.is_usable = False
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Close the connection; those who wait get an error."""
        self.is_usable = False
        abort(self._connection, self._loop)

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Hand replies to those who wait for them."""
        reader = self._reader
        self.used_at = self._loop.time()
        self._partial += len(data)
        if self._partial > BULK:
            self._progress_at = self.used_at
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self._partial = 0
                if type(reply) is hiredis.PushNotification:
                    continue
                first = self._waiting[0]
                first.replies.append(reply)
                if len(first.replies) == first.count:
                    self._waiting.popleft()
                    first.settle(first.replies)
            if not self.is_usable:
                self.retire()
        except (hiredis.HiredisError, IndexError) as error:
            self._lose(ConnectionCut(f"not RESP, or a reply that nobody asked for: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all who wait."""
        self._lose(ConnectionCut(f"the connection was closed: {exc or 'by the store'}"))

    # -- inside

    def _add(self, packed: bytes, count: int, done: Callable[[Outcome], None], may_repeat: bool) -> None:
        """Note commands that are to be written, and who waits for their replies."""
        self._waiting.append(_PendingReply(count, done, self._loop.time(), may_repeat))
        self._unwritten.append(packed)
        if self._timer is None:
            # One timer for all who wait: it fires once a timeout, and never on an idle connection.
            self._timer = self._loop.call_later(self._timeout, self._check_deadlines)

    def _write(self) -> None:
        """Write what this turn of the loop has asked for: a write each would be a system call each, here and there."""
        packed = b"".join(self._unwritten)
        self._unwritten.clear()
        if packed and not self._transport.is_closing():
            self._transport.write(packed)
            if len(packed) > BULK:
                self._unsent = self._unsent_bytes()

    def _deadline(self, pending: _PendingReply) -> float:
        """Return when a reply is late: replies come in order, so that bytes of an earlier one count for it too."""
        since = max(pending.sent_at, self._progress_at)
        return min(since + self._timeout, pending.sent_at + PROGRESS_TIMEOUTS * self._timeout)

    def _check_deadlines(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._unsent:
            unsent = self._unsent_bytes()
            if 0 < unsent < self._unsent:
                self._progress_at = now
            self._unsent = unsent
        late = [each for each in self._waiting if self._deadline(each) <= now]
        if late:
            # Requests behind a late one would be late as well: what may be sent again goes over a new connection.
            self.is_usable = False
            for each in late:
                each.settle(LateReply("no reply within the timeout"))
            for each in self._waiting:
                if each.may_repeat:
                    each.settle(ConnectionCut("an earlier reply on this connection is late"))
        left = [self._deadline(each) for each in self._waiting if not each.is_settled]
        if left:
            self._timer = self._loop.call_at(min(left), self._check_deadlines)
        elif self._waiting:
            self.close()

    def _unsent_bytes(self) -> int:
        buffered: int = self._transport.get_write_buffer_size()
        return buffered + unsent_bytes(self._socket)

    def _lose(self, error: Exception) -> None:
        self.close()
        waiting, self._waiting = self._waiting, collections.deque()
        for each in waiting:
            each.settle(error)


class _PendingReply:
    """One exchange whose replies are still to come."""

    __slots__ = ("_done", "count", "is_settled", "may_repeat", "replies", "sent_at")

    def __init__(self, count: int, done: Callable[[Outcome], None], sent_at: float, may_repeat: bool) -> None:
        self._done = done
        self.count = count
        self.sent_at = sent_at
        self.may_repeat = may_repeat
        self.is_settled = False
        self.replies: list[Any] = []

    def settle(self, outcome: Outcome) -> None:
        """Call `done`, once."""
        if not self.is_settled:
            self.is_settled = True
            self._done(outcome)


def abort(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close redis-py's async connection immediately: on its loop, or from anywhere once that loop is closed."""
    if connection._writer is None:
        return
    transport = connection._writer.transport
    sock = transport.get_extra_info("socket")  # before the abort: a TLS transport forgets it
    with contextlib.suppress(RuntimeError):  # its loop is closed
        transport.abort()
    connection._close()  # else it complains when it is collected
    if loop.is_closed():
        # asyncio leaves the socket to the garbage collector; uvloop's, which shows none, is closed with its loop.
        own = getattr(sock, "_sock", None)
        if own is not None:
            own.close()
