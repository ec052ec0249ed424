"""What binding adds to a Celery app, what it leaves alone, and what a task does with its message; no broker needed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import redis
from celery import Celery, Task
from kombu import Queue
from kombu.exceptions import OperationalError

from cacheworkers import Config, DeclarationError, Load
from cacheworkers.errors import ConfigError, StoreUnavailable, UnknownLoader
from cacheworkers.events import MalformedTask, PublishFailed, TaskDropped
from cacheworkers.flows.ports import LoadRequest, QueueKind
from cacheworkers.workers import celery_settings
from cacheworkers.workers.binding import Binding
from cacheworkers.workers.publish_queue import LoaderInfo
from cacheworkers.workers.publisher import Publisher
from cacheworkers.workers.task_messages import parse_requests, shown

PLAIN = LoaderInfo("product", 10.0, False, 100)
TOKEN = "ab" * 8
OURS = ["cw.miss", "cw.revalidate", "cw.warm", "cw.upkeep"]


def an_ask(number: int, loader: str = "product", queue: QueueKind = "miss") -> LoadRequest:
    return LoadRequest(loader, f"{loader}[{number}]", TOKEN, "", queue)


@pytest.fixture(autouse=True)
def kept() -> Iterator[list[Binding]]:
    """What is bound lives as long as its cache, which these tests do without."""
    yield _kept
    _kept.clear()


_kept: list[Binding] = []


def nothing() -> None:
    """Do nothing."""


def bound(app: Celery, **answers: Any) -> Binding:
    """Bind an app to nothing in particular."""
    made = Binding(
        app,
        Config(),
        **{
            "run_loads": lambda loader, asks, again: None,
            "undelivered": lambda asks: None,
            "upkeep": {"collect_garbage": (nothing, 60.0)},
            "emit": lambda event: None,
            "reset_after_fork": lambda: None,
            **answers,
        },
    )
    _kept.append(made)
    return made


# -- settings


class Conf:
    worker_prefetch_multiplier = 7
    broker_transport_options: ClassVar[dict[str, int]] = {"visibility_timeout": 999, "max_connections": 3}
    beat_schedule: ClassVar[dict[str, Any]] = {
        "cacheworkers-collect_garbage": {"task": "mine", "schedule": 5.0},
        "other": {"task": "x", "schedule": 1.0},
    }
    task_routes: ClassVar[dict[str, Any]] = {"cacheworkers.load.special": {"queue": "special"}}


class DjangoConf:
    CELERY_WORKER_PREFETCH_MULTIPLIER = 7
    CELERY_BROKER_TRANSPORT_OPTIONS = Conf.broker_transport_options
    CELERY_BEAT_SCHEDULE = Conf.beat_schedule
    CELERY_TASK_ROUTES = Conf.task_routes


def set_one_by_one(app: Celery) -> None:
    for name in ("worker_prefetch_multiplier", "broker_transport_options", "beat_schedule", "task_routes"):
        setattr(app.conf, name, getattr(Conf, name))


def queue_of(app: Celery, loader: str) -> str:
    """Return where a message sent by hand goes."""
    name: str = app.amqp.router.route({}, f"cacheworkers.load.{loader}")["queue"].name
    return name


CONFIGURE: dict[str, Callable[[Celery], object]] = {
    "from an object": lambda app: app.config_from_object(Conf),
    "immediately": lambda app: app.config_from_object(Conf, force=True),
    "with a prefix": lambda app: app.config_from_object(DjangoConf, namespace="CELERY"),
    "one by one": set_one_by_one,
}


@pytest.mark.parametrize("when", ["before", "after", "after it was read"])
@pytest.mark.parametrize("how", CONFIGURE)
def test_the_app_s_own_settings_stay(how: str, when: str) -> None:
    """Whether the app is configured before or after it is bound; routes and entries of ours come after its own."""
    app = Celery("shop")
    if when == "before":
        CONFIGURE[how](app)
    bound(app)
    if when == "after it was read":
        assert app.conf.worker_prefetch_multiplier == 4
    if when != "before":
        CONFIGURE[how](app)

    app.finalize()

    assert app.conf.worker_prefetch_multiplier == 7
    assert app.conf.broker_transport_options == {"visibility_timeout": 999, "max_connections": 3}
    assert {name: entry["task"] for name, entry in app.conf.beat_schedule.items()} == {
        "cacheworkers-collect_garbage": "mine",
        "other": "x",
    }
    assert queue_of(app, "special") == "special"
    assert queue_of(app, "product") == "cw.revalidate"


def test_binding_changes_no_setting_but_routes_and_the_schedule() -> None:
    """A visibility timeout, a prefetch, an order of queues or a timeout would hold for the app's own tasks too."""
    plain, app = Celery("plain"), Celery("shop")
    bound(app).register(LoaderInfo("report", 1800.0, False, 100))
    app.finalize()

    changed = {name for name in plain.conf if plain.conf[name] != app.conf[name]}

    assert changed == {"task_routes", "beat_schedule"}


