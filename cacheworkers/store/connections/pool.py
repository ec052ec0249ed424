"""Pool: this process's connections to one server, idle ones for threads and a few for each event loop."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import RedisError

from cacheworkers.store.connections.async_connection import AsyncConnection
from cacheworkers.store.connections.connection import Connection, ConnectionCut, LateReply, Outcome, pack
from cacheworkers.store.connections.sentinels import MasterLease

#: A connection that was idle for longer is checked before it is used: the server may have closed it, seconds.
FRESH_FOR = 0.2
#: Idle connections that are kept; more threads than these open and close their own.
MAX_IDLE = 64
#: Connections of one event loop: more than one only while bulk is under way on the others.
MAX_PER_LOOP = 4
#: Reads that are sent once more when the server, or something on the way to it, has closed their connection.
REPEATED = frozenset(("GET", "MGET", "GETRANGE"))
#: The second attempt has at least this share of the timeout: this process itself may have been slow.
_LEAST_LEFT = 0.05
_Commands = Sequence[tuple[Any, ...]]


class Pool:
    """Sends commands over any free connection, and opens one when none is free.

    Attributes:
        redis_pool: returns redis-py's pool, which says how to connect.
        timeout: seconds.
        failed_at: when a connection last failed, by this process's monotonic clock; 0 for never.
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
        self.redis_pool = redis_pool
        self._async_redis_pool = async_redis_pool
        self.timeout = timeout
        self.failed_at = 0.0
        # A connection of an earlier generation is not used again: its server may no longer be a master.
        self._generation = 0
        self._lease = lease
        if lease is not None:
            lease.on_change = self.drop
        self.reset()

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        # Taken and given back at the same end, by single calls that need no lock: few stay open.
        self._idle: collections.deque[Connection] = collections.deque()
        # Not weakly by their loops, since a connection holds its own: those of closed loops are found and closed.
        self._of_loop: dict[asyncio.AbstractEventLoop, list[AsyncConnection]] = {}
        self._connecting: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncConnection]] = {}
        self._repeating: set[asyncio.Task[list[Any]]] = set()

    def exchange(self, commands: _Commands) -> list[Any]:
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
            if connection is not None and connection.is_cut and _may_repeat(commands):
                return self._repeat(connection, commands, began + self.timeout)
            self._failed(connection, error, began)
            raise
        self._release(connection)
        return replies

    def ask(self, command: tuple[Any, ...]) -> Any:
        """Return the reply to one read, one of `REPEATED`: what `exchange` does, in the fewest steps."""
        began, connection = time.monotonic(), None
        try:
            connection = self._acquire(began)
            reply = connection.ask(pack_command(command))
        except BaseException as error:
            if connection is not None and connection.is_cut:
                return self._repeat(connection, (command,), began + self.timeout)[0]
            self._failed(connection, error, began)
            raise
        self._release(connection)
        return reply

    def send(self, commands: _Commands, timeout: float | None = None) -> PendingReply:
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
            if connection is None or not connection.is_cut or not _may_repeat(commands):
                self._failed(connection, error, began)
                raise
            # Sent once more when its replies are received.
        return PendingReply(self, connection, commands, began)

    async def aexchange(self, commands: _Commands) -> list[Any]:
        """Do what `exchange` does, on the running loop."""
        loop = asyncio.get_running_loop()
        began, may_repeat = loop.time(), _may_repeat(commands)
        try:
            connection = await self._aacquire(loop)
            return await connection.exchange(pack(commands), len(commands), may_repeat=may_repeat)
        except Exception as error:
            if may_repeat and isinstance(error, ConnectionCut):
                return await self._arepeat(loop, commands, began + self.timeout)
            self._failed(None, error, began)
            raise

    def submit(self, command: tuple[Any, ...], done: Callable[[Outcome], None]) -> bool:
        """Send one command over a connection of the running loop, and return True; False if none is free.

        Args:
            done: called on that loop with the one reply in a list, or an error.
        """
        loop = asyncio.get_running_loop()
        connection = self._free(loop)
        if connection is None:
            return False
        began, may_repeat = loop.time(), _may_repeat((command,))

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                if may_repeat and isinstance(outcome, ConnectionCut):
                    self._repeat_soon(loop, command, began + self.timeout, done)
                    return
                self._failed(None, outcome, began)
            done(outcome)

        connection.submit(pack((command,)), 1, settle, may_repeat=may_repeat)
        return True

    def drop(self) -> None:
        """Use none of today's connections again: their server is gone, or is no longer a master.

        Idle ones are closed.  One that is in use is closed when its replies have arrived.
        """
        self._generation += 1
        while self._idle:
            self._idle.pop().close()
        self._close_those_of_closed_loops()
        for loop in list(self._of_loop):
            for connection in self._of_loop.pop(loop, ()):
                connection.is_usable = False
                try:
                    loop.call_soon_threadsafe(connection.retire)
                except RuntimeError:  # it has just been closed
                    connection.close()

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
                    return connection
            connection.close()

    def _connect(self, connect_timeout: float | None = None) -> Connection:
        # Taken before it asks where the server is.  Taken after, a connection to an old master would be current:
        #   thread: asks a Sentinel   failover, drop()   thread: connects to the old master
        generation = self._generation
        return Connection(self.redis_pool(), self.timeout, connect_timeout=connect_timeout, generation=generation)

    def _release(self, connection: Connection) -> None:
        if len(self._idle) < MAX_IDLE and connection.generation == self._generation:
            self._idle.append(connection)
            if connection.generation != self._generation:  # dropped in between: `drop` may not have seen it
                self._close_outdated()
        else:
            connection.close()

    def _close_outdated(self) -> None:
        """Close idle connections of earlier generations, once each: of two threads, one gets it out of the deque."""
        for connection in list(self._idle):
            if connection.generation != self._generation:
                try:
                    self._idle.remove(connection)
                except ValueError:
                    continue
                connection.close()

    def _failed(self, connection: Connection | None, error: BaseException, began: float) -> None:
        """Note a failed exchange; a late reply leaves only those connections that have answered since it began."""
        if isinstance(error, RedisError | OSError):
            self.failed_at = time.monotonic()
        if connection is not None:
            connection.close()
        if isinstance(error, LateReply):
            # Those that were idle as long may lead nowhere as well: a firewall forgot them, or the host is gone.
            for other in list(self._idle):
                if other.used_at < began:
                    try:
                        self._idle.remove(other)
                    except ValueError:  # another thread uses it
                        continue
                    other.close()

    def _repeat(self, cut: Connection, commands: _Commands, until: float) -> list[Any]:
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

    def _left(self, seconds: float) -> float:
        return max(seconds, _LEAST_LEFT * self.timeout)

    # -- event loops

    def _free(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection | None:
        """Return a connection of a loop on which a request would not wait behind bulk, if there is one."""
        if self._lease is not None and self._lease.is_over:
            return None
        for connection in self._of_loop.get(loop, ()):
            if connection.is_usable and not connection.has_bulk:
                return connection
        return None

    async def _aacquire(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        connection = self._free(loop)
        if connection is not None:
            return connection
        if self._lease is not None and self._lease.is_over:
            for each in self._of_loop.pop(loop, ()):
                each.retire()  # the one that takes their place asks the Sentinels
        usable = [each for each in self._of_loop.get(loop, ()) if each.is_usable]
        if len(usable) >= MAX_PER_LOOP:
            return usable[-1]
        try:
            return await self._connected(loop)
        except (RedisError, OSError):
            if usable and usable[0].is_usable:  # no further connection is allowed: wait behind the bulk
                return usable[0]
            raise

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        """Return the loop's new connection; tasks that come meanwhile wait for the same."""
        connecting = self._connecting.get(loop)
        if connecting is None:
            connecting = self._connecting[loop] = loop.create_task(self._aconnect(loop))
            connecting.add_done_callback(_retrieve_error)
        # Shielded: the task that began it may be cancelled, and others wait for it.
        return await asyncio.shield(connecting)

    async def _aconnect(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        self._close_those_of_closed_loops()
        try:
            while True:
                generation = self._generation
                connection = AsyncConnection(self.timeout, generation)
                await connection.connect(self._async_redis_pool())
                if generation == self._generation:
                    break
                connection.close()  # dropped while it connected
            kept = [each for each in self._of_loop.get(loop, ()) if each.is_usable]
            self._of_loop[loop] = [*kept, connection]
            return connection
        finally:
            self._connecting.pop(loop, None)

    async def _arepeat(self, loop: asyncio.AbstractEventLoop, commands: _Commands, until: float) -> list[Any]:
        """Do what `_repeat` does on the running loop, by its clock."""
        began = loop.time()
        try:
            async with asyncio.timeout(self._left(until - began)):
                connection = await self._aacquire(loop)
                return await connection.exchange(pack(commands), len(commands))
        except Exception as error:
            self._failed(None, error, began)
            raise

    def _repeat_soon(
        self, loop: asyncio.AbstractEventLoop, command: tuple[Any, ...], until: float, done: Callable[[Outcome], None]
    ) -> None:
        task = loop.create_task(self._arepeat(loop, (command,), until))
        self._repeating.add(task)

        def ended(task: asyncio.Task[list[Any]]) -> None:
            self._repeating.discard(task)
            if task.cancelled():
                done(ConnectionError("the loop ended before there was a reply"))
                return
            error = task.exception()
            done(error if isinstance(error, Exception) else task.result())

        task.add_done_callback(ended)

    def _close_those_of_closed_loops(self) -> None:
        for loop in list(self._of_loop):
            if loop.is_closed():
                for connection in self._of_loop.pop(loop, ()):
                    connection.close()
        for loop in list(self._connecting):
            if loop.is_closed():
                self._connecting.pop(loop, None)


class PendingReply:
    """Commands that were sent: until their replies are received, nobody else has the connection."""

    __slots__ = ("_began", "_commands", "_connection", "_pool")

    def __init__(self, pool: Pool, connection: Connection, commands: _Commands, began: float) -> None:
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
            if connection.is_cut and _may_repeat(self._commands):
                return pool._repeat(connection, self._commands, until)
            pool._failed(connection, error, self._began)
            raise
        pool._release(connection)
        return replies

    def give_up(self) -> None:
        """Close the connection: its replies are still to come, and must be nobody else's."""
        self._connection.close()


def _may_repeat(commands: _Commands) -> bool:
    return all(words[0] in REPEATED for words in commands)


def _retrieve_error(task: asyncio.Task[AsyncConnection]) -> None:
    """Retrieve a task's error, for all who waited for it may be gone."""
    if not task.cancelled():
        task.exception()
