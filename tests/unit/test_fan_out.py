"""FanOut: whoever is asked, one after the other or together, the whole takes about one timeout at most."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError, TimeoutError, TryAgainError

from cacheworkers.core.driver import run
from cacheworkers.store.connections.cluster import Cluster, Node
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests, TimeLeft
from cacheworkers.store.connections.request import Request

TIMEOUT = 10.0
#: A timeout, and what little each further wait may take.
BOUND = 1.2 * TIMEOUT
NEVER = float("inf")
A, B, C = ("a", 1), ("b", 2), ("c", 3)
SLOTS = [[0, 8191, [b"a", 1, b"id"]], [8192, 16383, [b"b", 2, b"id"]]]


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float, timeout: float | None) -> None:
        """Let time pass until something is there, or until it is given up."""
        limit = TIMEOUT if timeout is None else timeout
        self.now += min(max(seconds, 0.0), limit)
        if seconds > limit:
            raise TimeoutError("no answer")


class SlowPool:
    """Connects in some time, and answers some time after it was asked."""

    def __init__(self, clock: Clock, answers_in: float, connects_in: float = 0.0, reply: Any = b"here") -> None:
        self.timeout = TIMEOUT
        self.failed_at = 0.0
        self.given_up = 0
        self._clock, self._answers_in, self._connects_in, self._reply = clock, answers_in, connects_in, reply

    def send(self, commands: Sequence[Any], timeout: float | None = None) -> Any:
        self._clock.wait(self._connects_in, timeout)
        answered_at = self._clock.now + self._answers_in

        def receive(timeout: float | None = None) -> list[Any]:
            self._clock.wait(answered_at - self._clock.now, timeout)
            return [self._reply(words) if callable(self._reply) else self._reply for words in commands]

        def give_up() -> None:
            self.given_up += 1

        return SimpleNamespace(receive=receive, give_up=give_up)

    def exchange(self, commands: Sequence[Any]) -> Any:
        return self.send(commands).receive()

    def drop(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("cacheworkers.store.connections.fan_out.time", clock)
    return clock


def went(clock: Clock, trips: FanOut) -> tuple[float, Any]:
    """How long they took, and what came of them."""
    began = clock.now
    try:
        outcome: Any = trips.run()
    except TimeoutError as error:
        outcome = type(error)
    return clock.now - began, outcome


def to(*pools: SlowPool) -> FanOut:
    return FanOut(*(RoutedRequests(each, [("GET", "k")]) for each in pools))  # type: ignore[arg-type]


def test_a_wait_has_the_timeout_while_hardly_any_time_has_passed(clock: Clock) -> None:
    """A socket keeps the timeout that it has; another one would be a system call."""
    left = TimeLeft(1.0, 1.0)
    assert left.rest is None

    clock.now += 0.5
    assert left.rest == pytest.approx(0.5)


@pytest.mark.parametrize("answers_in", [[NEVER] * 5, [9.0, 18.0, 27.0], [9.9, 19.8], [0.0, 9.0, NEVER, NEVER]])
def test_masters_that_hang_cost_one_timeout_together(clock: Clock, answers_in: list[float]) -> None:
    """And not one each, one after the other."""
    took, outcome = went(clock, to(*(SlowPool(clock, each) for each in answers_in)))

    assert outcome is TimeoutError
    assert took <= BOUND


def test_masters_that_answer_in_time_are_all_received(clock: Clock) -> None:
    took, outcome = went(clock, to(*(SlowPool(clock, each) for each in (9.0, 1.0, 9.5, 0.0))))

    assert outcome == [[b"here"]] * 4
    assert took == 9.5


@pytest.mark.parametrize("connects_in", [[NEVER, 0.0], [9.0, 9.0, 9.0], [6.0, 3.0, 3.0]])
def test_connecting_takes_of_the_same_time(clock: Clock, connects_in: list[float]) -> None:
    took, outcome = went(clock, to(*(SlowPool(clock, NEVER, each) for each in connects_in)))

    assert outcome is TimeoutError
    assert took <= BOUND


def test_what_has_come_while_the_thread_was_held_up_is_taken(clock: Clock) -> None:
    """A machine that is busy is no failure of the store."""

    class HoldsUp(SlowPool):
        def send(self, commands: Sequence[Any], timeout: float | None = None) -> Any:
            sent = super().send(commands, timeout)
            clock.now += 5 * TIMEOUT
            return sent

    _, outcome = went(clock, to(SlowPool(clock, 1.0), HoldsUp(clock, 1.0), SlowPool(clock, 0.0)))

    assert outcome == [[b"here"]] * 3


def test_those_that_were_not_received_are_given_up(clock: Clock) -> None:
    pools = [SlowPool(clock, each) for each in (0.0, NEVER, 0.0, 0.0)]

    went(clock, to(*pools))

    assert [each.given_up for each in pools] == [0, 0, 1, 1]


# -- all that one exchange of a Cluster asks


def slots_or(reply: Any) -> Any:
    return lambda words: SLOTS if words == ("CLUSTER", "SLOTS") else reply


def key_on(node: Node) -> str:
    return next(key for key in map(str, range(1000)) if (key_slot(key.encode()) < 8192) == (node == A))


def exchanged(clock: Clock, pools: dict[Node, SlowPool], *keys: str) -> tuple[float, Any]:
    cluster = Cluster([A], pools.__getitem__, patience=TIMEOUT, timeout=TIMEOUT)  # type: ignore[arg-type]
    began = clock.now
    try:
        outcome: Any = cluster.exchange([Request(("GET", key)) for key in keys])
    except TimeoutError as error:
        outcome = type(error)
    return clock.now - began, outcome


@pytest.mark.parametrize("of_slots", [0.0, 5.0, 9.0])
def test_asking_for_the_slots_takes_of_the_same_time(clock: Clock, of_slots: float) -> None:
    pools = {A: SlowPool(clock, of_slots, reply=slots_or(b"here")), B: SlowPool(clock, NEVER)}

    took, outcome = exchanged(clock, pools, key_on(B))

    assert outcome is TimeoutError
    assert took <= BOUND


def test_nodes_that_hang_are_not_all_asked_for_the_slots(clock: Clock) -> None:
    pools = {A: SlowPool(clock, 0.0, reply=slots_or(b"here")), B: SlowPool(clock, 0.0)}
    cluster = Cluster([A], pools.__getitem__, patience=TIMEOUT, timeout=TIMEOUT)  # type: ignore[arg-type]
    run(cluster.masters())
    pools[A]._answers_in = pools[B]._answers_in = NEVER
    cluster.refresh_later()
    began = clock.now

    with pytest.raises(TimeoutError):
        cluster.exchange([Request(("GET", key_on(A)))])

    assert clock.now - began <= BOUND


def test_a_request_that_is_sent_again_takes_of_the_same_time(clock: Clock) -> None:
    key = key_on(A)
    moved = MovedError(f"{key_slot(key.encode())} b:2")
    pools = {A: SlowPool(clock, 6.0, reply=slots_or(moved)), B: SlowPool(clock, NEVER, reply=slots_or(b"here"))}

    took, outcome = exchanged(clock, pools, key)

    assert outcome is TimeoutError
    assert took <= BOUND


def test_patience_ends_with_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported then is that the slot is on its way, not that the store does not answer."""
    pools = {A: SlowPool(clock, 0.0, reply=slots_or(TryAgainError("split")))}

    def pause(seconds: float) -> None:
        clock.now += 10 * seconds  # a machine that is busy

    monkeypatch.setattr("cacheworkers.core.driver.time.sleep", pause)

    took, outcome = exchanged(clock, pools, key_on(A))

    assert [type(reply) for reply in outcome] == [TryAgainError]
    assert took <= BOUND
