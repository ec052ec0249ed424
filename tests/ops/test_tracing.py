"""Spans of a request, of the task that loads for it, and of its query, seen by the SDK's own exporter in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging
from kombu.transport.memory import Transport
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Config, Load
from cacheworkers.events import Loaded, TaskRequeued
from cacheworkers.ops.tracing import Tracing
from cacheworkers.runtime.traced_dispatcher import TracedDispatcher
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.task_messages import TRACES

_names = itertools.count()


def _leave_logging(**_: Any) -> None:
    """Celery leaves logging alone where somebody listens to its signal."""


class Scene:
    """A cache with a tracing hook on an app in memory, and what has been exported."""

    def __init__(self, store: str, database: str, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("shop")
        self.events: list[Any] = []
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.worker_redirect_stdouts = False
        self.engine = create_engine(database)
        event.listen(self.engine, "before_cursor_execute", self._query)  # as an instrumentation of SQLAlchemy does
        name = f"tracing{next(_names)}"
        self.cache = Cache(
            Config(redis_url=store, namespace=name, queue_prefix=name),
            celery=self.app,
            sessions=sessionmaker(self.engine),
            hook=Tracing(self.events.append, tracer_provider=provider),
            **options,
        )

        @self.cache.loader(fresh_for=300, load_for=60, wait_for=60)
        def price(load: Load, n: int) -> int:
            return int(load.session.execute(text("SELECT :n * 10"), {"n": n}).scalar_one())

        @self.cache.batch_loader(fresh_for=300, load_for=60, wait_for=60)
        def prices(load: Load, keys: list[int]) -> dict[int, int]:
            return {key: key * 10 for key in keys}

        self.price, self.prices = price, prices

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run a worker on threads of this process; logging stays as it is."""
        queues = list(self.cache.config.queues.__class__.__dataclass_fields__)
        names = [getattr(self.cache.config.queues, queue) for queue in queues]
        setup_logging.connect(_leave_logging)
        drain = Transport.drain_events
        options: Any = {"pool": "threads", "concurrency": 1, "perform_ping_check": False, "queues": names}
        try:
            with pytest.MonkeyPatch.context() as patch:
                # Celery's loop waits two seconds for messages before it looks whether it is to stop.
                patch.setattr(Transport, "drain_events", lambda *args, **_: drain(*args, timeout=0.02))
                patch.setattr(Transport, "polling_interval", 0.01)
                with start_worker(self.app, **options):
                    yield
        finally:
            setup_logging.disconnect(_leave_logging)

    def _query(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.tracer.start_span(statement.split()[0]).end()

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def close(self) -> None:
        self.cache.close()
        self.engine.dispose()


@pytest.fixture
def make(valkey: Valkey, database_url: str) -> Iterator[Callable[..., Scene]]:
    scenes = []

    def made(**options: Any) -> Scene:
        scenes.append(Scene(valkey.url, database_url, **options))
        return scenes[-1]

    yield made
    for scene in scenes:
        scene.close()


def test_a_request_its_task_and_its_query_are_one_trace(make: Callable[..., Scene]) -> None:
    scene = make()

    with scene.worker(), scene.tracer.start_as_current_span("GET /price") as request:
        assert scene.price.get(4) == 40

    wait_until(lambda: scene.spans("process price"))
    [publish], [process], [load] = (scene.spans(f"{what} price") for what in ("publish", "process", "load"))
    query = next(span for span in scene.spans("SELECT") if span.parent and span.parent.span_id == load.context.span_id)
    chain = [request.get_span_context(), publish.context, process.context, load.context, query.context]
    assert {each.trace_id for each in chain} == {request.get_span_context().trace_id}
    parents = [span.parent.span_id for span in (publish, process, load, query) if span.parent]
    assert parents == [each.span_id for each in chain[:4]]
    assert (publish.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(load.attributes or {}) == {
        "cacheworkers.loader": "price",
        "cacheworkers.calls": ("price[4]",),
        "cacheworkers.where": "worker",
    }
    assert any(isinstance(each, Loaded) for each in scene.events), "events go on to the other hook"


def test_a_task_for_several_requests_links_all_of_them(make: Callable[..., Scene]) -> None:
    scene = make()
    asked = []
    for n in (1, 2, 3):
        with scene.tracer.start_as_current_span(f"GET /price/{n}") as request:
            asked.append(request.get_span_context().trace_id)
            scene.prices.revalidate(n)

    with scene.worker():
        wait_until(
            lambda: sum(len((s.attributes or {})["cacheworkers.calls"]) for s in scene.spans("process prices")) == 3
        )

    processed = scene.spans("process prices")
    found = [span.context.trace_id for span in processed]
    found += [link.context.trace_id for span in processed for link in span.links]
    assert sorted(found) == sorted(asked)


def test_a_message_that_goes_back_for_another_version_keeps_its_trace(make: Callable[..., Scene]) -> None:
    """A rolling deploy: the worker that takes it first knows another version."""
    scene = make()
    known = scene.cache._runtime.workers._dispatcher.infos
    newer = msgspec.structs.replace(known["price"], version=2)

    with scene.tracer.start_as_current_span("GET /price") as request:
        scene.price.revalidate(6)
    known["price"] = newer
    scene.app.finalize()
    scene.cache._runtime.workers._dispatcher._make_task(newer)
    with scene.worker():
        wait_until(lambda: [each for each in scene.events if isinstance(each, TaskRequeued)])
        wait_until(lambda: scene.spans("process price"))

    [process] = scene.spans("process price")
    assert process.context.trace_id == request.get_span_context().trace_id


def test_loads_on_threads_without_celery_belong_to_their_reader_s_trace(valkey: Valkey) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    config = Config(redis_url=valkey.url, namespace=f"tracing{next(_names)}")
    cache = Cache(config, hook=Tracing(tracer_provider=provider))

    @cache.loader(fresh_for=300, wait_for=60)
    def price(load: Load, n: int) -> int:
        return n

    with provider.get_tracer("shop").start_as_current_span("GET /price") as request:
        assert price.get(7) == 7
    cache.close()

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"publish price", "process price", "load price", "GET /price"}
    assert {span.context.trace_id for span in spans.values()} == {request.get_span_context().trace_id}


def test_a_load_in_the_readers_process_is_a_child_of_the_read(make: Callable[..., Scene]) -> None:
    """Its users' own `around_load` is within the span."""
    inside = []

    def around(call: Any) -> Any:
        inside.append(trace.get_current_span().get_span_context().span_id)
        return nullcontext()

    scene = make(around_load=around)
    scene.app.conf.task_always_eager = False
    scene.cache._runtime._worker_breaker.note_undelivered()  # type: ignore[union-attr]

    with scene.tracer.start_as_current_span("GET /price") as request:
        assert scene.price.get(5) == 50

    [load] = scene.spans("load price")
    assert load.parent is not None and load.parent.span_id == request.get_span_context().span_id
    assert inside == [load.context.span_id]


def test_a_header_that_cannot_be_read_costs_its_link_alone(make: Callable[..., Scene]) -> None:
    scene = make()

    with scene.worker():
        for traces in ("nonsense", [1], ["{"], ["{}"]):
            kwargs = {"asks": [["price[6]", "ab" * 8, "", "warm"]]}
            queue = scene.cache.config.queues.warm
            scene.app.send_task("cacheworkers.load.price", kwargs=kwargs, queue=queue, headers={TRACES: traces})
        wait_until(lambda: len(scene.spans("process price")) == 4)

    assert all(span.parent is None for span in scene.spans("process price"))


def test_without_the_hook_nothing_is_in_the_way(valkey: Valkey) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    cache = Cache(Config(redis_url=valkey.url, namespace=f"off{next(_names)}"), celery=app, hook=lambda each: None)

    assert not isinstance(cache._ports.dispatcher, TracedDispatcher)
    cache.close()
