"""FailureLog: loads that fail, with their traceback, and values that are not stored, in the process that ran them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cacheworkers.errors import KeyMissing
from cacheworkers.events import Loaded, NotStored

log = logging.getLogger("cacheworkers")

#: With a database that is away every load fails: more tracebacks than this within a period say nothing new.
MAX_LOGGED = 50
PERIOD = 10.0
#: A value that has no place in the store is loaded at each read: said once for its loader in as many seconds.
UNSTORED_PERIOD = 600.0


class FailureLog:
    """Logs a failed load once for each call and backoff; an exception that failed a whole batch, once.

    After a failure nobody loads the call until its backoff ends; while the store is away there is no backoff, and this
    remembers it instead.
    """

    def __init__(self, backoff_for: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._backoff_for = backoff_for
        self._clock = clock
        self._lock = threading.Lock()
        self._logged_until: dict[str, float] = {}
        self._unstored_until: dict[str, float] = {}
        self._last: BaseException | None = None
        self._period_ends = 0.0
        self._count = 0

    def reset(self) -> None:
        """Start over in a child."""
        self._lock = threading.Lock()

    def log(self, event: Loaded) -> None:
        """Log the failure of one call, if that is due."""
        error = event.error
        if error is None or isinstance(error, KeyMissing):  # a key that a batch loader left out is an answer
            return
        cause = error.__cause__ or error
        with self._lock:
            if cause is self._last or not self._is_due(event.call):
                return
            self._last = cause
            self._count += 1
            count = self._count
        if count <= MAX_LOGGED:
            fields = {"loader": event.loader, "call": event.call, "where": event.where}
            log.error("load of %s failed in %.3f s", event.call, event.seconds, exc_info=cause, extra=fields)
        if count == MAX_LOGGED:
            log.error("further failed loads are not logged for %g s", PERIOD)

    def log_unstored(self, event: NotStored) -> None:
        """Log a warning that a value is not stored, once for each loader and `UNSTORED_PERIOD`."""
        now = self._clock()
        with self._lock:
            if self._unstored_until.get(event.loader, 0.0) > now:
                return
            self._unstored_until[event.loader] = now + UNSTORED_PERIOD
        fields = {"loader": event.loader, "call": event.call}
        log.warning("%s cannot be stored, and is loaded at each read: %s", event.call, event.reason, extra=fields)

    def _is_due(self, call: str) -> bool:
        now = self._clock()
        if now >= self._period_ends:
            self._period_ends, self._count = now + PERIOD, 0
            self._logged_until = {each: until for each, until in self._logged_until.items() if until > now}
            self._last = None
        if self._logged_until.get(call, 0.0) > now:
            return False
        if len(self._logged_until) < MAX_LOGGED:
            self._logged_until[call] = now + self._backoff_for / 2
        return True
