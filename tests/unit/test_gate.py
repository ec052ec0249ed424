"""Gate: who reads from memory takes in the pushes that have arrived, once a millisecond at most."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cacheworkers.local import gate as gating
from cacheworkers.local.gate import LOOK_EVERY, NEVER, Gate


def test_who_looks_takes_in_what_has_arrived() -> None:
    gate, taken = Gate(), []
    gate.take_in = lambda: taken.append("push")

    gate.look(100.0)

    assert taken == ["push"]


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


def test_after_a_look_that_took_long_reads_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(gating, "time", SimpleNamespace(monotonic=lambda: 107.0))

    gate.look(100.0)

    assert gate.look_at == 107.0 + LOOK_EVERY


def test_a_proof_from_before_a_loss_does_not_open_the_gate() -> None:
    """Who was about to say so, as another thread lost the link, has heard nothing since."""
    gate = Gate()
    assert gate.heard(1.0)
    assert not gate.heard(2.0), "it was open"

    gate.lost(3.0)

    assert not gate.heard(2.5)
    assert not gate.is_coherent
    assert gate.heard(3.5)


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
