"""Health: a store that is away costs each reader one timeout at most; who finds out that it is back is no reader."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forked import in_child
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from cacheworkers.errors import StoreRefused, StoreUnavailable
from cacheworkers.store.connections.connection import ConnectionCut, LateReply
from cacheworkers.store.connections.health import Health
from cacheworkers.testing.servers import wait_until


class Store:
    """A store that is away until it is let back; it notes who asked it."""

    def __init__(self) -> None:
        self.is_away = True
        self.answer: Exception | None = None
        self.asked_by: list[str] = []
        self.events: list[str] = []
        self.drops = 0
        self.is_partly_away = False
        self.confirmed = 0

    def confirm(self) -> None:
        """Ask again what failed, as the thread does before the breaker opens."""
        self.confirmed += 1
        self.ask()

    def probe(self) -> bool:
        """Ask, as the thread does, all but the part that is away."""
        if self.is_partly_away:
            self.asked_by.append(threading.current_thread().name)
            return True
        self.ask()
        return False

    def probe_unavailable(self) -> bool:
        return not self.is_away

    def ask(self) -> None:
        self.asked_by.append(threading.current_thread().name)
        if self.is_away:
            raise TimeoutError("no answer within the timeout.")  # as clients end some texts
        if self.answer is not None:
            raise self.answer

    def drop(self) -> None:
        self.drops += 1


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def make_health(store: Store) -> Iterator[Callable[..., Health]]:
    made: list[Health] = []

    def make(open_for: float, *, has_parts: bool = False) -> Health:
        health = Health(
            "here",
            open_for,
            memory_for=60.0,
            confirm=store.confirm,
            probe=store.probe,
            probe_unavailable=store.probe_unavailable,
            has_parts=has_parts,
            on_failure=store.drop,
            on_lost=lambda error: store.events.append("lost"),
            on_back=lambda: store.events.append("back"),
        )
        made.append(health)
        return health

    yield make
    for health in made:
        health.close(10.0)


def read(health: Health, store: Store) -> None:
    with health.asking():
        store.ask()


def test_only_the_prober_asks_a_store_that_is_away(make_health: Any, store: Store) -> None:
    """However often its period is over, and however many read."""
    health = make_health(0.001)
    with pytest.raises(StoreUnavailable):
        read(health, store)

    def until_probed_thrice() -> bool:
        with pytest.raises(StoreUnavailable):
            read(health, store)
        return len(store.asked_by) > 3

    wait_until(until_probed_thrice)

    assert store.asked_by[0] == threading.current_thread().name
    assert set(store.asked_by[1:]) == {"cacheworkers-health"}
    assert store.events == ["lost"]


def test_whom_the_breaker_keeps_from_asking_learns_what_had_failed(make_health: Any, store: Store) -> None:
    """`doctor` would otherwise not name a wrong password that somebody else has run into a moment before."""
    health = make_health(60.0)
    with pytest.raises(StoreUnavailable):
        read(health, store)
    wait_until(lambda: not health.is_well)

    with pytest.raises(StoreUnavailable, match="no answer within the timeout; its breaker is open"):
        read(health, store)


def test_once_it_is_answered_readers_ask_again_and_the_prober_ends(make_health: Any, store: Store) -> None:
    health = make_health(0.001)
    with pytest.raises(StoreUnavailable):
        read(health, store)

    store.is_away = False
    wait_until(lambda: health.is_well)

    read(health, store)
    assert not health.is_probing
    wait_until(lambda: store.events == ["lost", "back"])


def test_it_is_logged_once_that_it_is_lost_and_once_that_it_is_back(
    make_health: Any, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """With what it said, and what to do."""
    health = make_health(0.001)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            read(health, store)
    wait_until(lambda: len(store.asked_by) > 3)
    store.is_away = False
    wait_until(lambda: store.events == ["lost", "back"])

    lost, back = [record.getMessage() for record in caplog.records if record.name == "cacheworkers"]
    assert lost.startswith("the store at here is unavailable: TimeoutError: no answer within the timeout; until it")
    assert "password" in lost and ".;" not in lost
    assert back == "the store at here answers again"


def test_what_fails_again_is_probed_again(make_health: Any, store: Store) -> None:
    health = make_health(0.001)
    for _ in range(3):
        store.is_away = True
        with pytest.raises(StoreUnavailable):
            read(health, store)
        assert not health.is_well
        store.is_away = False
        wait_until(lambda: health.is_well)

    wait_until(lambda: store.events == ["lost", "back"] * 3)


def test_where_only_a_part_is_away_the_rest_is_asked_again_immediately(make_health: Any, store: Store) -> None:
    """It is back when that part is: until then it is asked for, and nobody is notified."""
    health = make_health(0.001, has_parts=True)
    store.is_partly_away = True
    with pytest.raises(StoreUnavailable):
        read(health, store)

    wait_until(lambda: health.is_well)
    seen = len(store.asked_by)
    wait_until(lambda: len(store.asked_by) > seen + 3)
    assert health.is_well and health.is_probing
    assert store.events == ["lost"]

    store.is_away = False
    wait_until(lambda: store.events == ["lost", "back"])
    assert not health.is_probing


def test_the_part_that_failed_is_not_asked_immediately(make_health: Any, store: Store) -> None:
    health = make_health(600.0, has_parts=True)
    store.is_partly_away = True
    with pytest.raises(StoreUnavailable):
        read(health, store)
    store.is_away = False  # which nobody finds out for ten minutes

    wait_until(lambda: health.is_well)
    with pytest.raises(StoreUnavailable):  # another part fails, and is as soon known
        store.is_away = True
        read(health, store)
    wait_until(lambda: health.is_well)

    assert store.events == ["lost"]
    assert health.is_probing


def test_while_nobody_knows_which_part_failed_none_is_asked_for_a_period(make_health: Any, store: Store) -> None:
    """However soon a look is answered: who asked again might wait for a timeout again."""
    health = make_health(600.0, has_parts=True)
    with pytest.raises(StoreUnavailable):
        read(health, store)
    store.is_away = False
    wait_until(lambda: len(store.asked_by) == 2)

    for _ in range(100):
        with pytest.raises(StoreUnavailable):
            read(health, store)
    assert len(store.asked_by) == 2


@pytest.mark.parametrize("answer", [NoPermissionError("NOPERM"), BusyLoadingError("LOADING"), ResponseError("BUSY")])
def test_a_probe_that_is_answered_with_an_error_is_no_recovery(
    make_health: Any, store: Store, answer: Exception
) -> None:
    health = make_health(0.001)
    with pytest.raises(StoreUnavailable):
        read(health, store)

    store.is_away, store.answer = False, answer
    seen = len(store.asked_by)
    wait_until(lambda: len(store.asked_by) > seen + 3)
    assert not health.is_well

    store.answer = None
    wait_until(lambda: health.is_well)


def test_an_answer_that_is_an_error_concerns_its_request_alone(make_health: Any, store: Store) -> None:
    """The breaker stays closed: other requests may be answered."""
    health = make_health(600.0)
    store.is_away, store.answer = False, NoPermissionError("NOPERM")

    with pytest.raises(StoreRefused, match="NOPERM"):
        read(health, store)

    assert health.is_well and not health.is_probing
    assert (store.events, store.drops) == ([], 0)


@pytest.mark.parametrize("failure", [LateReply("late"), ConnectionCut("cut"), ReadOnlyError("READONLY")])
def test_one_connection_that_fails_opens_nothing_while_the_store_answers(
    make_health: Any, store: Store, failure: Exception
) -> None:
    """It is asked again first, over another connection."""
    health = make_health(600.0)
    store.is_away = False

    assert isinstance(health.translated(failure), StoreUnavailable)

    wait_until(lambda: store.confirmed == 1 and not health.is_probing)
    read(health, store)
    assert health.is_well
    assert store.events == []


@pytest.mark.parametrize("failure", [LateReply("late"), ConnectionCut("cut")])
def test_one_connection_that_fails_opens_the_breaker_once_another_fails_too(
    make_health: Any, store: Store, failure: Exception
) -> None:
    health = make_health(600.0)
    health.translated(failure)

    wait_until(lambda: not health.is_well)

    assert store.events == ["lost"]
    assert health.is_probing


def test_where_no_thread_can_confirm_one_late_reply_opens_the_breaker(
    make_health: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = make_health(600.0)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    health.translated(LateReply("late"))

    assert not health.is_well


def test_probes_come_soon_at_first(make_health: Any, store: Store) -> None:
    """A store that was away for a moment is not done without for a whole period."""
    waits: list[float] = []
    health = make_health(16.0)

    class Wake(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            store.is_away = len(waits) < 7
            return False

    health._wake = Wake()
    with pytest.raises(StoreUnavailable):
        read(health, store)
    wait_until(lambda: health.is_well)

    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]


def test_a_probe_that_fails_drops_what_is_connected(make_health: Any, store: Store) -> None:
    """The connection that it opened is as dead as the others."""
    health = make_health(0.001)
    with pytest.raises(StoreUnavailable):
        read(health, store)

    wait_until(lambda: store.drops > 2)


def test_without_a_period_every_call_asks(make_health: Any, store: Store) -> None:
    health = make_health(0.0)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            read(health, store)
    store.is_away = False
    read(health, store)

    assert set(store.asked_by) == {threading.current_thread().name}
    assert len(store.asked_by) == 4
    assert store.events == ["lost", "back"]


def test_where_no_thread_can_be_had_one_reader_a_period_finds_out(
    make_health: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = make_health(0.001)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(threading.Thread, "start", refuse)
        read(health, store)
    store.is_away = False

    def is_back() -> bool:
        try:
            read(health, store)
        except StoreUnavailable:
            return False
        return True

    wait_until(is_back)
    assert set(store.asked_by) == {threading.current_thread().name}


def test_a_closed_one_probes_no_more(make_health: Any, store: Store) -> None:
    """What is read after the close finds out by itself."""
    health = make_health(600.0)
    with pytest.raises(StoreUnavailable):
        read(health, store)
    thread = health._thread
    assert thread is not None

    health.close(60.0)

    assert not thread.is_alive()
    assert not health.is_probing
    with pytest.raises(StoreUnavailable):
        read(health, store)
    health.translated(ConnectionError("cut"))
    assert not health.is_probing


def test_a_child_of_a_fork_asks_again_and_has_a_prober_of_its_own(make_health: Any, store: Store) -> None:
    health = make_health(0.001)
    with pytest.raises(StoreUnavailable):
        read(health, store)

    def asks_again() -> None:
        health.reset()
        assert health.is_well and not health.is_probing
        with pytest.raises(StoreUnavailable):
            read(health, store)
        store.is_away = False
        wait_until(lambda: health.is_well)

    assert in_child(asks_again) == 0


def test_a_prober_keeps_no_process_from_ending() -> None:
    """Not while it waits, and not while it asks a store that hangs."""
    code = """
import threading
from redis.exceptions import ConnectionError
from cacheworkers.store.connections.health import Health

asked = threading.Event()

def hang():
    asked.set()
    threading.Event().wait()

nothing = lambda *_: None
health = Health(
    "here", 0.001, memory_for=60.0, confirm=hang, probe=hang, probe_unavailable=hang, has_parts=False,
    on_failure=nothing, on_lost=nothing, on_back=nothing,
)
health.translated(ConnectionError("cut"))
assert asked.wait(60)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_errors_of_one_reader_do_not_begin_a_second_prober(make_health: Any, store: Store) -> None:
    """Of many who were waiting when it went away, the first opens the breaker."""
    health = make_health(600.0)
    assert isinstance(health.translated(ConnectionError("cut")), StoreUnavailable)
    thread = health._thread

    for _ in range(20):
        health.translated(ConnectionError("cut"))

    assert thread is not None and health._thread is thread
    assert store.events == ["lost"]