def test_messages_of_ours_are_routed_and_scheduled() -> None:
    app = Celery("shop")
    bound(app)

    assert queue_of(app, "product") == "cw.revalidate"
    entry = app.conf.beat_schedule["cacheworkers-collect_garbage"]
    assert (entry["task"], entry["schedule"]) == ("cacheworkers.collect_garbage", 60.0)
    direct = {"queue": "cw.upkeep", "exchange": "", "routing_key": "cw.upkeep"}
    assert entry["options"] == {**direct, "expires": 60.0, "ignore_result": True}


def test_a_route_of_the_app_s_for_everything_takes_no_message_of_ours_away() -> None:
    """`*` to an exchange of its own: ours name queue, exchange and routing key, and what a message names wins."""
    app = Celery("shop")
    app.conf.task_routes = {"*": {"exchange": "default", "routing_key": "default"}}
    bound(app)

    route = app.amqp.router.route(celery_settings.direct("cw.miss"), "cacheworkers.load.product")

    assert (route["exchange"], route["routing_key"], route["queue"].name) == ("", "cw.miss", "cw.miss")


def test_publishing_gives_up_soon_and_the_app_s_own_connections_do_not() -> None:
    """The publisher's timeouts are its connection's, not the app's."""
    app = Celery("shop")
    bound(app)

    options = celery_settings.own_connection(app.connection_for_write, 0.2).transport_options

    assert options["socket_timeout"] < 1 and options["max_retries"] == 0
    assert app.conf.broker_transport_options == {}


# -- queues


@pytest.mark.parametrize("is_read_first", [False, True])
@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, ["celery"]),
        ({"task_default_queue": "mine"}, ["mine"]),
        ({"task_queues": [Queue("mail"), Queue("bills")]}, ["mail", "bills"]),
        ({"task_queues": [Queue("mail")], "task_create_missing_queues": False}, ["mail"]),
    ],
)
def test_a_worker_without_q_takes_our_queues_after_the_app_s_own(
    settings: dict[str, Any], own: list[str], is_read_first: bool
) -> None:
    app = Celery("shop")
    app.conf.update(settings)
    if is_read_first:
        assert list(app.amqp.queues) == own

    bound(app)

    assert list(app.amqp.queues.consume_from) == [*own, *OURS]
    app.amqp.queues.select("cw.miss")  # -Q
    assert list(app.amqp.queues.consume_from) == ["cw.miss"]


def test_a_queue_of_ours_that_the_app_declares_is_the_app_s() -> None:
    """With arguments of its own, a quorum queue say."""
    mine = Queue("cw.miss", queue_arguments={"x-queue-type": "quorum"})
    app = Celery("shop")
    app.conf.task_queues = [mine]

    bound(app)

    assert app.amqp.queues["cw.miss"] is mine
    assert list(app.amqp.queues.consume_from) == OURS


# -- closing


def test_a_closed_binding_leaves_the_app_as_it_was() -> None:
    """Tasks, queues, routes, entries and steps: whatever a test's app factory binds next is all there is."""
    plain, app = Celery("plain"), Celery("shop")
    app.finalize()
    before = {name: app.conf[name] for name in plain.conf}, set(app.tasks), list(app.amqp.queues)

    made = bound(app)
    made.register(PLAIN)
    assert "cacheworkers.load.product" in app.tasks and "cw.miss" in app.amqp.queues
    made.close()

    after = {name: app.conf[name] for name in plain.conf}, set(app.tasks), list(app.amqp.queues)
    assert {name for name in before[0] if before[0][name] != (after[0][name] or before[0][name])} == set()
    assert before[1:] == after[1:]
    assert app.steps["consumer"] == set()
    assert list(app.amqp.queues.consume_from) == ["celery"]


