"""Threads that outlive the read that starts them begin in no context of it, whatever a tracer does to threads."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

import pytest
from celery import Celery

from cacheworkers import Cache, Load
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

_trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="")


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Have each thread begin in its starter's context, as Sentry and OpenTelemetry do; the trace of each, by name."""
    found: dict[str, str] = {}
    start = threading.Thread.start

    def start_within(thread: threading.Thread) -> None:
        found[thread.name] = _trace.get()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_within)
    return found


def test_threads_of_the_process_are_in_no_read_s_trace(
    make_cache: Callable[..., Cache], traces: dict[str, str], valkey: Valkey
) -> None:
    """The publisher's would put each load of the process, in the workers too, into the trace of its first miss."""
    cache = make_cache(celery=Celery("traced", broker=valkey.url))

    @cache.loader(fresh_for=600, wait_for=0.01)
    def number(load: Load, n: int) -> int:
        return n

    _trace.set("the first request")
    assert number.get(1) == 1
    cache._runtime._releases.add("number[1]", "token")
    wait_until(lambda: cache._ports.listener.is_up)

    of_process = {"cacheworkers-publisher", "cacheworkers-listener", "cacheworkers-accesses", "cacheworkers-release"}
    assert {name: traces[name] for name in of_process} == dict.fromkeys(of_process, "")


def test_a_thread_that_is_started_in_a_request_has_not_its_context(traces: dict[str, str]) -> None:
    _trace.set("a request")

    thread = ProcessThread(lambda: None, "its own")
    thread.start()
    thread.join()

    assert traces == {"its own": ""}
    assert thread.daemon
