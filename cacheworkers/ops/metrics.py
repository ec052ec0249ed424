"""Metrics for Prometheus: a hook that counts events, and where a process shows them.

    metrics = Metrics()
    cache = Cache(hook=metrics)

Names follow Prometheus' conventions: base units, `_total` for counters.  Labels are bounded: loaders, queues, error
classes and words of the protocol; never calls or tags.  With `PROMETHEUS_MULTIPROC_DIR` set, the numbers of all
processes that share the directory are shown together, whichever of them is asked; it must be empty at the start.
"""

from __future__ import annotations

import errno
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cacheworkers import events
from cacheworkers.core.extras import needs_extra
from cacheworkers.errors import ConfigError
from cacheworkers.ops.shared_metrics import make_directory, shared_registry

with needs_extra("metrics"):
    from prometheus_client import (
        REGISTRY,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
        start_http_server,
    )

if TYPE_CHECKING:
    from cacheworkers.cache import Cache

log = logging.getLogger("cacheworkers")

#: Seconds: reads and loads take from a tenth of a millisecond to half a minute.
TIMES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Seconds: what is served may be a day old.
AGES = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

#: Name -> what it says, its labels.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reads_total": ("Reads that returned a value.", ("loader", "freshness", "tier")),
    "read_failures_total": ("Reads that raised.", ("loader", "kind")),
    "take_overs_total": ("Leases that a reader took over because no worker had begun.", ("loader",)),
    "calls_published_total": ("Calls whose task messages went out.", ("loader", "queue")),
    "publish_failures_total": ("Calls whose task messages did not go out.", ("loader", "queue")),
    "messages_dropped_total": ("Task messages that a worker could not use.", ("reason",)),
    "calls_requeued_total": ("Calls that a worker requeued for one that knows their version.", ("loader", "queue")),
    "poisoned_total": ("Calls whose loads kept dying with their worker.", ("loader",)),
    "other_release_entries_total": ("Entries of another release, for which this process loads itself.", ("loader",)),
    "not_stored_total": (
        "Loaded values with no place in the store: a tag or a size is over its limit.",
        ("loader",),
    ),
    "loads_refused_total": ("Calls that workers cannot load: another release asks for them.", ("loader",)),
    "unreadable_entries_total": ("Entries that were foreign or damaged, and read as a miss.", ()),
    "invalidations_total": ("Invalidations acknowledged.", ("mode",)),
    "invalidated_entries_total": ("Entries that invalidations dropped or made stale.", ("mode",)),
    "warmed_total": ("Calls that warming looked at.", ("loader", "outcome")),
    "warming_paused_total": ("Rounds of warming that asked for nothing because workers were behind.", ()),
    "ticks_missed_total": ("Upkeep tasks that ran much later than they should have.", ("task",)),
    "gc_removed_total": ("What garbage collections removed.", ("what",)),
    "shared_namespaces_total": ("Databases and loaders of processes that others of their namespace contradict.", ()),
    "foreign_keys_total": ("Keys of the namespace that garbage collections passed over: they are of another type.", ()),
    "outbox_delivered_total": ("Outbox rows delivered by drains.", ()),
    "outbox_undelivered_total": ("Outbox rows that their commit could not deliver itself.", ()),
    "outbox_replayed_total": ("Outbox rows delivered again after the store was restarted.", ()),
    "store_losses_total": ("How often the store was lost.", ()),
    "listener_losses_total": ("How often the listener was lost.", ()),
}
#: Name -> what it says, its labels, its buckets.
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "age_served_seconds": ("Age of what reads of the store returned.", ("loader",), AGES),
    "read_wait_seconds": ("How long reads of the store waited for their value.", ("loader",), TIMES),
    "load_seconds": ("How long loads took.", ("loader", "outcome", "where"), TIMES),
    "invalidation_seconds": ("From the call of an invalidation to its acknowledgement.", ("mode",), TIMES),
    "listener_lag_seconds": ("From an acknowledgement to its push, at most: a ping's round trip.", (), TIMES),
    "outbox_lag_seconds": ("How old the oldest row was that a drain delivered.", (), AGES),
    "gc_seconds": ("How long garbage collections took.", (), AGES),
}
#: Gauges that are added up over processes.
SUMS = {
    "memory_entries": "Entries in the memory of processes.",
    "memory_bytes": "Estimated bytes of these entries.",
    "memory_evictions": "Entries evicted to make room, by live processes.",
    "memory_unchanged_drops": "Unchanged entries dropped when the store's tracking table was full, by live processes.",
}
#: Gauges that are 1 if any process has lost something, and has not got it back.
LOSSES = {
    "store_lost": "Whether the store does not answer.",
    "listener_lost": "Whether invalidation messages are not received, and memory is bypassed.",
}