@pytest.mark.parametrize("is_finalized", [False, True])
def test_an_app_may_be_bound_again_after_a_close(is_finalized: bool) -> None:
    """Its messages go to whatever is bound now, also where the app made its tasks in between only."""
    by_first: list[Any] = []
    by_second: list[Any] = []
    app = Celery("shop")
    if is_finalized:
        app.finalize()
    first = bound(app, run_loads=lambda *call: by_first.append(call))
    first.register(PLAIN)
    first.close()

    second = bound(app, run_loads=lambda *call: by_second.append(call))
    second.register(PLAIN)
    app.tasks["cacheworkers.load.product"].apply(kwargs={"asks": [GOOD]})

    assert (len(by_first), len(by_second)) == (0, 1)
    second.close()


def test_what_was_bound_is_freed_with_its_app() -> None:
    app = Celery("shop", set_as_current=False)
    made = bound(app)
    made.register(PLAIN)
    app.finalize()
    left = weakref.ref(made), weakref.ref(app)

    made.close()
    _kept.clear()
    del made, app
    gc.collect()

    assert [each() for each in left] == [None, None]


def test_an_app_is_bound_once() -> None:
    """Tasks are named after loaders: two caches on one app would load for each other."""
    app = Celery("shop")
    bound(app)

    with pytest.raises(ConfigError, match="one Cache"):
        bound(app)


# -- tasks


@pytest.mark.parametrize("is_finalized", [False, True])
def test_a_loader_s_task(is_finalized: bool) -> None:
    """Late ack, rejected with its worker, ended by time limits in this order; also declared after the app is final."""
    app = Celery("shop")
    workers = bound(app)
    if is_finalized:
        app.finalize()

    workers.register(LoaderInfo("product", 3.0, False, 100, "10/s"))

    task = app.tasks["cacheworkers.load.product"]
    assert task.acks_late and task.reject_on_worker_lost and task.ignore_result and task.acks_on_failure_or_timeout
    assert 8 * 3.0 < task.soft_time_limit < task.time_limit
    assert (task.rate_limit, task.serializer) == ("10/s", "json")


@pytest.mark.parametrize(
    "settings",
    [
        {"task_default_rate_limit": "1/m"},
        {"task_annotations": {"*": {"rate_limit": "1/m"}}},
        {"task_annotations": [{"*": {"rate_limit": "1/m", "priority": 3}}]},
    ],
    ids=str,
)
def test_a_rate_limit_of_all_the_app_s_tasks_is_none_of_ours(settings: dict[str, Any]) -> None:
    """Readers would wait for their loads, one a minute; a limit of the task's own name is meant for it."""
    app = Celery("shop")
    app.conf.update(settings)
    own = {"cacheworkers.load.page": {"rate_limit": "5/s"}}
    theirs = app.conf.task_annotations or []
    app.conf.task_annotations = [*([theirs] if isinstance(theirs, dict) else theirs), own]
    workers = bound(app)

    @app.task(name="mail", shared=False)
    def mail() -> None: ...

    for name, rate in (("product", None), ("price", "10/s"), ("page", None)):
        workers.register(LoaderInfo(name, 3.0, False, 100, rate))
    app.finalize()

    # Other modules' shared tasks are in every app.
    ours = {name for name in app.tasks if name.startswith("cacheworkers.")} | {"mail"}
    rates = {name: task.rate_limit for name, task in app.tasks.items() if name in ours}
    assert rates.pop("mail") == "1/m"
    loads = {"product": 0, "price": "10/s", "page": "5/s"}
    assert {name: rates.pop(f"cacheworkers.load.{name}") for name in loads} == loads
    assert set(rates.values()) == {0}


