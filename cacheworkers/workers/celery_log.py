"""Celery's log: lines about the library's own tasks at DEBUG, and one line when beat's broker goes away or is back."""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_task_publish
from kombu.exceptions import OperationalError

from cacheworkers.errors import LoadError
from cacheworkers.workers.celery_internals import BEAT_LOGGER, TASK_LOGGERS, UNKNOWN_LOGGER, task_of_record
from cacheworkers.workers.celery_settings import PREFIX

log = logging.getLogger("cacheworkers")


class _OwnTasks(logging.Filter):
    """Lowers to DEBUG what Celery logs at INFO for each of the library's tasks: received, done, expired, sent by beat.

    Beat sends one every few seconds; an idle worker's log would consist of them.  So it does with the error of a failed
    load, which has been logged already, and not only the first of its message, and with that of an unknown loader,
    which is logged in a line, and not for each message.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be logged."""
        task = task_of_record(record)
        is_load_error = record.name == UNKNOWN_LOGGER or _is_load_error(record)
        is_known = record.levelno == logging.ERROR and task.startswith(PREFIX) and is_load_error
        if not is_known and not (record.levelno == logging.INFO and task.startswith("cacheworkers.")):
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _BrokerErrors(logging.Filter):
    """Shortens what beat logs for each task that it cannot send while the broker is away.

    Each text of a broker's error is logged once, without its traceback.  Other errors pass unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be logged."""
        from celery.beat import SchedulingError  # loaded where beat runs

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


def _is_load_error(record: logging.LogRecord) -> bool:
    return isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], LoadError)


_own_tasks = _OwnTasks()
_broker_errors = _BrokerErrors()


def lower_own_tasks() -> None:
    """Have lines about the library's own tasks logged at DEBUG in this process."""
    for name in (*TASK_LOGGERS, UNKNOWN_LOGGER, BEAT_LOGGER):
        logging.getLogger(name).addFilter(_own_tasks)


def log_broker_errors_once() -> None:
    """Shorten the log of the beat in this process, whatever its scheduler."""
    logging.getLogger(BEAT_LOGGER).addFilter(_broker_errors)
    after_task_publish.connect(_broker_errors.log_recovery, weak=False, dispatch_uid="cacheworkers-beat-log")
