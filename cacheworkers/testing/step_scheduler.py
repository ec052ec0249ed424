"""The step scheduler: several flows against a real store, one step at a time, in any chosen order.

An exchange of several requests is one step for each: what others ask for may come between any two of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from cacheworkers.core.driver import Flow
from cacheworkers.store.commands.steps import Exchange

T = TypeVar("T")


class Stepper(Generic[T]):
    """Holds one flow between two steps.

    Attributes:
        at: the name of the step that would be performed next; "" when the flow has ended.
        result, error: how it ended.
    """

    def __init__(self, flow: Flow[T], *, by_exchange: bool = False) -> None:
        """
        Args:
            by_exchange: an exchange is one step, to count them.
        """
        self._flow = flow
        self._by_exchange = by_exchange
        self._step: Any = None
        self._parts: Iterator[Any] = iter(())
        self._reply: Callable[[], Any] | None = None
        self.result: T | None = None
        self.error: BaseException | None = None
        self._advance(lambda: next(self._flow))

    @property
    def at(self) -> str:
        """The step that waits to be performed."""
        return "" if self._step is None else repr(self._step)

    def send(self) -> None:
        """Perform the step, and keep the flow from its reply until the next `step`: it is on its way.

        Of an exchange, its next request.
        """
        if self._reply is None:
            try:
                found = next(self._parts)
            except BaseException as error:
                failure = error
                self._reply = lambda: self._flow.throw(failure)
            else:
                if found is not _MORE:
                    self._reply = lambda: self._flow.send(found)

    def step(self) -> str:
        """Perform one step, and return the name of the next."""
        self.send()
        if self._reply is not None:
            reply, self._reply = self._reply, None
            self._advance(reply)
        return self.at

    def until(self, name: str) -> Stepper[T]:
        """Perform steps until the named one is next."""
        while self.at and not self.at.startswith(name):
            self.step()
        assert self.at.startswith(name), f"the flow ended before {name!r}: {self.result!r} {self.error!r}"
        return self

    def finish(self) -> T:
        """Perform all steps that are left, and return the flow's result."""
        while self.at:
            self.step()
        if self.error is not None:
            raise self.error
        result: Any = self.result
        return result  # type: ignore[no-any-return]

    def crash(self) -> None:
        """Drop the flow where it stands, as a killed process does: no clean-up runs."""
        # Garbage-collected, a generator is closed, and its `finally` runs: a killed process gives no lease back.  With
        # a reference that is nobody's it is collected never, not even when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._flow))
        self._step = None

    def _advance(self, go: Any) -> None:
        try:
            self._step = go()
        except StopIteration as stop:
            self._step, self.result = None, stop.value
        except BaseException as error:
            self._step, self.error = None, error
        else:
            self._parts = _parts(self._step, self._by_exchange)


#: Of a step: not all of it has been performed.
_MORE = object()


def _parts(step: Any, by_exchange: bool) -> Iterator[Any]:
    """Perform a step part by part; the last thing yielded is its reply."""
    if by_exchange or not isinstance(step, Exchange) or len(step._requests) < 2:
        yield step.run()
        return
    replies: list[Any] = []
    for request in step._requests[:-1]:
        replies += step._link.exchange([request])
        yield _MORE
    yield step._parse(replies + step._link.exchange(step._requests[-1:]))
