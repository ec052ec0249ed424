"""AccessReporter: reports to the store what this process has read, at an interval and once more when it closes."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading

from cacheworkers.core.driver import run
from cacheworkers.errors import StoreError
from cacheworkers.flows.keep_warm import report_accesses
from cacheworkers.flows.ports import Ports
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.runtime.namespace_marks import NamespaceMarks

log = logging.getLogger("cacheworkers")

#: Seconds between two reports of memory hits to the hook, where no accesses are reported to the store.
COUNTED_EVERY = 5.0


class AccessReporter:
    """A daemon thread that reports, once it is started; it renews this process's marks too."""

    def __init__(self, ports: Ports, marks: NamespaceMarks) -> None:
        self._ports = ports
        self._marks = marks
        self._every = ports.config.access_report_interval or COUNTED_EVERY
        self.reset()

    def reset(self) -> None:
        """Forget the thread, as a child does after a fork: it is the parent's."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start, unless it has been started or closed."""
        if self._thread is None and not self._stop.is_set():
            thread = ProcessThread(functools.partial(self._report_repeatedly, self._stop), "cacheworkers-accesses")
            with contextlib.suppress(RuntimeError):  # no thread can be started: nothing is reported
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """Stop, and report what has been read since the last report; a store that is away costs one timeout."""
        self._stop.set()
        ports = self._ports
        if not len(ports.access_counter) and not len(ports.l1):
            return

        def report() -> None:
            with contextlib.suppress(StoreError):
                run(report_accesses(ports))

        # A daemon, since there may be many exchanges; each alone may take as long.
        thread = threading.Thread(target=report, name="cacheworkers-accesses-last", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: it is done without
            thread.start()
            thread.join(ports.config.store_timeout)

    def _report_repeatedly(self, stop: threading.Event) -> None:
        while not stop.wait(self._every):
            try:
                self._marks.note()
                run(report_accesses(self._ports))
            except Exception as error:  # the store is away, say: the next round tries again
                log.debug("accesses are not reported: %s", error)
