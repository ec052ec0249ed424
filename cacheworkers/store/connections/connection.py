"""Connection: one blocking connection to a server, opened by redis-py, then read and written with hiredis alone.

redis-py knows how to connect (TLS, credentials, Sentinel, client names).  Its command path costs more Python than the
rest of a read, so a round trip here is one write and one read.  A connection that failed in any way is never used
again: its late replies would be taken for those of another request.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import select
import socket
import ssl
import struct
import termios
import time
from _socket import socket as native_socket
from collections.abc import Sequence
from typing import Any

import hiredis
from hiredis import PushNotification
from redis import exceptions as redis_errors

#: A reply or request that is under way may take this many timeouts in all, as long as bytes move within each.
PROGRESS_TIMEOUTS = 20
#: A partial reply, or a request that is not yet sent, of more bytes than this is bulk.
BULK = 1 << 16
#: Seconds after which the kernel probes an idle connection, and between probes; after how many it is closed.
_KEEP_ALIVE = (30, 5, 3)
_READ = 1 << 16
_TEXTS = (str, bytes)
#: The result of an exchange: its replies, or why there are none.
Outcome = list[Any] | Exception
_LATE = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, TimeoutError)


class LateReply(redis_errors.TimeoutError):
    """An open connection did not answer in time.  Another connection may."""


class ConnectionCut(redis_errors.ConnectionError):
    """An open connection was closed by the other side, or what it sent is not RESP.  Another connection may work."""


def pack(commands: Sequence[tuple[Any, ...]]) -> bytes:
    """Return commands in RESP.

    hiredis would make the numbers' texts, and crashes where a signal's handler raises meanwhile.
    """
    words: list[tuple[Any, ...]] = [
        tuple([word if type(word) in _TEXTS else str(word) for word in command]) for command in commands
    ]
    return b"".join(map(hiredis.pack_command, words))


class Connection:
    """A blocking connection, for one thread at a time.

    Attributes:
        generation: the pool's when connecting began.
        is_cut: the other side has closed it.
        used_at: monotonic instant at which it was last taken out of the pool.
    """

    def __init__(
        self, redis_pool: Any, timeout: float, *, connect_timeout: float | None = None, generation: int = 0
    ) -> None:
        """
        Args:
            redis_pool: redis-py's, of a standalone server or a Sentinel service; it says how to connect.
            timeout: of each send and each receive, seconds.
            connect_timeout: of each step of connecting, seconds; None for the pool's.

        Raises:
            RedisError, OSError: no connection.
        """
        limits = {}
        if connect_timeout is not None:
            limits = {"socket_timeout": connect_timeout, "socket_connect_timeout": connect_timeout}
        self._connection = unconnected(redis_pool, **limits)
        self._connection.connect()
        self._socket: socket.socket = self._connection._sock
        self._socket.settimeout(timeout)
        keep_alive(self._socket)
        self._reader = new_reader(self._connection)
        self._timeout = timeout
        self._unsent = 0
        self.used_at = time.monotonic()
        self.generation = generation
        self.is_cut = False
        # Green sockets (gevent, eventlet) are no native ones: a blocking `recv` would block every greenlet.
        if isinstance(self._socket, native_socket) and not isinstance(self._socket, ssl.SSLSocket):
            # The kernel keeps the time: with a timeout of its own, Python polls before each call.
            interval = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
            self._socket.setblocking(True)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it; asked of one that was idle for a while."""
        return not _is_readable(self._socket, 0.0)

    def suspect(self) -> None:
        """Have it checked before its next use, however recent the last: another connection was cut."""
        self.used_at = -math.inf

    def exchange(self, packed: bytes, count: int) -> list[Any]:
        """Send packed commands and return `count` replies; errors that the server answered are among them.

        Raises:
            ConnectionCut, LateReply: close the connection.
        """
        self.send(packed)
        return self.receive(count)

    def ask(self, packed: bytes) -> Any:
        """Send one packed command and return its reply, in the fewest steps; raises what `exchange` does."""
        try:
            self._socket.sendall(packed)
            data = self._socket.recv(_READ)
            self._reader.feed(data)
            reply = self._reader.gets()
        except (OSError, hiredis.HiredisError) as error:
            raise self._failure(error) from error
        if reply is False or type(reply) is PushNotification:  # there is more to come
            if not data:
                raise self._closed()
            self._unsent = 0
            [reply] = self.receive(1)
        return reply

    def send(self, packed: bytes) -> None:
        """Send packed commands; receive all replies before anything else is sent.

        Raises:
            ConnectionCut, LateReply: close the connection.
        """
        try:
            self._socket.sendall(packed)
        except OSError as error:
            raise self._failure(error, "not sent within the timeout") from error
        self._unsent = unsent_bytes(self._socket) if len(packed) > BULK else 0

    def wait(self, timeout: float) -> None:
        """Wait for the first bytes of a reply, at most `timeout` seconds.

        Raises:
            LateReply: close the connection.
        """
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return
        if not _is_readable(self._socket, timeout):
            raise LateReply("no reply within what was left of the timeout")

    def receive(self, count: int) -> list[Any]:
        """Return `count` replies to what was sent; errors that the server answered are among them.

        A reply that keeps coming is waited for: each `recv` has the whole timeout, all together `PROGRESS_TIMEOUTS`.

        Raises:
            ConnectionCut, LateReply: close the connection.
        """
        reader = self._reader
        replies: list[Any] = []
        received, give_up_at = 0, math.inf
        try:
            while len(replies) < count:
                reply = reader.gets()
                if reply is not False:
                    if type(reply) is not hiredis.PushNotification:
                        replies.append(reply)
                    continue
                if received and time.monotonic() > give_up_at:
                    raise LateReply(f"still no whole reply after {PROGRESS_TIMEOUTS} timeouts")
                data = self._receive_some()
                if not data:
                    raise self._closed()
                reader.feed(data)
                if not received:
                    received, give_up_at = 1, time.monotonic() + PROGRESS_TIMEOUTS * self._timeout
        except (OSError, hiredis.HiredisError) as error:
            raise self._failure(error) from error
        return replies

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _closed(self) -> ConnectionCut:
        """Note that the other side has closed the connection, and return the error to raise."""
        self.is_cut = True
        return ConnectionCut("the store closed the connection")

    def _failure(
        self, error: OSError | hiredis.HiredisError, late: str = "no reply within the timeout"
    ) -> LateReply | ConnectionCut:
        """Return what to raise where the socket or the parser has failed."""
        if isinstance(error, _LATE):
            return LateReply(late)
        if isinstance(error, hiredis.HiredisError):
            return ConnectionCut(f"not RESP: {error}")
        self.is_cut = True
        return ConnectionCut(f"{type(error).__name__}: {error}")

    def _receive_some(self) -> bytes:
        """Return what arrives; the timeout starts again as long as a large request is still being sent."""
        while True:
            try:
                return self._socket.recv(_READ)
            except _LATE:
                unsent = unsent_bytes(self._socket) if self._unsent else 0
                if not 0 < unsent < self._unsent:
                    raise
                self._unsent = unsent