@pytest.mark.parametrize("how", ["annotations", "a list of annotations", "a base class"])
def test_options_of_all_the_app_s_tasks_are_none_of_ours(how: str) -> None:
    """A second's time limit would kill loads, early acks lose them, and a priority hides messages from the monitor."""
    theirs = {
        "time_limit": 1,
        "soft_time_limit": 1,
        "acks_late": False,
        "reject_on_worker_lost": False,
        "acks_on_failure_or_timeout": False,
        "ignore_result": False,
        "serializer": "pickle",
        "priority": 7,
        "rate_limit": "1/m",
        "autoretry_for": (Exception,),
    }
    base = type("Base", (Task,), theirs if how == "a base class" else {})
    app = Celery("shop", task_cls=base)
    if how != "a base class":
        app.conf.task_annotations = {"*": theirs} if how == "annotations" else [{"*": theirs}]
    workers = bound(app)

    workers.register(LoaderInfo("product", 3.0, False, 100, None))
    app.finalize()

    load = app.tasks["cacheworkers.load.product"]
    assert load.acks_late and load.reject_on_worker_lost and load.acks_on_failure_or_timeout
    ours = [task for name, task in app.tasks.items() if name.startswith("cacheworkers.")]
    assert len(ours) > 1
    for task in ours:
        assert (task.ignore_result, task.serializer, task.priority, task.rate_limit) == (True, "json", 0, 0)
        assert 3.0 < task.soft_time_limit < task.time_limit
        assert not hasattr(task, "_orig_run"), "run is wrapped by autoretry"


GOOD = ["product[1]", TOKEN, "", "miss"]


@pytest.mark.parametrize(
    ("raw", "readable"),
    [
        (None, 0),
        ("nonsense", 0),
        ([], 0),
        ([5], 0),
        ([["product[1]", TOKEN, ""]], 0),
        ([["product[1]", TOKEN, "", "urgent"]], 0),
        ([GOOD, ["product[2]", 7, "", "miss"]], 1),
        ([None, GOOD, GOOD], 2),
    ],
)
def test_a_malformed_message_is_an_event_and_its_readable_leases_are_given_back(raw: Any, readable: int) -> None:
    """It is not performed, raises nothing, and is not retried."""
    performed: list[Any] = []
    given_back: list[LoadRequest] = []
    events: list[Any] = []
    app = Celery("shop")
    workers = bound(
        app,
        run_loads=lambda *call: performed.append(call),
        undelivered=print,
        refuse=lambda asks, _: given_back.extend(asks),
        emit=events.append,
    )
    workers.register(PLAIN)

    result = app.tasks["cacheworkers.load.product"].apply(kwargs={"asks": raw})

    assert result.successful()
    assert [type(event) for event in events] == [MalformedTask]
    assert given_back == [an_ask(1)] * readable
    assert performed == []


def test_a_message_with_other_arguments_is_malformed_too() -> None:
    events: list[Any] = []
    app = Celery("shop")
    bound(app, emit=events.append).register(PLAIN)

    result = app.tasks["cacheworkers.load.product"].apply(args=(1, 2), kwargs={"what": 3})

    assert result.successful()
    assert [type(event) for event in events] == [MalformedTask]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (StoreUnavailable("gone"), [TaskDropped("cacheworkers.load.product", 1, "StoreUnavailable: gone")]),
        (UnknownLoader("product"), []),
    ],
)
def test_a_task_that_cannot_load_ends_without_raising(raised: Exception, expected: list[Any]) -> None:
    """Without the store there is nothing to give back; an unknown loader's leases are the performer's to give back."""
    events: list[Any] = []

    def run_loads(*_: Any) -> None:
        raise raised

    app = Celery("shop")
    bound(app, run_loads=run_loads, emit=events.append).register(PLAIN)

    result = app.tasks["cacheworkers.load.product"].apply(kwargs={"asks": [GOOD]})

    assert result.successful()
    assert events == expected


def test_what_tools_show_of_a_message_is_short() -> None:
    assert shown([an_ask(42)]) == "product[42]"
    assert shown([an_ask(42), *(an_ask(n) for n in range(17))]) == "product[42] +17"
    assert len(shown([LoadRequest("find", f'find["{"x" * 500}"]', TOKEN, "", "miss")])) == 120


def test_asks_are_read_as_they_were_sent() -> None:
    assert parse_requests("product", [GOOD]) == ([an_ask(1)], "")


# -- declaring again


