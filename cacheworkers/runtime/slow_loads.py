"""SlowLoads: loads without `begin` that turn out slow are marked as begun, before readers take their leases over."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from cacheworkers.errors import StoreError
from cacheworkers.flows.load import MARKED_AFTER
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.store.commands.store import Store

#: Its thread ends when there was no load for so long, seconds: starting it costs as much as a load.
IDLE_FOR = 10.0


class SlowLoads:
    """The quick loads that this process has under way.

    A database that stalls makes quick loads slow.  Readers would take their leases over, one for each call, and then
    no longer wait for workers at all.
    """

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self.reset()

    def reset(self) -> None:
        """Forget them, as a child does after a fork."""
        self._lock = threading.RLock()  # re-entrant: a garbage collection inside it may end a load
        #: Token -> call, how long it may last, and the monotonic instant at which it is marked.
        self._loads: dict[str, tuple[str, float, float]] = {}
        self._last = 0.0
        self._thread: threading.Thread | None = None

    def begin(self, call: str, token: str, load_for: float) -> None:
        """Note a load that begins under its claim's token."""
        now = time.monotonic()
        with self._lock:
            self._last = now
            self._loads[token] = call, load_for, now + MARKED_AFTER
            if self._thread is not None:
                return
            thread = self._thread = ProcessThread(self._run, "cacheworkers-slow-loads")
        try:
            thread.start()
        except RuntimeError:  # no thread can be started now: nobody sees this load begin; the next load tries again
            self._thread = None

    def end(self, token: str) -> None:
        """Note that a load has ended."""
        self._loads.pop(token, None)

    def _run(self) -> None:
        while True:
            time.sleep(MARKED_AFTER)
            now = time.monotonic()
            with self._lock:
                # Of a copy, and perhaps no longer there: loads end without the lock.
                loads = self._loads.copy().items()
                slow = [(call, token, load_for) for token, (call, load_for, due) in loads if due <= now]
                for _, token, _ in slow:
                    self._loads.pop(token, None)
                if not slow and not self._loads and now - self._last > IDLE_FOR:
                    self._thread = None
                    return
            if slow:
                with contextlib.suppress(StoreError):  # then readers learn it from the store's silence
                    self._store().mark_begun(slow).run()
