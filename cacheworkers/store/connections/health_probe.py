"""HealthProbe: asks the store that is away whether it is back, so that no reader has to wait to find out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


class HealthProbe:
    """Asks every so often, on a daemon thread that lives until it is answered.

    Attributes:
        is_at_it: a thread asks; nobody else should.
    """

    def __init__(
        self, every: float, is_answered: Callable[[bool], bool], on_answer: Callable[[], None], *, looks_early: bool
    ) -> None:
        """
        Args:
            every: seconds from the failure to the first look, and between looks; 0 never begins.
            is_answered: asks once, and raises nothing; its argument is whether the look is an early one.
            on_answer: called on the thread once it is answered, when nothing asks any more.
            looks_early: besides, look at once after each failure.
        """
        self._every = every
        self._is_answered = is_answered
        self._on_answer = on_answer
        self._looks_early = looks_early
        self._is_closed = False
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child does after a fork: the thread is the parent's; what was closed stays closed."""
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_at_it(self) -> bool:
        return self._thread is not None

    def begin(self) -> None:
        """Begin to ask; where no thread can be had, or after `close`, it is left to others."""
        if not self._every or self._is_closed:
            return
        if self._looks_early:
            self._hurry.set()
        if self._thread is not None:
            return
        self._thread = thread = threading.Thread(target=self._ask, name="cacheworkers-prober", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            self._thread = None

    def close(self, timeout: float) -> None:
        """Stop, and wait so many seconds at most for a look that is under way: its connection is then closed too."""
        self._is_closed = True
        self._hurry.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # it has not begun, and ends as soon as it does
                thread.join(timeout)

    def _ask(self) -> None:
        while True:
            is_early = self._hurry.wait(self._every)
            if self._is_closed:
                return
            self._hurry.clear()
            if self._is_answered(is_early):
                # In this order.  Whoever fails after `on_answer` begins anew, and must not find this thread at it.
                self._thread = None
                self._on_answer()
                return
