"""Coherence: memory answers while the listener has proof, and no proof from before a loss counts."""

from __future__ import annotations

from cacheworkers.local.coherence import Coherence


def test_a_proof_from_before_a_loss_does_not_open_the_gate() -> None:
    """Who was about to say so, as another thread lost the link, has received nothing since."""
    coherence = Coherence()
    assert coherence.prove(1.0)
    assert not coherence.prove(2.0), "it was open"

    coherence.lost(3.0)

    assert not coherence.prove(2.5)
    assert not coherence.is_coherent
    assert coherence.prove(3.5)


def test_a_session_s_end_may_come_while_its_own_thread_has_the_gate_s_lock() -> None:
    """Memory is freed anywhere, also in the middle of `prove`."""
    coherence = Coherence()
    coherence.bypass()

    with coherence._lock:
        assert coherence._lock.acquire(blocking=False)
        coherence._lock.release()
        coherence.unbypass()

    coherence.prove(100.0)
    assert coherence.usable_at == 100.0
