"""Whether this process's memory may answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

NEVER = float("-inf")
#: Seconds after which a thread that reads from memory looks whether a push waits for the listener.
LOOK_EVERY = 0.001
#: Seconds for which it then lets go of the interpreter: long enough that a thread that wakes up gets it.
_GIVE_WAY_FOR = 5e-5


def _nothing() -> bool:
    return False


class Gate:
    """Opens while the listener proves that it hears every push; closed by loss, and by loads and dirty sessions here.

    Attributes:
        proven_at: monotonic instant of the listener's last proof; `NEVER` while it is lost.
        heard_at: the same; `NEVER` while closed.  The L1 hit reads only this.
        lost_at: monotonic instant at which the listener was lost; `NEVER` before it was ever up.
        look_at: monotonic instant from which on an L1 hit has to `look` first.
        has_news: tells at once whether a push has arrived that the listener has not taken in.
    """

    __slots__ = (
        "_bypasses",
        "_is_closed",
        "_lock",
        "_looking",
        "has_news",
        "heard_at",
        "look_at",
        "lost_at",
        "proven_at",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork."""
        self.heard_at = NEVER
        self.lost_at = NEVER
        self.proven_at = NEVER
        self._bypasses = 0
        self._is_closed = False
        # A session that is dropped is done with when its memory is freed: in any thread, also in one that has the lock.
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self.look_at = NEVER
        self.has_news: Callable[[], bool] = _nothing

    @property
    def is_coherent(self) -> bool:
        """Whether the listener is up, bypassed or not."""
        return self.proven_at != NEVER

    def heard(self, at: float) -> None:
        """Note that every push up to `at` has been processed."""
        with self._lock:
            if self._is_closed:
                return
            self.proven_at = at
            if not self._bypasses:
                self.heard_at = at

    def look(self, now: float) -> None:
        """Let the listener in, if a push waits for it.

        A thread that reads from memory alone never waits, and is asked for the interpreter only every
        `sys.getswitchinterval()`, 5 ms: so much longer each of its reads could be of what has just been changed.
        """
        if not self._looking.acquire(blocking=False):
            return  # another thread does
        try:
            self.look_at = now + LOOK_EVERY
            if self.has_news():
                time.sleep(_GIVE_WAY_FOR)
        finally:
            self._looking.release()

    def lost(self, at: float) -> None:
        """Close: pushes may have been missed from `at` on."""
        self.has_news = _nothing
        with self._lock:
            if self.proven_at != NEVER:
                self.lost_at = at
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
