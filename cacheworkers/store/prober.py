"""Prober: asks the store that is away whether it is back, so that no reader has to wait to find out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


class Prober:
    """Asks every so often, on a daemon thread that lives until it is answered.

    Attributes:
        is_at_it: a thread asks; nobody else should.
    """

    def __init__(self, every: float, is_answered: Callable[[], bool], on_answer: Callable[[], None]) -> None:
        """
        Args:
            every: seconds from the failure to the first look, and between looks; 0 never begins.
            is_answered: asks once, and raises nothing.
            on_answer: called on the thread once it is answered, when nothing asks any more.
        """
        self._every = every
        self._is_answered = is_answered
        self._on_answer = on_answer
        self._stop = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork: the thread is the parent's; what was closed stays closed."""
        stop = threading.Event()
        if self._stop.is_set():
            stop.set()
        self._stop = stop
        self._thread: threading.Thread | None = None

    @property
    def is_at_it(self) -> bool:
        return self._thread is not None

    def begin(self) -> None:
        """Begin to ask; where no thread can be had, or after `close`, it is left to others."""
        if not self._every or self._thread is not None or self._stop.is_set():
            return
        self._thread = thread = threading.Thread(
            target=self._ask, args=(self._stop,), name="cacheworkers-prober", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            self._thread = None

    def close(self, timeout: float) -> None:
        """Stop, and wait so many seconds at most for a look that is under way: its connection is then closed too."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # it has not begun, and ends as soon as it does
                thread.join(timeout)

    def _ask(self, stop: threading.Event) -> None:
        while not stop.wait(self._every):
            if self._is_answered():
                # In this order.  Whoever fails after `on_answer` begins anew, and must not find this thread at it.
                self._thread = None
                self._on_answer()
                return
