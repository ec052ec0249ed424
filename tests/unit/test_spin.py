"""When a wire polls for a reply."""

from __future__ import annotations

from cacheworkers.local.busy_poll import INTERRUPTED, LONGEST_REST, BusyPoll


def polls_of(spin: BusyPoll, exchanges: int, late: float) -> int:
    """How many of so many exchanges poll, when each poll ends so late."""
    polls = 0
    for _ in range(exchanges):
        if spin.is_due():
            polls += 1
            spin.note(late)
    return polls


def test_a_near_store_is_always_polled() -> None:
    assert polls_of(BusyPoll(30e-6, cores=2), 1000, late=-10e-6) == 1000


def test_a_far_store_is_hardly_ever_polled() -> None:
    """After 1, 3, 7, ... exchanges: of a million, less than one in three thousand."""
    spin = BusyPoll(30e-6, cores=2)
    assert polls_of(spin, 1_000_000, late=1e-6) < 300
    assert polls_of(spin, LONGEST_REST + 1, late=1e-6) == 1  # it goes on trying


def test_an_interrupted_poll_is_followed_by_a_long_rest() -> None:
    spin = BusyPoll(30e-6, cores=2)
    assert polls_of(spin, 1025, late=2 * INTERRUPTED) == 1


def test_polling_comes_back_when_the_store_is_near_again() -> None:
    spin = BusyPoll(30e-6, cores=2)
    polls_of(spin, 100_000, late=1e-6)
    polls_of(spin, LONGEST_REST, late=-10e-6)
    assert polls_of(spin, 1000, late=-10e-6) == 1000


def test_now_and_then_in_vain_costs_few_polls() -> None:
    """One in a hundred late: polling does not die of it."""
    spin = BusyPoll(30e-6, cores=2)
    polls = 0
    for n in range(100_000):
        if spin.is_due():
            polls += 1
            spin.note(1e-6 if n % 100 == 0 else -10e-6)
    assert polls > 90_000


def test_a_quarter_in_vain_is_still_worth_polling() -> None:
    spin = BusyPoll(30e-6, cores=2)
    polls = 0
    for n in range(100_000):
        if spin.is_due():
            polls += 1
            spin.note(1e-6 if n % 4 == 0 else -10e-6)
    assert polls > 99_000


def test_one_interruption_is_forgiven() -> None:
    """It costs one rest, however many polls are in vain now and then before it and after it."""
    spin = BusyPoll(30e-6, cores=2)
    polls = 0
    for n in range(10_000):
        if spin.is_due():
            polls += 1
            spin.note(2 * INTERRUPTED if n == 5000 else 1e-6 if n % 50 == 49 else -10e-6)
    assert polls == 10_000 - 1024


def test_where_polls_are_interrupted_again_and_again_there_are_few() -> None:
    """As on cores with more threads at full speed than there are cores."""
    spin = BusyPoll(30e-6, cores=2)
    polls = 0
    for _ in range(100_000):
        if spin.is_due():
            polls += 1
            spin.note(2 * INTERRUPTED if polls % 60 == 0 else -10e-6)
    assert polls < 3000


def test_one_core_and_zero_seconds_never_poll() -> None:
    assert polls_of(BusyPoll(30e-6, cores=1), 1000, late=-1e-6) == 0
    assert polls_of(BusyPoll(0.0, cores=8), 1000, late=-1e-6) == 0
