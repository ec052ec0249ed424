"""The publisher on a real broker: what its messages hold, and what it does when the broker is gone or frozen."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from cacheworkers import Cache, Config, Load
from cacheworkers.events import Event, Published, PublishFailed
from cacheworkers.flows.ports import LoadRequest, QueueKind
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import free_port, wait_until
from cacheworkers.workers import publish_queue as queues
from cacheworkers.workers.binding import Binding
from cacheworkers.workers.publish_queue import LoaderInfo

TOKEN = "ab" * 8
BREAKER_FOR = 3600.0


def an_ask(number: int, loader: str = "product", queue: QueueKind = "miss") -> LoadRequest:
    return LoadRequest(loader, f"{loader}[{number}]", TOKEN, "", queue)


class Web:
    """A web process's publisher; its thread can be held right after a message, to queue up what follows."""

    def __init__(self, broker: str, breaker_for: float) -> None:
        self.events: list[Event] = []
        self.given_back: list[LoadRequest] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.app = Celery("web", broker=broker)
        self.workers = Binding(
            self.app,
            Config(breaker_for=breaker_for),
            run_loads=lambda loader, asks, again: None,
            undelivered=self.given_back.extend,
            upkeep={},
            emit=self._emit,
            reset_after_fork=lambda: None,
        )
        self.workers.register(LoaderInfo("product", 10.0, False, 100))
        self.workers.register(LoaderInfo("products", 10.0, True, 4))

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        assert self.go_on.wait(60)

    def ask(self, *asks: LoadRequest) -> list[Event]:
        """Submit asks, and return the events of what became of all of them."""
        before = len(self.events)
        for ask in asks:
            assert self.workers.submit_all([ask])
        wait_until(lambda: sum(e.calls for e in self.events[before:]) == len(asks))  # type: ignore[attr-defined]
        return self.events[before:]

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """Return the messages of a queue, oldest first, as they are in the broker."""
        with self.app.connection_for_read() as connection:
            raw = connection.default_channel.client.lrange(queue, 0, -1)
        return [json.loads(each) for each in reversed(raw)]


@pytest.fixture
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def web(broker: Valkey, request: pytest.FixtureRequest) -> Iterator[Web]:
    made = Web(broker.url, getattr(request, "param", BREAKER_FOR))
    yield made
    made.go_on.set()
    made.workers.close()


def asks_of(message: dict[str, Any]) -> list[list[str]]:
    found: list[list[str]] = json.loads(base64.b64decode(message["body"]))[1]["asks"]
    return found


def test_a_message_names_its_calls_and_ends_with_its_lease(web: Web) -> None:
    """One task per loader; tools show the calls; JSON, no result, and thrown away a minute after the lease."""
    started = datetime.now(UTC)

    events = web.ask(an_ask(42))

    (message,) = web.messages("cw.miss")
    headers = message["headers"]
    assert events == [Published("product", "cw.miss", 1)]
    assert asks_of(message) == [["product[42]", TOKEN, "", "miss"]]
    assert (headers["task"], headers["argsrepr"], headers["kwargsrepr"]) == (
        "cacheworkers.load.product",
        "product[42]",
        "",
    )
    assert headers["ignore_result"] and message["content-type"] == "application/json"
    assert 70 <= (datetime.fromisoformat(headers["expires"]) - started).total_seconds() < 100


def test_what_is_asked_while_a_message_goes_out_is_grouped(web: Web) -> None:
    """Without any delay of its own: the first goes alone, the rest meanwhile together, each kind to its queue."""
    web.go_on.clear()
    web.workers.submit_all([an_ask(0)])
    wait_until(lambda: web.events)
    for number in range(1, 11):
        web.workers.submit_all([an_ask(number, queue="revalidate")])
    for number in range(1, 7):
        web.workers.submit_all([an_ask(number, "products")])
    web.go_on.set()

    wait_until(lambda: len(web.events) == 5)

    assert [len(asks_of(message)) for message in web.messages("cw.miss")] == [1, 4, 2]
    assert [len(asks_of(message)) for message in web.messages("cw.revalidate")] == [8, 2]
    shown = [message["headers"]["argsrepr"] for message in web.messages("cw.revalidate")]
    assert shown == ["product[1] +7", "product[9] +1"]


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_broker_that_is_gone_or_frozen_is_tried_once_and_the_leases_are_given_back(
    web: Web, broker: Valkey, how: str
) -> None:
    """Every ask is accounted for; after the first failure none waits for the broker until the breaker lets one try."""
    web.ask(an_ask(0))
    getattr(broker, how)()

    events = web.ask(*(an_ask(number) for number in range(1, 21)))

    assert {type(event) for event in events} == {PublishFailed}
    errors = [event.error for event in events if isinstance(event, PublishFailed)]
    assert not errors[0].startswith("not tried")
    assert all(error.startswith("not tried") for error in errors[1:])
    assert sorted(ask.call for ask in web.given_back) == sorted(f"product[{number}]" for number in range(1, 21))


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_submitting_goes_on_while_the_broker_does_not_answer(web: Web, broker: Valkey, how: str) -> None:
    """With the publisher thread held up, asks are taken all the same: nothing in `submit` waits for it."""
    getattr(broker, how)()
    web.go_on.clear()
    web.workers.submit_all([an_ask(0)])
    wait_until(lambda: web.events)

    taken = [web.workers.submit_all([an_ask(number)]) for number in range(1, 101)]

    assert all(taken)
    assert len(web.events) == 1
    web.go_on.set()
    wait_until(lambda: len(web.given_back) == 101)


