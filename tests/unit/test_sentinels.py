"""The vote of Sentinels: which master a process may use, when, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.sentinel import MasterNotFoundError

from cacheworkers.store.connections import sentinels
from cacheworkers.store.connections.sentinels import CONFIRMED_FOR, NAMED_FOR, AsyncSentinels, MasterLease, Sentinels

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)
HOUR = 3600.0


class Clock:
    """Time that passes by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class OneSentinel:
    """What one Sentinel answers; None for no answer."""

    def __init__(self, port: int, state: dict[str, Any] | None) -> None:
        self.connection_pool = SimpleNamespace(connection_kwargs={"host": "10.0.1.1", "port": port})
        self.state = state
        self.asked = 0

    def sentinel_master(self, service: str) -> dict[str, Any]:
        assert service == "shop"
        self.asked += 1
        if self.state is None:
            raise redis.TimeoutError("no answer")
        return self.state


class OneAsyncSentinel(OneSentinel):
    async def sentinel_master(self, service: str) -> Any:  # type: ignore[override]  # redis-py's async client
        return super().sentinel_master(service)


def naming(master: tuple[str, int], since: float = HOUR, epoch: int = 1, flags: str = "master") -> dict[str, Any]:
    """The answer of a Sentinel that has named a master for `since` seconds."""
    host, port = master
    return {
        "ip": host,
        "port": port,
        "flags": flags,
        "config-epoch": epoch,
        "role-reported-time": int(since * 1000),
    }


class Service:
    """Three Sentinels, and a process that asks them."""

    def __init__(self, is_async: bool, *states: dict[str, Any] | None) -> None:
        self.lease = MasterLease(3)
        self.changes: list[tuple[str, int] | None] = []
        self.lease.on_change = lambda: self.changes.append(self.lease.term and self.lease.term.master)
        made = OneAsyncSentinel if is_async else OneSentinel
        self.sentinels = [made(port, state) for port, state in enumerate(states)]
        self._asking: Any = AsyncSentinels([]) if is_async else Sentinels([])
        self._asking.sentinels, self._asking.lease, self._asking.absent_since = self.sentinels, self.lease, {}
        self._is_async = is_async

    def answer(self, *states: dict[str, Any] | None) -> None:
        for sentinel, state in zip(self.sentinels, states, strict=True):
            sentinel.state = state

    def master(self) -> Any:
        """The master, or why there is none."""
        try:
            found = self._asking.discover_master("shop")
            return asyncio.run(found) if self._is_async else found
        except MasterNotFoundError as error:
            return str(error)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sentinels, "time", clock)
    return clock


pytestmark = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def test_a_sentinel_that_missed_the_switch_leads_nobody_back(is_async: bool) -> None:
    """Wherever it stands in the URL: one vote is no majority."""
    for at in range(3):
        states = [naming(NEW, epoch=2) for _ in range(3)]
        states[at] = naming(OLD)
        assert Service(is_async, *states).master() == NEW


def test_one_sentinel_that_answers_is_not_enough(is_async: bool) -> None:
    """The others may know better, and cannot be asked."""
    assert "1 of the Sentinels of 'shop' answered, 2 are needed" in Service(is_async, naming(OLD), None, None).master()


def test_sentinels_that_disagree_name_nobody(is_async: bool) -> None:
    found = Service(is_async, naming(OLD), naming(NEW, epoch=2), None).master()

    assert "too few of the Sentinels of 'shop' have named the same master" in found


def test_of_two_one_is_enough_while_the_other_does_not_answer(is_async: bool) -> None:
    service = Service(is_async, naming(OLD), None, None)
    service.lease.needed = MasterLease(2).needed

    assert service.master() == OLD

    service.answer(naming(OLD), naming(NEW, epoch=2), None)
    service._asking.absent_since.clear()
    assert "have named the same master" in service.master()


