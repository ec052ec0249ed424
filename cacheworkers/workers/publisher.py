"""Publisher: publishes groups of load requests as task messages, on the threads of PublishQueue."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from cacheworkers.config import Config
from cacheworkers.events import Event, Published, PublishFailed, TaskRequeued
from cacheworkers.flows.ports import Enqueue, LoadRequest
from cacheworkers.local.breaker import Breaker
from cacheworkers.store.connections.address import parse_url
from cacheworkers.workers import celery_settings
from cacheworkers.workers.broker_queues import STAMP
from cacheworkers.workers.broker_text import shown_error
from cacheworkers.workers.celery_internals import (
    annotations_of,
    enqueues_by_push,
    is_publishing_observed,
    is_same_redis,
    recorded_pushes,
)
from cacheworkers.workers.message_template import MessageTemplate
from cacheworkers.workers.publish_queue import LoaderInfo
from cacheworkers.workers.task_messages import headers_of, rows_of, shown

log = logging.getLogger("cacheworkers")

#: A message outlives its lease by this, seconds: only to shed an old backlog, the token decides.
EXPIRES_MARGIN = 60.0
#: How long a connection to the broker may take, seconds; Redis has its own in `celery_settings.PUBLISHER`.
CONNECT_FOR = 0.2


class Publisher:
    """Sends task messages from one thread, the queue's.

    A connection that the broker has closed, by a restart, is noticed when a message is sent over it: that goes out over
    a new one, and nothing else is tried again.  A message that does not go out is an event, and its leases are given
    back.  A broker that has just failed is not tried again for `Config.breaker_for` seconds: a frozen one costs one
    timeout, not one a message.
    """

    def __init__(
        self,
        app: Celery,
        config: Config,
        undelivered: Callable[[list[LoadRequest]], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._app = app
        self._queues = config.queues
        self._undelivered = undelivered
        self._emit = emit
        self._breaker = Breaker(config.breaker_for)
        self._store = parse_url(config.redis_url)
        self._producer: Any = None
        self._templates: dict[str, MessageTemplate | None] = {}
        self._own_limits: dict[str, dict[str, Any]] = {}

    def prepare(self, infos: Iterable[LoaderInfo]) -> None:
        """Connect, and make a message that is not sent: a process's first costs 45 ms of CPU, most of it imports."""
        for info in list(infos)[:1]:
            template = self._template(info, self._queues.miss)
            if template is not None:  # else the first that is published shows why
                self._templates[info.name] = template

    def publish(self, info: LoaderInfo, queue: str, requests: list[LoadRequest]) -> None:
        """Send one group, or give its leases back."""
        name: str = getattr(self._queues, queue)
        if not self._breaker.allows():
            self._failed(info, name, requests, "not tried: the broker has just failed")
            return
        try:
            self._send_once_more_if_cut(info, name, requests)
        except Exception as error:  # kombu's transports raise what their drivers raise
            self._breaker.failed()
            self.disconnect()
            self._failed(info, name, requests, shown_error(self._app, error))
        else:
            self._breaker.succeeded()
            self._emit(Published(info.name, name, len(requests)))
            if queue == "miss" and info.name not in self._templates:
                self._templates[info.name] = self._template(info, name)

    def message(self, info: LoaderInfo, request: LoadRequest) -> Enqueue | None:
        """Return the message of a request, to be enqueued with its claim; None where it has to be published.

        The first of each loader is: its thread makes the template.
        """
        template = self._templates.get(info.name)
        if template is None or is_publishing_observed(STAMP):
            return None
        name = self._queues.miss
        return Enqueue(template.key, template.message(request), lambda: self._emit(Published(info.name, name, 1)))

    def requeue(
        self, info: LoaderInfo, requests: list[LoadRequest], requeues: int, after: float, expires: Any, reason: str
    ) -> bool:
        """Send a message that a worker has taken to its queue once more; False if it did not go out.

        Called in workers' tasks, on any thread: over the app's own connections, not over the publisher's.

        Args:
            requeues: how often it has been requeued then.
            after: seconds until it is taken.
            expires: when the message taken was to be thrown away, as Celery has it.
        """
        name: str = getattr(self._queues, requests[0].queue)
        try:
            self._send(info, name, requests, {"requeues": requeues}, countdown=after or None, expires=expires)
        except Exception as error:  # kombu's transports raise what their drivers raise
            self._emit(PublishFailed(info.name, name, len(requests), shown_error(self._app, error)))
            return False
        self._emit(TaskRequeued(info.name, name, len(requests), requeues, reason))
        return True

    def disconnect(self) -> None:
        """Drop the connection; the next message makes a new one."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):  # it is broken already
                producer.connection.collect()

    def reset(self) -> None:
        """Begin again in a child: the connection is the parent's, and must not be closed."""
        self._producer = None
        self._templates.clear()  # they name the parent as their origin
        self._breaker.reset()

    def _template(self, info: LoaderInfo, queue: str) -> MessageTemplate | None:
        """Return the template of a loader's messages; None where claims cannot enqueue them."""

        def make(request: LoadRequest, task: str) -> tuple[str, bytes]:
            with recorded_pushes(self._the_producer()) as pushes:
                self._publish(info, queue, [request], task_id=task)
            [(key, message)] = pushes
            return key, message

        try:
            if is_publishing_observed(STAMP) or not enqueues_by_push(self._app):
                return None
            return MessageTemplate(make, _life(info)) if is_same_redis(self._the_producer(), self._store) else None
        except Exception:  # whatever another kombu does otherwise: messages are published then
            log.debug("messages of %s are published, not enqueued with their claims", info.name, exc_info=True)
            return None

    def _send_once_more_if_cut(self, info: LoaderInfo, queue: str, requests: list[LoadRequest]) -> None:
        is_used = self._producer is not None
        try:
            self._publish(info, queue, requests)
        except (ConnectionError, OperationalError) as error:
            # Twice in the queue, if it had gone out after all, is one load: the second finds the lease taken or ended.
            if not is_used or _has_timed_out(error):
                raise
            self.disconnect()
            self._publish(info, queue, requests)

    def _send(
        self,
        info: LoaderInfo,
        queue: str,
        requests: list[LoadRequest],
        more: Mapping[str, int] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        self._app.send_task(
            celery_settings.PREFIX + info.name,
            kwargs={"asks": rows_of(requests), **more},
            **celery_settings.direct(queue),
            ignore_result=True,
            retry=False,
            serializer="json",
            priority=0,
            argsrepr=shown(requests),
            kwargsrepr="",
            headers=headers_of(info.module, requests),
            **options,
        )

    def _publish(self, info: LoaderInfo, queue: str, requests: list[LoadRequest], **options: Any) -> None:
        """Send over the publisher's own connection."""
        self._send(
            info,
            queue,
            requests,
            expires=datetime.datetime.now(datetime.UTC) + _life(info),
            **self._limits(info, len(requests)),
            producer=self._the_producer(),
            # Celery's own looks for the app's result backend among all that is installed.
            result_cls=lambda task: SimpleNamespace(),
            add_to_parent=False,
            **options,
        )

    def _limits(self, info: LoaderInfo, calls: int) -> dict[str, Any]:
        """Return the time limits of a message; those that the app has annotated its task with, by name, hold."""
        own = self._own_limits.get(info.name)
        if own is None:
            self._app.finalize(auto=True)  # before `tasks`, whose lock others wait for while they finalize the app
            task = self._app.tasks.get(celery_settings.PREFIX + info.name)
            annotated = {} if task is None else annotations_of(task)
            own = {name: annotated[name] for name in ("soft_time_limit", "time_limit") if name in annotated}
            self._own_limits[info.name] = own
        most = info.message_for(calls)
        limits = {
            "soft_time_limit": most + celery_settings.SOFT_MARGIN,
            "time_limit": most + celery_settings.HARD_MARGIN,
        }
        return limits | own

    def _the_producer(self) -> Any:
        if self._producer is None:
            connection = celery_settings.own_connection(self._app.connection_for_write, CONNECT_FOR)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def _failed(self, info: LoaderInfo, queue: str, requests: list[LoadRequest], error: str) -> None:
        self._emit(PublishFailed(info.name, queue, len(requests), error))
        self._undelivered(requests)


def _has_timed_out(error: BaseException | None) -> bool:
    """Return whether a frozen broker or a lost host is the reason: another attempt would take as long."""
    while error is not None:
        if isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError":  # redis-py's own is another
            return True
        error = error.__cause__ or error.__context__
    return False


def _life(info: LoaderInfo) -> datetime.timedelta:
    return datetime.timedelta(seconds=info.load_for + EXPIRES_MARGIN)
