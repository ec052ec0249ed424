"""Gate: who reads from memory lets the listener in, once a millisecond at most, if it has something to hear."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cacheworkers.local import gate as gating
from cacheworkers.local.gate import LOOK_EVERY, NEVER, Gate


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long who looked let go of the interpreter, each time."""
    naps: list[float] = []
    monkeypatch.setattr(gating, "time", SimpleNamespace(sleep=naps.append))
    return naps


def test_who_looks_and_finds_news_gives_way(naps: list[float]) -> None:
    gate = Gate()
    gate.has_news = lambda: True

    gate.look(100.0)

    assert naps == [gating._GIVE_WAY_FOR]
    assert gate.look_at == 100.0 + LOOK_EVERY


def test_who_finds_none_goes_on(naps: list[float]) -> None:
    gate = Gate()

    gate.look(100.0)

    assert naps == []
    assert gate.look_at == 100.0 + LOOK_EVERY


def test_one_looks_at_a_time(naps: list[float]) -> None:
    """A poll that is under way in another thread must not be begun again."""
    gate, looks = Gate(), 0

    def has_news() -> bool:
        nonlocal looks
        looks += 1
        gate.look(101.0)
        return True

    gate.has_news = has_news
    gate.look(100.0)

    assert (looks, len(naps)) == (1, 1)


def test_a_look_that_fails_leaves_the_next_one_its_turn(naps: list[float]) -> None:
    gate = Gate()

    def fails() -> bool:
        raise OSError("the socket is closed")

    gate.has_news = fails
    with pytest.raises(OSError, match="closed"):
        gate.look(100.0)
    gate.has_news = lambda: True
    gate.look(101.0)

    assert len(naps) == 1


def test_once_the_listener_is_lost_there_is_no_news(naps: list[float]) -> None:
    gate = Gate()
    gate.has_news = lambda: True
    gate.heard(1.0)

    gate.lost(2.0)
    gate.look(3.0)

    assert naps == []
    assert gate.heard_at == NEVER


def test_a_session_s_end_may_come_while_its_own_thread_has_the_gate_s_lock() -> None:
    """Memory is freed anywhere, also in the middle of `heard`."""
    gate = Gate()
    gate.bypass()

    with gate._lock:
        assert gate._lock.acquire(blocking=False)
        gate._lock.release()
        gate.unbypass()

    gate.heard(100.0)
    assert gate.heard_at == 100.0