@pytest.mark.parametrize("web", [0.0], indirect=True)
@pytest.mark.parametrize("how", ["kill", "pause"])
def test_the_next_message_goes_out_once_the_broker_is_back(web: Web, broker: Valkey, how: str) -> None:
    """The connection is made again; nobody has to restart the web process."""
    web.ask(an_ask(1))
    getattr(broker, how)()
    assert [type(event) for event in web.ask(an_ask(2))] == [PublishFailed]

    broker.start() if how == "kill" else broker.resume()

    assert web.ask(an_ask(3)) == [Published("product", "cw.miss", 1)]
    assert asks_of(web.messages("cw.miss")[-1])[0][0] == "product[3]"


@pytest.mark.parametrize("web", [0.0], indirect=True)
def test_a_restart_that_nobody_noticed_loses_no_message(web: Web, broker: Valkey) -> None:
    """The broker restarted between two messages: the second goes out over a new connection."""
    web.ask(an_ask(1))
    broker.kill()
    broker.start()

    events = web.ask(an_ask(2))

    assert [asks_of(message)[0][0] for message in web.messages("cw.miss")] == ["product[2]"]
    assert events == [Published("product", "cw.miss", 1)]
    assert web.ask(an_ask(3)) == [Published("product", "cw.miss", 1)]


def test_the_next_host_of_several_is_asked_where_one_is_gone(broker: Valkey, patient_publisher: None) -> None:
    """An app may name its brokers with ";", or as a list: workers consume from the one that answers."""
    web = Web(f"redis://127.0.0.1:{free_port()}/0;{broker.url}", BREAKER_FOR)
    try:
        events = web.ask(an_ask(42))
        states = web.workers.queue_states()
    finally:
        web.workers.close()

    assert events == [Published("product", "cw.miss", 1)]
    assert {each.name: each.length for each in states}["cw.miss"] == 1


def test_a_broker_that_was_never_there_raises_nothing() -> None:
    web = Web("redis://127.0.0.1:1/0", BREAKER_FOR)

    events = web.ask(an_ask(1), an_ask(2))
    web.workers.close()

    assert {type(event) for event in events} == {PublishFailed}
    assert [ask.call for ask in web.given_back] == ["product[1]", "product[2]"]


def test_closing_while_the_broker_is_frozen_gives_every_lease_back(
    web: Web, broker: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends does not wait for a broker, and readers elsewhere do not wait for its leases."""
    monkeypatch.setattr(queues, "CLOSE_WITHIN", 0.05)
    broker.pause()
    web.go_on.clear()
    for number in range(10):
        web.workers.submit_all([an_ask(number)])

    web.workers.close()

    web.go_on.set()
    wait_until(lambda: len(web.given_back) == 10)
    assert not web.workers.submit_all([an_ask(99)])


def test_parent_and_child_of_a_fork_publish_side_by_side(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child makes a connection of its own, and leaves the parent's working."""
    monkeypatch.setattr(queues, "CLOSE_WITHIN", 60.0)
    web.ask(an_ask(1))

    child = os.fork()
    if child == 0:
        web.workers.reset_after_fork()
        web.events.clear()
        web.workers.submit_all([an_ask(2)])
        web.workers.close()
        os._exit(0 if web.events == [Published("product", "cw.miss", 1)] else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    events = web.ask(an_ask(3))

    assert status == 0
    assert events == [Published("product", "cw.miss", 1)]
    calls = [asks_of(message)[0][0] for message in web.messages("cw.miss")]
    assert calls == ["product[1]", "product[2]", "product[3]"]


def test_an_app_is_finalized_while_another_thread_touches_its_tasks(broker: Valkey) -> None:
    web = Web(broker.url, BREAKER_FOR)
    finalizing = threading.Thread(target=web.app.finalize, daemon=True)

    with vars(Celery)["tasks"].lock:
        finalizing.start()
        finalizing.join(10)
        assert not finalizing.is_alive()
    assert "cacheworkers.load.product" in web.app.tasks


def test_a_message_that_goes_out_while_the_app_is_finalized_holds_up_nobody(broker: Valkey) -> None:
    web = Web(broker.url, BREAKER_FOR)
    finalize, is_publishing = web.app.finalize, threading.Event()

    def finalize_from_anywhere(auto: bool = False) -> None:
        if threading.current_thread() is not finalizing:
            is_publishing.set()
        finalize(auto)

    touched: list[Any] = []

    def publish_and_touch(**_: Any) -> None:
        web.workers.submit_all([an_ask(1)])
        if is_publishing.wait(10):
            touched.append(web.app.tasks)

    web.app.finalize = finalize_from_anywhere
    web.app.on_after_finalize.connect(publish_and_touch, weak=False)
    finalizing = threading.Thread(target=web.app.finalize, daemon=True)
    finalizing.start()
    finalizing.join(20)

    assert not finalizing.is_alive()
    assert touched
    wait_until(lambda: [each for each in web.events if isinstance(each, Published)])
    web.workers.close()


def test_a_process_that_begins_to_read_makes_a_message_ahead(broker: Valkey) -> None:
    """Celery's first message takes fifty times as long as the next: no reader waits for it."""
    app = Celery("web", broker=broker.url)
    caches = Cache(Config(redis_url=broker.url)), Cache(Config(redis_url=broker.url), celery=app)

    def product(load: Load, number: int) -> int:
        return number

    for cache in caches:
        assert cache.loader(product).get(1) == 1  # loaded by the first, and a hit of the second

    wait_until(lambda: caches[1]._ports.message_of(an_ask(2)) is not None)
    with app.connection_for_read() as connection:
        assert connection.default_channel.client.llen("cw.miss") == 0
    for cache in caches:
        cache.close()
