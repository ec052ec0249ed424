"""Breaker: a dead store costs one timeout, not one a read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Opens at the first failure; then lets one probe through each `open_for` seconds, until one succeeds."""

    __slots__ = ("_clock", "_lock", "_next_probe", "_open_for", "is_open")

    def __init__(self, open_for: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_for = open_for
        self._clock = clock
        self._next_probe = 0.0
        self._lock = threading.Lock()
        self.is_open = False

    def allows(self) -> bool:
        """Return whether to try now; while open, true for one caller a period."""
        if not self.is_open:
            return True
        with self._lock:
            now = self._clock()
            if self.is_open and now < self._next_probe:
                return False
            self._next_probe = now + self._open_for
            return True

    def failed(self) -> None:
        """Note a failure."""
        with self._lock:
            self.is_open = True
            self._next_probe = self._clock() + self._open_for

    def succeeded(self) -> None:
        """Note a success."""
        if self.is_open:
            with self._lock:
                self.is_open = False