_registered: weakref.WeakKeyDictionary[CollectorRegistry, dict[str, Any]] = weakref.WeakKeyDictionary()


class Metrics:
    """Counts what happens; give it to `Cache(hook=...)`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """
        Args:
            registry: where the metrics are registered; the hooks of several caches may share one, and add up there.
        """
        make_directory()
        self._children: dict[tuple[str, ...], Any] = {}
        if registry not in _registered:
            _registered[registry] = _register(registry)
        self._metrics = _registered[registry]
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.Served: self._served,
            events.MemoryHits: self._memory_hits,
            events.MemoryUsed: self._memory_used,
            events.Loaded: self._loaded,
            events.Invalidated: self._invalidated,
            events.GarbageCollected: self._collected,
            events.OutboxRelayed: self._relayed,
            events.Warmed: self._warmed,
            events.ListenerLag: lambda event: self._add("listener_lag_seconds", event.seconds),
            events.ReadFailed: lambda event: self._add("read_failures_total", 1, event.loader, event.kind),
            events.LeaseTakenOver: lambda event: self._add("take_overs_total", 1, event.loader),
            events.Published: lambda event: self._add("calls_published_total", event.calls, event.loader, event.queue),
            events.PublishFailed: lambda event: self._add(
                "publish_failures_total", event.calls, event.loader, event.queue
            ),
            events.MalformedTask: lambda event: self._add("messages_dropped_total", 1, "malformed"),
            events.UnknownTask: lambda event: self._add("messages_dropped_total", 1, "unknown"),
            events.TaskDropped: lambda event: self._add("messages_dropped_total", 1, "no_store"),
            events.TaskRequeued: lambda event: self._add(
                "calls_requeued_total", event.calls, event.loader, event.queue
            ),
            events.ForeignKey: lambda event: self._add("foreign_keys_total", 1),
            events.NamespaceShared: lambda event: self._add("shared_namespaces_total", 1),
            events.Poisoned: lambda event: self._add("poisoned_total", 1, event.loader),
            events.OtherRelease: lambda event: self._add("other_release_entries_total", 1, event.loader),
            events.NotStored: lambda event: self._add("not_stored_total", 1, event.loader),
            events.LoadRefused: lambda event: self._add("loads_refused_total", event.calls, event.loader),
            events.UnreadableEntry: lambda event: self._add("unreadable_entries_total", 1),
            events.InvalidationUndelivered: lambda event: self._add("outbox_undelivered_total", event.rows),
            events.Replayed: lambda event: self._add("outbox_replayed_total", event.rows),
            events.WarmingPaused: lambda event: self._add("warming_paused_total", 1),
            events.UpkeepMissed: lambda event: self._add("ticks_missed_total", 1, event.task),
            events.StoreLost: lambda event: self._lost("store", 1),
            events.StoreBack: lambda event: self._lost("store", 0),
            events.ListenerUp: lambda event: self._lost("listener", 0),
            events.ListenerDown: lambda event: self._lost("listener", 1),
        }

    def __call__(self, event: events.Event, /) -> None:
        """Count an event; unknown events are ignored."""
        handle = self._handlers.get(type(event))
        if handle is not None:
            handle(event)

    # -- events

    def _served(self, event: events.Served) -> None:
        self._add("reads_total", 1, event.loader, event.freshness, event.tier)
        self._add("age_served_seconds", event.age, event.loader)
        self._add("read_wait_seconds", event.waited, event.loader)

    def _memory_hits(self, event: events.MemoryHits) -> None:
        self._add("reads_total", event.reads, event.loader, "fresh", "l1")

    def _memory_used(self, event: events.MemoryUsed) -> None:
        self._set("memory_entries", event.entries)
        self._set("memory_bytes", event.bytes)
        self._set("memory_evictions", event.evictions)
        self._set("memory_unchanged_drops", event.unchanged_drops)

    def _loaded(self, event: events.Loaded) -> None:
        self._add("load_seconds", event.seconds, event.loader, event.outcome, event.where)

    def _invalidated(self, event: events.Invalidated) -> None:
        self._add("invalidations_total", 1, event.mode)
        self._add("invalidated_entries_total", event.entries, event.mode)
        self._add("invalidation_seconds", event.seconds, event.mode)

    def _collected(self, event: events.GarbageCollected) -> None:
        self._add("gc_removed_total", event.members, "members")
        self._add("gc_removed_total", event.entries, "doomed_entries")
        self._add("gc_seconds", event.seconds)

    def _relayed(self, event: events.OutboxRelayed) -> None:
        self._add("outbox_delivered_total", event.rows)
        self._add("outbox_lag_seconds", event.lag)

    def _warmed(self, event: events.Warmed) -> None:
        for outcome in ("fresh", "asked", "held", "left"):
            self._add("warmed_total", getattr(event, outcome), event.loader, outcome)

    def _lost(self, what: str, is_lost: int) -> None:
        self._set(f"{what}_lost", is_lost)
        if is_lost:
            self._add(f"{what}_losses_total", 1)

    # -- the client's metrics, without its look-ups

    def _add(self, name: str, amount: float, *labels: str) -> None:
        """Add to a counter, or observe in a histogram."""
        key = (name, *labels)
        add = self._children.get(key)
        if add is None:
            metric = self._metrics[name]
            child = metric.labels(*labels) if labels else metric
            add = self._children[key] = child.observe if isinstance(metric, Histogram) else child.inc
        add(amount)

    def _set(self, name: str, value: float) -> None:
        self._metrics[name].set(value)


def _register(registry: CollectorRegistry) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, (says, labels) in COUNTERS.items():
        metrics[name] = Counter(_full(name), says, labels, registry=registry)
    for name, (says, labels, buckets) in HISTOGRAMS.items():
        metrics[name] = Histogram(_full(name), says, labels, buckets=buckets, registry=registry)
    for name, says in SUMS.items():
        metrics[name] = Gauge(_full(name), says, registry=registry, multiprocess_mode="livesum")
    for name, says in LOSSES.items():
        metrics[name] = Gauge(_full(name), says, registry=registry, multiprocess_mode="livemax")
    return metrics


def _full(name: str) -> str:
    return f"cacheworkers_{name}"


def exposition(registry: CollectorRegistry = REGISTRY) -> bytes:
    """Return what Prometheus reads: this process's metrics, or those of all that share `PROMETHEUS_MULTIPROC_DIR`.

    Its content type is `prometheus_client.CONTENT_TYPE_LATEST`.
    """
    return generate_latest(shared_registry() or registry)


def serve(port: int, address: str = "127.0.0.1", registry: CollectorRegistry | None = None) -> Callable[[], None]:
    """Show metrics at `http://address:port/metrics` from a daemon thread; returns what stops it.

    Args:
        registry: what to show; None for what `exposition` returns.

    Raises:
        ConfigError: the port is taken, or not allowed.
    """
    try:
        server, thread = start_http_server(port, address, registry or shared_registry() or REGISTRY)
    except (OSError, OverflowError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "another exporter may be there: give each its own port" if is_taken else "address and port must be ours"
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"metrics cannot be shown at {address}:{port}: {reason}; {hint}") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def serve_when_workers_start(cache: Cache, port: int, address: str = "127.0.0.1") -> None:
    """Let each Celery worker show its metrics at `http://address:port/metrics`, from its main process.

    What a prefork pool's children count is there with `PROMETHEUS_MULTIPROC_DIR` alone, a directory of this machine's
    or container's own: its files are named by process id.  A port that is taken is logged, and stops no worker.
    Nothing happens where there is no Celery.
    """

    def show() -> None:
        try:
            serve(port, address)
        except ConfigError as error:
            log.error("%s", error)

    on_ready = getattr(cache.internals.runtime.workers, "on_ready", None)
    if on_ready is not None:
        on_ready(show)
