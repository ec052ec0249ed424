"""Messages that are enqueued with their claims are those that the installed Celery and kombu publish."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery._state import _task_stack
from celery.signals import after_task_publish, before_task_publish

from cacheworkers import Cache, Config, Load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.store.connections.address import parse_url
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers import publisher as publishing
from cacheworkers.workers.celery_internals import enqueues_by_push, is_same_redis
from cacheworkers.workers.task_messages import headers_of, with_headers

QUEUE = "template.miss"
#: Of a message, what is another each time.
OWN = ("id", "root_id", "expires", "cacheworkers_sent_at", "correlation_id", "delivery_tag", "expiration")
SNAPSHOT = "17 1700000000000"
Shop = tuple[Any, Any]


@pytest.fixture(autouse=True)
def nobody_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another test's app has connected in this process: a template is made only where nobody observes."""
    for signal in (before_task_publish, after_task_publish):
        monkeypatch.setattr(signal, "receivers", [])
        signal.sender_receivers_cache.clear()


def request(number: int) -> LoadRequest:
    return LoadRequest("price", f"price[{number}]", f"{number:016x}", "", "miss", snapshot=SNAPSHOT)


def pushed(enqueue: Any) -> bytes:
    """Return the message as the store's script puts it together."""
    head, tail = enqueue.message
    return head + SNAPSHOT.encode() + tail  # type: ignore[no-any-return]


@pytest.fixture
def make_shop(valkey: Valkey, patient_publisher: None) -> Iterator[Callable[..., Shop]]:
    """Return what makes a dispatcher and its queue's client; one message has been published."""
    caches: list[Cache] = []
    client: Any = parse_client(valkey.url)

    def make(broker: str = "", declare: Callable[[Celery], object] = lambda app: None) -> Shop:
        app = Celery("shop", broker=broker or valkey.url)
        declare(app)
        config = Config(redis_url=valkey.url, namespace="template")
        cache = Cache(config, celery=app)
        caches.append(cache)

        @cache.loader(wait_for=60, load_for=60)
        def price(load: Load, number: int) -> int:
            return number

        dispatcher = cache._runtime.workers._dispatcher
        assert dispatcher.submit_all([request(1)])
        wait_until(lambda: "price" in dispatcher._publisher._templates)
        return dispatcher, client

    client.delete(QUEUE)
    yield make
    for cache in caches:
        cache.close()
    client.delete(QUEUE)


def parse_client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


