"""What a tracing hook adds to a process: load requests that carry the trace of their reader."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from cacheworkers.flows.ports import Dispatcher, LoadRequest
from cacheworkers.load_context import LoadCall


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

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Take load requests together."""
        return self._dispatcher.submit_all(self._hook.with_traces(requests))
