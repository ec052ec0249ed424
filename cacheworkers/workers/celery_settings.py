"""What binding adds to an app's configuration, and the transport options of our own connections to its broker.

Nothing that holds for the app's own tasks is set: no visibility timeout, no prefetch, no order of queues, no timeouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery

from cacheworkers.config import Config
from cacheworkers.workers.celery_internals import annotations_of

#: Task names are this and the loader's name.
PREFIX = "cacheworkers.load."
#: A message runs this much longer than its calls' deadlines, seconds, before its loader is interrupted.
SOFT_MARGIN = 5.0
#: ... and this much longer before its process is killed.
HARD_MARGIN = 10.0
#: Of connections that only publish: a reader must not wait for a broker that is frozen.
PUBLISHER = {
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
    "socket_timeout": 0.1,
    "socket_connect_timeout": 0.1,
}


class AddedSettings:
    """Routes and beat entries for the library's own tasks, after the app's own.

    An app may be configured before or after it is bound, and its beat schedule set even later: they are added now and
    whenever the app reads its configuration.
    """

    def __init__(self, app: Celery, config: Config, schedule: Mapping[str, dict[str, Any]]) -> None:
        self._app = app
        self._schedule = schedule
        # Messages of readers and of beat name their queues; these are for messages that somebody sends by hand.
        self._routes: dict[str, Any] = {f"{PREFIX}*": direct(config.queues.revalidate)}
        self._routes |= {entry["task"]: direct(config.queues.upkeep) for entry in schedule.values()}
        app.on_after_configure.connect(self._on_configured)
        app.on_after_finalize.connect(self._on_finalized)
        if app.configured:
            self._add(app.conf)

    def remove(self) -> None:
        """Take routes and entries out of the app again."""
        self._app.on_after_configure.disconnect(self._on_configured)
        self._app.on_after_finalize.disconnect(self._on_finalized)
        if not self._app.configured:
            return
        conf = self._app.conf
        conf["task_routes"] = [routes for routes in _listed(conf.task_routes) if routes != self._routes]
        conf["beat_schedule"] = {
            name: entry for name, entry in (conf.beat_schedule or {}).items() if entry is not self._schedule.get(name)
        }

    def _on_configured(self, source: Any = None, **_: Any) -> None:
        self._add(source)

    def _on_finalized(self, **_: Any) -> None:
        if self._app.configured:  # else they are added when it is: reading it now would be too early
            self._add(self._app.conf)

    def _add(self, conf: Any) -> None:
        # The app's own come first: a user changes an entry of ours by an entry of the same name.
        routes = _listed(conf.task_routes)
        if self._routes not in routes:
            conf["task_routes"] = [*routes, self._routes]
        conf["beat_schedule"] = {**self._schedule, **(conf.beat_schedule or {})}


def direct(queue: str) -> dict[str, str]:
    """Return the options that send a message to a queue whatever exchange the app's own routes name."""
    return {"queue": queue, "exchange": "", "routing_key": queue}


def keep_options(task: Any, **options: Any) -> None:
    """Give a task of the library's own its options, whatever the app sets for all of its tasks.

    Annotations of `"*"`, `task_default_*` and `task_time_limit` are meant for the app's own work: a message a minute, a
    time limit of a second, or a priority that hides messages from who counts them would leave readers waiting.  An
    annotation of the task's own name holds.
    """
    own = annotations_of(task)
    for name, value in {"rate_limit": 0, "priority": 0, **options}.items():  # None would take the app's default
        setattr(task, name, own.get(name, value))


def own_connection(make: Callable[..., Any], connect_for: float, **timeouts: float) -> Any:
    """Return a connection of the library's own to the broker: the app's options, with short timeouts.

    Args:
        make: the app's `connection_for_write`, or `connection_for_read`.
        timeouts: transport options instead of the publisher's.

    Raises:
        ValueError: the broker's URL is misread, or its transport cannot be imported.
    """
    try:
        connection = make(transport_options={**PUBLISHER, **timeouts}, connect_timeout=connect_for)
    except (KeyError, ImportError) as error:
        raise ValueError(str(error)) from error
    # Each host of `redis://a;redis://b` is tried, and none of them again.
    connection.transport_options["max_retries"] = max(0, len(connection.alt) - 1)
    return connection


def _listed(routes: Any) -> list[Any]:
    if not routes:
        return []
    return list(routes) if isinstance(routes, list | tuple) else [routes]
