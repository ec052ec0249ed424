"""ForkCheck: notices at use that this process is a fork, or was patched since, also where no hook of Python's ran."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class ForkCheck:
    """Calls `reset` at the first use in a forked process, and in one whose threads have become green ones.

    `os.fork` and multiprocessing run Python's hooks.  A server that forks in C, as uWSGI does, runs none: its children
    would share the parent's sockets, and read each other's replies.  One that patches after the fork, as
    `gunicorn --preload -k gevent` does, has locks and threads of the other kind by then.
    """

    __slots__ = ("_kind", "_lock", "_pid", "_reset")

    def __init__(self, reset: Callable[[], None]) -> None:
        """
        Args:
            reset: forgets connections and threads; calls `renew`.
        """
        self._reset = reset
        self.renew()

    def renew(self) -> None:
        """Take this process as the owner."""
        self._kind = threading.Lock
        self._lock = self._kind()
        self._pid = os.getpid()

    def __call__(self) -> None:
        """Reset if this is another process than the one that used the cache before, or has other threads."""
        if os.getpid() != self._pid or threading.Lock is not self._kind:
            with self._lock:
                if os.getpid() != self._pid or threading.Lock is not self._kind:
                    self._reset()
