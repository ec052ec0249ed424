"""Breaker: opens when a store or broker failed, so that it costs one timeout and not one a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Opens at the first failure; then allows one call in `open_for` seconds, until one succeeds.

    Attributes:
        is_open: the last call that ended has failed.
        open_for: its period, seconds.
    """

    __slots__ = ("_clock", "_lock", "_probe_at", "is_open", "open_for")

    def __init__(self, open_for: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.open_for = open_for
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Close, as a child does after a fork: its connections are new."""
        self._lock = threading.Lock()
        self._probe_at = 0.0
        self.is_open = False

    def allows(self) -> bool:
        """Return whether to try now; while open, true for one caller a period."""
        if not self.is_open:
            return True
        if self._clock() < self._probe_at:
            return False
        with self._lock:
            # Checked again under the lock: of many who find the period over, one goes.
            now = self._clock()
            if now < self._probe_at:
                return not self.is_open
            # Counted from now, whether or not the probe ever reports: one that is cancelled keeps nobody out for long.
            self._probe_at = now + self.open_for
            return True

    def failed(self) -> bool:
        """Note a failure: open, and stay open for `open_for` seconds from now; True if it was closed."""
        with self._lock:
            self._probe_at = self._clock() + self.open_for
            was_open, self.is_open = self.is_open, True
        return not was_open

    def succeeded(self) -> bool:
        """Note a success: close; True if it was open."""
        if not self.is_open:
            return False
        with self._lock:
            was_open, self.is_open = self.is_open, False
        return was_open
