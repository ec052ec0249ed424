"""Batching: the reads of one event-loop turn become one MGET."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence


class Batcher:
    """Collects the keys that tasks of one loop ask for in the same turn, and fetches them together.

    A read joins only a fetch that has not been sent: it must not get what was read before it began.
    """

    def __init__(self, fetch: Callable[[Sequence[str]], Awaitable[list[bytes | None]]], limit: int = 100) -> None:
        """
        Args:
            fetch: returns the values of keys, in order.
            limit: most keys in one fetch.
        """
        self._fetch = fetch
        self._limit = limit
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, list[asyncio.Future[bytes | None]]]]
        self._tasks: set[asyncio.Task[None]] = set()
        self.reset()

    def reset(self) -> None:
        """Forget what was asked, as a child does after a fork."""
        self._turns = weakref.WeakKeyDictionary()
        self._tasks = set()

    async def get(self, key: str) -> bytes | None:
        """Return a key's value, fetched together with what else this turn of the loop asks for."""
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            turn = self._turns[loop] = {}
            loop.call_soon(self._send, loop)
        future = loop.create_future()
        turn.setdefault(key, []).append(future)
        found: bytes | None = await future
        return found

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        turn = self._turns.pop(loop, {})
        keys = list(turn)
        for start in range(0, len(keys), self._limit):
            chunk = keys[start : start + self._limit]
            task = loop.create_task(self._deliver(chunk, turn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, keys: list[str], turn: dict[str, list[asyncio.Future[bytes | None]]]) -> None:
        try:
            values = await self._fetch(keys)
        except BaseException as error:
            for key in keys:
                for future in turn[key]:
                    if not future.done():
                        future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for key, value in zip(keys, values, strict=True):
            for future in turn[key]:
                if not future.done():
                    future.set_result(value)
