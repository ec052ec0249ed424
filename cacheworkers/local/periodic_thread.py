"""PeriodicThread: calls a function at an interval on a daemon thread."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

log = logging.getLogger("cacheworkers")


class PeriodicThread:
    """Calls something every `every` seconds once it is started; what it raises is only logged."""

    def __init__(self, name: str, every: float, work: Callable[[], object]) -> None:
        """
        Args:
            every: seconds; 0 never starts.
        """
        self._name = name
        self._every = every
        self._work = work
        self.reset()

    def reset(self) -> None:
        """Forget the thread, as a child does after a fork: it is the parent's."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start, unless it has been started or closed."""
        if self._every and self._thread is None and not self._stop.is_set():
            thread = threading.Thread(target=self._tick, args=(self._stop,), name=self._name, daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started: the work is skipped
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """Stop; a call that runs is not waited for."""
        self._stop.set()

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(self._every):
            try:
                self._work()
            except Exception as error:  # the store is away, say: the next tick tries again
                log.debug("%s: %s", self._name, error)
