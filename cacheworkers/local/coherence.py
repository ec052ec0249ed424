"""Coherence: whether this process's memory may answer."""

from __future__ import annotations

import threading

NEVER = float("-inf")


class Coherence:
    """Proven by the listener while every change is reported; ended by loss, bypassed by loads and dirty sessions here.

    Attributes:
        proven_at: monotonic instant of the listener's last proof; `NEVER` while it is lost.
        usable_at: the same; `NEVER` while memory is bypassed.  The L1 hit reads only this.
        lost_at: monotonic instant at which the listener was lost; `NEVER` before it was ever up.
    """

    __slots__ = ("_bypasses", "_is_closed", "_lock", "_void_until", "lost_at", "proven_at", "usable_at")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again with no proof, as a child does after a fork."""
        self.usable_at = NEVER
        self.lost_at = NEVER
        self.proven_at = NEVER
        self._void_until = NEVER
        self._bypasses = 0
        self._is_closed = False
        # A session that is dropped is done with when its memory is freed: in any thread, also in one that has the lock.
        self._lock = threading.RLock()

    @property
    def is_coherent(self) -> bool:
        """Whether the listener is up, bypassed or not."""
        return self.proven_at != NEVER

    def prove(self, at: float) -> bool:
        """Note that every message up to `at` has been processed; return whether memory may answer again.

        Not if messages may have been missed after that: another thread may have lost the connection meanwhile.
        """
        with self._lock:
            if self._is_closed or at <= self._void_until:
                return False
            was_coherent, self.proven_at = self.is_coherent, at
            if not self._bypasses:
                self.usable_at = at
        return not was_coherent

    def lost(self, at: float) -> None:
        """Stop memory from answering: messages may have been missed from `at` on."""
        with self._lock:
            if self.proven_at != NEVER:
                self.lost_at = at
            self._void_until = at
            self.proven_at = self.usable_at = NEVER

    def close(self, at: float) -> None:
        """Stop for good: a thread that is asked to end may still be about to prove something."""
        with self._lock:
            self._is_closed = True
        self.lost(at)

    def bypass(self) -> None:
        """Take every read of this process off L1's fast path, until `unbypass`: some readers must not see L1."""
        with self._lock:
            self._bypasses += 1
            self.usable_at = NEVER

    def unbypass(self) -> None:
        """End one `bypass`."""
        with self._lock:
            self._bypasses -= 1
            if not self._bypasses:
                self.usable_at = self.proven_at
