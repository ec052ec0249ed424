"""AccessReporter: reports to the store what this process has read, at an interval and once more when it closes."""

from __future__ import annotations

import contextlib
import threading

from cacheworkers.core.driver import run
from cacheworkers.errors import StoreError
from cacheworkers.flows.keep_warm import report_accesses
from cacheworkers.flows.ports import Ports
from cacheworkers.local.periodic_thread import PeriodicThread
from cacheworkers.runtime.namespace_marks import NamespaceMarks

#: Seconds between two reports of memory hits to the hook, where no accesses are reported to the store.
COUNTED_EVERY = 5.0


class AccessReporter(PeriodicThread):
    """The thread that reports; it renews this process's marks too."""

    def __init__(self, ports: Ports, marks: NamespaceMarks) -> None:
        self._ports = ports
        self._marks = marks
        super().__init__("cacheworkers-accesses", ports.config.access_report_interval or COUNTED_EVERY, self._report)

    def close(self) -> None:
        """Stop, and report what has been read since the last report; a store that is away costs one timeout."""
        super().close()
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

    def _report(self) -> None:
        self._marks.note()
        run(report_accesses(self._ports))
