"""GetBatcher: the GETs of one event-loop turn become one MGET."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

_Loop = asyncio.AbstractEventLoop
_Future = asyncio.Future[bytes | None]
#: What a fetch returns: for each key its value.
Values = list[bytes | None]
#: What is asked for together: key -> who waits for it, or a list of those who do.
_Keys = dict[str, Any]


class _Turn:
    """What one turn of a loop has asked for so far.

    Attributes:
        number: tells it from all others; never 0.
    """

    __slots__ = ("keys", "number")

    def __init__(self, number: int, keys: _Keys) -> None:
        self.number = number
        self.keys = keys


class GetBatcher:
    """Collects the keys that tasks of one loop ask for in the same turn, and fetches them together.

    A read joins only a fetch that has not been sent: it must not get what was read before it began.  A loop is known
    here only while something of it is under way.

    Attributes:
        was_alone: the last fetch was for one read and has been answered: the next is sent without waiting for others.
    """

    def __init__(
        self,
        fetch: Callable[[list[str]], Awaitable[list[bytes | None]]],
        submit: Callable[[list[str], Callable[[Values | Exception], None]], bool] = lambda keys, done: False,
        limit: int = 100,
    ) -> None:
        """
        Args:
            fetch: returns the values of distinct keys, in their order.
            submit: asks for them immediately and returns True, and delivers their values or an error later; or returns
                False, where that takes more than a write, and `fetch` must do it.
            limit: most keys in one fetch.
        """
        self._fetch = fetch
        self._submit = submit
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget what was asked, as a child does after a fork: those loops are the parent's."""
        self.was_alone = False
        self._numbers = itertools.count(1)
        self._turns: dict[_Loop, _Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, key: str, loop: _Loop | None = None) -> _Future:
        """Return a future of a key's value, fetched together with what else this turn of the loop asks for.

        It fails with whatever the fetch that had this key raised.

        Args:
            loop: the running one, if the caller has it.
        """
        loop = loop or asyncio.get_running_loop()
        future: _Future = asyncio.Future(loop=loop)
        turn = self._turns.get(loop)
        if turn is None:
            if self.was_alone:  # one a turn at most: what comes before its answer waits for others
                self.was_alone = False
                self._send_part(loop, {key: future})
                return future
            self._forget_closed_loops()
            self._turns[loop] = _Turn(next(self._numbers), {key: future})
            # Sent in the loop's next turn: alone, a read waits for that and no longer.
            loop.call_soon(self._send, loop)
        elif (there := turn.keys.setdefault(key, future)) is not future:
            if type(there) is not list:
                there = turn.keys[key] = [there]
            there.append(future)
        return future

    def unsent(self, loop: _Loop) -> int:
        """Return the number of the turn that has been asked for and not sent; 0 if there is none."""
        turn = self._turns.get(loop)
        return 0 if turn is None else turn.number

    def _send(self, loop: _Loop) -> None:
        turn = self._turns.pop(loop, None)  # from here on nobody joins
        if turn is None:
            return
        if len(turn.keys) <= self._limit:
            self._send_part(loop, turn.keys)
            return
        items = list(turn.keys.items())
        for start in range(0, len(items), self._limit):
            self._send_part(loop, dict(items[start : start + self._limit]))

    def _send_part(self, loop: _Loop, keys: _Keys) -> None:
        def settle(outcome: Values | Exception) -> None:
            self.was_alone = len(keys) == 1
            _settle(keys, outcome)

        try:
            is_sent = self._submit(list(keys), settle)
        except Exception as error:
            settle(error)
            return
        if not is_sent:
            self._spawn(loop, self._deliver(keys))

    async def _deliver(self, keys: _Keys) -> None:
        try:
            outcome: Values | Exception = await self._fetch(list(keys))
        except Exception as error:
            outcome = error
        except BaseException:
            # The fetch was cancelled, with its loop as a rule: nobody may be left waiting for it.
            for future in _waiting(keys):
                future.cancel()
            raise
        _settle(keys, outcome)

    def _spawn(self, loop: _Loop, work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget_closed_loops(self) -> None:
        """Drop what loops left behind that were closed in mid-turn."""
        for loop in list(self._turns):
            if loop.is_closed():
                self._turns.pop(loop, None)
        for task in list(self._tasks):
            if task.get_loop().is_closed():
                self._tasks.discard(task)


def _settle(keys: _Keys, outcome: Values | Exception) -> None:
    """Give each waiter the result of the fetch; cancelled ones no longer wait."""
    if isinstance(outcome, list) and len(outcome) != len(keys):
        outcome = RuntimeError(f"a fetch must return a value for each key, got {len(outcome)} for {len(keys)} keys")
    if isinstance(outcome, Exception):
        for future in _waiting(keys):
            if not future.done():
                future.set_exception(outcome)
        return
    for waiting, value in zip(keys.values(), outcome, strict=True):
        for future in waiting if type(waiting) is list else (waiting,):
            if not future.done():
                future.set_result(value)


def _waiting(keys: _Keys) -> list[_Future]:
    """Return all who wait for keys."""
    return [each for waiting in keys.values() for each in (waiting if type(waiting) is list else (waiting,))]
