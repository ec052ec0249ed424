"""QueueProbes: the age of a queue on a broker that does not report it."""

from __future__ import annotations

import itertools

import pytest
from celery import Celery

from cacheworkers.workers import queue_probe
from cacheworkers.workers.broker_queues import QueueState
from cacheworkers.workers.queue_probe import QueueProbes, mark_of

_names = itertools.count()


class Line:
    """One queue in memory, its probes, and the instant at which a worker has last run one."""

    def __init__(self) -> None:
        self.name = f"line{next(_names)}"
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.now = 1000.0
        self.marked_at: float | None = None
        self.probes = QueueProbes(self.app, self._mark_ages)

    def age(self, length: int = 5) -> float | None:
        [state] = self.probes.add_ages([QueueState(self.name, length, None)], lambda: self.now)
        return state.oldest_age

    def sent(self) -> int:
        with self.app.connection_for_read() as connection:
            return int(connection.default_channel._size(self.name))

    def _mark_ages(self, marks: object) -> dict[str, float | None]:
        assert marks == [mark_of(self.name)]
        return {mark_of(self.name): None if self.marked_at is None else self.now - self.marked_at}


@pytest.fixture
def line() -> Line:
    return Line()


def test_an_empty_queue_gets_no_probe(line: Line) -> None:
    assert (line.age(0), line.sent()) == (None, 0)


def test_a_queue_that_stands_still_gets_older_with_one_probe_in_it(line: Line) -> None:
    ages = []
    for _ in range(4):
        ages.append(line.age())
        line.now += 15

    assert (ages, line.sent()) == ([0, 15, 30, 45], 1)


def test_a_queue_that_moves_is_as_old_as_its_last_probe_became(line: Line) -> None:
    line.age()
    line.now, line.marked_at = 1015.0, 1004.0

    assert (line.age(), line.sent()) == (4, 2)
    line.now = 1030.0
    assert line.age() == 15, "the next one has been under way for longer"


def test_the_mark_of_an_earlier_backlog_says_nothing_of_this_one(line: Line) -> None:
    line.marked_at = 990.0
    line.age()
    line.now += 15

    assert (line.age(), line.sent()) == (15, 1)


def test_a_probe_that_is_lost_is_sent_again_and_the_queue_stays_old(line: Line) -> None:
    line.age()
    line.now += queue_probe.EXPIRES + 1

    assert (line.age(), line.sent()) == (queue_probe.EXPIRES + 1, 2)


def test_ages_that_the_broker_reports_are_kept(line: Line) -> None:
    state = QueueState(line.name, 5, 7.0)

    assert (line.probes.add_ages([state]), line.sent()) == ([state], 0)
