"""Prometheus exporter of what no application process knows: queues, the store, access scores, the outbox.

Each scrape asks the servers; one that does not answer in time has no numbers, and its `cacheworkers_up` is 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cached_property
from itertools import chain
from typing import Any

from cacheworkers.cache import Cache
from cacheworkers.core.extras import needs_extra
from cacheworkers.errors import CacheworkersError
from cacheworkers.ops.metrics import serve
from cacheworkers.ops.shared_metrics import shared_registry
from cacheworkers.store.commands.process_notes import BEAT_KEPT_FOR
from cacheworkers.store.diagnostics.server_facts import StoreDiagnostics
from cacheworkers.workers.diagnostics import app_facts

with needs_extra("metrics"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector, CollectorRegistry

Families = Iterator[GaugeMetricFamily | CounterMetricFamily]
#: How long a server has for its numbers, seconds; less than Prometheus gives a scrape, 10 s by default.
ANSWER_WITHIN = 4.0


class Exporter(Collector):
    """Collects the numbers of one cache's servers."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        #: Server -> when it was asked, and what is to come of it.
        self._asked: dict[str, tuple[float, Future[list[Any]]]] = {}
        self._lock = threading.Lock()

    def collect(self) -> Families:
        """Ask broker, store and database, each on a thread of its own."""
        servers = _gauge("up", "Whether a server answered the exporter.", "server")
        parts: dict[str, Callable[[], Families]] = {"broker": self._queues, "store": self._store}
        if self._upkeep_due:
            parts["store"] = lambda: chain(self._store(), self._upkeep())
        if self._cache.is_watching:
            parts["outbox"] = self._outbox
        asked = {name: self._ask(name, part) for name, part in parts.items()}
        for name, (began, answer) in asked.items():
            try:
                yield from answer.result(max(0.0, began + ANSWER_WITHIN - time.monotonic()))
            except (CacheworkersError, TimeoutError):
                servers.add_metric([name], 0)
            else:
                servers.add_metric([name], 1)
        yield servers

    def describe(self) -> list[Any]:
        """Return nothing: registering must not ask servers that may be away."""
        return []

    def _ask(self, name: str, part: Callable[[], Families]) -> tuple[float, Future[list[Any]]]:
        """Have a server's numbers fetched; one that has not answered an earlier scrape is not asked again."""
        with self._lock:
            asked = self._asked.get(name)
            if asked is None or asked[1].done():
                asked = self._asked[name] = (time.monotonic(), Future())
                # A daemon: a driver without a time limit would keep the process from ending.
                threading.Thread(target=_answer, args=(asked[1], part), name=f"exporter-{name}", daemon=True).start()
        return asked

    def _queues(self) -> Families:
        lengths = _gauge("queue_messages", "Messages that no worker has taken.", "queue")
        ages = _gauge(
            "queue_oldest_age_seconds", "Since the oldest was sent, where the broker is Redis; 0 for none.", "queue"
        )
        for queue in self._cache.queues():
            lengths.add_metric([queue.name], queue.length)
            if queue.oldest_age is not None or not queue.length:
                ages.add_metric([queue.name], queue.oldest_age or 0.0)
        yield lengths
        yield ages

    def _store(self) -> Families:
        stats = self._cache.store_stats()
        yield _number("store_keys", "Keys in the store, of every namespace.", stats.keys)
        yield _number("store_memory_bytes", "Memory that the store uses.", stats.memory)
        yield _number("store_memory_max_bytes", "Its maxmemory; 0 for no limit.", stats.memory_most)
        yield _number("store_clients", "Connections to the store.", stats.clients)
        says = "Keys that the store evicted to make room."
        yield CounterMetricFamily("cacheworkers_store_evictions", says, stats.evictions)
        scores = _gauge(
            "access_score", "Recent reads, halved with every half-life, of the calls that are kept.", "loader"
        )
        for loader in self._cache.loader_stats():
            scores.add_metric([loader.loader], loader.access_score)
        yield scores

    @cached_property
    def _upkeep_due(self) -> dict[str, float]:
        """Return every how many seconds beat sends each upkeep task; nothing where there is no Celery."""
        app = self._cache.internals.app
        return {} if app is None else app_facts(app).upkeep

    def _upkeep(self) -> Families:
        due = self._upkeep_due
        with StoreDiagnostics(self._cache.config) as probe:
            ages = probe.upkeep_age(sorted(due))
        age = _gauge("upkeep_age_seconds", "Since an upkeep task has ended well; a day if that is longer ago.", "task")
        every = _gauge("upkeep_interval_seconds", "How often beat sends it.", "task")
        for task, seconds in ages.items():
            age.add_metric([task], BEAT_KEPT_FOR if seconds is None else seconds)
            every.add_metric([task], due[task])
        yield age
        yield every

    def _outbox(self) -> Families:
        backlog = self._cache.outbox_backlog()
        yield _number("outbox_rows", "Outbox rows that wait for a drain.", backlog.rows)
        yield _number("outbox_oldest_age_seconds", "Since the oldest was written; 0 if none.", backlog.oldest_age)


def serve_cache(cache: Cache, port: int, address: str = "127.0.0.1") -> Callable[[], None]:
    """Show the numbers of a cache's servers at `http://address:port/metrics`; returns what stops it.

    With `PROMETHEUS_MULTIPROC_DIR` set, the metrics of the processes that share it are shown too.

    Raises:
        ConfigError: the port is taken.
    """
    registry = shared_registry() or CollectorRegistry()
    registry.register(Exporter(cache))
    return serve(port, address, registry)


def _answer(answer: Future[list[Any]], part: Callable[[], Families]) -> None:
    try:
        answer.set_result(list(part()))
    except Exception as error:
        answer.set_exception(error)


def _gauge(name: str, says: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cacheworkers_{name}", says, labels=[label])


def _number(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cacheworkers_{name}", says, value)
