"""Ears: the connections that hear of every change, one per master; and who takes in what has arrived."""

from __future__ import annotations

import collections
import contextlib
import os
import select
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

from cacheworkers.store.connections.connection import unconnected

_TIME = b"*1\r\n$4\r\nTIME\r\n"
_ROLE = b"*2\r\n$4\r\nINFO\r\n$11\r\nREPLICATION\r\n"
#: Bytes taken in at once: some five hundred pushes, a millisecond of work.
_MOST = 1 << 15
#: Seconds for which a reader lets go of the interpreter: long enough that a thread that wakes up gets it.
_GIVE_WAY_FOR = 5e-5
#: Seconds for which a reader waits at most for whoever takes in pushes right now.
_WAIT_FOR = 1e-3
#: Seconds for which a connection that is lost is left open for a reader that may be about to ask it.
_READER_LEAVES_WITHIN = 0.1
#: Seconds for which the listener's thread waits for a reader that takes in, twice: a pause may have been the first.
_READER_LOST_AFTER = 1.0


class TrackingConnection:
    """One master's connection: opened by redis-py (TLS, auth, names), read with hiredis alone."""

    def __init__(self, pool: Any, timeout: float, prefixes: tuple[str, ...]) -> None:
        self._connection: Any = unconnected(pool, protocol=3, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))
        self._connection.connect()
        words = ["CLIENT", "TRACKING", "ON", "BCAST"]
        for prefix in prefixes:
            words += ["PREFIX", prefix]
        self._connection.send_command(*words)
        self._connection.read_response()
        self.socket: socket.socket = self._connection._sock
        self.socket.settimeout(timeout)
        self._reader = hiredis.Reader()
        self.pings: collections.deque[tuple[float, Future[bool]]] = collections.deque()
        # Re-entrant: who is interrupted in the middle, by a signal or a finalizer, may read, and take in an answer.
        self._lock = threading.RLock()
        self.heard_at = 0.0
        options_shown = pool.connection_kwargs
        self.master = f"{options_shown.get('host', options_shown.get('path', ''))}:{options_shown.get('port', '')}"

    def ping(self, *, asks_role: bool = False) -> Future[bool]:
        """Send a ping; the future is done once its answer, and so all earlier pushes, have been processed.

        Args:
            asks_role: a server that is no master loses the link.
        """
        ping: Future[bool] = Future()
        with self._lock:
            self.pings.append((time.monotonic(), ping))
            try:
                self.socket.sendall(_ROLE + _TIME if asks_role else _TIME)
            except OSError:
                ping.set_result(False)
                self.shutdown()
        return ping

    def shutdown(self) -> None:
        """End the connection, which wakes the thread that listens."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def ponged(self) -> tuple[float, float]:
        """Take the answer to the oldest ping: when it was sent, and now."""
        with self._lock:
            sent, ping = self.pings.popleft()
        self.heard_at = sent
        with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
            ping.set_result(True)
        return sent, time.monotonic()

    def silent_for(self, now: float) -> float:
        """Return for how long the oldest ping has had no answer, seconds."""
        with self._lock:
            return now - self.pings[0][0] if self.pings else 0.0

    def replies(self) -> list[Any]:
        """Return what has arrived, of what one `recv` takes."""
        data = self.socket.recv(_MOST)
        if not data:
            raise OSError("the store closed the listener's connection")
        self._reader.feed(data)
        found = []
        while (reply := self._reader.gets()) is not False:
            found.append(reply)
        return found

    def hang_up(self) -> None:
        """Close, and fail the pings that wait."""
        with self._lock:
            pings, self.pings = list(self.pings), collections.deque()
        for _, ping in pings:
            with contextlib.suppress(InvalidStateError):
                ping.set_result(False)
        with contextlib.suppress(OSError):
            if self.socket:
                self.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):
            self._connection.disconnect()


class InvalidationReader:
    """Takes in what the ears have heard, one thread at a time: the listener's, or a reader's that cannot wait for it.

    A reader that keeps the processor and the interpreter to itself would go on with what has just been changed, until
    both are taken from it.  It takes the pushes in itself instead.
    """

    def __init__(
        self,
        ears: list[TrackingConnection],
        take_in: Callable[[TrackingConnection], None],
        after: Callable[[], None],
        on_failure: Callable[[], None],
        is_busy: Callable[[], bool],
    ) -> None:
        """
        Args:
            take_in: processes what one ear has heard.
            after: called after that, one thread at a time, too.
            is_busy: says whether `take_in` might have to wait for who looks: a finalizer may look from anywhere.
            on_failure: called in a reader's thread that could not take in what it has received: pushes are missed.
        """
        self._ears = {ear.socket.fileno(): ear for ear in ears}
        self._take_in = take_in
        self._after = after
        self._on_failure = on_failure
        self._is_busy = is_busy
        self._looking, self._lock = threading.Lock(), threading.Lock()
        # Two, for one object must not be polled by two threads: the first by who looks, the second by who takes in.
        self._looked, self._arrived = select.poll(), select.poll()
        for file in self._ears:
            self._looked.register(file, select.POLLIN)
            self._arrived.register(file, select.POLLIN)
        # What TLS has received may still be no whole record: a reader would wait for the rest.
        self._is_plain = not any(isinstance(ear.socket, ssl.SSLSocket) for ear in ears)
        self._is_torn = False
        self._failure: Exception | None = None
        self._runtime = os.getpid()

    def run(self) -> None:
        """Take in what has arrived, in the listener's thread; raise if it cannot go on."""
        if not any(self._lock.acquire(timeout=_READER_LOST_AFTER) for _ in range(2)):
            raise OSError(f"a reader has been taking in pushes for {2 * _READER_LOST_AFTER:g} s")
        try:
            if self._failure is not None:
                raise self._failure
            self._take()
        finally:
            self._lock.release()

    def run_here(self) -> None:
        """Take in what has arrived, in a reader's thread, if no other thread does."""
        if not self._looking.acquire(blocking=False):
            return
        # An exception that a signal raises right here leaves the lock taken: the listener is then the only one to take
        # in, until it connects anew.
        try:
            if self._looked.poll(0):
                self._take_here()
        finally:
            self._looking.release()

    def hang_up(self) -> None:
        """Close all connections; a reader is given a moment to leave them."""
        is_alone = self._lock.acquire(timeout=_READER_LEAVES_WITHIN)
        try:
            for ear in self._ears.values():
                ear.hang_up()
        finally:
            if is_alone:
                self._lock.release()

    def _take_here(self) -> None:
        if not self._is_plain:
            time.sleep(_GIVE_WAY_FOR)
            return
        # Whoever else has it needs the interpreter, which is free while this waits.
        if self._is_busy() or not self._lock.acquire(timeout=_WAIT_FOR):
            return
        try:
            if self._failure is None:
                self._take()
        except (OSError, hiredis.HiredisError) as error:
            self._failure = error.with_traceback(None)
            self._on_failure()
        except BaseException as error:
            self._failure = OSError(f"a reader could not take in a push: {error!r}")
            self._on_failure()
            if not isinstance(error, Exception):  # what a signal raises is the reader's own, wherever it strikes
                raise
        finally:
            self._lock.release()

    def _take(self) -> None:
        if self._is_torn:
            raise OSError("a push was taken in by half")
        for file, _ in self._arrived.poll(0):
            if os.getpid() != self._runtime:  # forked while it looked: what has arrived is the parent's
                raise OSError("the connection is another process's")
            self._is_torn = True
            self._take_in(self._ears[file])
            self._is_torn = False
        self._after()
