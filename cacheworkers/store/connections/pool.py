"""Pool of this process to one master: idle ones for threads, and one for each event loop."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Sequence
from typing import Any

from cacheworkers.local.busy_poll import BusyPoll
from cacheworkers.store.connections.connection import AsyncConnection, Connection, Outcome, pack

#: Idle connections that are kept; more threads than these at once open and close their own.
MOST_IDLE = 64
#: Reads that are sent once more when the server, or something on the way to it, has closed their connection.
REPEATED = frozenset(("GET", "MGET", "GETRANGE"))
#: What is left for the second time is never less than this share of the timeout: it may be this process that was slow.
_LEAST_LEFT = 0.05
_Words = Sequence[tuple[Any, ...]]


class Pool:
    """Sends commands over whatever connection is free, and opens one when none is.

    Attributes:
        pool: returns redis-py's pool, which says how to connect.
        timeout: seconds.
        failed_at: when one of them last failed, of this process's monotonic clock; 0 for never.
    """

    def __init__(self, pool: Callable[[], Any], async_pool: Callable[[], Any], timeout: float, spin_for: float) -> None:
        """
        Args:
            pool, async_pool: return redis-py's pools, which say how to connect.
            timeout: seconds.
            spin_for: how long a thread polls for a reply before it sleeps, seconds.
        """
        self.pool = pool
        self._async_pool = async_pool
        self.timeout = timeout
        self._spin = BusyPoll(spin_for)
        self.failed_at = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget all wires, as a child does after a fork."""
        # Taken and given back at the same end, by single calls that need no lock: few stay warm.
        self._idle: collections.deque[Connection] = collections.deque()
        # Not weakly by their loops, for a wire holds its own: those of closed ones are looked for and closed.
        self._of_loop: dict[asyncio.AbstractEventLoop, AsyncConnection] = {}
        self._connecting: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncConnection]] = {}
        self._repeating: set[asyncio.Task[list[Any]]] = set()

    def exchange(self, commands: _Words) -> list[Any]:
        """Return the replies to commands, in order; errors that the server answered are among them.

        Reads whose connection is cut are sent once more, over a new one: servers and proxies close what they please,
        and are there all the same.  A late reply is no such sign, and a write may have been done.

        Raises:
            RedisError, OSError: no connection, or it failed.
        """
        began, wire = time.monotonic(), None
        try:
            wire = self._free_wire()
            replies = wire.exchange(pack(commands), len(commands))
        except BaseException:
            if wire is not None and wire.is_cut and _may_be_repeated(commands):
                return self._repeat(wire, commands, began + self.timeout)
            self._failed(wire)
            raise
        self._take_back(wire)
        return replies

    def send(self, commands: _Words, within: float | None = None) -> PendingReply:
        """Send commands in one write; their replies are to be received, or given up.

        Args:
            within: how long each step of connecting may take, seconds, if not as long as the timeout.

        Raises:
            RedisError, OSError: no connection, or it failed.
        """
        wire = None
        try:
            wire = self._free_wire(within)
            wire.send(pack(commands))
        except BaseException:
            if wire is None or not wire.is_cut or not _may_be_repeated(commands):
                self._failed(wire)
                raise
            # Sent once more when its replies are to be received.
        return PendingReply(self, wire, commands)

    async def aexchange(self, commands: _Words) -> list[Any]:
        """Do what `exchange` does, on the running loop."""
        loop = asyncio.get_running_loop()
        began, wire = loop.time(), None
        try:
            wire = await self._usable(loop)
            return await wire.exchange(pack(commands), len(commands))
        except Exception:
            if wire is not None and wire.is_cut and _may_be_repeated(commands):
                return await self._arepeat(loop, commands, began + self.timeout)
            self._failed(None)
            raise

    def submit(self, command: tuple[Any, ...], done: Callable[[Outcome], None]) -> bool:
        """Send one command over the running loop's wire, and return True; False if there is none yet.

        Args:
            done: called on that loop with the one reply in a list, or an error.
        """
        loop = asyncio.get_running_loop()
        wire = self._of_loop.get(loop)
        if wire is None or not wire.is_usable:
            return False
        until = loop.time() + self.timeout

        def told(outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                if wire.is_cut and _may_be_repeated((command,)):
                    self._repeat_soon(loop, command, until, done)
                    return
                self._failed(None)
            done(outcome)

        wire.submit(pack((command,)), 1, told)
        return True

    def close(self) -> None:
        """Close what is idle, and use none of today's wires again; one in use is closed by who uses it."""
        while self._idle:
            self._idle.pop().close()
        self._forget_closed_loops()
        for loop in list(self._of_loop):
            wire = self._of_loop.pop(loop, None)
            if wire is not None:
                wire.is_usable = False
                try:
                    loop.call_soon_threadsafe(wire.retire)
                except RuntimeError:  # it has just been closed
                    wire.close()

    def drop(self) -> None:
        """Close all that is open: their master is gone, or is no master any more."""
        self.close()

    def _free_wire(self, within: float | None = None) -> Connection:
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return Connection(self.pool(), self.timeout, self._spin, within)
            if wire.is_usable:
                return wire
            wire.close()

    def _take_back(self, wire: Connection) -> None:
        if len(self._idle) < MOST_IDLE:
            self._idle.append(wire)
        else:
            wire.close()

    def _failed(self, wire: Connection | None) -> None:
        self.failed_at = time.monotonic()
        if wire is not None:
            wire.close()

    def _repeat(self, cut: Connection, commands: _Words, until: float) -> list[Any]:
        """Do an exchange whose wire was cut once more, over a new one; it ends by a monotonic instant."""
        cut.close()
        for other in list(self._idle):  # cut as well, perhaps, and not yet known to be
            other.doubt()
        wire = None
        try:
            wire = Connection(self.pool(), self.timeout, self._spin, self._left(until - time.monotonic()))
            wire.send(pack(commands))
            wire.wait(self._left(until - time.monotonic()))
            replies = wire.receive(len(commands))
        except BaseException:
            self._failed(wire)
            raise
        self._take_back(wire)
        return replies

    async def _arepeat(self, loop: asyncio.AbstractEventLoop, commands: _Words, until: float) -> list[Any]:
        """Do the same on the running loop, by its clock."""
        try:
            async with asyncio.timeout(self._left(until - loop.time())):
                wire = await self._usable(loop)
                return await wire.exchange(pack(commands), len(commands))
        except Exception:
            self._failed(None)
            raise

    def _repeat_soon(
        self, loop: asyncio.AbstractEventLoop, command: tuple[Any, ...], until: float, done: Callable[[Outcome], None]
    ) -> None:
        task = loop.create_task(self._arepeat(loop, (command,), until))
        self._repeating.add(task)

        def ended(task: asyncio.Task[list[Any]]) -> None:
            self._repeating.discard(task)
            if task.cancelled():
                done(ConnectionError("the loop ended before there was an answer"))
                return
            error = task.exception()
            done(error if isinstance(error, Exception) else task.result())

        task.add_done_callback(ended)

    def _left(self, seconds: float) -> float:
        return max(seconds, _LEAST_LEFT * self.timeout)

    async def _usable(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        wire = self._of_loop.get(loop)
        return wire if wire is not None and wire.is_usable else await self._connected(loop)

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        """Return the loop's new wire; tasks that come meanwhile wait for the same."""
        connecting = self._connecting.get(loop)
        if connecting is None:
            connecting = self._connecting[loop] = loop.create_task(self._connect(loop))
            connecting.add_done_callback(_heed)
        # Shielded: the task that began it may be cancelled, and others wait for it.
        return await asyncio.shield(connecting)

    def _forget_closed_loops(self) -> None:
        """Close what loops left open that were closed before it was."""
        for loop in list(self._of_loop):
            wire = self._of_loop.pop(loop, None) if loop.is_closed() else None
            if wire is not None:
                wire.close()
        for loop in list(self._connecting):
            if loop.is_closed():
                self._connecting.pop(loop, None)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        self._forget_closed_loops()
        try:
            wire = await AsyncConnection(self.timeout).connect(self._async_pool())
            self._of_loop[loop] = wire
            return wire
        finally:
            self._connecting.pop(loop, None)


class PendingReply:
    """Commands on their way: until their replies are received, nobody else has the wire."""

    __slots__ = ("_commands", "_wire", "_wires")

    def __init__(self, wires: Pool, wire: Connection, commands: _Words) -> None:
        self._wires = wires
        self._wire = wire
        self._commands = commands

    def receive(self, within: float | None = None) -> list[Any]:
        """Return the replies, in order; errors that the server answered are among them.

        Args:
            within: how long to wait for the first of them, seconds, if not for the timeout.

        Raises:
            RedisError, OSError: the connection failed.
        """
        wires, wire = self._wires, self._wire
        until = time.monotonic() + (wires.timeout if within is None else within)
        if wire.is_cut:
            return wires._repeat(wire, self._commands, until)
        try:
            if within is not None:
                wire.wait(within)
            replies = wire.receive(len(self._commands))
        except BaseException:
            if wire.is_cut and _may_be_repeated(self._commands):
                return wires._repeat(wire, self._commands, until)
            wires._failed(wire)
            raise
        wires._take_back(wire)
        return replies

    def give_up(self) -> None:
        """Close the wire: its replies are still to come, and must be nobody else's."""
        self._wire.close()


def _may_be_repeated(commands: _Words) -> bool:
    return all(words[0] in REPEATED for words in commands)


def _heed(task: asyncio.Task[AsyncConnection]) -> None:
    """Look at a task's error, for all who waited for it may be gone."""
    if not task.cancelled():
        task.exception()
