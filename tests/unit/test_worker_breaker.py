"""When readers stop waiting for workers, when they wait again, and what is logged of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheworkers import Cache, Config
from cacheworkers.errors import BrokerUnavailable
from cacheworkers.flows.ports import LoadRequest, QueueKind
from cacheworkers.runtime.worker_breaker import LOG_EVERY, LOOK_EVERY, OPENS_AFTER, PROBE_EVERY, WorkerBreaker
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.broker_queues import QueueState


def request(queue: QueueKind = "miss", loader: str = "price") -> LoadRequest:
    return LoadRequest(loader, f"{loader}[1]", "ab" * 8, "", queue)


class Dispatcher:
    """Notes what it is given, and answers for a broker."""

    def __init__(self) -> None:
        self.taken: list[LoadRequest] = []
        self.length = 0
        self.is_away = False
        self.is_in_own_worker = False
        self.has_sent = True

    def wait_until_sent(self, within: float) -> bool:
        return self.has_sent

    def submit_all(self, requests: list[LoadRequest]) -> int:
        self.taken += requests
        return len(requests)

    def queue_states(self) -> list[QueueState]:
        if self.is_away:
            raise BrokerUnavailable("away")
        return [QueueState("cw.miss", self.length, None)]

    def may_wait_for_itself(self) -> bool:
        return self.is_in_own_worker

    def worker_command(self) -> str:
        return "celery -A shop worker -Q cw.miss"

    def module_of(self, loader: str) -> str:
        return f"shop.{loader}"


class Scene:
    def __init__(self, cache: Cache) -> None:
        self.now = 1000.0
        self.store = cache._ports.store
        self.dispatcher = Dispatcher()
        self.watch = WorkerBreaker(self.dispatcher, self.store, Config(), lambda: self.now)

    def open(self) -> None:
        for _ in range(OPENS_AFTER):
            self.watch.note_taken_over(request())


@pytest.fixture
def scene(make_cache: Callable[..., Cache]) -> Iterator[Scene]:
    yield Scene(make_cache())
    for thread in threading.enumerate():
        if thread.name == "cacheworkers-worker-breaker":
            thread.join()  # what it logs is not the next test's


def test_readers_stop_waiting_after_some_take_overs_in_a_row(scene: Scene) -> None:
    for _ in range(OPENS_AFTER - 1):
        scene.watch.note_taken_over(request())
    assert scene.watch.submit_all([request()])

    scene.watch.note_taken_over(request())

    assert not scene.watch.submit_all([request()])


def test_a_read_that_workers_served_starts_the_count_again(scene: Scene) -> None:
    for _ in range(10):
        scene.watch.note_taken_over(request())
        scene.watch.note_served()

    assert scene.watch.submit_all([request()])


@pytest.mark.parametrize("queue", ["revalidate", "warm"])
def test_what_nobody_waits_for_is_sent_all_the_same(scene: Scene, queue: QueueKind) -> None:
    scene.open()

    assert scene.watch.submit_all([request(queue)])


def test_a_loader_that_readers_may_not_run_is_sent_all_the_same(scene: Scene) -> None:
    """`on_timeout="raise"`: its readers would get an error instead of waiting."""
    scene.watch.never_loaded_by_readers.add("strict")
    scene.open()

    assert scene.watch.submit_all([request(loader="strict")])


def test_a_message_is_sent_now_and_then_for_workers_to_take(scene: Scene) -> None:
    """No reader waits for it; and a queue without workers does not fill up."""
    scene.open()
    for _ in range(600):
        assert not scene.watch.submit_all([request()])
        scene.now += 1.0

    assert 15 < len(scene.dispatcher.taken) < 40


def test_readers_wait_again_once_a_worker_has_taken_a_message(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.open()
    scene.watch.submit_all([request()])
    scene.now += PROBE_EVERY + LOOK_EVERY
    scene.store.note_taken("miss").run()

    scene.watch.submit_all([request()])

    wait_until(lambda: not scene.watch.is_open)
    assert scene.watch.submit_all([request()])
    wait_until(lambda: "workers take messages from cw.miss again" in caplog.text)


def test_the_next_outage_is_logged_within_the_minute(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The line before it says that workers are there again."""
    scene.dispatcher.length = 3
    for outage in (1, 2):
        scene.open()
        wait_until(lambda outage=outage: caplog.text.count("no worker began") == outage)
        scene.now += PROBE_EVERY
        scene.store.note_taken("miss").run()
        scene.watch._look()
        assert caplog.text.count("workers take messages from cw.miss again") == outage


