"""The state of the four queues as the broker has them: their length, and the age of their oldest message."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from celery import Celery
from celery.signals import before_task_publish
from kombu.exceptions import ChannelError, OperationalError

from cacheworkers.errors import BrokerUnavailable
from cacheworkers.workers.broker_text import shown_error
from cacheworkers.workers.celery_internals import oldest_in_redis
from cacheworkers.workers.celery_settings import own_connection

#: A message's header with the instant at which it was sent, seconds since the epoch.
SENT_AT = "cacheworkers_sent_at"
#: The name under which what stamps them receives the signal.
STAMP = "cacheworkers.stamp"
#: How long the broker may take to answer, seconds.
ANSWER_WITHIN = 2.0


class QueueState(msgspec.Struct, frozen=True):
    """One queue.

    Attributes:
        name: its name.
        length: messages that no worker has taken.
        oldest_age: seconds since the first of them was sent; None where the broker does not say, or it is empty.
    """

    name: str
    length: int
    oldest_age: float | None


def stamp_messages(prefix: str) -> None:
    """Give every message of a task whose name begins with this a header that says when it was sent."""

    def stamp(sender: Any = None, headers: Any = None, **_: Any) -> None:
        if isinstance(headers, dict) and str(sender).startswith(prefix):
            headers[SENT_AT] = time.time()

    before_task_publish.connect(stamp, weak=False, dispatch_uid=STAMP)


def queue_states(app: Celery, names: Sequence[str]) -> list[QueueState]:
    """Ask the broker for queues by name.

    Raises:
        BrokerUnavailable: it does not answer.
    """
    timeouts = {"socket_timeout": ANSWER_WITHIN, "socket_connect_timeout": ANSWER_WITHIN}
    errors: tuple[type[Exception], ...] = (OperationalError, OSError, ValueError)  # the last from a URL that is misread
    try:
        with own_connection(app.connection_for_read, ANSWER_WITHIN, **timeouts) as connection:
            errors += (*connection.connection_errors, *connection.channel_errors)
            if connection.transport.driver_type == "redis":
                return [_in_redis(connection.default_channel, name) for name in names]
            return [QueueState(name, declared_length(connection, name), None) for name in names]
    except errors as error:
        raise BrokerUnavailable(f"the broker does not answer: {shown_error(app, error)}") from error


def declared_length(connection: Any, name: str) -> int:
    """Return how many messages wait in a queue of any broker; 0 where there is no such queue yet."""
    # A channel for each: a broker that has no such queue closes the channel that asked.
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(queue=name, passive=True).message_count)
    except (ChannelError, *connection.channel_errors) as error:
        if str(getattr(error, "reply_code", "")) == "404":
            return 0
        raise


def _in_redis(channel: Any, name: str) -> QueueState:
    length, headers = oldest_in_redis(channel, name)
    try:
        return QueueState(name, length, max(0.0, time.time() - float(headers[SENT_AT])))
    except (ValueError, KeyError, TypeError):  # a foreign message says nothing of its age
        return QueueState(name, length, None)