def test_a_loader_may_be_declared_again_by_the_same_module_when_asked(make_cache: Callable[..., Any]) -> None:
    """A cell of a notebook that is run again; its task gets the new limits."""
    app = Celery("shop", broker="memory://")
    app.finalize()
    cache = make_cache(celery=app)

    def declare(**options: Any) -> Any:
        @cache.loader(name="price", **options)
        def price(load: Load, n: int) -> int:
            return n

        return price

    declare(load_for=3)
    with pytest.raises(DeclarationError, match="replace=True"):
        declare()
    before = app.tasks["cacheworkers.load.price"].time_limit

    declare(load_for=30, replace=True)

    assert app.tasks["cacheworkers.load.price"].time_limit > before
    assert cache.loaders["price"].load_for == 30


def test_a_loader_of_another_module_is_not_replaced(make_cache: Callable[..., Any]) -> None:
    cache = make_cache()

    def price(load: Load, n: int) -> int:
        return n

    def other(load: Load, n: int) -> int:
        return -n

    cache.loader()(price)
    other.__module__ = "elsewhere"

    with pytest.raises(DeclarationError, match="declared already, in module"):
        cache.loader(name="price", replace=True)(other)


@pytest.mark.parametrize(
    ("error", "is_used", "times"),
    [
        (OperationalError("cut"), True, 2),
        (OperationalError("cut"), False, 1),  # a new connection has failed: another would too
        (TimeoutError("frozen"), True, 1),
        (redis.exceptions.TimeoutError("frozen"), True, 1),
    ],
)
def test_a_message_is_sent_once_more_if_its_connection_was_cut_but_not_after_a_time_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_used: bool, times: int
) -> None:
    """A frozen broker would take as long again."""
    events: list[Any] = []
    app = Celery("cut", broker="memory://cut", set_as_current=False)
    publisher = Publisher(app, Config(queue_prefix="cut"), lambda requests: None, events.append)
    info = LoaderInfo("price", 10.0, False, 100)
    asked = [LoadRequest("price", "price[1]", "ab" * 8, "", "warm")]
    if is_used:
        publisher.publish(info, "warm", asked)
    sent = []

    def fails(*args: Any, **options: Any) -> None:
        sent.append(args)
        raise OperationalError("not sent") from error

    monkeypatch.setattr(app, "send_task", fails)
    publisher.publish(info, "warm", asked)

    assert len(sent) == times
    assert type(events[-1]) is PublishFailed


def test_the_time_limits_of_a_message_are_those_of_its_calls() -> None:
    """A load that hangs keeps its worker for its own time, not for that of the largest message."""
    name = "limits"
    app = Celery(name, broker="memory://limits", set_as_current=False)
    publisher = Publisher(app, Config(queue_prefix="limits"), lambda requests: None, lambda event: None)
    info = LoaderInfo("price", 10.0, False, 100)
    requests = [LoadRequest("price", f"price[{n}]", "ab" * 8, "", "warm") for n in range(3)]

    publisher.publish(info, "warm", requests[:1])
    publisher.publish(info, "warm", requests)

    limits = []
    with app.connection_for_read() as connection:
        for _ in range(2):
            message = connection.default_channel.basic_get("limits.warm")
            limits.append(message.headers["timelimit"])
    assert limits == [[20.0, 15.0], [40.0, 35.0]]


def test_time_limits_of_an_annotation_by_name_hold_in_messages() -> None:
    """Of all tasks they do not; a message's own would else hide those of its task."""
    app = Celery("named", broker="memory://named", set_as_current=False)
    app.conf.task_annotations = {"*": {"time_limit": 1}, "cacheworkers.load.price": {"time_limit": 60.0}}
    workers = bound(app)
    info, other = LoaderInfo("price", 10.0, False, 100), LoaderInfo("page", 10.0, False, 100)
    workers.register(info)
    workers.register(other)
    app.finalize()
    publisher = Publisher(app, Config(queue_prefix="named"), lambda requests: None, lambda event: None)

    for each in (info, other):
        publisher.publish(each, "warm", [LoadRequest(each.name, f"{each.name}[1]", "ab" * 8, "", "warm")])

    with app.connection_for_read() as connection:
        messages = [connection.default_channel.basic_get("named.warm") for _ in range(2)]
    assert [message.headers["timelimit"] for message in messages] == [[60.0, 15.0], [20.0, 15.0]]
    assert app.tasks["cacheworkers.load.price"].time_limit == 60.0