def test_an_outage_that_was_logged_has_an_end_though_readers_never_stopped_waiting(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.dispatcher.length = 1
    scene.watch.note_served()
    scene.watch.note_taken_over(request())
    wait_until(lambda: scene.watch._is_outage_logged)

    for _ in range(2):
        scene.watch.note_served()

    assert caplog.text.count("workers take messages from cw.miss again") == 1


def test_readers_that_stop_waiting_within_the_minute_after_an_outage_say_why(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.dispatcher.length = 1
    scene.watch.note_taken_over(request())
    wait_until(lambda: scene.watch._is_outage_logged)
    scene.watch.note_served()

    scene.open()

    wait_until(lambda: caplog.text.count("no worker began") == 2)


def test_a_message_that_has_not_left_this_process_is_blamed_on_no_worker(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.dispatcher.has_sent = False
    scene.watch.note_taken_over(request())

    wait_until(lambda: "no worker began price[1] within its wait_for: its message has not left" in caplog.text)


def test_entries_of_another_release_are_logged_once_an_hour_for_each_loader(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.now += 5
    for loader, age in (("product", 1.0), ("product", 1.0), ("page", 1.0), ("shelf", 6.0)):
        scene.watch.note_other_release(loader, age)
    wait_until(lambda: len(caplog.records) == 2)
    assert "shelf" not in caplog.text, "loaded before this process began, as after each deployment"
    assert "product: entries and workers are of a release with another return type" in caplog.text
    assert "restart what runs the older release: this process, or the workers: celery -A shop worker" in caplog.text

    scene.now += 3601
    scene.watch.note_other_release("product", 1.0)
    wait_until(lambda: len(caplog.records) == 3)


def test_a_message_taken_before_says_nothing(scene: Scene) -> None:
    scene.store.note_taken("miss").run()
    scene.now += 60  # by our clock; the mark is as old by the store's
    scene.open()
    client: Any = scene.store.link.client()
    client.pexpire(scene.store.keys.taken("miss"), 600_000 - 60_000)

    scene.watch._look()

    assert scene.watch.is_open


@pytest.mark.parametrize(
    ("length", "is_taken", "said"),
    [
        (3, False, "no worker takes queue cw.miss, where 3 messages wait; start one: celery -A shop worker"),
        (1, False, "no worker takes queue cw.miss, where 1 message waits; start one: celery -A shop worker"),
        (
            3,
            True,
            "for 0 s, and 3 messages wait: none runs, or they are behind; start one, or more: celery -A shop worker",
        ),
        (0, False, "or the broker was restarted, and has lost this message"),
        (0, False, "but to no worker of this store (redis://127.0.0.1"),
        (
            0,
            True,
            "has taken its message from queue cw.miss and not begun: it was killed, it is busy (give it --prefetch",
        ),
        (0, True, "refuses JSON, or has a task class that raises), or it loads into another store"),
        (0, True, "another store or namespace than this process (redis://127.0.0.1"),
    ],
)
def test_the_first_take_over_is_logged_with_its_reason(
    scene: Scene, caplog: pytest.LogCaptureFixture, length: int, is_taken: bool, said: str
) -> None:
    scene.dispatcher.length = length
    if is_taken:
        scene.store.note_taken("miss").run()

    scene.watch.note_taken_over(request())

    wait_until(lambda: caplog.records)
    assert said in caplog.text


def test_what_workers_refuse_is_logged_once_for_each_loader(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """With what the worker says, and the command of one that could."""
    for _ in range(2):
        for loader in ("price", "stock"):
            scene.watch.note_refused(loader, f"a worker does not know the loader {loader}")
            scene.now += LOG_EVERY

    wait_until(lambda: len(caplog.records) == 2)
    assert sorted(record.getMessage() for record in caplog.records)[0] == (
        "a worker does not know the loader price; this process loads the misses of price itself.  All workers that "
        "take queue cw.miss have to import shop.price, of this release, as by app.conf.include = ['shop.price']; "
        "restart those that are older: celery -A shop worker -Q cw.miss"
    )


def test_workers_that_have_gone_are_known_by_their_last_message(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The mark of the last message that one took outlives it by minutes."""
    scene.dispatcher.length = 3
    scene.store.note_taken("miss").run()
    client: Any = scene.store.link.client()
    client.pexpire(scene.store.keys.taken("miss"), 600_000 - 45_000)

    scene.watch.note_taken_over(request())

    wait_until(lambda: caplog.records)
    assert (
        "no worker has taken a message from queue cw.miss for 45 s, and 3 messages wait: none runs, or" in caplog.text
    )


def test_a_broker_that_does_not_answer_is_the_reason(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.dispatcher.is_away = True

    scene.watch.note_taken_over(request())

    wait_until(lambda: caplog.records)
    assert "no worker began price[1] within its wait_for: away" in caplog.text


def test_the_same_is_logged_once_a_minute(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        scene.watch.note_taken_over(request())
        scene.watch.note_failed_publish("cw.miss", "refused")
    wait_until(lambda: len(caplog.records) == 2)

    scene.now += LOG_EVERY
    scene.watch.note_failed_publish("cw.miss", "refused")

    assert [record.getMessage() for record in caplog.records if "cannot be sent" in record.getMessage()] == [
        "messages to cw.miss cannot be sent; until they can, this process loads its own misses: refused"
    ] * 2


def test_a_task_of_a_worker_that_takes_misses_loads_its_own(scene: Scene) -> None:
    """Its worker may have no other slot.  What only workers may load, or nobody waits for, is sent all the same."""
    scene.watch.never_loaded_by_readers.add("strict")
    scene.dispatcher.is_in_own_worker = True

    sent = [scene.watch.submit_all([each]) for each in (request(), request("warm"), request(loader="strict"))]

    assert sent == [False, True, True]
