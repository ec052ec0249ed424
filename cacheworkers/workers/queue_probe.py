"""Queue probes: messages that show how old the oldest message of a queue is, where the broker does not say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from celery import Celery

from cacheworkers.errors import BrokerUnavailable
from cacheworkers.workers.broker_queues import ANSWER_WITHIN, QueueState
from cacheworkers.workers.broker_text import shown_error
from cacheworkers.workers.celery_settings import direct, own_connection

#: The task of a probe; a worker that runs it marks in the store that it has come through its queue.
TASK = "cacheworkers.queue_probe"
#: A probe that has not come through by then is sent again, seconds: a broker may have lost it.
EXPIRES = 600.0


def mark_of(queue: str) -> str:
    """Return the name of the mark that the probe of a queue leaves."""
    return f"probe:{queue}"


class QueueProbes:
    """Sends one message into each queue in which messages wait, and reports for how long it has been on its way.

    RabbitMQ does not report the age of a message, and taking one to look at it would mark it as redelivered.  An
    empty queue gets no probe.  The age is how long the last probe took or, if that is more, how long this one has been
    on its way.
    """

    def __init__(self, app: Celery, mark_ages: Callable[[Sequence[str]], Mapping[str, float | None]]) -> None:
        """
        Args:
            mark_ages: returns how long ago each mark was left, seconds; None for no mark.
        """
        self._app = app
        self._mark_ages = mark_ages
        #: Queue -> how long the probe before took, seconds, and when this one was sent, by `time.monotonic`.
        self._sent: dict[str, tuple[float, float]] = {}

    def add_ages(self, states: Sequence[QueueState], now: Callable[[], float] = time.monotonic) -> list[QueueState]:
        """Return queue states with the ages that are missing.

        Raises:
            StoreUnavailable: marks cannot be read.
            BrokerUnavailable: a probe cannot be sent.
        """
        waiting = [state.name for state in states if state.length and state.oldest_age is None]
        self._sent = {name: sent for name, sent in self._sent.items() if name in waiting}
        marks = self._mark_ages([mark_of(name) for name in self._sent]) if self._sent else {}
        ages = {name: self._age(name, marks.get(mark_of(name)), now()) for name in waiting}
        return [
            msgspec.structs.replace(each, oldest_age=ages[each.name]) if each.name in ages else each for each in states
        ]

    def _age(self, queue: str, mark_age: float | None, now: float) -> float:
        delay, sent = self._sent.get(queue, (0.0, float("-inf")))
        arrived = None if mark_age is None else now - mark_age
        has_arrived = arrived is not None and arrived >= sent > float("-inf")
        if has_arrived or now - sent > EXPIRES:
            if sent > float("-inf"):
                delay = (arrived if has_arrived and arrived is not None else now) - sent
            self._send(queue)
            sent = now
        self._sent[queue] = delay, sent
        return max(delay, now - sent)

    def _send(self, queue: str) -> None:
        try:
            with own_connection(self._app.connection_for_write, ANSWER_WITHIN) as connection:
                self._app.send_task(
                    TASK,
                    kwargs={"queue": queue},
                    **direct(queue),
                    expires=EXPIRES,
                    ignore_result=True,
                    retry=False,
                    serializer="json",
                    connection=connection,
                )
        except Exception as error:  # kombu's transports raise what their drivers raise
            raise BrokerUnavailable(f"the broker takes no message: {shown_error(self._app, error)}") from error