def parts(message: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a message, its body decoded, without what is another each time, and that."""
    found = json.loads(message)
    found["body"] = json.loads(b64decode(found["body"]))
    own = {}
    for of in (found["headers"], found["properties"]):
        own.update({name: of.pop(name) for name in OWN if name in of})
    return found, own


def test_an_enqueued_message_is_the_published_one(make_shop: Callable[..., Shop]) -> None:
    dispatcher, client = make_shop()
    [published] = client.lrange(QUEUE, 0, -1)

    made = dispatcher.message(request(1))
    again = dispatcher.message(request(1))

    assert made.key == QUEUE
    [(same, own), (theirs, others)] = [parts(pushed(made)), parts(published)]
    assert same == theirs
    assert same["headers"]["cacheworkers_snapshots"] == [SNAPSHOT]
    assert own.keys() == others.keys()
    assert not {own["id"], own["delivery_tag"]} & set(parts(pushed(again))[1].values())
    assert own["id"] == own["root_id"] == own["correlation_id"]
    assert 0 <= own["cacheworkers_sent_at"] - others["cacheworkers_sent_at"] < 3600


def test_what_is_traced_is_published(valkey: Valkey) -> None:
    """Its span is of what has been claimed, and is made after that."""

    class Hook:
        def __call__(self, event: Any) -> None: ...
        def with_traces(self, requests: Any) -> Any:
            raise AssertionError("nothing has been claimed")

        def around_task(self, *_: Any) -> Any: ...
        def around_load(self, *_: Any) -> Any: ...

    cache = Cache(Config(redis_url=valkey.url), celery=Celery("traced", broker=valkey.url), hook=Hook())
    try:
        assert cache._ports.message_of(request(1)) is None
    finally:
        cache.close()


def test_the_prefix_of_the_broker_s_keys_is_kept(make_shop: Callable[..., Shop]) -> None:
    def declare(app: Celery) -> None:
        app.conf.broker_transport_options = {"global_keyprefix": "shop:"}

    dispatcher, client = make_shop(declare=declare)

    assert dispatcher.message(request(2)).key == f"shop:{QUEUE}"
    assert client.llen(f"shop:{QUEUE}") == 1
    client.delete(f"shop:{QUEUE}")


@pytest.mark.parametrize("signal", [before_task_publish, after_task_publish])
def test_who_observes_publishing_observes_every_message(make_shop: Callable[..., Shop], signal: Any) -> None:
    """A tracing package that adds headers, for one: its receiver is called for each."""
    dispatcher, _ = make_shop()
    assert dispatcher.message(request(2)) is not None

    def receive(**_: Any) -> None:
        pass

    signal.connect(receive)
    try:
        assert dispatcher.message(request(2)) is None
    finally:
        signal.disconnect(receive)


def no_stock(app: Celery) -> None:
    app.send_task = lambda *args, **options: Celery.send_task(app, *args, **options)


@pytest.mark.parametrize(
    "declare",
    [
        no_stock,
        lambda app: app.conf.update(task_send_sent_event=True),
        lambda app: app.conf.update(task_compression="gzip"),
        lambda app: setattr(app.amqp, "argsrepr_maxsize", 10),
    ],
    ids=["send_task is replaced", "events are sent", "compressed", "nothing"],
)
def test_messages_that_a_template_cannot_make_are_published(
    make_shop: Callable[..., Shop], declare: Callable[[Celery], object], request: pytest.FixtureRequest
) -> None:
    dispatcher, _ = make_shop(declare=declare)

    is_made = dispatcher.message(LoadRequest("price", "price[3]", "0" * 16, "", "miss")) is not None

    assert is_made == ("nothing" in request.node.name)


def test_a_broker_elsewhere_has_its_messages_published(make_shop: Callable[..., Shop], valkey: Valkey) -> None:
    """Another database of the same server is elsewhere, too."""
    dispatcher, client = make_shop(broker=valkey.url.rpartition("/")[0] + "/3")

    assert dispatcher.message(request(2)) is None
    assert not client.llen(QUEUE)


def test_a_message_looks_for_no_result_backend(make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery looks for one among all installed packages, and may connect to it: nobody waits for a load's result."""
    asked: list[Celery] = []
    monkeypatch.setattr(Celery, "backend", property(asked.append))

    dispatcher, _ = make_shop()

    assert dispatcher.message(request(2)) is not None
    assert not asked


def test_a_message_made_in_a_task_is_no_child_of_it(make_shop: Callable[..., Shop]) -> None:
    """Celery stores a task's children with its result, and a load has none."""
    dispatcher, _ = make_shop()

    @dispatcher.app.task
    def task() -> None: ...

    task.push_request(called_directly=False, children=[])
    _task_stack.push(task)
    try:
        assert dispatcher.message(request(2)) is not None
        assert task.request.children == []
    finally:
        _task_stack.pop()
        task.pop_request()


def test_an_eager_app_has_nothing_enqueued(make_shop: Callable[..., Shop]) -> None:
    dispatcher, _ = make_shop()
    dispatcher.app.conf.task_always_eager = True

    assert dispatcher.message(request(2)) is None


def test_while_many_are_waited_for_requests_share_messages(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, _ = make_shop()
    monkeypatch.setattr(dispatcher, "_waited_for", lambda: 100)

    assert dispatcher.message(request(2)) is None


def test_a_fork_s_child_makes_its_own(make_shop: Callable[..., Shop]) -> None:
    """The parent's names the parent as the origin."""
    dispatcher, _ = make_shop()

    dispatcher._publisher.reset()

    assert dispatcher.message(request(2)) is None


@pytest.mark.parametrize(
    ("store", "is_same"),
    [
        ("redis://there:6380/0", True),
        ("redis://user:secret@there:6380", True),
        ("redis://there:6380/1", False),
        ("redis://there:6379/0", False),
        ("redis://here:6380/0", False),
        ("rediss://there:6380/0", False),
        ("sentinel://there:6380/main", False),
        ("cluster://there:6380", False),
        ("unix:///run/redis.sock", False),
    ],
)
def test_the_same_redis(store: str, is_same: bool) -> None:
    class Channel:
        def _connparams(self) -> dict[str, Any]:
            return {"host": "there", "port": 6380, "db": 0}

    Channel.__module__ = "kombu.transport.redis"

    class Connection:
        transport_cls, alt, ssl = "redis", ["redis://there:6380/0"], None

    class Producer:
        connection, channel = Connection(), Channel()

    assert is_same_redis(Producer(), parse_url(store)) == is_same


def test_of_several_brokers_none_is_the_same() -> None:
    class Connection:
        transport_cls, alt, ssl = "redis", ["redis://a", "redis://b"], None

    class Producer:
        connection = Connection()

    assert not is_same_redis(Producer(), parse_url("redis://a"))


def test_the_stock_app_enqueues_by_push() -> None:
    assert enqueues_by_push(Celery("stock"))
    assert publishing.STAMP in {key[0] for key, _ in before_task_publish.receivers} or not before_task_publish.receivers


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, ["", ""]),
        ({"cacheworkers_snapshots": ["1 2", ""]}, ["1 2", ""]),
        ({"cacheworkers_snapshots": ["1 2"]}, ["", ""]),
        ({"cacheworkers_snapshots": ["1 2", 3]}, ["", ""]),
        ({"cacheworkers_snapshots": "1 2"}, ["", ""]),
    ],
)
def test_a_worker_reads_what_headers_say_of_each_request(headers: dict[str, Any], found: list[str]) -> None:
    """What cannot be read is as if it was not there: loads begin."""
    requests = [LoadRequest("price", f"price[{number}]", "a" * 16, "", "miss") for number in (1, 2)]

    assert [each.snapshot for each in with_headers(SimpleNamespace(**headers), requests)] == found


def test_headers_say_of_each_request_what_is_read() -> None:
    requests = [msgspec.structs.replace(request(1), trace="t"), msgspec.structs.replace(request(2), snapshot="")]

    made = with_headers(
        SimpleNamespace(**headers_of("shop", requests)),
        [msgspec.structs.replace(each, trace="", snapshot="") for each in requests],
    )

    assert made == requests
