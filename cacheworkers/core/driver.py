"""Drive a flow: perform each step that it yields, in this thread or on the running loop.

A step has `run()` and `arun()`.  A flow yields a step to wait for it, and yields from another flow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Step(Protocol):
    """One piece of I/O that a flow waits for."""

    def run(self) -> Any: ...
    async def arun(self) -> Any: ...


#: A flow yields steps, is sent their results, and returns a T.
Flow = Generator[Step, Any, T]


def run(flow: Flow[T], on_wait: Callable[[], None] | None = None) -> T:
    """Return the flow's result, blocking this thread at each step.

    Args:
        on_wait: called before the first step; not for a flow that has none.
    """
    try:
        step = next(flow)
        if on_wait is not None:
            on_wait()
        while True:
            try:
                result = step.run()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def arun(flow: Flow[T]) -> T:
    """Return the flow's result, awaiting each step; a cancellation is thrown into the flow."""
    try:
        step = next(flow)
        while True:
            try:
                result = await step.arun()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


class Pause:
    """A step: let some time pass."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __repr__(self) -> str:
        return "pause"

    def run(self) -> None:
        """Pause this thread."""
        time.sleep(self._seconds)

    async def arun(self) -> None:
        """Pause this task."""
        await asyncio.sleep(self._seconds)
