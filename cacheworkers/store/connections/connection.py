"""Pool: one connection each, opened by redis-py (TLS, auth, Sentinel, names), then driven with hiredis alone.

A round trip through redis-py's client costs more Python than all the rest of a read.  Here it is one write and one
read.  A wire that failed in any way is never used again: its late replies would be taken for another request's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis import exceptions as redis_errors

from cacheworkers.local.busy_poll import BusyPoll

#: A wire that was idle for longer is looked at before it is used: the server may have closed it, seconds.
FRESH_FOR = 0.2
_READ = 1 << 16
#: What became of an exchange: its replies, or why there are none.
Outcome = list[Any] | Exception
_LATE = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, TimeoutError)


def pack(commands: Sequence[tuple[Any, ...]]) -> bytes:
    """Return commands as they go over the wire."""
    if len(commands) == 1:
        alone: bytes = hiredis.pack_command(commands[0])
        return alone
    return b"".join(map(hiredis.pack_command, commands))


class Connection:
    """A blocking connection, for one thread at a time.

    Attributes:
        is_cut: an exchange has failed because the other side had closed it, and not for want of an answer.
    """

    def __init__(self, pool: Any, timeout: float, spin: BusyPoll, within: float | None = None) -> None:
        """
        Args:
            pool: redis-py's, of a standalone server or a Sentinel service; it says how to connect.
            timeout: of each send and each receive, seconds.
            spin: says whether to poll for a reply.
            within: how long each step of connecting may take, seconds, if not as long as the pool says.

        Raises:
            RedisError, OSError: no connection.
        """
        limits = {} if within is None else {"socket_timeout": within, "socket_connect_timeout": within}
        self._connection = unconnected(pool, **limits)
        self._connection.connect()
        self._socket: socket.socket = self._connection._sock
        self._socket.settimeout(timeout)
        self._reader = _reader(self._connection)
        self._used_at = time.monotonic()
        self.is_cut = False
        self._spin = spin
        self._is_plain = not isinstance(self._socket, ssl.SSLSocket)
        if self._is_plain:
            # The kernel keeps the time: with a timeout of its own, Python asks before each call whether it may.
            interval = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
            self._socket.setblocking(True)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)

    @property
    def is_usable(self) -> bool:
        """Whether the server has not closed it; looks only where it was idle for a while."""
        if time.monotonic() - self._used_at < FRESH_FOR:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def doubt(self) -> None:
        """Have `is_usable` look, however short a while it was idle: another wire has been cut."""
        self._used_at = -math.inf

    def exchange(self, packed: bytes, count: int) -> list[Any]:
        """Send what is packed, and return so many replies; errors that the server answered are among them.

        Raises:
            ConnectionError, TimeoutError: redis-py's; the wire must be closed.
        """
        self.send(packed)
        return self.receive(count)

    def send(self, packed: bytes) -> None:
        """Send what is packed; all its replies are to be received before anything else is sent.

        Raises:
            ConnectionError, TimeoutError: redis-py's; the wire must be closed.
        """
        try:
            self._socket.sendall(packed)
        except _LATE as error:
            raise redis_errors.TimeoutError("not sent within the timeout") from error
        except OSError as error:
            self.is_cut = True
            raise redis_errors.ConnectionError(f"{type(error).__name__}: {error}") from error

    def wait(self, within: float) -> None:
        """Wait until a reply begins to come, at most so many seconds.

        Raises:
            TimeoutError: redis-py's; the wire must be closed.
        """
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(math.ceil(within * 1000)):
            raise redis_errors.TimeoutError("no answer within what was left of the timeout")

    def receive(self, count: int) -> list[Any]:
        """Return so many replies to what was sent; errors that the server answered are among them.

        Raises:
            ConnectionError, TimeoutError: redis-py's; the wire must be closed.
        """
        reader = self._reader
        replies: list[Any] = []
        try:
            while len(replies) < count:
                reply = reader.gets()
                if reply is not False:
                    if type(reply) is not hiredis.PushNotification:
                        replies.append(reply)
                    continue
                data = self._polled() if self._is_plain and self._spin.is_due() else self._socket.recv(_READ)
                if not data:
                    self.is_cut = True
                    raise redis_errors.ConnectionError("the store closed the connection")
                reader.feed(data)
        except _LATE as error:
            raise redis_errors.TimeoutError("no answer within the timeout") from error
        except OSError as error:
            self.is_cut = True
            raise redis_errors.ConnectionError(f"{type(error).__name__}: {error}") from error
        except hiredis.HiredisError as error:
            raise redis_errors.ConnectionError(f"not RESP: {error}") from error
        self._used_at = time.monotonic()
        return replies

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _polled(self) -> bytes:
        """Return what arrives, polling for a while before sleeping for it."""
        receive, clock = self._socket.recv, time.perf_counter
        until = clock() + self._spin.seconds
        while True:
            try:
                data = receive(_READ, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if clock() < until:
                    continue
                self._spin.note(clock() - until)
                return receive(_READ)
            self._spin.note(clock() - until)
            return data


class AsyncConnection(asyncio.Protocol):
    """One connection of one event loop, shared by its tasks: requests go out as they come, replies come in order.

    A task that is cancelled leaves its reply to be read and dropped.

    Attributes:
        is_usable: nothing has failed so far.
        is_cut: the other side has closed it.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._watch: asyncio.TimerHandle | None = None
        self.is_usable = False
        self.is_cut = False

    async def connect(self, pool: Any) -> AsyncConnection:
        """Connect, and return self.

        Raises:
            RedisError, OSError: no connection.
        """
        self._connection = connection = unconnected(pool)
        await connection.connect()
        self._reader = _reader(connection)
        self._transport: Any = connection._writer.transport
        self._transport.set_protocol(self)
        self.is_usable = not self._transport.is_closing()
        return self

    async def exchange(self, packed: bytes, count: int) -> list[Any]:
        """Send what is packed, and return so many replies; errors that the server answered are among them.

        Raises:
            ConnectionError, TimeoutError: redis-py's.
        """
        if self._transport.is_closing():
            self.is_usable, self.is_cut = False, True
            raise redis_errors.ConnectionError("the connection was closed")
        future: asyncio.Future[list[Any]] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if future.done():  # its task was cancelled
                return
            if isinstance(outcome, list):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self.submit(packed, count, done)
        return await future

    def submit(self, packed: bytes, count: int, done: Callable[[Outcome], None]) -> None:
        """Send what is packed; `done` is called with so many replies, or with redis-py's error."""
        self._waiting.append(_Waiting(count, done, self._loop.time() + self._timeout))
        self._transport.write(packed)
        if self._watch is None:
            # One timer for all who wait: it fires once a timeout, and not at all on a wire that is idle.
            self._watch = self._loop.call_later(self._timeout, self._look_for_late)

    def retire(self) -> None:
        """Take nobody new, and close once nobody waits."""
        self.is_usable = False
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Close the connection; who waits gets an error."""
        self.is_usable = False
        abort(self._connection, self._loop)

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Hand replies to those who wait for them."""
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
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
            self._lose(redis_errors.ConnectionError(f"not RESP, or a reply that nobody asked for: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all who wait."""
        self.is_cut = True
        self._lose(redis_errors.ConnectionError(f"the connection was closed: {exc or 'by the store'}"))

    # -- inside

    def _look_for_late(self) -> None:
        self._watch = None
        now = self._loop.time()
        for each in self._waiting:
            if each.deadline <= now:
                # Those who asked later wait no longer than their own timeout; nobody new comes.
                self.is_usable = False
                each.settle(redis_errors.TimeoutError("no answer within the timeout"))
        left = [each.deadline for each in self._waiting if not each.is_settled]
        if left:
            self._watch = self._loop.call_at(left[0], self._look_for_late)
        elif self._waiting:
            self.close()

    def _lose(self, error: Exception) -> None:
        self.close()
        waiting, self._waiting = self._waiting, collections.deque()
        for each in waiting:
            each.settle(error)


class _Waiting:
    """One exchange whose replies are still to come."""

    __slots__ = ("_done", "count", "deadline", "is_settled", "replies")

    def __init__(self, count: int, done: Callable[[Outcome], None], deadline: float) -> None:
        self._done = done
        self.count = count
        self.deadline = deadline
        self.is_settled = False
        self.replies: list[Any] = []

    def settle(self, outcome: Outcome) -> None:
        """Tell who asked, once."""
        if not self.is_settled:
            self.is_settled = True
            self._done(outcome)


def unconnected(pool: Any, **options: Any) -> Any:
    """Return a new connection as a redis-py pool makes them, but with these options, and nobody's but the caller's."""
    options = {**pool.connection_kwargs, **options}
    # Their pushes would move a connection from under its wire.
    options.pop("maint_notifications_config", None)
    options.pop("maint_notifications_pool_handler", None)
    return pool.connection_class(**options)


def abort(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close redis-py's async connection at once: on its loop, or from anywhere once that loop is closed."""
    if connection._writer is None:
        return
    transport = connection._writer.transport
    with contextlib.suppress(RuntimeError):  # its loop is closed
        transport.abort()
    connection._close()  # else it complains when it goes
    if loop.is_closed():
        # asyncio leaves the socket to the garbage collector; uvloop's, which shows none, is closed with its loop.
        own = getattr(transport.get_extra_info("socket"), "_sock", None)
        if own is not None:
            own.close()


def _reader(connection: Any) -> Any:
    """Return a reader whose error replies are redis-py's exceptions."""
    return hiredis.Reader(replyError=connection._parser.parse_error)
