"""OpenTelemetry spans that link a request, the task that loads for it, and the queries of that load.

    cache = Cache(config, celery=app, sessions=sessions, hook=Tracing(Metrics()))

A request for a load is a PRODUCER span within the reader's own, its context travels in the message's headers, and the
task's CONSUMER span continues the trace of the first call and links those of the others.  Loaders run in a span of
their own, so that what an instrumentation of SQLAlchemy or of a client reports lies within it.  Without this hook
nothing is recorded, sent or looked up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from cacheworkers.core.extras import needs_extra
from cacheworkers.events import Event
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.load_context import LoadCall

with needs_extra("otel"):
    from opentelemetry import context, propagate, trace
    from opentelemetry.trace import Link, SpanKind

#: Most calls of one load that a span names.
SHOWN = 20


class Tracing:
    """A hook of `Cache` that makes spans, and passes events on to another hook."""

    def __init__(
        self, hook: Callable[[Event], None] | None = None, *, tracer_provider: trace.TracerProvider | None = None
    ) -> None:
        """
        Args:
            hook: gets every event: `Metrics()`, for one.
            tracer_provider: whose spans these are; the process's own by default.
        """
        self._hook = hook
        self._tracer = trace.get_tracer("cacheworkers", tracer_provider=tracer_provider)

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if self._hook is not None:
            self._hook(event)

    def with_traces(self, requests: Sequence[LoadRequest]) -> list[LoadRequest]:
        """Return load requests with the contexts of the spans that ask for them; called in the reader's context."""
        return [self._with_trace(request) for request in requests]

    @contextlib.contextmanager
    def around_task(self, loader: str, calls: Sequence[str], traces: Sequence[str]) -> Iterator[None]:
        """Surround a task that loads calls with a span that continues the traces of those who asked for them.

        Args:
            traces: of the calls, as `with_traces` has made them; "" or nothing for those that have none.
        """
        contexts = [_read(text) for text in traces if text]
        parent, *others = contexts or [context.Context()]
        links = [Link(trace.get_current_span(each).get_span_context()) for each in others]
        with self._tracer.start_as_current_span(
            f"process {loader}", parent, SpanKind.CONSUMER, _attributes(loader, calls), links
        ):
            yield

    @contextlib.contextmanager
    def around_load(self, call: LoadCall) -> Iterator[None]:
        """Surround one run of a loader."""
        attributes = {**_attributes(call.loader, call.calls), "cacheworkers.where": call.where}
        with self._tracer.start_as_current_span(f"load {call.loader}", attributes=attributes):
            yield

    def _with_trace(self, request: LoadRequest) -> LoadRequest:
        attributes = {**_attributes(request.loader, [request.call]), "messaging.destination.name": request.queue}
        span = self._tracer.start_span(f"publish {request.loader}", kind=SpanKind.PRODUCER, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        span.end()
        return msgspec.structs.replace(request, trace=msgspec.json.encode(carrier).decode() if carrier else "")


def _read(text: str) -> context.Context:
    """Return the context of a message; an empty one of what cannot be read."""
    try:
        return propagate.extract(msgspec.json.decode(text, type=dict[str, str]), context.Context())
    except msgspec.MsgspecError:
        return context.Context()


def _attributes(loader: str, calls: Sequence[str]) -> dict[str, Any]:
    return {"cacheworkers.loader": loader, "cacheworkers.calls": tuple(calls[:SHOWN])}
