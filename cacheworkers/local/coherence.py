"""Whether this process's memory may answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

NEVER = float("-inf")
#: Seconds after which a thread that reads from memory looks whether a push waits for the listener.
LOOK_EVERY = 0.001


def _nothing() -> None:
    pass


class Coherence:
    """Opens while the listener proves that it hears every push; closed by loss, and by loads and dirty sessions here.

    Attributes:
        proven_at: monotonic instant of the listener's last proof; `NEVER` while it is lost.
        heard_at: the same; `NEVER` while closed.  The L1 hit reads only this.
        lost_at: monotonic instant at which the listener was lost; `NEVER` before it was ever up.
        look_at: monotonic instant from which on an L1 hit has to `look` first.
        take_in: takes in, in this thread, the pushes that have arrived and that the listener has not got to.
    """

    __slots__ = (
        "_bypasses",
        "_is_closed",
        "_lock",
        "_void_until",
        "heard_at",
        "look_at",
        "lost_at",
        "proven_at",
        "take_in",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork."""
        self.heard_at = NEVER
        self.lost_at = NEVER
        self.proven_at = NEVER
        self._void_until = NEVER
        self._bypasses = 0
        self._is_closed = False
        # A session that is dropped is done with when its memory is freed: in any thread, also in one that has the lock.
        self._lock = threading.RLock()
        self.look_at = NEVER
        self.take_in: Callable[[], None] = _nothing

    @property
    def is_coherent(self) -> bool:
        """Whether the listener is up, bypassed or not."""
        return self.proven_at != NEVER

    def heard(self, at: float) -> bool:
        """Note that every push up to `at` has been processed; whether that has opened the gate.

        Not if pushes may have been missed after that: who says so may have been about to when the link was lost.
        """
        with self._lock:
            if self._is_closed or at <= self._void_until:
                return False
            was_coherent, self.proven_at = self.is_coherent, at
            if not self._bypasses:
                self.heard_at = at
        return not was_coherent

    def look(self, now: float) -> None:
        """Take in the pushes that have arrived, if any.

        A thread that reads from memory alone never waits, and is asked for the interpreter only every
        `sys.getswitchinterval()`, 5 ms, and the listener may then have to wait for a processor: so much longer each of
        its reads could be of what has just been changed.
        """
        self.look_at = now + LOOK_EVERY
        try:
            self.take_in()
        finally:  # which may have taken as long: others have had their turn meanwhile, and reads are to have theirs
            self.look_at = time.monotonic() + LOOK_EVERY

    def lost(self, at: float) -> None:
        """Close: pushes may have been missed from `at` on."""
        self.take_in = _nothing
        with self._lock:
            if self.proven_at != NEVER:
                self.lost_at = at
            self._void_until = at
            self.proven_at = self.heard_at = NEVER

    def close(self, at: float) -> None:
        """Close for good: who is told to stop may still be about to say that it has heard something."""
        with self._lock:
            self._is_closed = True
        self.lost(at)

    def bypass(self) -> None:
        """Send every read of this process the long way, until `unbypass`: it looks who asks; some must not see L1."""
        with self._lock:
            self._bypasses += 1
            self.heard_at = NEVER

    def unbypass(self) -> None:
        """End one `bypass`."""
        with self._lock:
            self._bypasses -= 1
            if not self._bypasses:
                self.heard_at = self.proven_at
