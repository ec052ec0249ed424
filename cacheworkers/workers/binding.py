"""Bind the user's Celery app: a task per loader, a publisher thread, upkeep tasks and their schedule."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from celery import Celery
from celery.signals import task_unknown, worker_process_init

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError, StoreError, UnknownLoader
from cacheworkers.events import Event, MalformedTask, Published, PublishFailed, UnknownTask
from cacheworkers.flows.ports import Ask
from cacheworkers.workers import settings
from cacheworkers.workers.queue import AskQueue, LoaderInfo

PREFIX = "cacheworkers.load."
#: A message outlives its lease by this, seconds: only to shed an old backlog, the token decides.
EXPIRES_MARGIN = 60.0


class CeleryWorkers:
    """The dispatcher whose workers are Celery's."""

    def __init__(
        self,
        app: Celery,
        config: Config,
        perform: Callable[[str, list[Ask], bool], None],
        undelivered: Callable[[list[Ask]], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._app = app
        self._config = config
        self._perform = perform
        self._undelivered = undelivered
        self._emit = emit
        self._infos: dict[str, LoaderInfo] = {}
        self._queue = AskQueue(self._publish, self._infos.get, config.dispatch_queue)
        self._producer: Any = None

    def register(self, info: LoaderInfo) -> None:
        """Make the task of a loader."""
        self._infos[info.name] = info

        def load(task: Any, asks: Any = None, **_: Any) -> None:
            self._perform_task(task, info.name, asks)

        # One message may carry several calls of a plain loader, one after the other.
        longest = info.load_for * (1 if info.is_batch else info.group_size("warm"))
        self._app.task(
            name=PREFIX + info.name,
            bind=True,
            acks_late=True,
            reject_on_worker_lost=True,
            ignore_result=True,
            serializer="json",
            soft_time_limit=longest + 5,
            time_limit=longest + 10,
            rate_limit=info.rate_limit,
            shared=False,
        )(load)

    def submit(self, ask: Ask) -> bool:
        """Take an ask; False when there is no room."""
        return self._queue.submit(ask)

    def close(self) -> None:
        """Publish what is queued, for at most a second, then stop."""
        self._queue.close()

    def reset_after_fork(self) -> None:
        """Begin anew in a child: connections and threads are the parent's."""
        self._queue.reset()
        self._producer = None

    def _publish(self, info: LoaderInfo, queue: str, asks: list[Ask]) -> None:
        name = getattr(self._config.queues, queue)
        shown = asks[0].call if len(asks) == 1 else f"{asks[0].call} +{len(asks) - 1}"
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=info.load_for + EXPIRES_MARGIN)
        try:
            self._app.send_task(
                PREFIX + info.name,
                kwargs={"asks": [[ask.call, ask.token, ask.seen, ask.queue] for ask in asks]},
                queue=name,
                expires=expires,
                ignore_result=True,
                retry=False,
                serializer="json",
                argsrepr=shown,
                kwargsrepr="",
                producer=self._the_producer(),
            )
        except Exception as error:  # kombu's transports raise what their drivers raise
            self._drop_producer()
            self._emit(PublishFailed(info.name, name, len(asks), f"{type(error).__name__}: {error}"))
            self._undelivered(asks)
        else:
            self._emit(Published(info.name, name, len(asks)))

    def _the_producer(self) -> Any:
        if self._producer is None:
            connection = self._app.connection_for_write(
                transport_options=settings.publisher_options(self._app), connect_timeout=0.2
            )
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):  # it is broken already
                producer.connection.collect()

    def _perform_task(self, task: Any, loader: str, raw: Any) -> None:
        """Run a task message; one that cannot be read is dropped, never retried."""
        try:
            asks = _asks(loader, raw)
        except (TypeError, ValueError, msgspec.ValidationError) as error:
            self._emit(MalformedTask(PREFIX + loader, str(error)))
            return
        info = task.request.delivery_info or {}
        try:
            self._perform(loader, asks, bool(info.get("redelivered")))
        except UnknownLoader:
            return
        except StoreError as error:
            # Without the store there is no lease and nowhere to write: readers find their way, this message ends.
            self._emit(MalformedTask(PREFIX + loader, str(error)))

    def unknown(self, name: str, message: Any) -> None:
        """A worker without this loader got its message: give the leases back, so that readers need not wait."""
        loader = name.removeprefix(PREFIX)
        asks: list[Ask] = []
        with contextlib.suppress(Exception):
            asks = _asks(loader, message.payload[1].get("asks"))
        self._emit(UnknownTask(name, len(asks)))
        if asks:
            self._undelivered(asks)


def bind(
    app: Celery,
    config: Config,
    *,
    perform: Callable[[str, list[Ask], bool], None],
    undelivered: Callable[[list[Ask]], None],
    upkeep: Mapping[str, tuple[Callable[[], object], float]],
    emit: Callable[[Event], None],
    reset_after_fork: Callable[[], None],
) -> CeleryWorkers:
    """Bind the user's Celery app, and return the dispatcher.

    Sets prefetch 1 and the transport options of `settings.defaults` where the app has not set its own, adds the
    upkeep tasks `cacheworkers.<name>` and their beat entries `cacheworkers-<name>`, and disposes of inherited
    connections in each pool child.

    Args:
        upkeep: name -> (what to run, every how many seconds).
    """
    settings.apply(app, config)
    workers = CeleryWorkers(app, config, perform, undelivered, emit)
    schedule = dict(app.conf.beat_schedule or {})
    for name, (work, every) in upkeep.items():
        app.task(name=f"cacheworkers.{name}", ignore_result=True, shared=False)(_upkeep(work))
        entry = {
            "task": f"cacheworkers.{name}",
            "schedule": every,
            "options": {"queue": config.queues.upkeep, "expires": every, "ignore_result": True},
        }
        schedule.setdefault(f"cacheworkers-{name}", entry)
    app.conf.beat_schedule = schedule

    def forked(**_: Any) -> None:
        reset_after_fork()

    def unknown(name: str = "", message: Any = None, **_: Any) -> None:
        if name.startswith(PREFIX):
            workers.unknown(name, message)

    worker_process_init.connect(forked, weak=False)
    task_unknown.connect(unknown, weak=False)
    return workers


def _upkeep(work: Callable[[], object]) -> Callable[[], None]:
    def upkeep() -> None:
        with contextlib.suppress(CacheworkersError):  # each has its own event; the next tick tries again
            work()

    return upkeep


def _asks(loader: str, raw: Any) -> list[Ask]:
    """Return the asks of a message; raises what says that it is malformed."""
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"asks must be a list of [call, token, seen, queue], got {str(raw)[:80]!r}")
    rows = msgspec.convert(raw, list[tuple[str, str, str, str]])
    return [
        msgspec.convert({"loader": loader, "call": c, "token": t, "seen": s, "queue": q}, Ask) for c, t, s, q in rows
    ]
