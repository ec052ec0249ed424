"""Bind the user's Celery app: a task per loader, a publisher thread, upkeep tasks and their schedule."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from celery import Celery
from celery.signals import beat_init, task_unknown, worker_process_init, worker_ready

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError, ConfigError, StoreError, UnknownLoader
from cacheworkers.events import Event, MalformedTask, TaskDropped, UnknownTask
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.broker_queues import QueueState, queue_states, stamp_messages
from cacheworkers.workers.celery_settings import HARD_MARGIN, PREFIX, SOFT_MARGIN, WorkerSettings
from cacheworkers.workers.publish_queue import LoaderInfo, PublishQueue
from cacheworkers.workers.publisher import Publisher
from cacheworkers.workers.version_mismatch import HOPS, mismatch, wait_before

log = logging.getLogger("cacheworkers")

#: An upkeep task may wait so long behind another, a garbage collection say, and be done all the same, seconds.
WAITS_FOR = 30.0
#: Task names are not the namespace's: two caches on one app would answer for each other.
_bound: weakref.WeakSet[Celery] = weakref.WeakSet()


def _shorten_beat_log(sender: Any, **_: Any) -> None:
    if sender.app in _bound:
        from cacheworkers.workers.beat_log import log_broker_errors_once  # imports celery.beat

        log_broker_errors_once()


beat_init.connect(_shorten_beat_log)


class CeleryWorkers:
    """The dispatcher whose workers are Celery's."""

    def __init__(
        self,
        app: Celery,
        config: Config,
        settings: WorkerSettings,
        run_loads: Callable[[str, list[LoadRequest], bool], None],
        undelivered: Callable[[list[LoadRequest]], None],
        refuse: Callable[[Sequence[LoadRequest], str], None],
        emit: Callable[[Event], None],
        waited_for: Callable[[], int],
    ) -> None:
        self._app = app
        self._settings = settings
        self._run_loads = run_loads
        self._refuse = refuse
        self._emit = emit
        queues = config.queues
        self._queue_names = (queues.miss, queues.revalidate, queues.warm, queues.upkeep)
        self._infos: dict[str, LoaderInfo] = {}
        self._publisher = Publisher(app, config, undelivered, emit)
        self._queue = PublishQueue(
            self._publisher.publish, self._infos.get, config.dispatch_queue, unsent=undelivered, waited_for=waited_for
        )

    @property
    def app(self) -> Celery:
        """The app that is bound."""
        return self._app

    def on_ready(self, work: Callable[[], object]) -> None:
        """Run something in each worker once it is ready, on a thread of its own: it delays and breaks nothing."""

        def ready(sender: Any = None, **_: Any) -> None:
            if getattr(sender, "app", None) is self._app:
                threading.Thread(target=work, name="cacheworkers-on-ready", daemon=True).start()

        worker_ready.connect(ready, weak=False)

    def register(self, info: LoaderInfo) -> None:
        """Make the task of a loader; before workers start, for they look for tasks only then.

        Time limits end a load that ignores its deadline, in prefork pools only: on threads, the statement timeout
        and `load.deadline` are all there is.
        """
        self._infos[info.name] = info
        self._settings.make_room(info.message_for + HARD_MARGIN)

        def load(task: Any, /, *_: Any, asks: Any = None, hops: Any = 0, **__: Any) -> None:
            self._run_task(task, info, asks, hops)

        self._app.task(
            name=PREFIX + info.name,
            bind=True,
            acks_late=True,
            reject_on_worker_lost=True,
            # A load past its hard limit is given up, not given to the next worker to hang.
            acks_on_failure_or_timeout=True,
            ignore_result=True,
            serializer="json",
            soft_time_limit=info.message_for + SOFT_MARGIN,
            time_limit=info.message_for + HARD_MARGIN,
            rate_limit=info.rate_limit,
            loader_version=info.version,  # what a worker tells of its tasks: see probe.py
            shared=False,
        )(load)

    def submit(self, ask: LoadRequest) -> bool:
        """Take an ask; False when there is no room."""
        return self._queue.submit(ask)

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        """Take asks together; how many, from the first on, there was room for."""
        return self._queue.submit_all(asks)

    def queue_states(self) -> list[QueueState]:
        """Ask the broker for the four queues.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        return queue_states(self._app, self._queue_names)

    def close(self) -> None:
        """Publish what is queued, for at most a second, then stop; leases of what is left are given back."""
        if self._queue.close():
            self._publisher.disconnect()

    def reset_after_fork(self) -> None:
        """Begin anew in a child: connections and threads are the parent's."""
        self._queue.reset()
        self._publisher.reset()

    def unknown(self, name: str, message: Any) -> None:
        """A worker without this loader got its message: wake those who wait, so that they load for themselves."""
        asks: list[LoadRequest] = []
        with contextlib.suppress(Exception):  # not ours, whatever its name says
            asks, _ = parse_requests(name.removeprefix(PREFIX), message.payload[1].get("asks"))
        self._emit(UnknownTask(name, len(asks)))
        if asks:
            self._refuse(asks, f"a worker does not know the task {name}")

    def _run_task(self, task: Any, info: LoaderInfo, raw: Any, hops: Any) -> None:
        """Run a task message; one that cannot be read is dropped, never retried."""
        loader = info.name
        asks, reason = parse_requests(loader, raw)
        if reason:
            self._emit(MalformedTask(PREFIX + loader, reason))
            if asks:
                self._refuse(asks, reason)
            return
        asks = self._known(task, info, asks, hops)
        if not asks:
            return
        delivered = task.request.delivery_info or {}
        try:
            self._run_loads(loader, asks, bool(delivered.get("redelivered")))
        except UnknownLoader:
            return
        except StoreError as error:
            # Without the store there is no lease and nowhere to write: readers find their way, this message ends.
            self._emit(TaskDropped(PREFIX + loader, len(asks), f"{type(error).__name__}: {error}"))

    def _known(self, task: Any, info: LoaderInfo, asks: list[LoadRequest], hops: Any) -> list[LoadRequest]:
        """Return what this worker is to perform; what is of another version is handed on to the other workers.

        What has been handed on too often is performed: it is malformed here.
        """
        others = [ask for ask in asks if mismatch(info.name, info.version, ask.call)]
        if not others or not isinstance(hops, int):
            return asks
        reason = mismatch(info.name, info.version, others[0].call)
        if hops >= HOPS[others[0].queue]:
            log.warning("%s, and no worker of that version has taken it in %d hops", reason, hops)
            return asks
        after, expires = wait_before(hops), task.request.expires
        if not self._publisher.requeue(info.name, others, hops + 1, after, expires, reason):
            return asks
        return [ask for ask in asks if ask not in others]


