"""Give leases back on a thread of its own, again and again until the store has taken them or they have run out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from cacheworkers.errors import StoreError
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.store.commands.store import Store

#: Between two tries while the store does not answer, seconds: doubled from the first to the last.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
#: A lease that could not be given back for so long is left to run out, seconds.
TRIED_FOR = 60.0
#: Most leases given back in one exchange.
CHUNK = 500

_Name = tuple[str, str]


class LeaseReleases:
    """The leases of this process that nobody honours: a claim or a beginning was cancelled, or its reply was late."""

    def __init__(self, store: Callable[[], Store], wake: Callable[[str], None]) -> None:
        """
        Args:
            wake: called with the call of each lease that was given back.
        """
        self._store = store
        self._wake = wake
        self.reset()

    def reset(self) -> None:
        """Forget them, as a child does after a fork: the parent gives them back."""
        # Re-entrant: a garbage collection inside it may close a read, which gives its lease back.
        self._lock = threading.RLock()
        self._names: dict[_Name, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def add(self, call: str, name: str) -> None:
        """Have a lease given back, by its token or fence; returns immediately."""
        with self._lock:
            self._names[call, name] = time.monotonic() + TRIED_FOR
            if self._thread is not None or self._closed.is_set():
                return
            thread = self._thread = ProcessThread(self._run, "cacheworkers-release")
        # Without the lock: a garbage collection in the thread that begins may close a load, which comes here, and
        # `start` waits until the thread has begun.
        try:
            thread.start()
        except RuntimeError:  # no thread can be started, or the interpreter is ending: the lease runs out by itself
            self._thread = None

    def close(self, timeout: float) -> None:
        """Try once more, for at most `timeout` seconds, and stop."""
        self._closed.set()
        thread = self._thread
        if thread is not None:
            with contextlib.suppress(RuntimeError):  # it has not begun yet
                thread.join(timeout)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            is_last = self._closed.is_set()
            if self._release():
                pause = FIRST_PAUSE
            elif not is_last:
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            with self._lock:
                if not self._names or is_last:
                    self._thread = None
                    return

    def _release(self) -> bool:
        """Give back what there is; False if the store does not take it."""
        now = time.monotonic()
        with self._lock:
            self._names = {name: until for name, until in self._names.items() if until > now}
            names = list(self._names)[:CHUNK]
        if not names:
            return True
        try:
            self._store().release(names).run()
        except StoreError:
            return False
        with self._lock:
            for name in names:
                self._names.pop(name, None)
        for call, _ in names:
            with contextlib.suppress(Exception):  # whoever it is wakes up by itself in time
                self._wake(call)
        return True
