"""Undocumented names of Celery and kombu, all of them here; `tests/unit/test_celery_internals.py` says what breaks.

Each function does nothing, or says so, where the installed version has no such name: a loss of comfort, never an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from celery import Celery, _state
from celery.app.amqp import AMQP
from celery.app.annotations import prepare
from celery.signals import after_task_publish, before_task_publish
from kombu.utils.json import dumps
from kombu.utils.scheduling import round_robin_cycle

from cacheworkers.store.connections.address import StoreAddress

# -- apps


def apps_made() -> list[Celery]:
    """Return the Celery apps that this process has made, without Celery's own default."""
    apps: Any = getattr(_state, "_get_active_apps", set)()
    return [app for app in apps if app is not _state.default_app]


# -- queues


def add_queues(app: Celery, names: Sequence[str]) -> None:
    """Have workers without `-Q` consume these queues after the app's own, and the app know them when it sends.

    `app.amqp.queues` is made at its first use, from a configuration that may change until then.  So its class is
    replaced, unless it has been made already.
    """
    kind: Any = app.amqp.queues_cls

    class QueuesWithOurs(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            _add_missing(self, names)

    app.amqp.queues_cls = QueuesWithOurs
    if "queues" in vars(app.amqp):
        _add_missing(app.amqp.queues, names)


def remove_queues(app: Celery, names: Sequence[str]) -> None:
    """Undo `add_queues`."""
    vars(app.amqp).pop("queues_cls", None)
    queues: Any = vars(app.amqp).get("queues")
    if queues is not None:
        queues.deselect(names)
        for name in names:
            queues.pop(name, None)


def consumed_queues(app: Celery) -> list[str]:
    """Return the queues that a worker of this app consumes, once it has read its command line."""
    return list(app.amqp.queues.consume_from)


def is_in_task_of_consumer(app: Celery, queue: str) -> bool:
    """Return whether this thread runs a task in a worker of this app that consumes a queue itself."""
    # Whatever runs tasks has imported this.  Celery takes 4 us to say that there is none: it raises and catches.
    if "celery.app.trace" not in sys.modules:
        return False
    return app.current_worker_task is not None and queue in app.amqp.queues.consume_from


def _add_missing(queues: Any, names: Iterable[str]) -> None:
    """Add queues of the type that the app's own have.

    One quorum queue changes how a worker prefetches and how the app sends tasks with an ETA, those of all its queues.
    """
    has_quorum = any((each.queue_arguments or {}).get("x-queue-type") == "quorum" for each in queues.values())
    for name in names:
        if not dict.__contains__(queues, name):
            queue = queues.new_missing(name)
            queue.queue_arguments = {"x-queue-type": "quorum"} if has_quorum else None
            queues.select_add(queue)


class _OrderedGroup(round_robin_cycle):
    """kombu's order of queues, with some of them as one group: it takes its turn, and its queues go in their order."""

    def __init__(self, group: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # kombu has no types
        self._group = tuple(group)

    def consume(self, n: int) -> list[str]:
        """Return the queues in the order in which they are asked for a message."""
        items = self.items[:n]
        ordered = iter([name for name in self._group if name in items])
        return [next(ordered) if name in self._group else name for name in items]

    def rotate(self, last_used: str) -> str:
        """Put the queue that gave a message last; with it, all of its group."""
        if last_used in self._group:
            self.items.sort(key=lambda name: name in self._group)
            return last_used
        super().rotate(last_used)  # type: ignore[no-untyped-call]
        return last_used


def consume_in_order(channel: Any, group: Sequence[str]) -> bool:
    """Have a worker's channel ask some queues in this order, among all others in turn; False where it cannot be done.

    Only on Redis, where one connection asks all queues; and not where the app has a `queue_order_strategy` of its own.
    """
    if type(getattr(channel, "_queue_cycle", None)) is not round_robin_cycle:
        return False
    channel._queue_cycle = _OrderedGroup(group)
    channel._update_queue_cycle()
    return True


def survive_lost_host(channel: Any) -> bool:
    """Have a worker's channel survive a broker whose host is gone while it holds messages; False if it cannot.

    kombu closes the transport, then the channel; the channel wants to put its messages back, and makes connection
    parameters from a client that is None by then.  That AttributeError is none that closing expects: the worker exits.
    As a lost connection it is expected, and the worker connects again.
    """
    make = getattr(channel, "_connparams", None)
    errors = getattr(channel, "connection_errors", ())
    if make is None or not errors:
        return False

    def parameters(*args: Any, **options: Any) -> Any:
        if getattr(channel.connection, "client", None) is None:
            raise errors[0]("the connection to the broker is closed")
        return make(*args, **options)

    channel._connparams = parameters
    return True


# -- tasks


def forget_task(app: Celery, name: str) -> None:
    """Remove a task, so that the app makes it again.

    While an app is finalized, `app.tasks` must not be touched: another thread that touches it first holds the lock of
    that attribute, and waits for the end of finalizing.
    """
    tasks = vars(app).get("_tasks")
    if tasks is not None:
        tasks.pop(name, None)


def annotations_of(task: Any) -> dict[str, Any]:
    """Return what the app's `task_annotations` say of this task by its name, without what they say of all tasks."""
    found: dict[str, Any] = {}
    for each in prepare(task.app.conf.task_annotations):
        annotate = getattr(each, "annotate", None)
        found |= (annotate(task) or {}) if annotate is not None else {}
    return found


# -- messages in Redis


def is_publishing_observed(own: str) -> bool:
    """Return whether anybody but the receiver of this name receives a signal for each message that is published."""
    receivers = before_task_publish.receivers
    return len(receivers) > 1 or bool(after_task_publish.receivers) or any(key[0] != own for key, _ in receivers)


def enqueues_by_push(app: Celery) -> bool:
    """Return whether sending a task only puts a message into its queue: no events, and no methods replaced."""
    is_stock = type(app).send_task is Celery.send_task and "send_task" not in vars(app) and type(app.amqp) is AMQP
    return is_stock and not app.conf.task_send_sent_event


def is_same_redis(producer: Any, store: StoreAddress) -> bool:
    """Return whether a producer's broker is the very Redis, and database, that a store address names."""
    connection = producer.connection
    if store.kind != "standalone" or connection.transport_cls not in ("redis", "rediss") or len(connection.alt) > 1:
        return False
    channel = producer.channel
    if type(channel).__module__ != "kombu.transport.redis" or not hasattr(channel, "_connparams"):
        return False
    found = channel._connparams()
    if bool(connection.ssl) != store.has_tls or int(found.get("db") or 0) != store.database:
        return False
    return found.get("path") == store.path if store.path else (found.get("host"), found.get("port")) == store.nodes[0]


@contextlib.contextmanager
def recorded_pushes(producer: Any) -> Iterator[list[tuple[str, bytes]]]:
    """Give the list into which come the key and the bytes of each message that would be pushed; nothing is sent."""
    channel, pushes = producer.channel, list[tuple[str, bytes]]()

    def put(queue: str, message: Any, **_: Any) -> None:
        if queue in channel._expires:
            raise ValueError(f"queue {queue} expires")
        key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
        message_text: Any = dumps(message)  # type: ignore[no-untyped-call]  # kombu has no types
        pushes.append((f"{channel.global_keyprefix}{key}", message_text.encode()))

    channel._put = put
    try:
        yield pushes
    finally:
        del channel._put


def oldest_in_redis(channel: Any, queue: str) -> tuple[int, Mapping[str, Any]]:
    """Return how many messages a queue in Redis has, and the headers of the oldest; no headers of a foreign one."""
    # kombu pushes on the left and pops on the right: the last is the oldest.
    with channel.client.pipeline(transaction=False) as pipeline:
        length, oldest = pipeline.llen(queue).lindex(queue, -1).execute()
    try:
        headers = json.loads(oldest or b"{}")["headers"]
    except (ValueError, KeyError, TypeError):
        return length, {}
    return length, headers if isinstance(headers, dict) else {}


# -- log records

#: The loggers that write one line for each task, for each message of an unknown task, and for each beat entry.
TASK_LOGGERS = ("celery.worker.strategy", "celery.app.trace", "celery.worker.request")
UNKNOWN_LOGGER = "celery.worker.consumer.consumer"
BEAT_LOGGER = "celery.beat"


def task_of_record(record: logging.LogRecord) -> str:
    """Return the name of the task that a record of these loggers is about; "" where there is none."""
    args = record.args
    if isinstance(args, dict):
        return str(args.get("name", ""))
    if record.name == UNKNOWN_LOGGER and isinstance(args, tuple) and len(args) == 4 and isinstance(args[2], dict):
        return str(args[2].get("task", ""))  # "Received unregistered task of type %s. ..."
    if isinstance(args, tuple) and len(args) == 2:
        # "Scheduler: Sending due task %s (%s)", and "Discarding revoked task: %s[%s]" of a message that has expired
        return str(args[record.name == BEAT_LOGGER])
    return ""