def bind(
    app: Celery,
    config: Config,
    *,
    run_loads: Callable[[str, list[LoadRequest], bool], None],
    undelivered: Callable[[list[LoadRequest]], None],
    upkeep: Mapping[str, tuple[Callable[[], object], float]],
    emit: Callable[[Event], None],
    reset_after_fork: Callable[[], None],
    refuse: Callable[[Sequence[LoadRequest], str], None] = lambda asks, reason: None,
    waited_for: Callable[[], int] = lambda: 0,
    should_run: Callable[[str, float], bool] = lambda task, every: True,
    on_success: Callable[[str], object] = lambda task: None,
) -> CeleryWorkers:
    """Bind the user's Celery app, and return the dispatcher.

    What the app's configuration does not set itself, before or after, it then has: `worker_prefetch_multiplier` 1,
    `broker_connection_retry_on_startup`, and in `broker_transport_options`, option by option, those of
    `settings.WORKER` and `settings.COMMON`; no `global_keyprefix`, for it would rename queues that are not ours.
    Routes for our tasks come after its own.  Adds the upkeep tasks `cacheworkers.<name>` and their beat entries
    `cacheworkers-<name>`, unless an entry of that name is there; and disposes of inherited connections in each pool
    child.  Publishing uses a connection of its own, with other timeouts.

    Args:
        perform: loads asks of one loader in this thread; the last argument says whether the message was redelivered.
        undelivered: gives leases back; called from the publisher thread.
        refuse: wakes those who wait for loads that this worker cannot do, with the reason.
        waited_for: returns how many calls this process's readers wait for.
        upkeep: name -> (what to run, every how many seconds).
        begins: says whether an upkeep task is to run, given its name and its period: not twice in one.
        has_run: called with the name of an upkeep task that has ended well.

    Raises:
        ConfigError: the app is bound already.
    """
    if app in _bound:
        raise ConfigError(
            f"a Celery app may be bound to one Cache, {app!r} is bound to another: they would share their tasks"
        )
    _bound.add(app)
    stamp_messages("cacheworkers.")
    schedule: dict[str, dict[str, Any]] = {}
    for name, (work, every) in upkeep.items():
        app.task(name=f"cacheworkers.{name}", ignore_result=True, shared=False)(
            _upkeep(name, every, work, should_run, on_success)
        )
        schedule[f"cacheworkers-{name}"] = {
            "task": f"cacheworkers.{name}",
            "schedule": every,
            "options": {"queue": config.queues.upkeep, "expires": max(every, WAITS_FOR), "ignore_result": True},
        }
    workers = CeleryWorkers(
        app, config, WorkerSettings(app, config, schedule), run_loads, undelivered, refuse, emit, waited_for
    )

    def forked(**_: Any) -> None:
        reset_after_fork()

    def unknown(sender: Any = None, name: str = "", message: Any = None, **_: Any) -> None:
        if getattr(sender, "app", None) is app and name.startswith(PREFIX):
            workers.unknown(name, message)

    worker_process_init.connect(forked, weak=False)
    task_unknown.connect(unknown, weak=False)
    return workers


def parse_requests(loader: str, raw: Any) -> tuple[list[LoadRequest], str]:
    """Return the asks of a message that can be read, and what is wrong with the message, if anything."""
    if not isinstance(raw, list) or not raw:
        return [], f"asks must be a list of [call, token, seen, queue], got {str(raw)[:80]!r}"
    asks, reason = [], ""
    for row in raw:
        try:
            call, token, seen, queue = msgspec.convert(row, tuple[str, str, str, str])
            fields = {"loader": loader, "call": call, "token": token, "seen": seen, "queue": queue}
            asks.append(msgspec.convert(fields, LoadRequest))
        except msgspec.ValidationError as error:
            reason = reason or f"an ask must be [call, token, seen, queue], got {str(row)[:80]!r}: {error}"
    return asks, reason


def _upkeep(
    name: str,
    every: float,
    work: Callable[[], object],
    should_run: Callable[[str, float], bool],
    on_success: Callable[[str], object],
) -> Callable[[], None]:
    def upkeep() -> None:
        with contextlib.suppress(CacheworkersError):  # each has its own event; the next tick tries again
            if should_run(name, every):
                work()
                on_success(name)

    return upkeep
