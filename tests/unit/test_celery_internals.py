"""The contract with the installed Celery and kombu: each undocumented name that we use still does what it did."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, _state, current_app
from celery.app import amqp, trace
from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import request
from celery.worker.consumer.consumer import UNKNOWN_TASK_ERROR
from kombu import Queue
from kombu.transport import redis as kombu_redis
from kombu.utils.scheduling import round_robin_cycle

from cacheworkers.testing import Valkey
from cacheworkers.workers.celery_internals import (
    TASK_LOGGERS,
    _OrderedGroup,
    add_queues,
    annotations_of,
    apps_made,
    consume_in_order,
    forget_task,
    oldest_in_redis,
    remove_queues,
    survive_lost_host,
    task_of_record,
)

GROUP = ("miss", "revalidate", "warm")


@pytest.fixture
def app(valkey: Valkey) -> Iterator[Celery]:
    made = Celery("shop", broker=valkey.url, set_as_current=False)
    yield made
    made.close()


def test_apps_of_the_process_are_known_by_name(app: Celery) -> None:
    """`_state._get_active_apps` and `_state.default_app`, which is Celery's own and nobody's."""
    assert app in apps_made()
    with ThreadPoolExecutor(1) as another:  # where no app is current
        assert another.submit(lambda: current_app.main).result()
    assert _state.default_app is not None and _state.default_app not in apps_made()


def test_queues_are_made_by_a_class_that_may_be_replaced() -> None:
    """`AMQP.queues_cls`, `Queues.select_add`, `new_missing` and `deselect`."""
    app = Celery("shop")
    assert app.amqp.queues_cls is amqp.Queues

    add_queues(app, GROUP)
    assert list(app.amqp.queues.consume_from) == ["celery", *GROUP]
    assert [app.amqp.queues[name].routing_key for name in GROUP] == list(GROUP)

    remove_queues(app, GROUP)
    assert list(app.amqp.queues) == list(app.amqp.queues.consume_from) == ["celery"]
    assert app.amqp.queues_cls is amqp.Queues


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_our_queues_have_the_type_of_the_apps_own(kind: str) -> None:
    """A single quorum queue would change how workers prefetch, and how the app's tasks with an ETA are sent."""
    app = Celery("shop", broker="amqp://")
    app.conf.update(task_default_queue_type=kind, task_create_missing_queue_type="quorum")

    add_queues(app, GROUP)

    kinds = {(app.amqp.queues[name].queue_arguments or {}).get("x-queue-type", "classic") for name in GROUP}
    assert kinds == {kind}
    assert detect_quorum_queues(app, "amqp")[0] == (kind == "quorum")


