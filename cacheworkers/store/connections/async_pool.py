"""AsyncPool: this process's connections to one server for event loops, a few for each, shared by the loop's tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from cacheworkers.store.connections.async_connection import AsyncConnection
from cacheworkers.store.connections.connection import Connection, ConnectionCut, Outcome, pack
from cacheworkers.store.connections.sentinels import MasterLease

#: Connections of one event loop: more than one only while bulk is under way on the others.
MAX_PER_LOOP = 4
#: Reads that are sent once more when the server, or something on the way to it, has closed their connection.
REPEATED = frozenset(("GET", "MGET", "GETRANGE"))
#: The second attempt has at least this share of the timeout: this process itself may have been slow.
_LEAST_LEFT = 0.05
Commands = Sequence[tuple[Any, ...]]


class AsyncPool:
    """Sends commands over the connections of the running loop.

    Attributes:
        timeout: seconds.
        failed_at: when a connection last failed, by this process's monotonic clock; 0 for never.
    """

    def __init__(self, async_redis_pool: Callable[[], Any], timeout: float, lease: MasterLease | None = None) -> None:
        self._async_redis_pool = async_redis_pool
        self.timeout = timeout
        self.failed_at = 0.0
        # A connection of an earlier generation is not used again: its server may no longer be a master.
        self._generation = 0
        self._lease = lease
        # A fork keeps them: collected there, they would call the parent's loop.
        self._until_end: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        # Not weakly by their loops, since a connection holds its own: those of closed loops are found and closed.
        self._of_loop: dict[asyncio.AbstractEventLoop, list[AsyncConnection]] = {}
        self._connecting: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncConnection]] = {}
        self._repeating: set[asyncio.Task[list[Any]]] = set()

    async def aexchange(self, commands: Commands) -> list[Any]:
        """Return the replies to commands, in order, as `Pool.exchange` does, on the running loop."""
        loop = asyncio.get_running_loop()
        began, is_read = loop.time(), are_reads(commands)
        try:
            connection = await self._aacquire(loop)
            return await connection.exchange(pack(commands), len(commands), may_repeat=is_read)
        except Exception as error:
            if is_read and isinstance(error, ConnectionCut):
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
        began, is_read = loop.time(), are_reads((command,))

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                if is_read and isinstance(outcome, ConnectionCut):
                    self._repeat_soon(loop, command, began + self.timeout, done)
                    return
                self._failed(None, outcome, began)
            done(outcome)

        connection.submit(pack((command,)), 1, settle, may_repeat=is_read)
        return True

    def drop(self) -> None:
        """Use none of today's connections again: their server is gone, or is no longer a master."""
        self._generation += 1
        self._close_those_of_closed_loops()
        for loop in list(self._of_loop):
            for connection in self._of_loop.pop(loop, ()):
                connection.is_usable = False
                try:
                    loop.call_soon_threadsafe(connection.retire)
                except RuntimeError:  # it has just been closed
                    connection.close()

    def _failed(self, connection: Connection | None, error: BaseException, began: float) -> None:
        if isinstance(error, RedisError | OSError):
            self.failed_at = time.monotonic()

    def _left(self, seconds: float) -> float:
        return max(seconds, _LEAST_LEFT * self.timeout)

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
            if loop not in self._until_end:
                self._until_end[loop] = self._close_at_end(loop)
                await anext(self._until_end[loop])
            return connection
        finally:
            self._connecting.pop(loop, None)

    async def _close_at_end(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        """Wait until a loop ends its async generators, the last that it does: transports that are closed later warn."""
        try:
            yield
        finally:
            for connection in self._of_loop.pop(loop, ()):
                connection.retire()

    async def _arepeat(self, loop: asyncio.AbstractEventLoop, commands: Commands, until: float) -> list[Any]:
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
        for loop in {*self._of_loop, *self._connecting, *self._until_end}:
            if loop.is_closed():
                for connection in self._of_loop.pop(loop, ()):
                    connection.close()
                self._connecting.pop(loop, None)
                self._until_end.pop(loop, None)


def are_reads(commands: Commands) -> bool:
    return all(words[0] in REPEATED for words in commands)


def _retrieve_error(task: asyncio.Task[AsyncConnection]) -> None:
    """Retrieve a task's error, for all who waited for it may be gone."""
    if not task.cancelled():
        task.exception()
