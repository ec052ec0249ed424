"""ForkCheck: notices at use that this process is a fork, also where the fork ran none of Python's hooks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class ForkCheck:
    """Calls `reset` at the first use in a forked process.

    `os.fork` and multiprocessing run Python's hooks.  A server that forks in C, as uWSGI does, runs none: its children
    would share the parent's sockets, and read each other's replies.
    """

    __slots__ = ("_lock", "_pid", "_reset")

    def __init__(self, reset: Callable[[], None]) -> None:
        """
        Args:
            reset: forgets connections and threads; calls `renew`.
        """
        self._reset = reset
        self.renew()

    def renew(self) -> None:
        """Take this process as the owner."""
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __call__(self) -> None:
        """Reset if this is another process than the one that used the cache before."""
        if os.getpid() != self._pid:
            with self._lock:
                if os.getpid() != self._pid:
                    self._reset()
