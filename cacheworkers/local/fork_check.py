"""ForkCheck: notices at use that this process is a fork, or was patched since, also where no hook of Python's ran."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

#: Linux's MADV_WIPEONFORK: a child finds zeros.
_WIPE_ON_FORK = 18


def process_mark() -> Any:
    """Return what has a true item 0 in this process, and a false one in its forks, whoever forks them.

    The item of a page that the kernel wipes in a child; a process id takes a system call at each look.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel before 4.14, or what stands in for one
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_WIPE_ON_FORK)
            page[0] = 1
            return page
    return _ProcessId()


class _ProcessId:
    """The mark where the kernel wipes nothing."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, at: int) -> bool:
        return os.getpid() == self._pid


class ForkCheck:
    """Calls `reset` at the first use in a forked process, and in one whose threads have become green ones.

    `os.fork` and multiprocessing run Python's hooks.  A server that forks in C, as uWSGI does, runs none: its children
    would share the parent's sockets, and read each other's replies.  One that patches after the fork, as
    `gunicorn --preload -k gevent` does, has locks and threads of the other kind by then.
    """

    __slots__ = ("_kind", "_lock", "_mark", "_reset")

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
        self._mark = process_mark()

    def __call__(self) -> None:
        """Reset if this is another process than the one that used the cache before, or has other threads."""
        if not self._mark[0] or threading.Lock is not self._kind:
            with self._lock:
                if not self._mark[0] or threading.Lock is not self._kind:
                    self._reset()