def test_a_master_that_is_being_replaced_is_not_used(is_async: bool) -> None:
    """It goes on while a replica has been promoted already; the Sentinel that leads the failover knows."""
    leads = naming(OLD, flags="master,failover_in_progress")

    assert "are replacing the master" in Service(is_async, leads, naming(OLD), naming(OLD)).master()
    assert Service(is_async, leads, naming(NEW, epoch=2), naming(NEW, epoch=2)).master() == NEW


def test_a_new_master_is_used_when_no_confirmation_of_the_old_one_is_left(is_async: bool, clock: Clock) -> None:
    """A process that asked just before the switch uses the old one for all of its time; only then is the new one."""
    one, other = (Service(is_async, naming(OLD), naming(OLD), naming(OLD)) for _ in range(2))
    assert one.master() == OLD
    switched = clock.now

    while not isinstance(found := other.master(), tuple) or found == OLD:
        clock.now += 0.1
        other.answer(*[naming(NEW, since=clock.now - switched, epoch=2)] * 3)

    assert found == NEW
    assert one.lease.is_over
    assert clock.now - switched >= NAMED_FOR > CONFIRMED_FOR


def test_the_first_master_of_all_is_used_immediately(is_async: bool) -> None:
    """Sentinels that have just been started, and have seen no failover."""
    assert Service(is_async, *[naming(OLD, since=0.0, epoch=0)] * 3).master() == OLD


def test_a_confirmation_counts_from_when_it_was_asked_for(is_async: bool, clock: Clock) -> None:
    service = Service(is_async, *[naming(OLD)] * 3)
    assert service.lease.is_over
    service.master()
    assert service.lease.until == clock.now + CONFIRMED_FOR

    clock.now += CONFIRMED_FOR
    assert not service.lease.is_over
    clock.now += 0.001
    assert service.lease.is_over


def test_sentinels_that_are_replacing_the_master_end_its_confirmation(is_async: bool, clock: Clock) -> None:
    """What memory has kept is not served then either; while they only do not answer, it is for the rest of the time."""
    service = Service(is_async, *[naming(OLD)] * 3)
    service.master()

    service.answer(None, None, None)
    service.master()
    assert not service.lease.is_over

    service.answer(*[naming(OLD, flags="master,failover_in_progress")] * 3)
    service.master()
    assert service.lease.is_over


def test_a_change_is_reported_once(is_async: bool) -> None:
    service = Service(is_async, *[naming(OLD)] * 3)
    service.master()
    service.master()
    assert service.changes == []

    service.answer(*[naming(NEW, epoch=2)] * 3)
    service.master()
    service.master()

    assert service.changes == [NEW]


def test_a_master_that_is_one_again_after_another_is_a_change(is_async: bool, clock: Clock) -> None:
    """Though nobody was asked in between: what memory has of the first time is old."""
    service = Service(is_async, *[naming(OLD)] * 3)
    service.master()
    before = service.lease.term

    clock.now += HOUR
    service.answer(naming(OLD, epoch=1), naming(OLD, epoch=3), naming(OLD, epoch=3))
    service.master()

    assert service.lease.term != before
    assert service.changes == [OLD]


def test_a_sentinel_that_is_gone_costs_one_timeout_now_and_then(is_async: bool, clock: Clock) -> None:
    """While the others suffice it is asked again after seconds; without them, always."""
    service = Service(is_async, None, naming(OLD), naming(OLD))
    gone, second, _ = service.sentinels
    assert [service.master() for _ in range(10)] == [OLD] * 10
    assert gone.asked == 1

    second.state = None
    service.master()
    assert gone.asked == 2
    gone.state = second.state = naming(OLD)
    clock.now += HOUR
    assert service.master() == OLD
    assert gone.asked == 3


def test_a_sentinel_that_is_asked_in_two_ways_has_one_vote(is_async: bool) -> None:
    """Without a password, and with the servers'."""
    service = Service(is_async, naming(OLD), None, None)
    again = type(service.sentinels[0])(0, naming(OLD))
    service.sentinels.append(again)

    assert "1 of the Sentinels" in service.master()
