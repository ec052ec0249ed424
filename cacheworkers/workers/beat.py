"""A scheduler for several beats: the one that holds a lease in the store sends, the others stand by.

    celery -A shop beat -S cacheworkers

When an entry was last sent is kept in the store, so that whoever leads next goes on where the last one stopped, and no
beat needs a schedule file.  A beat that cannot renew its lease stops sending once the lease has run out by its own
clock, and sends again when the store is back: the upkeep tasks can do nothing without the store, and your own tasks
have nothing that keeps two leaders from sending them twice.  What was due meanwhile is sent once.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import secrets
import time
from typing import Any

from celery import Celery
from celery.beat import Scheduler, SchedulingError
from celery.signals import after_task_publish
from kombu.exceptions import OperationalError

from cacheworkers.errors import CacheworkersError, ConfigError
from cacheworkers.workers.binding import beat_lease_of

log = logging.getLogger("cacheworkers")


class _SendErrors(logging.Filter):
    """Makes one line of the tracebacks that celery.beat logs for each task while the broker is away.

    Whatever the broker says otherwise is told as well, once; an error that is not the broker's passes as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be logged."""
        error = record.exc_info[1] if record.exc_info else None
        cause = error.__context__ if isinstance(error, SchedulingError) else None
        if not isinstance(cause, OperationalError):
            return True
        text = str(cause)
        if text in self._told:
            return False
        self._told.add(text)
        record.msg, record.args, record.exc_info = "beat cannot send, and tries on: %s", (text,), None
        return True

    def note_sent(self, **_: Any) -> None:
        """Say that the broker is back, if it was away."""
        if self._told:
            self._told.clear()
            log.warning("beat sends again")


_send_errors = _SendErrors()


def tell_send_errors_once() -> None:
    """Have beat, with whatever scheduler, say in one line that the broker is away, and in one that it is back."""
    logging.getLogger("celery.beat").addFilter(_send_errors)
    after_task_publish.connect(_send_errors.note_sent, weak=False, dispatch_uid="cacheworkers-send-errors")


class LeaderScheduler(Scheduler):  # type: ignore[misc]  # celery has no types
    """Sends what is due while it holds the lease.

    Attributes:
        max_interval: most seconds between two ticks.
    """

    max_interval: float

    def __init__(self, app: Celery, **options: Any) -> None:
        """
        Raises:
            ConfigError: the app is bound to no cache.
        """
        bound = beat_lease_of(app)
        if bound is None:
            raise ConfigError(f"{app!r} is bound to no Cache: the module of `celery -A` must make one")
        self._store, self._lease_for = bound
        self._token = secrets.token_hex(8)
        self._is_leader = False
        self._leads_until = self._renews_at = float("-inf")
        super().__init__(app, **options)
        self.max_interval = min(self.max_interval, self._lease_for / 3)

    def tick(self, *args: Any, **options: Any) -> float:
        """Send what is due, if this beat leads; seconds until the next tick."""
        self._renew()
        if not self._is_leader:
            return float(self.max_interval)
        try:
            return float(super().tick(*args, **options))
        except OperationalError as error:  # no connection to the broker, after many tries
            log.error("beat cannot reach the broker: %s", error)
            self._heap = None
            return float(self.max_interval)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send an entry, unless the lease has run out while the broker was being reached."""
        if time.monotonic() >= self._leads_until:
            self.schedule[entry.name] = entry
            self._heap = None
            return
        super().apply_entry(entry, producer=producer)
        with contextlib.suppress(CacheworkersError):  # whoever leads next may send it once more
            self._store.note_sent(entry.name, self.schedule[entry.name].last_run_at.timestamp()).run()

    def close(self) -> None:
        """Give the lease back, so that another beat need not wait for its end."""
        super().close()
        with contextlib.suppress(CacheworkersError):
            self._store.lead(self._token, 0.0).run()
        self._leads_until = float("-inf")

    def _renew(self) -> None:
        """Take or keep the lease, and find out whether this beat leads."""
        now = time.monotonic()
        if now >= self._renews_at:
            self._renews_at = now + self.max_interval
            try:
                if not self._store.lead(self._token, self._lease_for).run():
                    self._leads_until = float("-inf")
                else:
                    if not self._is_leader:
                        self._go_on()
                    self._leads_until = now + self._lease_for
            except CacheworkersError as error:
                log.warning("beat cannot renew its lease: %s", error)
        leads = time.monotonic() < self._leads_until
        if leads != self._is_leader:
            log.warning("this beat %s", "leads" if leads else "stands by")
            self._is_leader = leads

    def _go_on(self) -> None:
        """Take up the schedule where the last leader has left it."""
        now = time.time()
        for name, noted_at in self._store.sent().run().items():
            # Its clock may have been ahead of ours: what it has sent is not due in our future.
            sent_at = min(noted_at, now)
            entry = self.schedule.get(name)
            if entry is not None and (not entry.total_run_count or sent_at > entry.last_run_at.timestamp()):
                entry.last_run_at = datetime.datetime.fromtimestamp(sent_at, entry.last_run_at.tzinfo)
        self._heap = None
