"""Backlogs: whether workers take messages out of a queue, known by its length and by its oldest message."""

from __future__ import annotations

import pytest

from cacheworkers.local.queue_monitor import QueueMonitor


def test_a_queue_that_nobody_takes_from_is_stuck_from_its_first_message_on() -> None:
    backlog = QueueMonitor(0.0)
    backlog.note(0, None, 50.0)
    for now in range(60, 100, 10):
        backlog.note(now, now - 60.0, float(now))  # it grows, and its oldest message grows older

    assert backlog.stuck_for(100.0) == 40.0
    assert backlog.taken_at == 0.0


@pytest.mark.parametrize(
    ("length", "oldest_age"),
    [(4, 10.0), (4, None), (5, 2.0), (9, 2.0)],
    ids=["shorter", "shorter, and no age is known", "as long, and another is the oldest", "longer, and another is"],
)
def test_one_that_is_taken_from_is_not(length: int, oldest_age: float | None) -> None:
    backlog = QueueMonitor(0.0)
    backlog.note(5, 0.0, 10.0)

    backlog.note(length, oldest_age, 20.0)

    assert backlog.stuck_for(20.0) == 0.0
    assert backlog.taken_at == 20.0


def test_an_age_that_is_reported_late_is_no_other_message() -> None:
    """The process slept for a while after it had asked; the next answer comes immediately."""
    backlog = QueueMonitor(0.0)
    backlog.note(5, 0.0, 10.0)
    backlog.note(5, 9.2, 20.0)
    backlog.note(5, 20.0, 30.0)

    assert backlog.stuck_for(40.0) == 30.0


def test_nothing_is_stuck_where_nothing_waits() -> None:
    backlog = QueueMonitor(0.0)
    backlog.note(5, 0.0, 10.0)
    backlog.note(0, None, 20.0)

    assert backlog.stuck_for(30.0) == 0.0
    backlog.note(1, 0.0, 40.0)
    assert backlog.stuck_for(45.0) == 5.0
