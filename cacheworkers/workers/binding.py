"""Bind a Celery app to a cache: upkeep tasks, queues, schedule, and what workers do at start; undone by `close`."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery, bootsteps
from celery.signals import beat_init, celeryd_init, task_unknown, worker_process_init, worker_ready

from cacheworkers.config import Config
from cacheworkers.errors import ConfigError, StoreError
from cacheworkers.events import Event
from cacheworkers.flows.load_failure import UNBOUND
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.broker_queues import stamp_messages
from cacheworkers.workers.celery_dispatcher import CeleryDispatcher, RunLoads
from cacheworkers.workers.celery_internals import (
    add_queues,
    apps_made,
    consume_in_order,
    consumed_queues,
    forget_task,
    is_in_task_of_consumer,
    remove_queues,
    survive_lost_host,
)
from cacheworkers.workers.celery_log import log_broker_errors_once, lower_own_tasks
from cacheworkers.workers.celery_settings import HARD_MARGIN, PREFIX, AddedSettings, direct, keep_options
from cacheworkers.workers.task_messages import AroundTask, no_scope
from cacheworkers.workers.worker_command import worker_command

log = logging.getLogger("cacheworkers")

#: How long an upkeep message may wait behind another, a garbage collection say, and be run all the same, seconds.
MAINTENANCE_EXPIRES = 30.0
#: Longest that an upkeep task may run, seconds: the next one goes on from where it was interrupted.
MAINTENANCE_FOR = 3600.0
#: How often a worker renews its mark in the store, seconds.
ALIVE_EVERY = 60.0
#: Name -> what beat has a worker do, and every how many seconds.
UpkeepTasks = Mapping[str, tuple[Callable[[], object], float]]
#: Task names do not contain the namespace: two caches on one app would answer for each other.
_bound: weakref.WeakSet[Celery] = weakref.WeakSet()


class Binding:
    """The user's Celery app, bound; a dispatcher, whose `close` undoes it all.

    Adds to the app: the four queues, which workers without `-Q` take after its own; tasks for loaders and upkeep;
    routes for these tasks, after its own; beat entries `cacheworkers-<name>`, unless it has entries of that name.  In
    each pool child it disposes of inherited connections.  Publishing uses a connection of its own.  Nothing that holds
    for the app's own tasks and queues is changed.
    """

    def __init__(
        self,
        app: Celery,
        config: Config,
        *,
        run_loads: RunLoads,
        undelivered: Callable[[list[LoadRequest]], None],
        upkeep: UpkeepTasks,
        emit: Callable[[Event], None],
        reset_after_fork: Callable[[], None],
        waited_for: Callable[[], int] = lambda: 0,
        on_taken: Callable[[str], None] = lambda queue: None,
        on_alive: Callable[[str], object] = lambda name: None,
        admit: Callable[[], object] = lambda: None,
        refuse: Callable[[Sequence[LoadRequest], str], None] = lambda requests, reason: None,
        is_unbound: Callable[[], bool] = lambda: False,
        command: Callable[[Celery, Sequence[str]], str] = worker_command,
        around_task: AroundTask = no_scope,
    ) -> None:
        """
        Args:
            upkeep: what beat has workers do.
            run_loads: runs the loads of one loader in this thread; the last argument says whether the message was
                delivered before.
            undelivered: gives leases back; called from the publisher thread.
            waited_for: returns how many calls this process's readers wait for.
            on_taken: called in workers that take messages, with "miss", "revalidate" or "warm".
            on_alive: called in a worker that takes any of our queues with its name, when it starts and each minute.
            admit: called in a worker that is about to take any of our queues; what it raises ends the worker.
            refuse: wakes the readers who wait for loads that this worker cannot do, with the reason.
            is_unbound: returns whether loads have sessions without an engine.
            command: returns the command that starts a worker of the app's queues.
            around_task: surrounds each task of a loader.

        Raises:
            ConfigError: the app is bound already.
        """
        if app in _bound:
            raise ConfigError(
                f"a Celery app may be bound to one Cache, {app!r} is bound to another: they would share their tasks; "
                f"close the other first"
            )
        self.app = app
        self._dispatcher = dispatcher = CeleryDispatcher(
            app,
            config,
            run_loads=run_loads,
            undelivered=undelivered,
            emit=emit,
            waited_for=waited_for,
            on_taken=on_taken,
            refuse=refuse,
            around_task=around_task,
        )
        self._upkeep = upkeep
        self._on_fork = reset_after_fork
        self._on_alive = on_alive
        self._is_unbound = is_unbound
        self._command = command
        self._on_ready: list[Callable[[], object]] = [self._log_queues]
        self.message = dispatcher.message
        self.submit_all = dispatcher.submit_all
        self.start = dispatcher.start
        self.register = dispatcher.register
        self.wait_until_sent = dispatcher.wait_until_sent
        self.queue_states = dispatcher.queue_states
        schedule = {
            f"cacheworkers-{name}": {
                "task": f"cacheworkers.{name}",
                "schedule": every,
                "options": {
                    **direct(config.queues.upkeep),
                    "expires": max(every, MAINTENANCE_EXPIRES),
                    "ignore_result": True,
                },
            }
            for name, (_, every) in upkeep.items()
        }
        self._settings = AddedSettings(app, config, schedule)
        self._step = _in_order(dispatcher.queue_names, admit)
        self._connect()

    def on_ready(self, work: Callable[[], object]) -> None:
        """Run something in each worker once it is ready, on a thread of its own: it delays and breaks nothing."""
        self._on_ready.append(work)

    def may_wait_for_itself(self) -> bool:
        """Return whether this thread runs a task of a worker that takes misses: with one slot it would wait in vain."""
        return is_in_task_of_consumer(self.app, self._dispatcher.queue_names[0])

    def worker_command(self) -> str:
        """Return the command that starts a worker of the four queues."""
        return self._command(self.app, self._dispatcher.queue_names)

    def module_of(self, loader: str) -> str:
        """Return the module that declares a loader, as a worker imports it."""
        info = self._dispatcher.infos.get(loader)
        return (info.module if info is not None else "") or f"a module that declares {loader}, which has none here"

    def reset_after_fork(self) -> None:
        """Start over in a child."""
        self._dispatcher.reset_after_fork()

    def close(self) -> None:
        """Publish what is queued, and leave the app as it was: it may be bound again."""
        self._dispatcher.close()
        self._settings.remove()
        remove_queues(self.app, self._dispatcher.queue_names)
        self.app.steps["consumer"].discard(self._step)
        self.app.on_after_finalize.disconnect(self._make_tasks)
        if self.app.finalized:
            for name in self._tasks():
                forget_task(self.app, name)
        for signal, receiver in self._receivers():
            signal.disconnect(receiver)
        _bound.discard(self.app)

    def _connect(self) -> None:
        _bound.add(self.app)
        add_queues(self.app, self._dispatcher.queue_names)
        self.app.steps["consumer"].add(self._step)
        self.app.on_after_finalize.connect(self._make_tasks)
        if self.app.finalized:
            self._make_tasks()
        for signal, receiver in self._receivers():
            signal.connect(receiver)  # weakly: a cache that is forgotten is freed
        stamp_messages("cacheworkers.")

    def _receivers(self) -> list[tuple[Any, Any]]:
        return [
            (celeryd_init, self._worker_starts),
            (worker_ready, self._worker_is_ready),
            (worker_process_init, self._process_starts),
            (task_unknown, self._task_is_unknown),
            (beat_init, self._beat_starts),
        ]

    def _make_tasks(self, **_: Any) -> None:
        for name, work in self._tasks().items():
            forget_task(self.app, name)
            keep_options(
                self.app.task(name=name, lazy=False, shared=False, autoretry_for=())(work),
                ignore_result=True,
                serializer="json",
                soft_time_limit=MAINTENANCE_FOR,
                time_limit=MAINTENANCE_FOR + HARD_MARGIN,
            )

    def _tasks(self) -> dict[str, Callable[..., object]]:
        return {f"cacheworkers.{name}": work for name, (work, _) in self._upkeep.items()}

    def _is_ours(self, sender: Any) -> bool:
        return getattr(sender, "app", None) is self.app

    def _worker_starts(self, instance: Any = None, **_: Any) -> None:
        if self._is_ours(instance):
            lower_own_tasks()

    def _worker_is_ready(self, sender: Any = None, **_: Any) -> None:
        if self._is_ours(sender):
            for work in (*self._on_ready, lambda: self._is_alive(sender.hostname)):
                threading.Thread(target=work, name="cacheworkers-on-ready", daemon=True).start()
            sender.timer.call_repeatedly(ALIVE_EVERY, self._in_thread_is_alive, (sender.hostname,))

    def _in_thread_is_alive(self, name: str) -> None:
        threading.Thread(target=self._is_alive, args=(name,), name="cacheworkers-alive", daemon=True).start()

    def _is_alive(self, name: str) -> None:
        """Leave a mark in the store that this worker runs, if it takes messages of ours, and can load."""
        taken = self._taken()
        if taken:
            with contextlib.suppress(StoreError):
                self._on_alive(name)
            if taken[0] == self._dispatcher.queue_names[0] and self._dispatcher.infos:
                self._dispatcher.on_taken("miss")  # readers need not wait for a message to be taken

    def _taken(self) -> list[str]:
        return [name for name in consumed_queues(self.app) if name in self._dispatcher.queue_names]

    def _process_starts(self, **_: Any) -> None:  # a method: signals hold it weakly
        self._on_fork()

    def _task_is_unknown(self, sender: Any = None, name: str = "", message: Any = None, **_: Any) -> None:
        if self._is_ours(sender) and name.startswith(PREFIX):
            self._dispatcher.on_unknown_task(name, message)

    def _beat_starts(self, sender: Any = None, **_: Any) -> None:
        if self._is_ours(sender):
            lower_own_tasks()
            log_broker_errors_once()

    def _log_queues(self) -> None:
        """Log what keeps a worker that has just started from loading anything."""
        names, taken = self._dispatcher.queue_names, self._taken()
        if not taken:
            log.warning(
                "this worker consumes none of the cache's queues, %s: no load runs here; start another with: %s",
                ", ".join(names),
                self.worker_command(),
            )
        elif not self._dispatcher.infos and set(taken) != {names[-1]}:
            log.warning(
                "this worker consumes %s and knows no loader: have its app import the modules that declare them, as in "
                'app.conf.include = ["shop.loaders"]',
                ", ".join(taken),
            )
        elif self._is_unbound() and len(worker_process_init.receivers) <= len(_bound):  # none but ours binds in a child
            log.error("loads of this worker fail if they use the session: %s", UNBOUND)


def unbound_apps() -> list[str]:
    """Return the names of the Celery apps of this process that no cache is bound to."""
    return sorted({app.main for app in apps_made() if app.main and app not in _bound})


def _in_order(names: tuple[str, ...], admit: Callable[[], object]) -> type:
    """Return a step of a worker's consumer that has it take from our queues in their order, and outlive its broker.

    Args:
        admit: raises what keeps a worker from our queues.
    """

    class ConsumeInOrder(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            if not set(names).isdisjoint(consumed_queues(consumer.app)):
                admit()
            consume_in_order(consumer.task_consumer.channel, names)
            survive_lost_host(consumer.task_consumer.channel)

    return ConsumeInOrder