def test_a_channel_of_redis_asks_queues_in_the_order_of_its_cycle(app: Celery) -> None:
    """`Channel._queue_cycle`, a `round_robin_cycle` by default, and `_update_queue_cycle`."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        assert type(channel._queue_cycle) is round_robin_cycle
        for name in ("mail", "warm", "miss"):
            Queue(name)(channel).declare()
            channel.basic_consume(name, True, lambda message: None, name)

        assert consume_in_order(channel, GROUP)

        assert channel._queue_cycle.consume(3) == ["mail", "miss", "warm"]
        for name in ("mail", "warm", "miss"):
            channel.basic_cancel(name)


def test_an_order_that_the_app_has_chosen_stays(app: Celery) -> None:
    app.conf.broker_transport_options = {"queue_order_strategy": "sorted"}
    with app.connection_for_read() as connection:
        channel = connection.default_channel

        assert not consume_in_order(channel, GROUP)

        assert type(channel._queue_cycle) is not _OrderedGroup


def test_a_broker_that_is_no_redis_keeps_its_own_order() -> None:
    with Celery("shop", broker="memory://").connection_for_read() as connection:
        assert not consume_in_order(connection.default_channel, GROUP)


def test_a_group_takes_its_turn_and_its_queues_go_in_their_order() -> None:
    """With messages in all queues: one of the app's own, then one of the group's most urgent, in turn."""
    waiting = {"mail": 3, "bills": 2, "miss": 2, "revalidate": 1, "warm": 1}
    cycle = _OrderedGroup(GROUP)
    cycle.update(["mail", "bills", "warm", "miss", "revalidate"])
    taken = []

    while any(waiting.values()):
        queue = next(name for name in cycle.consume(5) if waiting[name])
        waiting[queue] -= 1
        taken.append(queue)
        cycle.rotate(queue)

    assert taken == ["mail", "bills", "miss", "mail", "bills", "miss", "mail", "revalidate", "warm"]


def test_a_message_in_redis_is_json_with_its_headers_and_the_oldest_is_on_the_right(app: Celery) -> None:
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for number in range(3):
            app.send_task("x", headers={"number": number}, queue="layout", connection=connection)

        length, headers = oldest_in_redis(channel, "layout")
        channel.client.lpush("foreign", "no message")
        foreign = oldest_in_redis(channel, "foreign")
        channel.client.delete("layout", "foreign")

    assert (length, headers["number"]) == (3, 0)
    assert foreign == (1, {})
    assert isinstance(connection.transport, kombu_redis.Transport)


RECORDS: dict[str, tuple[str, Any, Any]] = {
    "received": (
        "celery.worker.strategy",
        trace.LOG_RECEIVED,
        {"id": "1", "name": "cacheworkers.collect_garbage", "args": "", "kwargs": "", "eta": None},
    ),
    "succeeded": (
        "celery.app.trace",
        trace.LOG_SUCCESS,
        {
            "id": "1",
            "name": "cacheworkers.collect_garbage",
            "return_value": "",
            "runtime": 0.0,
            "args": "",
            "kwargs": "",
        },
    ),
    "sent by beat": (
        "celery.beat",
        "Scheduler: Sending due task %s (%s)",
        ("collect_garbage", "cacheworkers.collect_garbage"),
    ),
    "expired": ("celery.worker.request", "Discarding revoked task: %s[%s]", ("cacheworkers.collect_garbage", "1")),
    "unknown": (
        "celery.worker.consumer.consumer",
        UNKNOWN_TASK_ERROR,
        (KeyError("cacheworkers.collect_garbage"), "[]", {"task": "cacheworkers.collect_garbage"}, {}),
    ),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_log_records_name_their_task(kind: str) -> None:
    """`args` of Celery's records; a real worker's log is looked at in tests/integration/test_worker_log.py."""
    name, message, args = RECORDS[kind]
    record = logging.LogRecord(name, logging.INFO, "", 0, message, (args,) if isinstance(args, dict) else args, None)

    assert task_of_record(record) == "cacheworkers.collect_garbage"
    assert "cacheworkers.collect_garbage" in record.getMessage()
    assert json.dumps(record.msg)


def test_a_message_that_has_expired_is_logged_as_the_worker_s_other_lines(caplog: pytest.LogCaptureFixture) -> None:
    """`Request.revoked` has its task's name first, on a logger whose lines about the library's tasks are lowered."""
    expired = SimpleNamespace(
        _already_revoked=False,
        id="1",
        name="cacheworkers.load.product",
        expires="then",
        maybe_expire=lambda: True,
        _announce_revoked=lambda *_: None,
        stamps={},
        stamped_headers=[],
        task=None,
        _context={},
        message=None,
        worker_pid=None,
    )

    with caplog.at_level(logging.INFO):
        assert request.Request.revoked(expired)

    [record] = caplog.records
    assert record.name in TASK_LOGGERS and task_of_record(record) == "cacheworkers.load.product"


def test_a_closed_channel_s_parameters_are_a_lost_connection(app: Celery) -> None:
    """`Channel._connparams`, `Channel.connection` and `Transport.client`, None once closed."""
    connection = app.connection_for_read()
    channel = connection.default_channel
    assert channel._connparams()["host"] == connection.hostname

    assert survive_lost_host(channel)
    assert channel._connparams()["host"] == connection.hostname
    channel.connection.client = None

    with pytest.raises(connection.connection_errors):
        channel._connparams()


def test_annotations_of_one_task_leave_those_of_all_tasks_out() -> None:
    class Mail:
        def annotate(self, task: Any) -> dict[str, Any] | None:
            return {"priority": 2} if task.name == "mail" else None

    app = Celery("shop")
    app.conf.task_annotations = [{"*": {"rate_limit": "1/m"}, "mail": {"rate_limit": "5/s"}}, Mail()]

    @app.task(name="mail", shared=False)
    def mail() -> None: ...

    @app.task(name="report", shared=False)
    def report() -> None: ...

    app.finalize()
    assert annotations_of(app.tasks["mail"]) == {"rate_limit": "5/s", "priority": 2}
    assert annotations_of(app.tasks["report"]) == {}
    assert app.tasks["report"].rate_limit == "1/m"


def test_a_task_that_is_forgotten_is_made_again() -> None:
    """`Celery._tasks`, the registry."""
    app = Celery("shop")

    def first() -> int:
        return 1

    def second() -> int:
        return 2

    app.task(name="forgotten", shared=False, lazy=False)(first)
    forget_task(app, "forgotten")
    forget_task(app, "no such task")
    assert "forgotten" not in app.tasks

    app.task(name="forgotten", shared=False, lazy=False)(second)
    assert app.tasks["forgotten"]() == 2
