"""Queues as the broker has them: how long, and how old their oldest message is."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from celery import Celery
from celery.signals import before_task_publish
from kombu.exceptions import OperationalError

from cacheworkers.errors import BrokerUnavailable

#: A message's header with the instant at which it was sent, seconds since the epoch.
SENT_AT = "cacheworkers_sent_at"
#: How long the broker may take to answer, seconds.
WITHIN = 2.0


class QueueState(msgspec.Struct, frozen=True):
    """One queue.

    Attributes:
        name: its name.
        length: messages that no worker has taken.
        oldest_age: seconds since the first of them was sent; None where the broker cannot tell, or it is empty.
    """

    name: str
    length: int
    oldest_age: float | None


def stamp_messages(prefix: str) -> None:
    """Have every message of a task whose name begins so carry when it was sent."""

    def stamp(sender: Any = None, headers: Any = None, **_: Any) -> None:
        if isinstance(headers, dict) and str(sender).startswith(prefix):
            headers[SENT_AT] = time.time()

    before_task_publish.connect(stamp, weak=False, dispatch_uid=f"{prefix}stamp")


def queue_states(app: Celery, names: Sequence[str]) -> list[QueueState]:
    """Ask the broker for queues by name.

    Raises:
        BrokerUnavailable: it does not answer.
    """
    options = {**(app.conf.broker_transport_options or {}), "socket_timeout": WITHIN, "socket_connect_timeout": WITHIN}
    options["max_retries"] = 0
    try:
        with app.connection_for_read(transport_options=options, connect_timeout=WITHIN) as connection:
            channel = connection.default_channel
            look = _in_redis if connection.transport.driver_type == "redis" else _declared
            return [look(channel, name) for name in names]
    except (OperationalError, OSError, *app.connection_for_read().connection_errors) as error:
        raise BrokerUnavailable(f"the broker does not answer: {type(error).__name__}: {error}") from error


def _in_redis(channel: Any, name: str) -> QueueState:
    # kombu's transport pushes on the left and pops on the right: the last is the oldest.
    with channel.client.pipeline(transaction=False) as pipeline:
        length, oldest = pipeline.llen(name).lindex(name, -1).execute()
    return QueueState(name, length, _age(oldest))


def _declared(channel: Any, name: str) -> QueueState:
    return QueueState(name, channel.queue_declare(queue=name, passive=True).message_count, None)


def _age(raw: bytes | None) -> float | None:
    try:
        sent_at = json.loads(raw or b"{}")["headers"][SENT_AT]
        return max(0.0, time.time() - float(sent_at))
    except (ValueError, KeyError, TypeError):  # a foreign message says nothing of its age
        return None
