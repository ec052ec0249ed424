"""Gate: who reads from memory takes in the pushes that have arrived, once a millisecond at most."""

from __future__ import annotations

import pytest

from cacheworkers.local.gate import LOOK_EVERY, NEVER, Gate


def test_who_looks_takes_in_what_has_arrived_and_looks_again_in_a_while() -> None:
    gate, taken = Gate(), []
    gate.take_in = lambda: taken.append("push")

    gate.look(100.0)

    assert taken == ["push"]
    assert gate.look_at == 100.0 + LOOK_EVERY


def test_one_looks_at_a_time() -> None:
    """A poll that is under way must not be begun again: by another thread, or by what hears of an event and reads."""
    gate, looks = Gate(), 0

    def take_in() -> None:
        nonlocal looks
        looks += 1
        gate.look(101.0)

    gate.take_in = take_in
    gate.look(100.0)

    assert looks == 1


def test_a_look_that_is_interrupted_leaves_the_next_one_its_turn() -> None:
    gate, taken = Gate(), []

    def fails() -> None:
        raise KeyboardInterrupt

    gate.take_in = fails
    with pytest.raises(KeyboardInterrupt):
        gate.look(100.0)
    gate.take_in = lambda: taken.append("push")
    gate.look(101.0)

    assert taken == ["push"]


def test_once_the_listener_is_lost_there_is_nothing_to_take_in() -> None:
    gate, taken = Gate(), []
    gate.take_in = lambda: taken.append("push")
    gate.heard(1.0)

    gate.lost(2.0)
    gate.look(3.0)

    assert taken == []
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
