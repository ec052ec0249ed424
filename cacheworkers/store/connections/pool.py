"""Pool: this process's connections to one server: idle ones for threads, beside those of event loops."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any

from cacheworkers.store.connections.async_pool import AsyncPool, Commands, are_reads
from cacheworkers.store.connections.connection import Connection, LateReply, pack
from cacheworkers.store.connections.sentinels import MasterLease

#: A connection that was idle for longer is checked before it is used: the server may have closed it, seconds.
FRESH_FOR = 0.2
#: Idle connections that are kept; more threads than these open and close their own.
MAX_IDLE = 64


class Pool(AsyncPool):
    """Sends commands over any free connection, and opens one when none is free.

    Attributes:
        redis_pool: returns redis-py's pool, which says how to connect.
    """

    def __init__(
        self,
        redis_pool: Callable[[], Any],
        async_redis_pool: Callable[[], Any],
        timeout: float,
        lease: MasterLease | None = None,
    ) -> None:
        """
        Args:
            redis_pool, async_redis_pool: return redis-py's pools, which say how to connect.
            timeout: seconds.
            lease: the Sentinels', if they say where to connect to.
        """
        super().__init__(async_redis_pool, timeout, lease)
        self.redis_pool = redis_pool
        if lease is not None:
            lease.on_change = self.drop

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        super().reset()
        # Taken and given back at the same end, by single calls that need no lock: few stay open.
        self._idle: collections.deque[Connection] = collections.deque()

    def exchange(self, commands: Commands) -> list[Any]:
        """Return the replies to commands, in order; errors that the server answered are among them.

        Reads whose connection is cut are sent once more, over a new one: servers and proxies close connections, and
        still answer.  Not after a late reply, which may come of a slow server, and not a write, which may have run.

        Raises:
            RedisError, OSError: no connection, or it failed.
        """
        began, connection = time.monotonic(), None
        try:
            connection = self._acquire(began)
            replies = connection.exchange(pack(commands), len(commands))
        except BaseException as error:
            if connection is not None and connection.is_cut and are_reads(commands):
                return self._repeat(connection, commands, began + self.timeout)
            self._failed(connection, error, began)
            raise
        self._release(connection)
        return replies

    def get(self, key: str, began: float) -> Any:
        """Return the reply to GET: what `exchange` does, in the fewest steps.

        Args:
            began: now, a monotonic instant.
        """
        connection = None
        try:
            connection = self._acquire(began)
            reply = connection.ask(f"*2\r\n$3\r\nGET\r\n${len(key.encode())}\r\n{key}\r\n".encode())
        except BaseException as error:
            if connection is not None and connection.is_cut:
                return self._repeat(connection, (("GET", key),), began + self.timeout)[0]
            self._failed(connection, error, began)
            raise
        self._release(connection)
        return reply

    def send(self, commands: Commands, timeout: float | None = None) -> PendingReply:
        """Send commands in one write; receive their replies, or give them up.

        Args:
            timeout: of each step of connecting, seconds, if not the pool's.

        Raises:
            RedisError, OSError: no connection, or it failed.
        """
        began, connection = time.monotonic(), None
        try:
            connection = self._acquire(began, timeout)
            connection.send(pack(commands))
        except BaseException as error:
            if connection is None or not connection.is_cut or not are_reads(commands):
                self._failed(connection, error, began)
                raise
            # Sent once more when its replies are received.
        return PendingReply(self, connection, commands, began)

    def drop(self) -> None:
        """Use none of today's connections again: their server is gone, or is no longer a master.

        Idle ones are closed.  One that is in use is closed when its replies have arrived.
        """
        super().drop()
        while self._idle:
            self._idle.pop().close()

    close = drop

    # -- threads

    def _acquire(self, now: float, connect_timeout: float | None = None) -> Connection:
        if self._lease is not None and self._lease.is_over and self._idle:
            self.redis_pool().get_master_address()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect(connect_timeout)
            if connection.generation == self._generation:
                if now - connection.used_at < FRESH_FOR or connection.is_open:
                    connection.used_at = now
                    return connection
            connection.close()

    def _connect(self, connect_timeout: float | None = None) -> Connection:
        # Taken before it asks where the server is.  Taken after, a connection to an old master would be current:
        #   thread: asks a Sentinel   failover, drop()   thread: connects to the old master
        generation = self._generation
        return Connection(self.redis_pool(), self.timeout, connect_timeout=connect_timeout, generation=generation)

    def _release(self, connection: Connection) -> None:
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        self._idle.append(connection)
        if connection.generation != self._generation:  # `drop` has come before this, and did not see it
            self._close_idle(lambda idle: idle.generation != self._generation)

    def _close_idle(self, is_over: Callable[[Connection], bool]) -> None:
        """Close some idle connections, once each: of two threads, one gets it out of the deque."""
        for connection in list(self._idle):
            if is_over(connection):
                try:
                    self._idle.remove(connection)
                except ValueError:  # another thread uses it
                    continue
                connection.close()

    def _failed(self, connection: Connection | None, error: BaseException, began: float) -> None:
        """Note a failed exchange; a late reply leaves only connections that were taken and answered since it began."""
        super()._failed(connection, error, began)
        if connection is not None:
            connection.close()
        if isinstance(error, LateReply):
            # Those that were idle as long may lead nowhere as well: a firewall forgot them, or the host is gone.
            self._close_idle(lambda idle: idle.used_at < began)

    def _repeat(self, cut: Connection, commands: Commands, until: float) -> list[Any]:
        """Do an exchange whose connection was cut once more, over a new one; it ends by a monotonic instant."""
        cut.close()
        for other in list(self._idle):  # cut as well, perhaps, and not yet known to be
            other.suspect()
        began, connection = time.monotonic(), None
        try:
            connection = self._connect(self._left(until - began))
            connection.send(pack(commands))
            connection.wait(self._left(until - time.monotonic()))
            replies = connection.receive(len(commands))
        except BaseException as error:
            self._failed(connection, error, began)
            raise
        self._release(connection)
        return replies


class PendingReply:
    """Commands that were sent: until their replies are received, nobody else has the connection."""

    __slots__ = ("_began", "_commands", "_connection", "_pool")

    def __init__(self, pool: Pool, connection: Connection, commands: Commands, began: float) -> None:
        self._pool = pool
        self._connection = connection
        self._commands = commands
        self._began = began

    def receive(self, timeout: float | None = None) -> list[Any]:
        """Return the replies, in order; errors that the server answered are among them.

        Args:
            timeout: of the first of them, seconds, if not the pool's.

        Raises:
            RedisError, OSError: the connection failed.
        """
        pool, connection = self._pool, self._connection
        until = time.monotonic() + (pool.timeout if timeout is None else timeout)
        if connection.is_cut:
            return pool._repeat(connection, self._commands, until)
        try:
            if timeout is not None:
                connection.wait(timeout)
            replies = connection.receive(len(self._commands))
        except BaseException as error:
            if connection.is_cut and are_reads(self._commands):
                return pool._repeat(connection, self._commands, until)
            pool._failed(connection, error, self._began)
            raise
        pool._release(connection)
        return replies

    def give_up(self) -> None:
        """Close the connection: its replies are still to come, and must be nobody else's."""
        self._connection.close()
