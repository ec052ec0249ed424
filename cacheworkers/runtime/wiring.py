"""Runtime: this process's parts, made and wired together; closed together, and begun again after a fork."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cacheworkers.config import Config
from cacheworkers.core.driver import Flow, Step, run
from cacheworkers.core.keys import Keyspace
from cacheworkers.errors import ConfigError, StoreError
from cacheworkers.events import (
    Event,
    Hook,
    ListenerUp,
    Loaded,
    NotStored,
    PublishFailed,
    StoreBack,
    StoreLost,
)
from cacheworkers.flows.load_failure import refuse_loads
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports
from cacheworkers.load_context import AroundLoad
from cacheworkers.local.bulkhead import Bulkhead
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.coherence import Coherence
from cacheworkers.local.fork_check import ForkCheck
from cacheworkers.local.inline_bulkhead import InlineBulkhead
from cacheworkers.local.l1 import L1
from cacheworkers.local.rate_limiter import RateLimiter
from cacheworkers.local.waiters import Waiters
from cacheworkers.runtime.access_reporter import AccessReporter
from cacheworkers.runtime.failure_log import FailureLog
from cacheworkers.runtime.lease_release import LeaseReleases
from cacheworkers.runtime.loader_runner import LoaderRunner
from cacheworkers.runtime.loader_sessions import sessions_for_loads
from cacheworkers.runtime.namespace_marks import NamespaceMarks
from cacheworkers.runtime.queue_lengths import QueueLengths
from cacheworkers.runtime.slow_loads import SlowLoads
from cacheworkers.runtime.traced_dispatcher import TracedDispatcher, TracingHook
from cacheworkers.runtime.worker_breaker import WorkerBreaker
from cacheworkers.store.commands.store import Store
from cacheworkers.store.connections.transport import Transport
from cacheworkers.store.tracking.listener import Listener
from cacheworkers.workers.inline_dispatcher import InlineDispatcher, InlineLoads
from cacheworkers.workers.publish_queue import LoaderInfo
from cacheworkers.workers.thread_dispatcher import ThreadDispatcher
from cacheworkers.workers.worker_command import importable_name

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    from cacheworkers.sql.watch.service import WatchService
    from cacheworkers.workers.binding import UpkeepTasks

log = logging.getLogger("cacheworkers")
_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


class Runtime:
    """The parts of one cache in one process.

    Attributes:
        ports: what flows use.
        workers: where loads go, and where loaders are registered.
        run_loads: runs the loads of one message, blocking this thread.
    """

    def __init__(
        self,
        owner: object,
        config: Config,
        *,
        celery: Celery | None,
        sessions: sessionmaker[Session] | None,
        async_sessions: async_sessionmaker[AsyncSession] | None,
        hook: Hook | None,
        loads: Callable[..., Flow[Any]],
        upkeep: UpkeepTasks,
        around_load: AroundLoad,
    ) -> None:
        """
        Args:
            owner: the cache, by which a nested read knows its own.
            loads: returns the flow that runs the loads of one message, for workers.
            upkeep: what beat has workers do.
        """
        if not callable(around_load):
            raise ConfigError(
                f"around_load must be a function of a LoadCall that returns a context manager, got {around_load!r}; "
                f"leave it out for none"
            )
        self._owner = weakref.ref(owner)
        self.run_loads = lambda *message: run(loads(*message))
        self._celery = celery
        self._hook = hook
        tracing = hook if isinstance(hook, TracingHook) else None
        arounds = (around_load,) if tracing is None else (tracing.around_load, around_load)
        self._releases = LeaseReleases(lambda: self.ports.store, lambda call: self.ports.waiters.wake(call))
        self._slow_loads = SlowLoads(lambda: self.ports.store)
        self._failure_log = FailureLog(config.backoff_for)
        self._limiters: weakref.WeakSet[RateLimiter] = weakref.WeakSet()
        self.workers: Any = None
        self._worker_breaker: WorkerBreaker | None = None

        clock, coherence, l1, waiters = StoreClock(), Coherence(), L1(config.l1_entries, config.l1_bytes), Waiters()
        keys = Keyspace(config.namespace, config.tag_shards)
        link = Transport(
            config,
            clock,
            on_lost=lambda error: self.emit(StoreLost(error)),
            on_back=lambda: self.emit(StoreBack()),
        )
        timeout = max(1.0, config.store_timeout)
        listener = Listener(link, keys, coherence, clock, l1, waiters, timeout=timeout, emit=self.emit)
        self._fork_check = link.check_process = listener.check_process = ForkCheck(self.reset)
        self._bulkhead = (InlineBulkhead if config.testing else Bulkhead)(config.bulkhead)
        self._session_factory: Any = async_sessions if sessions is None else sessions
        self._watching: WatchService | None = None
        self._watching_lock = threading.Lock()
        self._sessions = sessions_for_loads(sessions, async_sessions, config)
        self.ports = ports = Ports(
            config=config,
            store=Store(link, keys, batch_size=config.batch_size),
            listener=listener,
            clock=clock,
            coherence=coherence,
            l1=l1,
            waiters=waiters,
            dispatcher=None,  # type: ignore[arg-type]  # set below: it needs what is made from these ports
            reader=LoaderRunner(owner, "reader", self._sessions, self._bulkhead, coherence, arounds),
            worker=LoaderRunner(owner, "worker", self._sessions, self._bulkhead, coherence, arounds),
            emit=self.emit,
            release_soon=self._releases.add,
            slow_loads=self._slow_loads,
            has_hook=hook is not None,
        )
        self.marks = link.admission = NamespaceMarks(config, ports.store, self.emit, self._session_factory)
        l1.on_gone = ports.access_counter.note_gone
        self._access_reporter = AccessReporter(ports, self.marks)
        listener.on_start = self._begins_to_read
        around_task: dict[str, Any] = {} if tracing is None else {"around_task": tracing.around_task}
        if celery is None:
            ports.dispatcher = self.workers = ThreadDispatcher(config, run_loads=self.run_loads, **around_task)
        else:
            from cacheworkers.runtime.celery_workers import CeleryWorkers

            bound = CeleryWorkers(
                celery,
                ports,
                self.marks,
                run_loads=self.run_loads,
                undelivered=self.undelivered,
                refuse=self.refuse,
                upkeep=upkeep,
                reset_after_fork=self.reset,
                around_task=around_task,
            )
            self.workers, self._worker_breaker = bound.binding, bound.breaker
        if tracing is not None:
            ports.dispatcher = TracedDispatcher(ports.dispatcher, tracing)
        if tracing is not None or config.testing:
            # A span is of what has been claimed: a traced request is published then.
            ports.message_of = lambda request: None
        if config.testing:
            ports.dispatcher = inline = InlineDispatcher(self.run_loads)
            ports.load_now = partial(InlineLoads, inline, loads)
        _runtimes.add(self)

    @property
    def watching(self) -> WatchService:
        """The watched sessions and their outbox; made, and SQLAlchemy imported, when first asked for."""
        if self._watching is None:
            with self._watching_lock:
                if self._watching is None:
                    from cacheworkers.sql.watch.service import WatchService

                    self._watching = WatchService(self.ports, self._session_factory)
        return self._watching

    @property
    def is_watching(self) -> bool:
        """Whether any sessions are watched."""
        return self._watching is not None and self._watching.is_any

    @property
    def waits_for_workers(self) -> bool | None:
        """Whether readers of this process wait for workers at present; None where loads do not go to workers."""
        breaker = None if self.ports.config.testing else self._worker_breaker
        return None if breaker is None else not breaker.is_open

    @property
    def siblings(self) -> list[Runtime]:
        """Other caches of this process with the same store and namespace."""
        mine = self.ports.config
        return [
            each
            for each in list(_runtimes)
            if each is not self
            and (each.ports.config.redis_url, each.ports.config.namespace) == (mine.redis_url, mine.namespace)
        ]

    def emit(self, event: Event) -> None:
        """Pass an event to the hook; what that raises is logged, and stops nothing.  Log a load that failed."""
        if type(event) is Loaded and event.error is not None:
            self._failure_log.log(event)
        elif type(event) is NotStored:
            self._failure_log.log_unstored(event)
        elif type(event) is ListenerUp:
            self.marks.note_soon()
        elif type(event) is PublishFailed and self._worker_breaker is not None:
            self._worker_breaker.note_failed_publish(event.queue, event.error)
        hook = self._hook
        if hook is not None:
            try:
                hook(event)
            except Exception:
                log.exception("the hook raised on %r", event)

    def _begins_to_read(self) -> None:
        self._access_reporter.start()
        if self._worker_breaker is not None and not self.ports.config.testing:
            self.workers.start()

    def register(self, spec: LoaderSpec) -> None:
        """Have workers know a loader."""
        module = importable_name(spec.function.__module__)
        self.marks.declare(spec.name, module, loads_here=spec.policy.on_timeout == "load")
        if spec.limiter is not None:
            self._limiters.add(spec.limiter)
        if self._worker_breaker is not None and spec.policy.on_timeout == "raise":
            self._worker_breaker.never_loaded_by_readers.add(spec.name)
        self.workers.register(
            LoaderInfo(
                spec.name,
                spec.load_for,
                spec.is_batch,
                self.ports.config.batch_size,
                spec.rate_limit,
                spec.load_times,
                spec.policy.version,
                module,
                spec.fingerprint.hex(),
            )
        )

    def queued(self) -> Step:
        """Return the step that looks how long the queues are."""
        return QueueLengths(self.workers)

    def undelivered(self, requests: Sequence[LoadRequest]) -> None:
        """Give leases back whose message did not go out; this process loads its own misses for a while."""
        if self._worker_breaker is not None:
            self._worker_breaker.note_undelivered()
        try:
            self.ports.store.release([(each.call, each.token) for each in requests]).run()
        except StoreError:
            for each in requests:
                self._releases.add(each.call, each.token)
        for each in requests:
            self.ports.waiters.wake(each.call)

    def refuse(self, requests: Sequence[LoadRequest], reason: str) -> None:
        """Wake the readers who wait for loads that this release cannot do: each loads for itself."""
        with contextlib.suppress(StoreError):
            run(refuse_loads(self.ports, requests, reason))

    def close(self) -> None:
        """Report what was read, send what is queued, then stop threads and connections."""
        self._access_reporter.close()
        self.workers.close()
        if self._watching is not None:
            self._watching.close()
        self.ports.listener.close()
        self._releases.close(self.ports.config.store_timeout)
        self._sessions.close()
        self._bulkhead.close(self._sessions.aclose, self.ports.config.store_timeout)
        self.ports.store.link.close()

    def reset(self) -> None:
        """Forget threads, sockets and connections after a fork: they are the parent's."""
        self._fork_check.renew()
        self._failure_log.reset()
        self._releases.reset()
        self._slow_loads.reset()
        self.ports.coherence.reset()
        self._access_reporter.reset()
        self.ports.access_counter.reset()
        self.ports.recent_requests.reset()
        self.ports.l1.reset()
        self.ports.other_release_entries.reset()
        self.ports.waiters.reset()
        self.ports.store.reset()
        self.ports.listener.reset()
        self._bulkhead.reset()
        for limiter in (self.ports.revalidations, *self._limiters):
            limiter.reset()
        self._watching_lock = threading.Lock()
        if self._watching is not None:
            self._watching.reset()
        self._sessions.reset_after_fork()
        self.workers.reset_after_fork()
        if self._worker_breaker is not None:
            self._worker_breaker.reset()


def cache_of(celery: Celery) -> object | None:
    """Return the cache of this process that is bound to a Celery app."""
    return next((process._owner() for process in list(_runtimes) if process._celery is celery), None)


def caches() -> list[object]:
    """Return the caches of this process."""
    return [owner for process in list(_runtimes) if (owner := process._owner()) is not None]


def _after_fork_in_child() -> None:
    for process in list(_runtimes):
        process.reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
