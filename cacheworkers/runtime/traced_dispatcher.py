"""What a tracing hook adds to a process: traces in load requests, and a span around each load."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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

    def around(call: LoadCall) -> Any:
        within = inner(call)
        return _both_async(outer(call), within) if hasattr(within, "__aenter__") else _both(outer(call), within)

    return around


@contextlib.contextmanager
def _both(outer: Any, inner: Any) -> Iterator[None]:
    with outer, inner:
        yield


@contextlib.asynccontextmanager
async def _both_async(outer: Any, inner: Any) -> AsyncIterator[None]:
    with outer:
        async with inner:
            yield
