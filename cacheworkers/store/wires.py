"""Wires of this process to one master: idle ones for threads, and one for each event loop."""

from __future__ import annotations

import asyncio
import collections
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cacheworkers.local.spin import Spin
from cacheworkers.store.wire import AsyncWire, Outcome, Wire, pack

#: Idle connections that are kept; more threads than these at once open and close their own.
MOST_IDLE = 64
_Words = Sequence[tuple[Any, ...]]


class Wires:
    """Sends commands over whatever connection is free, and opens one when none is."""

    def __init__(self, pool: Callable[[], Any], async_pool: Callable[[], Any], timeout: float, spin_for: float) -> None:
        """
        Args:
            pool, async_pool: return redis-py's pools, which say how to connect.
            timeout: seconds.
            spin_for: how long a thread polls for a reply before it sleeps, seconds.
        """
        self._pool = pool
        self._async_pool = async_pool
        self._timeout = timeout
        self._spin = Spin(spin_for)
        self.reset()

    def reset(self) -> None:
        """Forget all wires, as a child does after a fork."""
        # Taken and given back at the same end, by single calls that need no lock: few stay warm.
        self._idle: collections.deque[Wire] = collections.deque()
        self._of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncWire] = weakref.WeakKeyDictionary()
        self._connecting: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncWire]] = {}

    def exchange(self, commands: _Words) -> list[Any]:
        """Return the replies to commands, in order; errors that the server answered are among them.

        Raises:
            RedisError, OSError: no connection, or it failed.
        """
        wire = self._free_wire()
        try:
            replies = wire.exchange(pack(commands), len(commands))
        except BaseException:
            wire.close()
            raise
        if len(self._idle) < MOST_IDLE:
            self._idle.append(wire)
        else:
            wire.close()
        return replies

    async def aexchange(self, commands: _Words) -> list[Any]:
        """Do what `exchange` does, on the running loop."""
        loop = asyncio.get_running_loop()
        wire = self._of_loop.get(loop)
        if wire is None or not wire.is_usable:
            wire = await self._connected(loop)
        return await wire.exchange(pack(commands), len(commands))

    def submit(self, command: tuple[Any, ...], done: Callable[[Outcome], None]) -> bool:
        """Send one command over the running loop's wire, and return True; False if there is none yet.

        Args:
            done: called on that loop with the one reply in a list, or an error.
        """
        wire = self._of_loop.get(asyncio.get_running_loop())
        if wire is None or not wire.is_usable:
            return False
        wire.submit(pack((command,)), 1, done)
        return True

    def close(self) -> None:
        """Close what is idle; a loop's wire goes with its next failure, or its loop."""
        while self._idle:
            self._idle.pop().close()

    def drop(self) -> None:
        """Use none of today's wires again: their master is gone, or is no master any more."""
        self.close()
        for wire in list(self._of_loop.values()):
            wire.is_usable = False

    def _free_wire(self) -> Wire:
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return Wire(self._pool(), self._timeout, self._spin)
            if wire.is_usable:
                return wire
            wire.close()

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> AsyncWire:
        """Return the loop's new wire; tasks that come meanwhile wait for the same."""
        connecting = self._connecting.get(loop)
        if connecting is None:
            connecting = self._connecting[loop] = loop.create_task(self._connect(loop))
            connecting.add_done_callback(_heed)
        # Shielded: the task that began it may be cancelled, and others wait for it.
        return await asyncio.shield(connecting)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> AsyncWire:
        try:
            wire = await AsyncWire(self._timeout).connect(self._async_pool())
            self._of_loop[loop] = wire
            return wire
        finally:
            self._connecting.pop(loop, None)


def _heed(task: asyncio.Task[AsyncWire]) -> None:
    """Look at a task's error, for all who waited for it may be gone."""
    if not task.cancelled():
        task.exception()
