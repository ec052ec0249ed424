"""Beat's log: one line when the broker goes away and one when it is back, instead of a traceback for each task."""

from __future__ import annotations

import logging
from typing import Any

from celery.beat import SchedulingError
from celery.signals import after_task_publish
from kombu.exceptions import OperationalError

log = logging.getLogger("cacheworkers")


class _BrokerErrors(logging.Filter):
    """Shortens what `celery.beat` logs for each task that it cannot send while the broker is away.

    Each text of a broker's error is logged once, without its traceback.  Other errors pass unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be logged."""
        error = record.exc_info[1] if record.exc_info else None
        cause = error.__context__ if isinstance(error, SchedulingError) else None
        if not isinstance(cause, OperationalError):
            return True
        text = str(cause)
        if text in self._logged:
            return False
        self._logged.add(text)
        record.msg, record.args, record.exc_info = "beat cannot send and keeps trying: %s", (text,), None
        return True

    def log_recovery(self, **_: Any) -> None:
        """Log that the broker is back, if it was away."""
        if self._logged:
            self._logged.clear()
            log.warning("beat sends again")


_broker_errors = _BrokerErrors()


def log_broker_errors_once() -> None:
    """Shorten the log of the beat in this process, whatever its scheduler."""
    logging.getLogger("celery.beat").addFilter(_broker_errors)
    after_task_publish.connect(_broker_errors.log_recovery, weak=False, dispatch_uid="cacheworkers-beat-log")
