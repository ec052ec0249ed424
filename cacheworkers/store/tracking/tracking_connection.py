"""TrackingConnection: one master's connection on which keys are tracked, and their invalidation messages arrive.

The server tracks whatever this connection reads, and reports its next change, once.  So the keys whose changes this
process wants to know are read here as well, in a few bytes.  Replies and invalidation messages come in one order: a
reply says what a key was like when its tracking began, and a change after that is reported after it.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

import hiredis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cacheworkers.store.connections.connection import pack, unconnected

_TIME, _ROLE = pack([("TIME",)]), pack([("INFO", "REPLICATION")])
#: Bytes that are processed together: some five hundred messages, a millisecond of work.
_MAX_READ = 1 << 15
#: Requests to track that come within this many seconds of the last are sent together, by the receiving thread.
COLLECT_FOR = 0.001
#: Replies that are awaited while a request is still sent by the thread that makes it: a server that does not answer
#: must not block it.
_MAX_AWAITED = 500
#: Called with a reply, an error among them.
OnReply = Callable[[Any], None]
_Queued = tuple[bytes, tuple[OnReply, ...]]


class Ping:
    """A ping without an answer: when it was sent, and the future that waits for it."""

    __slots__ = ("future", "sent")

    def __init__(self) -> None:
        self.sent = time.monotonic()
        self.future: Future[bool] = Future()

    def settle(self, is_answered: bool) -> None:
        """Say whether it was answered."""
        with contextlib.suppress(InvalidStateError):  # nobody waits for it now
            self.future.set_result(is_answered)


class TrackingConnection:
    """Opened by redis-py (TLS, auth, names), then driven with hiredis alone; one thread receives.

    Any thread makes requests; they are sent, and answered, in the order in which they were made.

    Attributes:
        name: the master's, as the topology names it.
        address: host and port.
        pings: those without an answer.
        proven_at: when the last ping that was answered had been sent; 0 for never.
        collect_for: seconds after a send within which requests are left to the receiving thread.
    """

    def __init__(self, name: str, pool: Any, timeout: float, wake: Callable[[], None]) -> None:
        """
        Args:
            pool: redis-py's, which says how to connect.
            timeout: seconds to wait for the connection.
            wake: has the receiving thread call `flush` soon.
        """
        self.name = name
        self._connection: Any = unconnected(pool, protocol=3, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))
        self._connection.connect()
        self._connection.send_command("CLIENT", "TRACKING", "ON")
        self._connection.read_response()
        self.socket: socket.socket = self._connection._sock
        self.socket.settimeout(timeout)
        self.collect_for = COLLECT_FOR
        self._flushed_at = 0.0
        # OpenSSL takes no write by one thread while another reads.
        self._takes_writes = not isinstance(self.socket, ssl.SSLSocket)
        self._reader = hiredis.Reader()
        self._wake = wake
        # Appended to and taken from by single calls, which need no lock: a finalizer may read, and so queue, anywhere.
        self._queue: collections.deque[_Queued] = collections.deque()
        self._sent: collections.deque[OnReply] = collections.deque()
        self._send_lock = threading.RLock()
        self._is_sending = False
        self._is_closed = False
        self.pings: collections.deque[Ping] = collections.deque()
        self.proven_at = 0.0
        # Of the connection, not of its pool: behind Sentinels only what has connected knows to where.
        opened = self._connection
        self.address: str = getattr(opened, "path", "") or f"{opened.host}:{opened.port}"

    # -- requests, from any thread

    def track(self, packed: bytes, *on_replies: OnReply) -> None:
        """Send commands that read, and so track their keys; immediately, or with others within a millisecond or two.

        Args:
            on_replies: one for each command.
        """
        is_first = not self._queue
        self._queue.append((packed, on_replies))
        may_send = self._takes_writes and len(self._sent) < _MAX_AWAITED
        if may_send and time.monotonic() >= self._flushed_at + self.collect_for:
            self.flush()
        elif is_first:
            self._wake()

    def ping(self, on_time: Callable[[Any, float], None], on_role: OnReply | None = None) -> Future[bool]:
        """Send a ping; its future is done once its answer, and so whatever was sent before it, has been processed.

        Args:
            on_time: called with the server's time, and when this was sent.
            on_role: called with what the server says of its replication.
        """
        ping = Ping()

        def answered(reply: Any) -> None:
            on_time(reply, ping.sent)
            self.proven_at = max(self.proven_at, ping.sent)
            with contextlib.suppress(ValueError):  # closed meanwhile
                self.pings.remove(ping)
            ping.settle(True)

        if on_role is not None:
            self._queue.append((_ROLE, (on_role,)))
        self.pings.append(ping)
        self._queue.append((_TIME, (answered,)))
        if self._is_closed:
            ping.settle(False)
        elif self._takes_writes:
            self.flush()
        else:
            self._wake()
        return ping.future

    def flush(self) -> None:
        """Send what is queued."""
        with self._send_lock:
            if self._is_sending:  # interrupted in the middle of a send, by a signal or a finalizer
                self._wake()
                return
            self._is_sending = True
            try:
                parts = []
                while self._queue:
                    packed, on_replies = self._queue.popleft()
                    self._sent.extend(on_replies)
                    parts.append(packed)
                self._flushed_at = time.monotonic()
                if parts:
                    self.socket.sendall(b"".join(parts))
            except OSError:
                self.shutdown()
            finally:
                self._is_sending = False

    # -- replies, in the receiving thread

    def messages(self) -> list[Any]:
        """Return what has arrived, of what one `recv` takes."""
        data = self.socket.recv(_MAX_READ)
        if not data:
            raise OSError("the store closed the tracking connection")
        self._reader.feed(data)
        found = []
        while (reply := self._reader.gets()) is not False:
            found.append(reply)
        return found

    def answer(self, reply: Any) -> None:
        """Process the reply to the oldest request."""
        self._sent.popleft()(reply)

    def unanswered_for(self, now: float) -> float:
        """Return for how long the oldest ping has had no answer, seconds."""
        oldest = next(iter(list(self.pings)), None)
        return 0.0 if oldest is None else now - oldest.sent

    # -- its end, from any thread

    def shutdown(self) -> None:
        """End the connection, which wakes the thread that receives."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close, and fail the pings that wait."""
        self._is_closed = True
        while self.pings:
            with contextlib.suppress(IndexError):
                self.pings.popleft().settle(False)
        self.shutdown()
        with contextlib.suppress(Exception):
            self._connection.disconnect()
