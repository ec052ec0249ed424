"""What a tracing hook adds to a process: traces in load requests, and a span around each load."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from cacheworkers.flows.ports import Dispatcher, LoadRequest
from cacheworkers.load_context import AroundLoad, LoadCall


@runtime_checkable
class TracingHook(Protocol):
    """A hook that makes spans besides taking events: `cacheworkers.ops.tracing.Tracing`."""

    def with_traces(self, requests: Sequence[LoadRequest]) -> list[LoadRequest]:
        """Return load requests that carry the trace of the reader whose context this is."""
        ...

    def around_task(self, loader: str, calls: Sequence[str], traces: Sequence[str]) -> AbstractContextManager[None]:
        """Surround a worker's task."""
        ...

    def around_load(self, call: LoadCall) -> AbstractContextManager[None]:
        """Surround one run of a loader."""
        ...


class TracedDispatcher:
    """A dispatcher whose load requests carry the trace of their reader."""

    def __init__(self, dispatcher: Dispatcher, hook: TracingHook) -> None:
        self._dispatcher = dispatcher
        self._hook = hook

    def submit(self, request: LoadRequest) -> bool:
        """Take a load request."""
        return self._dispatcher.submit_all(self._hook.with_traces([request])) == 1

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Take load requests together."""
        return self._dispatcher.submit_all(self._hook.with_traces(requests))

    def close(self) -> None:
        """Close the dispatcher."""
        self._dispatcher.close()


def inside(outer: Callable[[LoadCall], AbstractContextManager[None]], inner: AroundLoad) -> AroundLoad:
    """Return what surrounds a load with two context managers; the inner one may be asynchronous."""

    return lambda call: Nested(outer(call), lambda: inner(call))


class Nested:
    """One context manager within another; the inner one may be asynchronous, where the loader is."""

    def __init__(self, outer: AbstractContextManager[None], inner: Callable[[], Any]) -> None:
        """
        Args:
            inner: makes the inner one, within the outer one.
        """
        self._outer = outer
        self._inner = inner
        self._sync = contextlib.ExitStack()
        self._async = contextlib.AsyncExitStack()

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._outer)
            stack.enter_context(self._inner())
            self._sync = stack.pop_all()

    def __exit__(self, *error: Any) -> bool | None:
        return self._sync.__exit__(*error)

    async def __aenter__(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._outer)
            inner = self._inner()
            if hasattr(inner, "__aenter__"):
                await stack.enter_async_context(inner)
            else:
                stack.enter_context(inner)
            self._async = stack.pop_all()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._async.__aexit__(*error)
