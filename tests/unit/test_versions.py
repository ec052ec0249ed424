"""Versions: which messages a worker hands on, when, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from cacheworkers import Config
from cacheworkers.core.signature import version_of
from cacheworkers.events import Event, PublishFailed, TaskRequeued
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.binding import Binding
from cacheworkers.workers.publish_queue import LoaderInfo
from cacheworkers.workers.version_mismatch import MAX_REQUEUES, mismatch, wait_before

TOKEN = "ab" * 8


@pytest.mark.parametrize(
    ("call", "version"),
    [("p[1]", 1), ("p@2[1]", 2), ("p@12[]", 12), ('p["@3"]', 1), ("p@[1]", None), ("p@x[1]", None), ("p@²[1]", None)],
)
def test_the_version_of_a_call(call: str, version: int | None) -> None:
    assert version_of(call) == version


@pytest.mark.parametrize(
    ("known", "call", "said"),
    [
        (1, "product[1]", ""),
        (2, "product@2[1]", ""),
        (1, "product@2[1]", "worker knows product version 1, message asks for 2"),
        (2, "product[1]", "worker knows product version 2, message asks for 1"),
        (1, "other@2[1]", ""),
        (1, "product@x[1]", ""),
    ],
)
def test_what_is_of_another_version(known: int, call: str, said: str) -> None:
    """A call of another loader, or of no version, is malformed: no other worker would make anything of it."""
    assert mismatch("product", known, call) == said


def test_hops_wait_longer_and_longer_up_to_a_second() -> None:
    assert [wait_before(requeues) for requeues in range(7)] == [0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert wait_before(10_000) == 1.0
    assert sum(map(wait_before, range(MAX_REQUEUES["warm"]))) < 60, "a message lives for a minute and its lease"


class Worker:
    """A worker's tasks, on a broker in this process's memory unless another is named."""

    def __init__(self, broker: str = "memory://") -> None:
        self.events: list[Event] = []
        self.performed: list[LoadRequest] = []
        self.app = Celery("shop", broker=broker)
        self.workers = workers = Binding(
            self.app,
            Config(),
            run_loads=lambda loader, asks, again: self.performed.extend(asks),
            undelivered=lambda asks: None,
            upkeep={},
            emit=self.events.append,
            reset_after_fork=lambda: None,
        )
        workers.register(LoaderInfo("product", 10.0, False, 100))

    def take(self, *rows: list[str], **more: Any) -> None:
        result = self.app.tasks["cacheworkers.load.product"].apply(kwargs={"asks": list(rows), **more})
        assert result.successful()

    def message(self, queue: str) -> Any:
        """Return the next message of a queue."""
        with self.app.connection_for_read() as connection:
            return connection.SimpleQueue(queue).get(block=False)


@pytest.mark.parametrize("queue", ["miss", "revalidate", "warm"])
def test_asks_of_another_version_go_back_to_their_queue_and_the_others_are_performed(queue: str) -> None:
    """With their tokens: who has claimed them is waited for."""
    worker = Worker()
    theirs = ["product@2[1]", TOKEN, "", queue]

    worker.take(theirs, ["product[2]", TOKEN, "", queue])

    assert [ask.call for ask in worker.performed] == ["product[2]"]
    assert worker.message(f"cw.{queue}").payload[1] == {"asks": [theirs], "requeues": 1}
    reason = "worker knows product version 1, message asks for 2"
    assert worker.events == [TaskRequeued("product", f"cw.{queue}", 1, 1, reason)]


@pytest.mark.parametrize("requeues", [MAX_REQUEUES["miss"], MAX_REQUEUES["miss"] + 1, "1", None])
def test_what_has_been_requeued_often_enough_is_performed(requeues: Any) -> None:
    """There it is malformed, and its lease given back."""
    worker = Worker()

    worker.take(["product@2[1]", TOKEN, "", "miss"], requeues=requeues)

    assert [ask.call for ask in worker.performed] == ["product@2[1]"]
    assert worker.events == []


def test_what_cannot_be_requeued_is_performed() -> None:
    worker = Worker("redis://127.0.0.1:1/0")
    worker.app.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0}

    worker.take(["product@2[1]", TOKEN, "", "warm"])

    assert [ask.call for ask in worker.performed] == ["product@2[1]"]
    assert [type(event) for event in worker.events] == [PublishFailed]
