"""Breaker: after a failure nobody waits for the dead store but one probe a period."""

from __future__ import annotations

import threading

from cacheworkers.local.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_closed_breaker_allows_everybody() -> None:
    """Without a failure nothing is held back."""
    breaker = Breaker(1.0, Clock())

    assert [breaker.allows() for _ in range(3)] == [True, True, True]
    assert not breaker.is_open


def test_failure_opens_it_for_its_period() -> None:
    """Nobody tries within `open_for` of a failure."""
    clock = Clock()
    breaker = Breaker(1.0, clock)

    breaker.failed()
    clock.now += 0.999

    assert breaker.is_open
    assert not breaker.allows()


def test_one_probe_a_period_goes_through() -> None:
    """While the store stays dead, each period costs one caller a timeout."""
    clock = Clock()
    breaker = Breaker(1.0, clock)
    breaker.failed()

    allowed = []
    for _ in range(30):
        clock.now += 0.125
        if breaker.allows():
            allowed.append(clock.now)
            breaker.failed()

    assert allowed == [101.0, 102.0, 103.0]


def test_probe_that_never_reports_is_followed_by_another() -> None:
    """A cancelled probe keeps the breaker open for one more period, not for ever."""
    clock = Clock()
    breaker = Breaker(1.0, clock)
    breaker.failed()
    clock.now += 1.0
    assert breaker.allows()

    soon = breaker.allows()
    clock.now += 1.0
    later = breaker.allows()

    assert (soon, later) == (False, True)


def test_success_closes_it() -> None:
    """One answer is enough to trust the store again."""
    clock = Clock()
    breaker = Breaker(1.0, clock)
    breaker.failed()

    breaker.succeeded()

    assert not breaker.is_open
    assert breaker.allows()


def test_of_many_who_find_the_period_over_one_probes() -> None:
    """Eight threads have all read that the period is over before any of them goes on."""
    all_have_looked = threading.Barrier(8)
    looked = threading.local()
    now = 0.0

    def clock() -> float:
        if now and not getattr(looked, "once", False):
            looked.once = True
            all_have_looked.wait(60)
        return now

    breaker = Breaker(1.0, clock)
    breaker.failed()
    now = 5.0
    allowed: list[bool] = []
    threads = [threading.Thread(target=lambda: allowed.append(breaker.allows())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(allowed) == [False] * 7 + [True]


def test_child_of_a_fork_begins_closed() -> None:
    """A child owes nothing to a thread that held the lock when it was forked."""
    breaker = Breaker(1.0, Clock())
    breaker.failed()
    breaker._lock.acquire()

    breaker.reset()

    assert breaker.allows()
    breaker.failed()
    assert breaker.is_open
