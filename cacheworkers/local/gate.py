"""Whether this process's memory may answer."""

from __future__ import annotations

import threading

NEVER = float("-inf")


class Gate:
    """Opens while the listener proves that it hears every push; closed by loss, and by loads and dirty sessions here.

    Attributes:
        heard_at: monotonic instant of the listener's last proof; `NEVER` while closed.  The L1 hit reads only this.
        lost_at: monotonic instant at which the listener was lost; `NEVER` before it was ever up.
    """

    __slots__ = ("_bypasses", "_heard_at", "_is_closed", "_lock", "heard_at", "lost_at")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork."""
        self.heard_at = NEVER
        self.lost_at = NEVER
        self._heard_at = NEVER
        self._bypasses = 0
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def is_coherent(self) -> bool:
        """Whether the listener is up, bypassed or not."""
        return self._heard_at != NEVER

    def heard(self, at: float) -> None:
        """Note that every push up to `at` has been processed."""
        with self._lock:
            if self._is_closed:
                return
            self._heard_at = at
            if not self._bypasses:
                self.heard_at = at

    def lost(self, at: float) -> None:
        """Close: pushes may have been missed from `at` on."""
        with self._lock:
            if self._heard_at != NEVER:
                self.lost_at = at
            self._heard_at = self.heard_at = NEVER

    def close(self, at: float) -> None:
        """Close for good: who is told to stop may still be about to say that it has heard something."""
        with self._lock:
            self._is_closed = True
        self.lost(at)

    def bypass(self) -> None:
        """Send every read of this process the long way, until `unbypass`: some of them must not see L1."""
        with self._lock:
            self._bypasses += 1
            self.heard_at = NEVER

    def unbypass(self) -> None:
        """End one `bypass`."""
        with self._lock:
            self._bypasses -= 1
            if not self._bypasses:
                self.heard_at = self._heard_at
