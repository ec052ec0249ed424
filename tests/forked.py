"""Work in a forked child, which neither outlives its test nor runs what the parent registered for its end."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

#: Seconds after which a child that stands still is killed.
WITHIN = 60


def heed_signals() -> None:
    """In a child before it runs its program: `nohup` and a shell's `&` have what they start ignore these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def fork(work: Callable[[], object]) -> int:
    """Begin work in a child; return its pid."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(WITHIN)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def exit_code(pid: int) -> int:
    """Wait for a child, and return its exit code: 0 if its work went well, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    """Do work in a child; return its exit code."""
    return exit_code(fork(work))
