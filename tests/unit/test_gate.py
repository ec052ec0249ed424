"""Gate: who reads from memory takes in the pushes that have arrived, once a millisecond at most."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cacheworkers.local import coherence as gating
from cacheworkers.local.coherence import LOOK_EVERY, NEVER, Coherence


def test_who_looks_takes_in_what_has_arrived() -> None:
    coherence, taken = Coherence(), []
    coherence.take_in = lambda: taken.append("push")

    coherence.look(100.0)

    assert taken == ["push"]


def test_a_look_that_is_interrupted_leaves_the_next_one_its_turn() -> None:
    coherence, taken = Coherence(), []

    def fails() -> None:
        raise KeyboardInterrupt

    coherence.take_in = fails
    with pytest.raises(KeyboardInterrupt):
        coherence.look(100.0)
    coherence.take_in = lambda: taken.append("push")
    coherence.look(101.0)

    assert taken == ["push"]


def test_after_a_look_that_took_long_reads_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    coherence = Coherence()
    monkeypatch.setattr(gating, "time", SimpleNamespace(monotonic=lambda: 107.0))

    coherence.look(100.0)

    assert coherence.look_at == 107.0 + LOOK_EVERY


def test_a_proof_from_before_a_loss_does_not_open_the_gate() -> None:
    """Who was about to say so, as another thread lost the link, has heard nothing since."""
    coherence = Coherence()
    assert coherence.heard(1.0)
    assert not coherence.heard(2.0), "it was open"

    coherence.lost(3.0)

    assert not coherence.heard(2.5)
    assert not coherence.is_coherent
    assert coherence.heard(3.5)


def test_once_the_listener_is_lost_there_is_nothing_to_take_in() -> None:
    coherence, taken = Coherence(), []
    coherence.take_in = lambda: taken.append("push")
    coherence.heard(1.0)

    coherence.lost(2.0)
    coherence.look(3.0)

    assert taken == []
    assert coherence.heard_at == NEVER


def test_a_session_s_end_may_come_while_its_own_thread_has_the_gate_s_lock() -> None:
    """Memory is freed anywhere, also in the middle of `heard`."""
    coherence = Coherence()
    coherence.bypass()

    with coherence._lock:
        assert coherence._lock.acquire(blocking=False)
        coherence._lock.release()
        coherence.unbypass()

    coherence.heard(100.0)
    assert coherence.heard_at == 100.0