def unconnected(redis_pool: Any, **options: Any) -> Any:
    """Return a new connection as a redis-py pool makes them, with these options, owned by the caller."""
    options = {**redis_pool.connection_kwargs, **options}
    # Upkeep notifications would move redis-py's connection to another socket.
    options.pop("maint_notifications_config", None)
    options.pop("maint_notifications_pool_handler", None)
    return redis_pool.connection_class(**options)


def new_reader(connection: Any) -> Any:
    """Return a reader whose error replies are redis-py's exceptions."""
    return hiredis.Reader(replyError=connection._parser.parse_error)


def keep_alive(sock: Any) -> None:
    """Have the kernel close a connection whose other side is gone, also while it is idle."""
    with contextlib.suppress(OSError, AttributeError):  # a Unix socket, or a platform without these options
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), _KEEP_ALIVE, strict=True):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def unsent_bytes(sock: Any) -> int:
    """Return how many bytes the kernel has taken that the other side has not acknowledged; 0 where it does not say."""
    try:
        found: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
        return found
    except (OSError, ValueError):
        return 0


def _is_readable(sock: Any, timeout: float) -> bool:
    """Return whether something arrives within `timeout` seconds: data, or the end of the connection."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(math.ceil(timeout * 1000)))
    return bool(select.select([sock], [], [], timeout)[0])  # eventlet's
