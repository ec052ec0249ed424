"""SlowLoads: loads without `begin` that turn out slow are marked as begun, before readers take their leases over.

What has been loaded, and waits for a slow load of the same message, is written instead.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from cacheworkers.errors import StoreError
from cacheworkers.flows.load import MARKED_AFTER
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.store.commands.steps import Write
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
        self._writes: dict[str, Write[Any]] = {}
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

    def may_wait(self, token: str, write: Write[Any]) -> bool:
        """Have a load's write done when it would be marked; False if it is marked already, or was never noted.

        Done twice, the second write finds its version in the store.
        """
        with self._lock:
            if token not in self._loads:
                return False
            self._writes[token] = write
            return True

    def end(self, token: str) -> None:
        """Note that a load has ended."""
        self._loads.pop(token, None)
        self._writes.pop(token, None)

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
                found = [self._writes.pop(token, None) for _, token, _ in slow]
                if not slow and not self._loads and now - self._last > IDLE_FOR:
                    self._thread = None
                    return
            for write in filter(None, found):
                with contextlib.suppress(StoreError):  # its load does it again, and says so
                    write.run()
            if slow:
                # Those whose write is done have no lease to mark.
                with contextlib.suppress(StoreError):  # then readers learn it from the store's silence
                    self._store().mark_begun(slow).run()
