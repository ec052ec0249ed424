"""Joint writes: quick loads of one message run one after the other, and write what they have loaded in one round trip.

A load goes on by itself until it stands before its write.  That waits for those of the next loads, for a moment only:
nobody reads what has not been written.  A load may take longer than expected, or end its process: what waits for it is
written beside it (`SlowLoads`), and must not have begun, or it would count as having died too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cacheworkers.core.driver import Flow, Step
from cacheworkers.errors import StoreError
from cacheworkers.store.commands.steps import Exchange, Write

T = TypeVar("T")
#: How long a write waits for others at most, seconds, and the load that comes next.
WAITS_FOR = 0.002


class JointWrites(Generic[T]):
    """Loads that stand before their writes.

    Attributes:
        ended: name -> what a load came to, of those that have ended.
    """

    def __init__(self, clock: Callable[[], float], may_wait: Callable[[str, Write[Any]], bool]) -> None:
        """
        Args:
            may_wait: whether a load's write may wait for others; else it is done by itself.
        """
        self._clock = clock
        self._may_wait = may_wait
        self._is_joint = True
        self._since = 0.0
        self._waiting: list[tuple[str, Flow[T], Write[Any]]] = []
        self.ended: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether the first write has waited for long enough."""
        return bool(self._waiting) and self._clock() - self._since >= WAITS_FOR

    def drive(self, name: str, load: Flow[T]) -> Flow[None]:
        """Have a load go on to its write, or to its end; raises what it raises."""
        yield from self._go_on(name, load, functools.partial(next, load))

    def perform(self) -> Flow[None]:
        """Do the writes that wait, and have their loads go on.

        Where one fails, each is done by itself, for that is no matter of the others: one that was done finds its
        version in the store.
        """
        due, self._waiting = self._waiting, []
        try:
            replies: list[Any] = []
            try:
                replies = yield Exchange.joint([write for _, _, write in due])
            except StoreError:
                self._is_joint = False
            while due:
                name, load, write = due.pop(0)
                go = functools.partial(load.send, replies.pop(0)) if replies else lambda write=write: write
                yield from self._go_on(name, load, go)
        finally:
            for _, load, _ in due:
                load.close()

    def close(self) -> None:
        """End the loads that have not ended: their leases are given back."""
        while self._waiting:
            _, load, _ = self._waiting.pop()
            load.close()

    def _go_on(self, name: str, load: Flow[T], go: Callable[[], Step]) -> Flow[None]:
        try:
            step = go()
            while not (self._is_joint and isinstance(step, Write) and self._may_wait(name, step)):
                try:
                    reply = yield step
                except BaseException as error:
                    step = load.throw(error)
                else:
                    step = load.send(reply)
        except StopIteration as stop:
            self.ended[name] = stop.value
            return
        if not self._waiting:
            self._since = self._clock()
        self._waiting.append((name, load, step))
