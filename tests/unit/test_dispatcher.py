"""The queue of asks, the settings it publishes with, and what a task does with its message; no broker needed."""

from __future__ import annotations

import os
import threading

import pytest

from cacheworkers import Config
from cacheworkers.errors import StoreUnavailable, UnknownLoader
from cacheworkers.flows.ports import LoadRequest, QueueKind
from cacheworkers.workers import binding
from cacheworkers.workers import publish_queue as queues
from cacheworkers.workers.publish_queue import LoaderInfo, PublishQueue
from cacheworkers.workers.task_messages import NotLoadedLog
from cacheworkers.workers.thread_dispatcher import ThreadDispatcher

PLAIN = LoaderInfo("product", 10.0, False, 100)
OTHER = LoaderInfo("page", 10.0, False, 100)
BATCH = LoaderInfo("products", 10.0, True, 5)
INFOS = {info.name: info for info in (PLAIN, OTHER, BATCH)}
TOKEN = "ab" * 8


def an_ask(number: int, loader: str = "product", queue: QueueKind = "miss") -> LoadRequest:
    return LoadRequest(loader, f"{loader}[{number}]", TOKEN, "", queue)


@pytest.fixture(autouse=True)
def patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is closed sends what it holds, however long its threads take for it on this machine."""
    monkeypatch.setattr(queues, "CLOSE_WITHIN", 60.0)


class Stuck:
    """A queue whose first group is on its way until `let_go`; notes every group as (queue, loader, numbers)."""

    def __init__(self, most: int = 1000) -> None:
        self.groups: list[tuple[str, str, list[int]]] = []
        self.given_back: list[LoadRequest] = []
        self._began, self._coherence = threading.Event(), threading.Event()
        self.queue = PublishQueue(self._send, INFOS.get, most, unsent=self.given_back.extend)
        assert self.queue.submit_all([an_ask(0)])
        assert self._began.wait(60)

    def _send(self, info: LoaderInfo, queue: str, asks: list[LoadRequest]) -> None:
        self._began.set()
        assert self._coherence.wait(60)
        self.groups.append((queue, info.name, [int(ask.call.split("[")[1][:-1]) for ask in asks]))

    def let_go(self) -> list[tuple[str, str, list[int]]]:
        """Let everything go out, and return the groups after the first."""
        self._coherence.set()
        assert self.queue.close()
        return self.groups[1:]


def test_misses_go_first_and_what_is_queued_meanwhile_is_grouped() -> None:
    """A plain loader's misses go one a message, what nobody waits for up to eight, a batch up to its size."""
    stuck = Stuck()
    for number in range(1, 11):
        stuck.queue.submit_all([an_ask(number, queue="warm")])
    for number in range(1, 4):
        stuck.queue.submit_all([an_ask(number, queue="revalidate")])
    for number in range(1, 8):
        stuck.queue.submit_all([an_ask(number, "products")])
    for number in range(1, 3):
        stuck.queue.submit_all([an_ask(number)])

    assert stuck.let_go() == [
        ("miss", "products", [1, 2, 3, 4, 5]),
        ("miss", "product", [1]),
        ("miss", "products", [6, 7]),
        ("miss", "product", [2]),
        ("revalidate", "product", [1, 2, 3]),
        ("warm", "product", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("warm", "product", [9, 10]),
    ]


def test_one_loader_s_many_misses_do_not_keep_another_s_waiting() -> None:
    """Loaders take turns."""
    stuck = Stuck()
    for number in range(1, 4):
        stuck.queue.submit_all([an_ask(number)])
    stuck.queue.submit_all([an_ask(9, "page")])

    assert stuck.let_go()[1] == ("miss", "page", [9])


def test_submit_does_not_wait_and_is_refused_when_there_is_no_room() -> None:
    """While sending is stuck, asks are taken up to the bound, then refused; none is lost."""
    stuck = Stuck(most=3)

    taken = [stuck.queue.submit_all([an_ask(number)]) for number in range(1, 6)]

    assert taken == [True, True, True, False, False]
    assert [numbers for _, _, numbers in stuck.let_go()] == [[1], [2], [3]]


def test_a_signal_s_handler_that_raises_as_the_lock_is_taken_does_not_keep_it() -> None:
    """Python may run it at the end of a Condition's own `__enter__`, whose block then never begins, and never ends."""

    class Interrupted(threading.Condition):
        def __enter__(self) -> bool:
            super().__enter__()
            raise KeyboardInterrupt

    sent: list[str] = []
    queue = PublishQueue(lambda info, queue, asks: sent.append(asks[0].call), INFOS.get, 10)
    queue._has_asks.__class__ = queue._has_ended.__class__ = Interrupted

    queue.submit_all([an_ask(1)])

    assert queue.wait_until_sent(60.0) and queue.close()
    assert sent == ["product[1]"]


def test_what_is_queued_or_on_its_way_has_not_been_sent() -> None:
    stuck = Stuck()

    assert not stuck.queue.wait_until_sent(0.0), "the first group is on its way"
    stuck.queue.submit_all([an_ask(1)])
    stuck._coherence.set()

    assert stuck.queue.wait_until_sent(60.0)
    assert [numbers for _, _, numbers in stuck.groups] == [[0], [1]]
    stuck.let_go()


@pytest.mark.parametrize("error", [ValueError("broken"), BaseException("no Exception")])
def test_sending_that_raises_costs_its_own_group_only(error: BaseException) -> None:
    """Its asks are given back, and the next group goes out."""
    sent: list[LoadRequest] = []
    given_back: list[LoadRequest] = []

    def send(info: LoaderInfo, queue: str, asks: list[LoadRequest]) -> None:
        if asks[0].call == "product[1]":
            raise error
        sent.extend(asks)

    queue = PublishQueue(send, INFOS.get, 10, unsent=given_back.extend)

    queue.submit_all([an_ask(1)])
    queue.submit_all([an_ask(2)])

    assert queue.close()
    assert (sent, given_back) == ([an_ask(2)], [an_ask(1)])


@pytest.mark.parametrize(("after", "expected"), [(0.0, ["prepared", "product[1]"]), (60.0, ["product[1]"])])
def test_a_queue_s_thread_prepares_while_there_are_no_requests(
    monkeypatch: pytest.MonkeyPatch, after: float, expected: list[str]
) -> None:
    """What the first message costs is paid before a reader waits for it; what comes sooner does not wait for that."""
    monkeypatch.setattr(queues, "PREPARE_AFTER", after)
    done: list[str] = []
    is_prepared = threading.Event()

    def prepare() -> None:
        done.append("prepared")
        is_prepared.set()

    queue = PublishQueue(lambda info, queue, asks: done.append(asks[0].call), INFOS.get, 10, prepare=prepare)
    queue.start()
    assert after or is_prepared.wait(60)
    queue.submit_all([an_ask(1)])

    assert queue.close()
    assert done == expected


def test_asks_of_an_unknown_loader_are_given_back() -> None:
    stuck = Stuck()
    stuck.queue.submit_all([an_ask(1, "nobody")])

    assert stuck.let_go() == []
    assert stuck.given_back == [an_ask(1, "nobody")]


def test_leases_of_what_a_closed_queue_never_sent_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` waits for a bounded time; then what is left is given back, and nothing more is taken."""
    monkeypatch.setattr(queues, "CLOSE_WITHIN", 0.05)
    stuck = Stuck()
    stuck.queue.submit_all([an_ask(1)])
    stuck.queue.submit_all([an_ask(2, "page", "warm")])

    is_over = stuck.queue.close()

    assert not is_over
    assert stuck.given_back == [an_ask(1), an_ask(2, "page", "warm")]
    assert not stuck.queue.submit_all([an_ask(3)])
    assert stuck.let_go() == []


def test_submit_without_a_thread_to_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit of threads, or while the interpreter ends, the caller keeps its lease to give back; no error."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    queue = PublishQueue(lambda info, queue, asks: None, INFOS.get, 10)
    monkeypatch.setattr(threading.Thread, "start", start)

    assert not queue.submit_all([an_ask(1)])


def test_a_child_of_a_fork_sends_its_own_asks_and_not_its_parent_s() -> None:
    """The child has neither its parent's thread nor its queue, whatever state they were in."""
    stuck = Stuck()
    stuck.queue.submit_all([an_ask(1)])
    reading, writing = os.pipe()

    child = os.fork()
    if child == 0:
        stuck.queue._send = lambda info, queue, asks: print(asks[0].call, file=open(writing, "w"))
        stuck.queue.submit_all([an_ask(7)])
        os._exit(0 if stuck.queue.close() else 1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert said == b"product[7]\n"
    assert stuck.let_go() == [("miss", "product", [1])]


@pytest.mark.parametrize(
    ("load_for", "is_batch", "queue", "size"),
    [
        (10.0, False, "miss", 1),
        (10.0, False, "revalidate", 8),
        (0.5, False, "warm", 8),
        (30.0, False, "warm", 2),
        (1800.0, False, "warm", 1),
        (1800.0, True, "miss", 100),
    ],
)
def test_size_of_a_group(load_for: float, is_batch: bool, queue: str, size: int) -> None:
    """Slow loaders share a message with fewer, so that it does not keep its worker for an hour."""
    assert LoaderInfo("x", load_for, is_batch, 100).group_size(queue) == size


@pytest.mark.parametrize(
    ("load_time", "queue", "size"),
    [
        (0.0, "miss", 32),
        (0.0005, "miss", 20),
        (0.0045, "miss", 4),
        (0.1, "miss", 1),
        (0.0, "warm", 32),
        (0.1, "warm", 8),
    ],
)
def test_calls_that_load_quickly_share_a_message(load_time: float, queue: str, size: int) -> None:
    """As many as take 20 ms together, with what each costs besides."""
    info = LoaderInfo("x", 10.0, False, 100)
    info.load_times.note(load_time)

    assert info.group_size(queue) == size


@pytest.mark.parametrize(
    ("load_for", "is_batch", "calls", "longest"),
    [(10.0, False, 1, 10.0), (10.0, False, 3, 30.0), (10.0, False, 32, 80.0), (1800.0, False, 1, 1800.0),
     (10.0, True, 100, 10.0)],
)  # fmt: skip
def test_how_long_a_message_may_take(load_for: float, is_batch: bool, calls: int, longest: float) -> None:
    assert LoaderInfo("x", load_for, is_batch, 100).message_for(calls) == longest


def test_local_workers_run_several_groups_together_and_group_what_waits() -> None:
    """With both threads busy, what comes is grouped; a load that raises does not end its thread."""
    both_busy, coherence, seen = threading.Barrier(3), threading.Event(), []

    def run_loads(loader: str, asks: list[LoadRequest], is_redelivered: bool) -> None:
        seen.append((loader, len(asks), is_redelivered))
        if len(seen) <= 2:
            both_busy.wait(60)
            assert coherence.wait(60)
            raise UnknownLoader("nobody")

    workers = ThreadDispatcher(Config(bulkhead=2), run_loads=run_loads)
    for info in INFOS.values():
        workers.register(info)

    workers.submit_all([an_ask(1)])
    workers.submit_all([an_ask(1, "page")])
    both_busy.wait(60)
    for number in range(5):
        workers.submit_all([an_ask(number, "products")])
    coherence.set()
    workers.close()

    assert sorted(seen[:2]) == [("page", 1, False), ("product", 1, False)]
    assert seen[2:] == [("products", 5, False)]


def test_local_workers_are_daemons() -> None:
    """A load under way does not keep the process from ending."""
    names: list[tuple[str, bool]] = []
    workers = ThreadDispatcher(
        Config(),
        run_loads=lambda loader, asks, again: names.append(
            (threading.current_thread().name, threading.current_thread().daemon)
        ),
    )
    workers.register(PLAIN)

    workers.submit_all([an_ask(1)])
    workers.close()

    assert names == [("cacheworkers-worker", True)]


@pytest.mark.parametrize(
    ("apps", "level", "said"),
    [
        (["shop"], "WARNING", "it has no Celery app, and this process has shop: `Cache(celery=app)` has workers load"),
        (
            [],
            "INFO",
            "product[1] loads on a thread of this process, as all of this cache's loads: it has no Celery app",
        ),
    ],
)
def test_loads_without_workers_are_said_once(
    apps: list[str], level: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Celery app in the same process, and none given, is most likely forgotten: nothing else fails."""
    monkeypatch.setattr(binding, "unbound_apps", lambda: apps)
    caplog.set_level("INFO")
    workers = ThreadDispatcher(Config(), run_loads=lambda loader, asks, again: None)
    workers.register(PLAIN)

    for number in (1, 2):
        workers.submit_all([an_ask(number)])
    workers.close()

    assert [record.levelname for record in caplog.records] == [level]
    assert said in caplog.text


@pytest.mark.parametrize(("load_time", "groups"), [(0.002, [8]), (1.0, [1] * 8), (None, [1] * 8)])
def test_quick_misses_share_a_message_while_workers_are_behind(
    load_time: float | None, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message waits to fill, here for ever, unless its loads are slow, or not known to be quick."""
    monkeypatch.setattr(queues, "LINGER_FOR", 60.0)
    info = LoaderInfo("product", 10.0, False, 100)
    if load_time is not None:
        info.load_times.note(load_time)
    sent: list[int] = []
    all_are_sent = threading.Event()

    def send(info: LoaderInfo, queue: str, asks: list[LoadRequest]) -> None:
        sent.append(len(asks))
        if sum(sent) == 8:
            all_are_sent.set()

    queue = PublishQueue(send, {"product": info}.get, 100, waited_for=lambda: queues.BACKED_UP)
    for number in range(1, 9):
        assert queue.submit_all([LoadRequest("product", f"product[{number}]", "a" * 16, "", "miss")])

    assert all_are_sent.wait(60)
    assert sent == groups
    queue.close()


def test_nothing_waits_to_fill_while_workers_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "LINGER_FOR", 60.0)
    info = LoaderInfo("product", 10.0, False, 100)
    info.load_times.note(0.001)
    is_sent = threading.Event()
    queue = PublishQueue(lambda info, queue, asks: is_sent.set(), {"product": info}.get, 100, waited_for=lambda: 1)

    queue.submit_all([LoadRequest("product", "product[1]", "a" * 16, "", "miss")])

    assert is_sent.wait(60)
    queue.close()


def test_loads_that_do_not_happen_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """While a part of the store is away, each read of that time would log a line."""
    now = 100.0
    log = NotLoadedLog(lambda: now)
    request = LoadRequest("product", "product[1]", "ab" * 8, "", "miss")

    for _ in range(500):
        log.log([request, request], StoreUnavailable("away"))
        now += 0.01

    assert [record.getMessage() for record in caplog.records] == [
        "product[1] +1 is not loaded: StoreUnavailable: away (further ones are not logged for 10 s)"
    ]
    now += 10
    log.log([request], StoreUnavailable("away"))
    assert len(caplog.records) == 2
