"""Celery settings by role: publishers fail in milliseconds, workers are patient.

The numbers are measured: a publisher without socket timeouts hangs for ever on a frozen broker, and kombu's default
redelivery after a killed worker takes 100 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery

from cacheworkers.config import Config

#: Task names are this and the loader's name.
PREFIX = "cacheworkers.load."
#: A message runs this much longer than its calls' deadlines, seconds, before its loader is interrupted.
SOFT_MARGIN = 5.0
#: ... and this much longer before its process is killed.
HARD_MARGIN = 10.0
#: How long a message is its worker's before it is redelivered, seconds: never less than this, and never less than the
#: longest message may run, or it would be loaded twice.
VISIBILITY = 120
VISIBILITY_MARGIN = 30
#: Both roles, on Redis brokers.
COMMON = {
    "visibility_timeout": VISIBILITY,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 10,
    "queue_order_strategy": "priority",
}
PUBLISHER = {
    "max_retries": 0,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
    "socket_timeout": 0.1,
    "socket_connect_timeout": 0.1,
}
WORKER = {"socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True}


class WorkerSettings:
    """Fills in what the user's app has not set itself: at once, and whenever the app reads its configuration anew.

    An app may be configured before or after it is bound, and its beat schedule set even later.
    """

    def __init__(self, app: Celery, config: Config, schedule: Mapping[str, dict[str, Any]]) -> None:
        self._app = app
        self._plain = {"worker_prefetch_multiplier": 1, "broker_connection_retry_on_startup": True}
        self._transport: dict[str, Any] = {**WORKER, **COMMON}
        self._schedule = schedule
        # Messages of readers and of beat name their queues; these are for what somebody sends by hand.
        self._routes: dict[str, Any] = {f"{PREFIX}*": {"queue": config.queues.revalidate}}
        self._routes |= {entry["task"]: {"queue": config.queues.upkeep} for entry in schedule.values()}

        def configured(source: Any, **_: Any) -> None:
            self._fill(source)

        def finalized(**_: Any) -> None:
            if app.configured:  # else it is filled when it is: reading it now would be too early
                self._fill(app.conf)

        app.on_after_configure.connect(configured, weak=False)
        app.on_after_finalize.connect(finalized, weak=False)
        if app.configured:
            self._fill(app.conf)

    def make_room(self, hard_limit: float) -> None:
        """Let a message be its worker's for at least as long as it may run, unless the user has set how long."""
        wanted = int(hard_limit) + VISIBILITY_MARGIN
        before = self._transport["visibility_timeout"]
        if wanted <= before:
            return
        self._transport["visibility_timeout"] = wanted
        if self._app.configured:
            options = dict(self._app.conf.broker_transport_options)
            if options.get("visibility_timeout") == before:  # it is ours
                self._app.conf.broker_transport_options = {**options, "visibility_timeout": wanted}

    def _fill(self, conf: Any) -> None:
        for name, value in self._plain.items():
            if not conf.value_set_for(name):
                conf[name] = value
        conf["broker_transport_options"] = {**self._transport, **(conf.broker_transport_options or {})}
        # Theirs wins: a user changes an entry of ours by an entry of the same name.
        routes = conf.task_routes or []
        routes = list(routes) if isinstance(routes, list | tuple) else [routes]
        if self._routes not in routes:
            conf["task_routes"] = [*routes, self._routes]  # theirs are asked first
        conf["beat_schedule"] = {**self._schedule, **(conf.beat_schedule or {})}


def publisher_options(app: Celery) -> dict[str, Any]:
    """Return the transport options of a connection that only publishes: the app's own, but impatient."""
    return {**(app.conf.broker_transport_options or {}), **PUBLISHER}
